//! The memory of processes while they are watched: what is resident over time, how fast it grows, and in which lines.

pub mod mprof;
pub mod parts;
mod picture;
pub mod png;
pub mod svg;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use self::parts::parts_text;
use super::columns::{cut, cut_end, wrapped};
use crate::format::{bytes_text, duration_text, escape, frame_text};
use crate::profile::memory::{MemoryInfo, Parts};
use crate::profile::model::{FrameKind, Profile};

/// The slope is that of the last points of this time.
const SLOPE_WINDOW: Duration = Duration::from_mins(1);

/// Points of one process that are kept; beyond, every second one is dropped.
const MAX_POINTS: usize = 16_384;

/// Lines of one process whose growth is kept; that of further ones is kept as one.
const MAX_LINES: usize = 8_192;

/// It is said how old something is from this age on.
const OLD: Duration = Duration::from_millis(500);

/// Columns in front of the line that touched most.
const COLUMNS: usize = 89;

/// What they are called.
const HEADING: &str = "    PID       RSS      PEAK     RSS/MIN  FAULTS/S   GC/S  GC%  PROCESS";

/// On fewer columns the table has fewer, so that the line has room.
const NARROW: usize = 130;

/// Columns in front of the line then.
const NARROW_COLUMNS: usize = 48;

/// Stands for memory that no Python line touched.
const NO_LINE: &str = "[no Python line]";

/// Stands for the lines beyond [`MAX_LINES`].
const OTHER_LINES: &str = "[other lines]";

/// A process as it is now.
#[derive(Debug, Clone)]
pub struct Observed {
    /// Process id.
    pub pid: u32,
    /// Tells it from others that had the id before.
    pub start_time: SystemTime,
    /// What it runs, in short: `app.py`, `-m http.server`.
    pub program: String,
    /// Its memory.
    pub memory: MemoryInfo,
    /// What it was made of when that was looked at last, and how long ago; `None`: it was not.
    pub parts: Option<(Parts, Duration)>,
}

/// The memory of a process at a moment.
#[derive(Debug, Clone, Copy)]
pub struct Point {
    /// When.
    pub at: SystemTime,
    /// What it was.
    pub memory: MemoryInfo,
    /// Page faults since the point before.
    pub n_faults: i64,
}

/// A process that is watched.
#[derive(Debug, Clone)]
pub struct Watched {
    /// Process id.
    pub pid: u32,
    /// Program with its script or module.
    pub program: String,
    /// In the order of their times; never empty.
    pub points: Vec<Point>,
    /// Bytes that were touched first, by the line that did it.
    pub grown: HashMap<String, i64>,
    /// It was there when last looked.
    pub is_running: bool,
    /// What its memory was made of when that was looked at last, and how long before its last point.
    pub parts: Option<(Parts, Duration)>,
}

impl Watched {
    /// What was seen last.
    #[must_use]
    pub fn last(&self) -> MemoryInfo {
        self.points[self.points.len() - 1].memory
    }

    /// Growth of what is resident over the last minute, in bytes a minute, by least squares; `None` with fewer than three
    /// points.
    #[must_use]
    pub fn slope(&self) -> Option<f64> {
        let end = self.points.last()?.at;
        let age = |point: &Point| end.duration_since(point.at).unwrap_or_default();
        let recent = self
            .points
            .iter()
            .filter(|point| age(point) <= SLOPE_WINDOW);
        let recent: Vec<(f64, f64)> = recent
            .map(|point| {
                let minutes = -age(point).as_secs_f64() / 60.0;
                (minutes, point.memory.resident.total() as f64)
            })
            .collect();
        if recent.len() < 3 {
            return None;
        }
        let n_points = recent.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| recent.iter().map(of).sum::<f64>() / n_points;
        let (mean_x, mean_y) = (mean(|(x, _)| *x), mean(|(_, y)| *y));
        let (mut covariance, mut variance) = (0.0, 0.0);
        for (x, y) in &recent {
            covariance += (x - mean_x) * (y - mean_y);
            variance += (x - mean_x) * (x - mean_x);
        }
        (variance > 0.0).then(|| covariance / variance)
    }

