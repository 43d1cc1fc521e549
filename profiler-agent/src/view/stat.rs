//! `pyagent stat`: what the runs of a command took, as text and in the shape of hyperfine's JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::columns::{bounded, columns, wrapped};
use crate::format::{bytes_text, escape, thousands};

/// A run whose modified z-score is above this is an outlier: Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993.
const OUTLIER: f64 = 3.5;

/// Fewer runs than this have no outliers: the deviation itself is too little known.
const MIN_RUNS_FOR_OUTLIERS: usize = 5;

/// Columns of remarks.
const REMARK_WIDTH: usize = 100;

/// What one run took, with all that it started and waited for: getrusage(2).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// By CLOCK_MONOTONIC, in seconds.
    pub wall: f64,
    /// CPU time in user space, in seconds.
    pub user: f64,
    /// CPU time in the kernel, in seconds.
    pub system: f64,
    /// The most that one of the processes had resident, in bytes.
    pub max_rss: i64,
    /// Page faults without reading from a disk.
    pub minor_faults: i64,
    /// Page faults that had to wait for a disk.
    pub major_faults: i64,
    /// Times that it waited for something.
    pub voluntary_switches: i64,
    /// Times that another one took its CPU.
    pub involuntary_switches: i64,
    /// Blocks of 512 bytes that were read from disks.
    pub blocks_in: i64,
    /// The same, written.
    pub blocks_out: i64,
    /// Its exit code; `None`: a signal killed it.
    pub code: Option<i32>,
    /// The signal that killed it.
    pub signal: Option<i32>,
}

/// What is shown.
#[derive(Debug)]
pub struct Stat<'a> {
    /// The command, as it was typed.
    pub command: &'a [String],
    /// Its runs; warm-ups are not among them.
    pub runs: &'a [Run],
    /// Runs before them.
    pub n_warmups: u32,
    /// Runs that were asked for.
    pub n_wanted: u32,
    /// The functions of the runs, as `report` shows them, or why there are none.
    pub functions: Result<String, String>,
    /// The same for programs; null where there are none.
    pub functions_json: Value,
    /// Columns of the terminal; `None`: no bound, as in a file.
    pub width: Option<usize>,
}

/// How some values lie.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Standard deviation, of a sample (n - 1); `None` of one value.
    pub deviation: Option<f64>,
    /// Median: of an even number the mean of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of these; `None` of none.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let n = sorted.len() as f64;
        let mean = sorted.iter().sum::<f64>() / n;
        let squares: f64 = sorted.iter().map(|value| (value - mean).powi(2)).sum();
        Some(Self {
            mean,
            deviation: (sorted.len() > 1).then(|| (squares / (n - 1.0)).sqrt()),
            median: median(&sorted),
            min,
            max,
        })
    }
}

/// Of values in their order; there is one at least.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    } else {
        sorted[middle]
    }
}

