//! What `pyagent leaks` has seen, as text and as JSON.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::watched::{GrowingLine, GrowingType, Lines, Watched};
use crate::format::{bytes_text, duration_text, escape, frame_text};
use crate::profile::in_use::LineName;
use crate::profile::model::{Frame, FrameKind, FunctionId, Profile, ProfileType};
use crate::view::memory::touched_by_line;

/// Types and lines that are shown.
const MAX_SHOWN: usize = 10;

/// Callers of a line that are shown.
const MAX_CALLERS: usize = 3;

impl Watched {
    /// For people.
    pub(super) fn as_text(&self, profile: Option<&Profile>) -> String {
        let (types, lines) = (self.growing_types(), self.lines());
        let mut text = String::new();
        let mut say = |line: &str| {
            text.push_str(line);
            text.push('\n');
        };
        let noun = if self.n_looks() == 1 { "look" } else { "looks" };
        let seconds = duration_text(Duration::from_secs_f64(self.seconds));
        let looks = format!("{} {noun} in {seconds}", self.n_looks());
        let inconclusive = self.inconclusive();
        let sees_lines = !self.seen().is_empty();
        if let Some(why) = &inconclusive {
            say(&format!("{looks}: {why}"));
        } else if !types.is_empty() {
            say(&format!("types that only grow ({looks}):\n"));
            for line in types_table(&types) {
                say(&line);
            }
        } else if lines.growing.is_empty() {
            let n_lines = if sees_lines {
                format!(", {} lines", lines.n_judged)
            } else {
                String::new()
            };
            say(&format!(
                "nothing only grows: {} types{n_lines}, {looks}",
                self.n_types()
            ));
        } else {
            say(&format!(
                "no type only grows: {} types, {looks}",
                self.n_types()
            ));
        }
        if !lines.growing.is_empty() {
            say("\nlines that keep what they allocate, and only grow:\n");
            for line in lines_table(&lines) {
                say(&line);
            }
        } else if sees_lines {
            let limits = self.limits().into_iter().map(|(source, n_bytes)| {
                let n_bytes = bytes_text(i64::try_from(n_bytes).unwrap_or(i64::MAX));
                format!("{n_bytes} of {}", allocator(source))
            });
            let limits: Vec<String> = limits.collect();
            say(&format!(
                "no line only grows: {} keep enough to be judged, and one that keeps less than {} in {seconds} may not be \
                 found",
                lines.n_judged,
                limits.join(", or ")
            ));
        }
        if lines.n_replaced > 0 {
            say(&format!(
                "{} more of the lines keep what they allocate while the process does not grow by it: as a full cache does, \
                 which replaces its entries",
                lines.n_replaced
            ));
        }
        let has_grown =
            !types.is_empty() || !lines.growing.is_empty() || self.resident_growth().is_some();
        let touched = profile.map(touched_by_line).unwrap_or_default();
        if has_grown && !touched.is_empty() {
            say("\nlines that touched most memory meanwhile, whether or not it was freed again:\n");
            for (line, n_bytes) in touched.iter().take(MAX_SHOWN) {
                say(&format!("{:>14}  {line}", bytes_text(*n_bytes)));
            }
        }
        if let Some(per_second) = self.resident_growth() {
            let per_minute = bytes_text((per_second * 60.0) as i64);
            say(&format!("\nresident memory grows by {per_minute} a minute"));
        }
        for note in self.not_seen() {
            say(&format!("not seen: {}; {}", escape(note), self.covered()));
        }
        text
    }

