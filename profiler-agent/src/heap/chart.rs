//! Counts by type over time, as an HTML page that needs nothing else: a small chart for each type.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use super::names::TypeName;
use super::report::full_name;
use super::snapshot::Snapshot;
use super::tally::TypeCount;
use crate::format::{bytes_text, escape, thousands};
use crate::ids::Pid;
use crate::python::layout::Version;

/// Most looks that are kept; when there are more every other one is dropped.
const MAX_LOOKS: usize = 2048;

/// Most types that are followed: those that were among the largest of a look.
const MAX_TYPES: usize = 512;

/// Types of each look that are followed from then on.
const MAX_NEW_TYPES: usize = 128;

/// Size of a chart, in the units of its picture.
const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 60.0;

const HEAD: &str = "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<style>\n\
body { font: 14px system-ui, sans-serif; margin: 2em; color: #222; background: #fff }\n\
table { border-collapse: collapse } td, th { padding: .3em .8em; text-align: right; vertical-align: middle }\n\
td.type { text-align: left; font-family: monospace; overflow-wrap: anywhere; max-width: 40em }\n\
svg { width: 480px; height: 60px; background: #f4f6f8 } polyline { fill: none; stroke: #1f6feb; stroke-width: 1.5 }\n\
</style>\n";

/// The looks so far.
#[derive(Debug)]
pub struct Chart {
    pid: Pid,
    version: Version,
    /// Seconds since 1970 of each look.
    times: Vec<f64>,
    /// By type, one entry a look; a type that came later begins with zeros.
    series: HashMap<TypeName, Vec<TypeCount>>,
    total: Vec<TypeCount>,
}

impl Chart {
    /// Without a look.
    #[must_use]
    pub fn new(pid: Pid, version: Version) -> Self {
        Self {
            pid,
            version,
            times: Vec::new(),
            series: HashMap::new(),
            total: Vec::new(),
        }
    }

    /// Whether there is no look.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.times.is_empty()
    }

    /// Looks so far.
    #[must_use]
    pub fn n_looks(&self) -> usize {
        self.times.len()
    }

    /// Objects of the last look.
    #[must_use]
    pub fn last_count(&self) -> String {
        let last = self.total.last().map_or(0, |total| total.n_objects);
        thousands(last.cast_signed())
    }

    /// Adds a look.
    pub fn add(&mut self, time: SystemTime, snapshot: &Snapshot) {
        if self.times.len() >= MAX_LOOKS {
            halve(&mut self.times);
            halve(&mut self.total);
            for series in self.series.values_mut() {
                halve(series);
            }
        }
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.times.push(since.as_secs_f64());
        self.total.push(snapshot.total());
        for (idx, row) in snapshot.types.iter().enumerate() {
            if let Some(series) = self.series.get_mut(&row.name) {
                series.push(row.count);
            } else if idx < MAX_NEW_TYPES && self.series.len() < MAX_TYPES {
                let mut series = vec![TypeCount::default(); self.times.len() - 1];
                series.push(row.count);
                self.series.insert(row.name.clone(), series);
            }
        }
        for series in self.series.values_mut() {
            // Of these there is none any more.
            series.resize(self.times.len(), TypeCount::default());
        }
    }

    /// The page, with the types that grew most.
    #[must_use]
    pub fn html(&self, n_types: usize) -> String {
        let mut out = HEAD.to_owned();
        let title = format!("heap of process {} (CPython {})", self.pid, self.version);
        let title = markup(&title);
        let seconds = match (self.times.first(), self.times.last()) {
            (Some(first), Some(last)) => last - first,
            _ => 0.0,
        };
        // Writing to a String does not fail.
        let _ = write!(
            out,
            "<title>{title}</title></head><body>\n<h1>{title}</h1>\n<p>{} looks in {seconds:.0} s. Each line goes \
             from 0 to the type's largest count; the types whose bytes grew most come first.</p>\n<table>\n\
             <tr><th>type</th><th>first</th><th>last</th><th>change</th><th>bytes</th><th>count over time</th></tr>\n",
            self.times.len()
        );
        self.row(&mut out, "all objects", &self.total);
        let mut series: Vec<_> = self.series.iter().collect();
        series.sort_by(|a, b| growth(b.1).cmp(&growth(a.1)).then_with(|| a.0.cmp(b.0)));
        for (name, counts) in series.into_iter().take(n_types) {
            self.row(&mut out, &full_name(&name.module, &name.qualname), counts);
        }
        out.push_str("</table>\n</body></html>\n");
        out
    }

    fn row(&self, out: &mut String, name: &str, counts: &[TypeCount]) {
        let first = counts.first().copied().unwrap_or_default();
        let last = counts.last().copied().unwrap_or_default();
        let change = last.n_objects.wrapping_sub(first.n_objects).cast_signed();
        let _ = writeln!(
            out,
            "<tr><td class=\"type\">{}</td><td>{}</td><td>{}</td><td>{}{}</td><td>{}</td><td>{}</td></tr>",
            markup(name),
            thousands(first.n_objects.cast_signed()),
            thousands(last.n_objects.cast_signed()),
            if change > 0 { "+" } else { "" },
            thousands(change),
            bytes_text(last.n_bytes.cast_signed()),
            self.picture(counts)
        );
    }

    fn picture(&self, counts: &[TypeCount]) -> String {
        let largest = counts
            .iter()
            .map(|count| count.n_objects)
            .max()
            .unwrap_or(0)
            .max(1);
        let (first, last) = match (self.times.first(), self.times.last()) {
            (Some(first), Some(last)) => (*first, *last),
            _ => return String::new(),
        };
        let span = (last - first).max(1e-3);
        let mut out = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\"><polyline points=\""
        );
        for (time, count) in self.times.iter().zip(counts) {
            let x = (time - first) / span * WIDTH;
            let share = count.n_objects as f64 / largest as f64;
            let _ = write!(out, "{x:.1},{:.1} ", HEIGHT - 2.0 - share * (HEIGHT - 4.0));
        }
        out.push_str("\"/></svg>");
        out
    }
}