/// The places of the values that lie far from the others: `0.6745 * |value - median| / MAD` above [`OUTLIER`], where MAD is the
/// median of all distances to the median. 0.6745 makes it the number of standard deviations where values lie normally.
#[must_use]
pub fn outliers(values: &[f64]) -> Vec<usize> {
    if values.len() < MIN_RUNS_FOR_OUTLIERS {
        return Vec::new();
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = median(&sorted);
    let mut distances: Vec<f64> = values.iter().map(|value| (value - middle).abs()).collect();
    distances.sort_by(f64::total_cmp);
    let deviation = median(&distances);
    let is_far =
        |value: f64| deviation > 0.0 && 0.6745 * (value - middle).abs() / deviation > OUTLIER;
    (0..values.len())
        .filter(|idx| is_far(values[*idx]))
        .collect()
}

/// A figure of each run.
struct Row {
    name: &'static str,
    value: fn(&Run) -> f64,
    text: fn(f64) -> String,
}

static ROWS: &[Row] = &[
    Row {
        name: "wall time",
        value: |run| run.wall,
        text: seconds,
    },
    Row {
        name: "user time",
        value: |run| run.user,
        text: seconds,
    },
    Row {
        name: "system time",
        value: |run| run.system,
        text: seconds,
    },
    Row {
        name: "of a CPU",
        value: cpu_share,
        text: |share| format!("{:.0} %", 100.0 * share),
    },
    Row {
        name: "max RSS",
        value: |run| run.max_rss as f64,
        text: |bytes| bytes_text(bytes as i64),
    },
    Row {
        name: "minor faults",
        value: |run| run.minor_faults as f64,
        text: number,
    },
    Row {
        name: "major faults",
        value: |run| run.major_faults as f64,
        text: number,
    },
    Row {
        name: "voluntary switches",
        value: |run| run.voluntary_switches as f64,
        text: number,
    },
    Row {
        name: "involuntary switches",
        value: |run| run.involuntary_switches as f64,
        text: number,
    },
    Row {
        name: "blocks read",
        value: |run| run.blocks_in as f64,
        text: number,
    },
    Row {
        name: "blocks written",
        value: |run| run.blocks_out as f64,
        text: number,
    },
];

fn cpu_share(run: &Run) -> f64 {
    if run.wall > 0.0 {
        (run.user + run.system) / run.wall
    } else {
        0.0
    }
}

fn seconds(value: f64) -> String {
    format!("{value:.3} s")
}

fn number(value: f64) -> String {
    if value.fract().abs() < 0.05 {
        thousands(value.round() as i64)
    } else {
        format!(
            "{}.{}",
            thousands(value as i64),
            (value.fract() * 10.0) as i64
        )
    }
}

/// As text.
#[must_use]
pub fn text(stat: &Stat<'_>) -> String {
    let command = escape(&command_line(stat.command)).into_owned();
    let mut text = match stat.runs.len() {
        0 => return format!("no run of {command} has ended\n"),
        1 => format!("1 run of {command}"),
        n => format!("{n} runs of {command}"),
    };
    if stat.runs.len() < stat.n_wanted as usize {
        // Writing to a String does not fail.
        let _ = write!(text, ", of {} that were asked for", stat.n_wanted);
    }
    if stat.n_warmups > 0 {
        let _ = write!(text, ", after {} to warm up", stat.n_warmups);
    }
    text.push_str(
        "\nwhole commands are timed: the start of the interpreter, and all that is started and waited for, is in it\n",
    );
    text = prose(stat, &text);
    text.push('\n');
    text.push_str(&table(stat));
    let ended = format!("{:<20}  {}\n", "ended with", endings(stat.runs));
    text.push_str(&prose(stat, &ended));
    text.push_str(&far_off(stat));
    match &stat.functions {
        Ok(functions) => {
            let _ = write!(text, "\n{functions}");
        }
        Err(why) => text.push_str(&wrapped(
            &format!("no functions: {}", escape(why)),
            0,
            remark_width(stat),
        )),
    }
    text
}

fn remark_width(stat: &Stat<'_>) -> usize {
    stat.width.unwrap_or(REMARK_WIDTH).min(REMARK_WIDTH)
}

/// Sentences: lines that the terminal has no room for go on on the next one.
fn prose(stat: &Stat<'_>, text: &str) -> String {
    let width = stat.width.unwrap_or(usize::MAX);
    let mut prose = String::new();
    for line in text.lines() {
        if columns(line) <= width {
            prose.push_str(line);
            prose.push('\n');
        } else {
            prose.push_str(&wrapped(line, 0, width));
        }
    }
    prose
}

/// The figures, as many columns of them as there is room for.
fn table(stat: &Stat<'_>) -> String {
    let rows: Vec<(&str, Vec<String>)> = ROWS
        .iter()
        .filter_map(|row| {
            let values: Vec<f64> = stat.runs.iter().map(row.value).collect();
            let spread = Spread::of(&values)?;
            let mut cells = vec![spread.mean];
            if let Some(deviation) = spread.deviation {
                cells.extend([deviation, spread.median, spread.min, spread.max]);
            }
            Some((row.name, cells.into_iter().map(row.text).collect()))
        })
        .collect();
    let all = ["mean", "deviation", "median", "min", "max"];
    let room = stat.width.unwrap_or(usize::MAX).saturating_sub(20);
    let cells = rows.iter().flat_map(|(_, cells)| cells);
    let widest = cells.map(String::len).max().unwrap_or(0).max(9);
    let width = if room >= all.len() * (11 + 2) {
        widest.max(11)
    } else {
        widest
    };
    let n_heads = (room / (width + 2)).clamp(1, all.len());
    let (heads, left_out) = all.split_at(n_heads);
    let mut text = String::new();
    // Writing to a String does not fail.
    if stat.runs.len() > 1 {
        let _ = write!(text, "{:<20}", "");
        for head in heads {
            let _ = write!(text, "  {head:>width$}");
        }
        text.push('\n');
    }
    for (name, cells) in rows {
        let _ = write!(text, "{name:<20}");
        for cell in cells.iter().take(n_heads) {
            let _ = write!(text, "  {cell:>width$}");
        }
        text.push('\n');
    }
    if stat.runs.len() > 1 && !left_out.is_empty() {
        let _ = writeln!(text, "in a wider terminal: {} too", left_out.join(", "));
    }
    match stat.width {
        Some(width) => bounded(&text, width),
        None => text,
    }
}

/// How the runs ended: `exit code 0 (9 times), signal 9`.
fn endings(runs: &[Run]) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for run in runs {
        let ending = match (run.code, run.signal) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "an unknown end".to_owned(),
        };
        *counts.entry(ending).or_default() += 1;
    }
    let texts = counts.into_iter().map(|(ending, count)| match count {
        1 => ending,
        count => format!("{ending} ({count} times)"),
    });
    texts.collect::<Vec<_>>().join(", ")
}

