//! How amounts and names look.

use crate::format::{bytes_text, escape, short_file, thousands};
use crate::profile::measure::{Measure, Unit};
use crate::profile::model::{FrameKind, FunctionId, Profile};
use crate::view::columns::{bounded, columns, cut, wrapped};

/// Where it is shown.
#[derive(Debug, Clone, Copy, Default)]
pub struct Style {
    /// Columns; `None`: no bound, as in a file.
    pub width: Option<usize>,
    /// A terminal that shows colours.
    pub has_colors: bool,
    /// Files with their whole paths.
    pub has_full_filenames: bool,
    /// Functions without their lines.
    pub has_no_lines: bool,
}

impl Style {
    /// What does not fit behind `used` columns is cut out of the middle.
    pub(super) fn fit(self, text: &str, used: usize) -> String {
        match self.width {
            Some(width) => cut(text, width.saturating_sub(used)),
            None => text.to_owned(),
        }
    }

    /// Whether there are fewer columns than these.
    pub(super) fn is_narrower(self, n_columns: usize) -> bool {
        self.width.is_some_and(|width| width < n_columns)
    }

    /// Sentences, each on a line: those that do not fit go on on the next one.
    pub(super) fn prose(self, text: &str) -> String {
        let Some(width) = self.width else {
            return text.to_owned();
        };
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

    /// Rows, each on a line: of those that do not fit after all, the end is cut off.
    pub(super) fn bounded(self, text: String) -> String {
        match self.width {
            Some(width) => bounded(&text, width),
            None => text,
        }
    }

    /// Coloured by its share: what takes much stands out.
    pub(super) fn by_share(self, text: &str, share: f64) -> String {
        let color = match share {
            _ if !self.has_colors => return text.to_owned(),
            0.3.. => "31",
            0.1.. => "33",
            0.02.. => "32",
            _ => "2",
        };
        format!("\x1b[{color}m{text}\x1b[0m")
    }

    /// Less important than the rest.
    pub(super) fn dim(self, text: &str) -> String {
        if self.has_colors && !text.is_empty() {
            format!("\x1b[2m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// An amount for people: `12.345 s`, `1.5 MiB`, `1,234`.
pub(super) fn amount_text(unit: Unit, weight: i64) -> String {
    match unit {
        Unit::Time => format!("{:.3} s", weight as f64 / 1e9),
        Unit::Bytes => bytes_text(weight),
        Unit::Count => thousands(weight),
    }
}

/// The same in a column whose head tells the unit.
pub(super) fn cell(unit: Unit, weight: i64) -> String {
    match unit {
        Unit::Time => format!("{:.3}", weight as f64 / 1e9),
        Unit::Bytes => bytes_text(weight),
        Unit::Count => thousands(weight),
    }
}

/// What the amounts are of.
pub(super) fn unit_name(profile: &Profile, measure: Measure) -> String {
    let kind = profile.sample_types.get(measure.idx);
    match kind.map_or("", |it| it.kind) {
        "cpu" => "of CPU time".to_owned(),
        "fault_space" => "touched".to_owned(),
        kind => kind.replace('_', " "),
    }
}

/// Heads of the columns of a function's own amount and of the total: those of pstats for time.
pub(super) const fn heads(unit: Unit) -> [&'static str; 2] {
    match unit {
        Unit::Time => ["tottime", "cumtime"],
        Unit::Bytes | Unit::Count => ["self", "total"],
    }
}

/// 0 to 1.
pub(super) fn share(part: i64, whole: i64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

/// A function's name, escaped.
pub(super) fn name(profile: &Profile, function: FunctionId) -> String {
    let Some(function) = profile.functions.get(function.0 as usize) else {
        return String::new();
    };
    match profile.str(function.name) {
        "" => "<no name>".to_owned(),
        name => escape(name).into_owned(),
    }
}

/// Where a function is: file and first line, or module, escaped.
pub(super) fn place(profile: &Profile, function: FunctionId, style: Style) -> String {
    let Some(function) = profile.functions.get(function.0 as usize) else {
        return String::new();
    };
    let file = profile.str(function.filename);
    place_text(function.kind, file, function.start_line, style)
}

/// File and line, or module, escaped.
pub(super) fn place_text(kind: FrameKind, file: &str, line: u32, style: Style) -> String {
    let file = escape(if kind == FrameKind::Python && !style.has_full_filenames {
        short_file(file)
    } else {
        file
    });
    match (kind, line) {
        (FrameKind::Python, line @ 1..) if !style.has_no_lines => format!("{file}:{line}"),
        _ => file.into_owned(),
    }
}

/// `name  file:line`.
pub(super) fn function_text(profile: &Profile, function: FunctionId, style: Style) -> String {
    let (name, place) = (name(profile, function), place(profile, function, style));
    if place.is_empty() {
        name
    } else {
        format!("{name}  {place}")
    }
}

/// What programs read of a function.
pub(super) fn function_json(profile: &Profile, function: FunctionId) -> serde_json::Value {
    let Some(known) = profile.functions.get(function.0 as usize) else {
        return serde_json::Value::Null;
    };
    serde_json::json!({
        "function": profile.str(known.name),
        "file": profile.str(known.filename),
        "line": known.start_line,
        "kind": kind_name(known.kind),
    })
}

/// A kind of code, for programs.
pub(super) const fn kind_name(kind: FrameKind) -> &'static str {
    match kind {
        FrameKind::Python => "python",
        FrameKind::Native => "native",
        FrameKind::Kernel => "kernel",
        FrameKind::Reason => "remark",
    }
}

/// That there are more rows than these; nothing when there are not.
pub(super) fn not_all(n_rows: usize, n_all: usize, what: &str) -> String {
    if n_rows >= n_all {
        return String::new();
    }
    format!(
        "{} of {} {what}s; --top N shows more\n",
        thousands(n_rows as i64),
        thousands(n_all as i64)
    )
}