    /// Page faults a second, between the last two points.
    #[must_use]
    pub fn faults_per_second(&self) -> Option<f64> {
        let [.., before, last] = self.points.as_slice() else {
            return None;
        };
        Some(last.n_faults as f64 / seconds(before, last)?)
    }

    /// Collections of garbage a second, between the last two points.
    #[must_use]
    pub fn collections_per_second(&self) -> Option<f64> {
        let [.., before, last] = self.points.as_slice() else {
            return None;
        };
        let n_collections = |point: &Point| Some(point.memory.gc?.collections.iter().sum::<u64>());
        let n_more = n_collections(last)?.saturating_sub(n_collections(before)?);
        Some(n_more as f64 / seconds(before, last)?)
    }

    /// Share of the time that collections of garbage took, between the last two points.
    #[must_use]
    pub fn gc_share(&self) -> Option<f64> {
        let [.., before, last] = self.points.as_slice() else {
            return None;
        };
        let time = |point: &Point| point.memory.gc?.time();
        let more = time(last)?.saturating_sub(time(before)?);
        Some(more.as_secs_f64() / seconds(before, last)?)
    }

    /// The line that touched most memory, and how much; `None` when none touched any.
    #[must_use]
    pub fn grew_most(&self) -> Option<(&str, i64)> {
        self.lines().into_iter().next()
    }

    /// Lines by the memory that they touched, most first.
    #[must_use]
    pub fn lines(&self) -> Vec<(&str, i64)> {
        by_bytes(self.grown.iter().map(|(line, n_bytes)| (&**line, *n_bytes)))
    }

    /// Adds to what its lines touched. Beyond a bound lines are not told apart.
    fn touch(&mut self, growth: Growth) {
        for (line, n_bytes) in growth.lines {
            let has_room = self.grown.len() < MAX_LINES || self.grown.contains_key(&line);
            let line = if has_room {
                line
            } else {
                OTHER_LINES.to_owned()
            };
            *self.grown.entry(line).or_insert(0) += n_bytes;
        }
    }
}

fn seconds(before: &Point, last: &Point) -> Option<f64> {
    let seconds = last.at.duration_since(before.at).ok()?.as_secs_f64();
    (seconds > 0.0).then_some(seconds)
}

/// Lines of all processes of a profile of page faults by the memory that they touched, most first.
#[must_use]
pub fn touched_by_line(profile: &Profile) -> Vec<(String, i64)> {
    let mut lines: HashMap<String, i64> = HashMap::new();
    for growth in grown_by_process(profile).into_values() {
        for (line, n_bytes) in growth.lines {
            *lines.entry(line).or_insert(0) += n_bytes;
        }
    }
    let sorted = by_bytes(lines.iter().map(|(line, n_bytes)| (&**line, *n_bytes)));
    sorted
        .into_iter()
        .map(|(line, n_bytes)| (line.to_owned(), n_bytes))
        .collect()
}

fn by_bytes<'a>(lines: impl Iterator<Item = (&'a str, i64)>) -> Vec<(&'a str, i64)> {
    let mut lines: Vec<_> = lines.filter(|(_, n_bytes)| *n_bytes > 0).collect();
    lines.sort_unstable_by_key(|(line, n_bytes)| (std::cmp::Reverse(*n_bytes), *line));
    lines
}

/// By what the table is sorted, largest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SortKey {
    /// What is resident now.
    #[default]
    Rss,
    /// The most that ever was.
    Peak,
    /// How fast it grows.
    Slope,
    /// Page faults a second.
    Faults,
    /// Collections of garbage a second.
    Gc,
}

impl SortKey {
    /// Every key.
    pub const ALL: [Self; 5] = [Self::Rss, Self::Peak, Self::Slope, Self::Faults, Self::Gc];