/// The outliers of the wall time.
fn far_off(stat: &Stat<'_>) -> String {
    let walls: Vec<f64> = stat.runs.iter().map(|run| run.wall).collect();
    let found = outliers(&walls);
    if found.is_empty() {
        return String::new();
    }
    let texts: Vec<String> = found
        .iter()
        .map(|idx| format!("run {} ({})", idx + 1, seconds(walls[*idx])))
        .collect();
    let hint = if found == [0] {
        "; the first one may have filled caches: --warmup 1"
    } else {
        ""
    };
    let text = format!(
        "far off the other runs, by a modified z-score above {OUTLIER}: {}{hint}",
        texts.join(", ")
    );
    wrapped(&text, 0, remark_width(stat))
}

/// As hyperfine exports it; what it does not have stands beside.
#[must_use]
pub fn json(stat: &Stat<'_>) -> Value {
    let column = |value: fn(&Run) -> f64| stat.runs.iter().map(value).collect::<Vec<f64>>();
    let whole = |value: fn(&Run) -> i64| stat.runs.iter().map(value).collect::<Vec<i64>>();
    let walls = column(|run| run.wall);
    let spread = Spread::of(&walls);
    let mean = |value| Spread::of(&column(value)).map(|spread| spread.mean);
    let mut result = json!({
        "command": command_line(stat.command),
        "mean": spread.map(|it| it.mean),
        "stddev": spread.and_then(|it| it.deviation),
        "median": spread.map(|it| it.median),
        "user": mean(|run| run.user),
        "system": mean(|run| run.system),
        "min": spread.map(|it| it.min),
        "max": spread.map(|it| it.max),
        "times": walls,
        "memory_usage_byte": whole(|run| run.max_rss),
        "exit_codes": stat.runs.iter().map(|run| run.code).collect::<Vec<_>>(),
        "signals": stat.runs.iter().map(|run| run.signal).collect::<Vec<_>>(),
        "user_times": column(|run| run.user),
        "system_times": column(|run| run.system),
        "minor_faults": whole(|run| run.minor_faults),
        "major_faults": whole(|run| run.major_faults),
        "voluntary_switches": whole(|run| run.voluntary_switches),
        "involuntary_switches": whole(|run| run.involuntary_switches),
        "blocks_read": whole(|run| run.blocks_in),
        "blocks_written": whole(|run| run.blocks_out),
        "outliers": outliers(&walls),
        "warmups": stat.n_warmups,
    });
    result["profile"] = stat.functions_json.clone();
    if let Err(why) = &stat.functions {
        result["no_profile"] = why.as_str().into();
    }
    json!({ "results": [result] })
}