/// Bytes at the end more than at the beginning.
fn growth(counts: &[TypeCount]) -> i64 {
    let bytes = |count: Option<&TypeCount>| count.map_or(0, |count| count.n_bytes);
    bytes(counts.last())
        .wrapping_sub(bytes(counts.first()))
        .cast_signed()
}

fn halve<T: Copy>(values: &mut Vec<T>) {
    let mut idx = 0;
    values.retain(|_| {
        idx += 1;
        idx % 2 == 1
    });
}

/// Text made harmless for a page.
fn markup(text: &str) -> String {
    escape(text)
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heap::snapshot::TypeRow;
    use crate::process::regions::NotRead;

    fn snapshot(rows: &[(&str, u64)]) -> Snapshot {
        Snapshot {
            types: rows
                .iter()
                .map(|(name, n_objects)| TypeRow {
                    name: TypeName {
                        module: "app".into(),
                        qualname: (*name).into(),
                    },
                    count: TypeCount {
                        n_objects: *n_objects,
                        n_bytes: n_objects * 16,
                        n_tracked: 0,
                    },
                })
                .collect(),
            largest: Vec::new(),
            n_read: 0,
            not_read: NotRead::default(),
        }
    }

    #[test]
    fn names_cannot_leave_their_place_in_the_page() {
        let mut chart = Chart::new(Pid(7), Version::new(3, 12, 0));
        chart.add(
            UNIX_EPOCH,
            &snapshot(&[("</td><script>alert(1)</script>", 1)]),
        );
        let html = chart.html(10);
        assert!(
            !html.contains("<script") && html.contains("&lt;script&gt;"),
            "{html}"
        );
        assert!(!html.contains("http"), "it loads nothing");
    }

    #[test]
    fn looks_are_bounded_and_types_come_and_go() {
        let mut chart = Chart::new(Pid(7), Version::new(3, 12, 0));
        for look in 0..MAX_LOOKS + 10 {
            let name = if look < 5 { "Early" } else { "Late" };
            chart.add(SystemTime::now(), &snapshot(&[(name, look as u64)]));
        }
        assert!(chart.n_looks() <= MAX_LOOKS);
        assert!(
            chart
                .series
                .values()
                .all(|series| series.len() == chart.n_looks())
        );
        let html = chart.html(10);
        assert!(
            html.find("app.Late") < html.find("app.Early"),
            "what grew comes first"
        );
    }
}