    /// Name, as `--sort` takes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rss => "rss",
            Self::Peak => "peak",
            Self::Slope => "slope",
            Self::Faults => "faults",
            Self::Gc => "gc",
        }
    }

    fn of(self, watched: &Watched) -> f64 {
        match self {
            Self::Rss => watched.last().resident.total() as f64,
            Self::Peak => watched.last().resident.peak as f64,
            Self::Slope => watched.slope().unwrap_or(0.0),
            Self::Faults => watched.faults_per_second().unwrap_or(0.0),
            Self::Gc => watched.collections_per_second().unwrap_or(0.0),
        }
    }
}

impl FromStr for SortKey {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|key| key.name() == name);
        known.ok_or_else(|| format!("there are {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// Every process that was seen since the start.
#[derive(Debug, Clone, Default)]
pub struct MemoryWatch {
    /// By process id and start: ids are given again.
    processes: BTreeMap<(u32, SystemTime), Watched>,
}

impl MemoryWatch {
    /// Takes what the processes have now, and the page faults of the time since it was called before.
    pub fn add(&mut self, at: SystemTime, processes: Vec<Observed>, faults: Option<&Profile>) {
        let mut grown = faults.map(grown_by_process).unwrap_or_default();
        for watched in self.processes.values_mut() {
            watched.is_running = false;
        }
        for process in processes {
            let growth = grown.remove(&process.pid).unwrap_or_default();
            let point = Point {
                at,
                memory: process.memory,
                n_faults: growth.n_faults,
            };
            let watched = self
                .processes
                .entry((process.pid, process.start_time))
                .or_insert_with(|| Watched {
                    pid: process.pid,
                    program: process.program,
                    points: Vec::new(),
                    grown: HashMap::new(),
                    is_running: true,
                    parts: None,
                });
            watched.is_running = true;
            watched.parts = process.parts;
            watched.points.push(point);
            if watched.points.len() > MAX_POINTS {
                let mut idx = 0;
                watched.points.retain(|_| {
                    idx += 1;
                    idx % 2 == 1
                });
            }
            watched.touch(growth);
        }
    }

    /// Takes page faults since it was called last, of processes that are known, without a look at what they have.
    pub fn add_touched(&mut self, faults: &Profile) {
        let mut grown = grown_by_process(faults);
        for watched in self.processes.values_mut().filter(|it| it.is_running) {
            if let Some(growth) = grown.remove(&watched.pid) {
                watched.touch(growth);
            }
        }
    }

    /// Those that are there, sorted.
    #[must_use]
    pub fn running(&self, key: SortKey) -> Vec<&Watched> {
        let mut running: Vec<_> = self.processes.values().filter(|it| it.is_running).collect();
        running.sort_by(|a, b| key.of(b).total_cmp(&key.of(a)));
        running
    }

    /// Everything that was seen, in the order of the process ids.
    pub fn all(&self) -> impl Iterator<Item = &Watched> {
        self.processes.values()
    }

    /// Lines of all processes by the memory that they touched, most first.
    #[must_use]
    pub fn lines(&self) -> Vec<(&str, i64)> {
        let mut lines: HashMap<&str, i64> = HashMap::new();
        for watched in self.processes.values() {
            for (line, n_bytes) in &watched.grown {
                *lines.entry(line).or_insert(0) += n_bytes;
            }
        }
        by_bytes(lines.into_iter())
    }

    /// The table, `width` columns wide at most, of the first `top` processes.
    #[must_use]
    pub fn table(&self, key: SortKey, top: usize, width: usize) -> String {
        let running = self.running(key);
        let mut text = String::new();
        let (heading, columns) = if width < NARROW {
            ("    PID       RSS     RSS/MIN  PROCESS", NARROW_COLUMNS)
        } else {
            (HEADING, COLUMNS)
        };
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "{}",
            cut_end(&format!("{heading:<columns$}TOUCHED MOST"), width)
        );
        for watched in running.iter().take(top) {
            let line = row(watched, width);
            let _ = writeln!(text, "{}", cut_end(&line, width));
        }
        if running.len() > top {
            let _ = writeln!(text, "{:>7} more (--top)", running.len() - top);
        }
        if running.is_empty() {
            text.push_str("no Python process\n");
        }
        for watched in running.iter().take(top) {
            let Some((parts, age)) = watched.parts else {
                continue;
            };
            let when = if age < OLD {
                String::new()
            } else {
                format!(" {} ago", duration_text(age))
            };
            let line = format!("{}{when}: {}", watched.pid, parts_text(&parts));
            let _ = write!(text, "\n{}", wrapped(&line, 0, width));
        }
        text
    }
}

fn row(watched: &Watched, width: usize) -> String {
    let resident = watched.last().resident;
    let number = |value: Option<f64>, digits: usize| match value {
        Some(value) => format!("{value:.digits$}"),
        None => "-".to_owned(),
    };
    let slope = watched.slope().map_or("-".to_owned(), |slope| {
        let sign = if slope >= 1.0 { "+" } else { "" };
        format!("{sign}{}", bytes_text(slope.round() as i64))
    });
    let grew_most = watched
        .grew_most()
        .map_or(String::new(), |(line, n_bytes)| {
            let text = format!("{} {line}", bytes_text(n_bytes));
            let columns = if width < NARROW {
                NARROW_COLUMNS
            } else {
                COLUMNS
            };
            cut(&text, width.saturating_sub(columns))
        });
    if width < NARROW {
        return format!(
            "{:>7} {:>9} {:>11}  {:<15}  {grew_most}",
            watched.pid,
            bytes_text(resident.total() as i64),
            slope,
            cut(&escape(&watched.program), 15),
        );
    }
    format!(
        "{:>7} {:>9} {:>9} {:>11} {:>9} {:>6} {:>4}  {:<24}  {grew_most}",
        watched.pid,
        bytes_text(resident.total() as i64),
        bytes_text(resident.peak as i64),
        slope,
        number(watched.faults_per_second(), 0),
        number(watched.collections_per_second(), 1),
        number(watched.gc_share().map(|share| share * 100.0), 0),
        cut(&escape(&watched.program), 24),
    )
}

/// What a profile of page faults says of one process.
#[derive(Debug, Default)]
struct Growth {
    n_faults: i64,
    lines: HashMap<String, i64>,
}

fn grown_by_process(profile: &Profile) -> HashMap<u32, Growth> {
    let mut by_process: HashMap<u32, Growth> = HashMap::new();
    for sample in &profile.samples {
        let (n_faults, n_bytes) = (sample.values[0], sample.values[1]);
        let Ok(pid) = u32::try_from(profile.thread(sample.labels).pid) else {
            continue;
        };
        let line = profile
            .frames(sample.stack)
            .find(|frame| frame.kind == FrameKind::Python)
            .map_or_else(|| NO_LINE.to_owned(), |frame| frame_text(&frame));
        let growth = by_process.entry(pid).or_default();
        growth.n_faults += n_faults;
        *growth.lines.entry(line).or_insert(0) += n_bytes;
    }
    by_process
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::memory::{GcStats, Resident};

    const MIB: u64 = 1 << 20;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn observed(pid: u32, anon: u64, n_collections: u64) -> Observed {
        Observed {
            pid,
            start_time: SystemTime::UNIX_EPOCH,
            program: format!("app{pid}.py"),
            memory: MemoryInfo {
                resident: Resident {
                    anon,
                    file: MIB,
                    peak: 900 * MIB,
                    ..Resident::default()
                },
                gc: Some(GcStats {
                    collections: [n_collections, 0, 0],
                    ..GcStats::default()
                }),
            },
            parts: None,
        }
    }

    /// A process that grows by 2 MiB in each of `n` seconds and one that stands still.
    fn watched(n: u64) -> MemoryWatch {
        let mut watch = MemoryWatch::default();
        for second in 0..n {
            let growing = observed(7, (10 + 2 * second) * MIB, 3 * second);
            let processes = vec![growing, observed(8, 500 * MIB, 0)];
            watch.add(at(second), processes, None);
        }
        watch
    }

    #[test]
    fn what_the_memory_is_made_of_stands_beneath_in_as_many_lines_as_it_takes() {
        let mut watch = MemoryWatch::default();
        let mut process = observed(7, 10 * MIB, 0);
        let parts = Parts {
            resident: 11 * MIB,
            small_objects: 4 * MIB,
            malloc: 6 * MIB,
            programs: MIB,
            ..Parts::default()
        };
        process.parts = Some((parts, Duration::ZERO));
        watch.add(at(0), vec![process.clone()], None);
        let table = watch.table(SortKey::Rss, 10, 60);
        let lines: Vec<&str> = table.lines().skip(3).collect();
        assert_eq!(
            lines,
            [
                "7: 11.0 MiB resident: small objects 4.0 MiB (0 B in use),",
                "  malloc 6.0 MiB, programs and libraries 1.0 MiB"
            ]
        );
        // Not looked at again: it is what was then.
        process.parts = Some((parts, Duration::from_secs(3)));
        watch.add(at(1), vec![process], None);
        let table = watch.table(SortKey::Rss, 10, 60);
        assert!(table.contains("7 3 s ago: 11.0 MiB resident"), "{table}");
    }

    #[test]
    fn the_slope_is_that_of_the_last_minute() {
        let watch = watched(300);
        let running = watch.running(SortKey::Slope);
        let slope = running[0].slope().unwrap();
        assert!((slope / MIB as f64 - 120.0).abs() < 1e-6, "{slope}");
        assert_eq!(running[0].pid, 7);
        assert!(running[1].slope().unwrap().abs() < 1e-6);
        assert_eq!(running[0].collections_per_second(), Some(3.0));
        assert_eq!(watched(2).running(SortKey::Rss)[0].slope(), None);
    }

    #[test]
    fn the_table_is_sorted_and_fits() {
        let watch = watched(5);
        // A narrow one leaves columns out, so that there is room for the line.
        for (width, begin) in [
            (60, "      8 501.0 MiB         0 B  app8.py"),
            (80, "      8 501.0 MiB         0 B  app8.py"),
            (140, "      8 501.0 MiB 900.0 MiB"),
        ] {
            let table = watch.table(SortKey::Rss, 1, width);
            let lines: Vec<_> = table.lines().collect();
            assert!(lines[0].contains("TOUCHED"), "{table}");
            assert!(lines[1].starts_with(begin), "{table}");
            assert_eq!(lines[2], "      1 more (--top)");
            assert!(
                lines.iter().all(|line| line.chars().count() <= width),
                "{table}"
            );
        }
    }

    #[test]
    fn what_has_ended_is_kept_but_not_shown() {
        let mut watch = watched(3);
        watch.add(at(3), vec![observed(8, MIB, 0)], None);
        assert_eq!(watch.running(SortKey::Rss).len(), 1);
        assert_eq!(watch.all().count(), 2);
        let dat = mprof::dat(&watch, 8);
        let lines: Vec<_> = dat.lines().collect();
        assert_eq!(lines[0], "CMDLINE app8.py");
        assert_eq!(lines[1], "MEM 501.000000 0.0000");
        assert_eq!(
            lines
                .iter()
                .filter(|line| line.starts_with("CHLD 0 "))
                .count(),
            3
        );
    }

    #[test]
    fn points_are_thinned_out_before_they_are_too_many() {
        let watch = watched(MAX_POINTS as u64 * 2);
        let watched = watch.all().next().unwrap();
        assert!(watched.points.len() <= MAX_POINTS);
        assert_eq!(watched.points[0].at, at(0));
        assert!(watched.points.is_sorted_by_key(|point| point.at));
    }
}