    /// Where lines are seen, in words.
    fn covered(&self) -> &'static str {
        match self.seen() {
            [ProfileType::Pools] => "lines of small objects are",
            [ProfileType::Alloc] => "lines of malloc and its like are",
            [] => "no line is judged: what lines touched may help",
            _ => "other lines are",
        }
    }

    /// For programs.
    pub(super) fn as_json(&self, profile: Option<&Profile>) -> String {
        let lines = self.lines();
        let types: Vec<_> = self.growing_types().iter().map(type_json).collect();
        let growing: Vec<_> = lines.growing.iter().map(line_json).collect();
        let touched = profile.map(touched_by_line).unwrap_or_default();
        let touched: Vec<_> = touched
            .into_iter()
            .map(|(line, n_bytes)| json!({"line": line, "touched_bytes": n_bytes}))
            .collect();
        let limits = self.limits().into_iter();
        let limits: Map<String, Value> = limits
            .map(|(source, n_bytes)| (source.name().to_owned(), n_bytes.into()))
            .collect();
        let seen: Vec<_> = self.seen().iter().map(|it| it.name()).collect();
        let document = json!({
            "format": 2,
            "looks": self.n_looks(),
            "seconds": self.seconds,
            "conclusive": self.inconclusive().is_none(),
            "inconclusive_because": self.inconclusive(),
            "types": types,
            "lines": growing,
            "lines_seen_by": seen,
            "lines_judged": lines.n_judged,
            "lines_replaced": lines.n_replaced,
            "line_limit_bytes": limits,
            "not_seen": self.not_seen(),
            "touched": touched,
            "resident_bytes_per_second": self.resident_growth(),
        });
        format!("{document:#}\n")
    }
}

fn per_minute(bytes_per_second: f64) -> String {
    format!("+{}", bytes_text((bytes_per_second * 60.0) as i64))
}

fn types_table(types: &[GrowingType]) -> Vec<String> {
    let mut table = vec!["     bytes/min  objects/min  by chance  type".to_owned()];
    table.extend(types.iter().take(MAX_SHOWN).map(|it| {
        format!(
            "{:>14} {:>12.0} {:>10.0e}  {}",
            per_minute(it.bytes_per_second),
            it.count_per_second * 60.0,
            it.p,
            escape(&it.name.to_string())
        )
    }));
    table.extend(more(types.len()));
    table
}

fn lines_table(lines: &Lines<'_>) -> Vec<String> {
    let mut table = vec!["     bytes/min       in use  by chance  line".to_owned()];
    for it in lines.growing.iter().take(MAX_SHOWN) {
        table.push(format!(
            "{:>14} {:>12} {:>10.0e}  {} ({})",
            per_minute(it.bytes_per_second),
            bytes_text(it.in_use.n_bytes()),
            it.p,
            line_text(&it.in_use.line),
            allocator(it.in_use.source)
        ));
        let callers = it.in_use.stack.iter().skip(1).take(MAX_CALLERS);
        let callers: Vec<String> = callers.map(line_text).collect();
        if !callers.is_empty() {
            table.push(format!("{:>40} {}", "by", callers.join(" < ")));
        }
    }
    table.extend(more(lines.growing.len()));
    table
}

/// Says how many are not shown.
fn more(n: usize) -> Option<String> {
    (n > MAX_SHOWN).then(|| format!("{:>14} more (--json)", n - MAX_SHOWN))
}

fn allocator(source: ProfileType) -> &'static str {
    match source {
        ProfileType::Pools => "small objects",
        _ => "malloc",
    }
}

/// As everywhere; escaped.
fn line_text(line: &LineName) -> String {
    if line.function.is_empty() && line.file.is_empty() {
        return "[no Python line]".to_owned();
    }
    frame_text(&Frame {
        function: FunctionId(0),
        kind: FrameKind::Python,
        name: &line.function,
        filename: &line.file,
        line: line.line,
        address: 0,
    })
}

fn type_json(it: &GrowingType) -> Value {
    json!({
        "module": it.name.module,
        "type": it.name.qualname,
        "bytes_per_second": it.bytes_per_second,
        "objects_per_second": it.count_per_second,
        "p": it.p,
    })
}

fn line_json(it: &GrowingLine<'_>) -> Value {
    let stack: Vec<String> = it.in_use.stack.iter().map(line_text).collect();
    json!({
        "line": line_text(&it.in_use.line),
        "source": it.in_use.source.name(),
        "bytes_per_second": it.bytes_per_second,
        "in_use_bytes": it.in_use.n_bytes(),
        "p": it.p,
        "stack": stack,
    })
}