/// The command as a shell would take it.
fn command_line(command: &[String]) -> String {
    let is_plain = |char: char| char.is_alphanumeric() || "-_./=:,@%+".contains(char);
    let quoted = command.iter().map(|word| {
        if !word.is_empty() && word.chars().all(is_plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', "'\\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(wall: f64) -> Run {
        Run {
            wall,
            user: wall / 2.0,
            system: wall / 4.0,
            max_rss: 3 << 20,
            minor_faults: 1234,
            major_faults: 0,
            voluntary_switches: 1,
            involuntary_switches: 2,
            blocks_in: 0,
            blocks_out: 0,
            code: Some(0),
            signal: None,
        }
    }

    fn stat<'a>(command: &'a [String], runs: &'a [Run]) -> Stat<'a> {
        Stat {
            command,
            runs,
            n_warmups: 0,
            n_wanted: runs.len() as u32,
            functions: Err("nobody asked".to_owned()),
            functions_json: Value::Null,
            width: None,
        }
    }

    #[test]
    fn spreads_are_those_of_the_textbooks() {
        let spread = Spread::of(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).unwrap();
        assert!((spread.mean - 5.0).abs() < 1e-12 && (spread.median - 4.5).abs() < 1e-12);
        // 32 over 7.
        assert!((spread.deviation.unwrap() - (32.0_f64 / 7.0).sqrt()).abs() < 1e-12);
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[1.0]).unwrap().deviation, None);
    }

    #[test]
    fn what_lies_far_off_is_an_outlier_and_what_varies_is_none() {
        assert_eq!(outliers(&[1.0, 1.1, 0.9, 1.05, 0.95, 3.0]), [5]);
        assert!(outliers(&[1.0, 1.1, 0.9, 1.05, 0.95, 1.2]).is_empty());
        // All the same but one: nothing says how far is far.
        assert!(outliers(&[1.0, 1.0, 1.0, 1.0, 1.0, 3.0]).is_empty());
        assert!(outliers(&[1.0, 9.0]).is_empty());
    }

    #[test]
    fn no_row_is_wider_than_the_terminal() {
        let command = ["python3".to_owned(), "x".repeat(300), "日本語".repeat(30)];
        let runs = [
            run(1.0),
            run(123_456.0),
            run(3.0),
            run(1.0),
            run(1.1),
            run(1.2),
        ];
        for n_runs in [1, 2, 6] {
            for width in 60..200 {
                let stat = Stat {
                    width: Some(width),
                    functions: Err("nobody asked ".repeat(20)),
                    ..stat(&command, &runs[..n_runs])
                };
                for line in text(&stat).lines() {
                    assert!(columns(line) <= width, "{width}: {line}");
                }
            }
        }
        let command = ["python3".to_owned()];
        let runs = [run(1.0), run(2.0)];
        let narrow = Stat {
            width: Some(80),
            ..stat(&command, &runs)
        };
        assert!(text(&narrow).contains("       max\n"), "{}", text(&narrow));
        let narrow = Stat {
            width: Some(60),
            ..narrow
        };
        assert!(
            text(&narrow).contains("\nin a wider terminal: min, max too\n"),
            "{}",
            text(&narrow)
        );
    }

    #[test]
    fn one_run_has_one_column_and_more_have_five() {
        let command = ["python3".to_owned(), "a b.py".to_owned()];
        let one = text(&stat(&command, &[run(1.0)]));
        assert!(
            one.starts_with("1 run of python3 'a b.py'\nwhole commands are timed"),
            "{one}"
        );
        assert!(one.contains("wall time                 1.000 s\n"), "{one}");
        assert!(one.contains("of a CPU                     75 %\n"), "{one}");
        assert!(one.contains("minor faults                1,234\n"), "{one}");
        assert!(
            one.ends_with("ended with            exit code 0\nno functions: nobody asked\n"),
            "{one}"
        );
        let killed = Run {
            code: None,
            signal: Some(9),
            ..run(3.0)
        };
        let runs = [run(1.0), run(1.0), killed];
        let three = text(&stat(&command, &runs));
        assert!(
            three.contains("wall time                 1.667 s      1.155 s      1.000 s      1.000 s      3.000 s\n"),
            "{three}"
        );
        assert!(
            three.contains("exit code 0 (2 times), signal 9\n"),
            "{three}"
        );
        assert_eq!(
            text(&stat(&command, &[])),
            "no run of python3 'a b.py' has ended\n"
        );
        let document = json(&stat(&command, &runs));
        assert_eq!(document["results"][0]["exit_codes"], json!([0, 0, null]));
    }
}
