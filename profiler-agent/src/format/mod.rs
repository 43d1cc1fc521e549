//! Formats: a [`Profile`] as the bytes of a file. One file a format, one row of [`FORMATS`] each; which one is
//! meant is decided by the file's name or by the format's. Where the bytes go is [`file`]'s business.

mod callgrind;
mod chrome;
pub mod diff;
mod dot;
mod escape;
pub mod file;
mod firefox;
mod folded;
pub mod html;
mod jsonl;
mod perf;
mod pprof;
mod pstats;
pub mod read;
mod speedscope;
mod svg;
mod text;
mod threads;
mod timeline;
mod title;

use std::io::{self, Write};
use std::path::Path;

pub use self::escape::escape;
pub use self::text::{
    bytes_text, duration_text, frame_text, is_of_library, short_file, thousands, unix_seconds,
    weight_text,
};
pub use self::timeline::Times;
use crate::profile::model::Profile;

/// A format that profiles can be written in.
#[derive(Debug)]
pub struct Format {
    /// Name, as `--format` and the service take it.
    pub name: &'static str,
    /// How names of its files end, with the leading dot.
    pub extensions: &'static [&'static str],
    /// What it does with the times of samples.
    pub times: Times,
    /// Media type, for HTTP.
    pub content_type: &'static str,
    /// What it is for, in a few words.
    pub description: &'static str,
    writer: fn(&Profile, &mut dyn Write) -> io::Result<()>,
}

/// Every format. Help texts and errors list them in this order; the first one is the default.
pub static FORMATS: &[Format] = &[
    Format {
        name: "pprof",
        times: Times::Kept,
        extensions: &[".pb.gz"],
        content_type: "application/octet-stream",
        description: "pprof: `go tool pprof`, Parca, Pyroscope, speedscope",
        writer: pprof::write,
    },
    Format {
        name: "folded",
        times: Times::Lost,
        extensions: &[".folded"],
        content_type: "text/plain; charset=utf-8",
        description: "one line a stack, root first: flamegraph.pl, inferno, speedscope",
        writer: folded::write,
    },
    Format {
        name: "svg",
        times: Times::Lost,
        extensions: &[".svg"],
        content_type: "image/svg+xml",
        description: "flame graph for a browser",
        writer: svg::write,
    },
    Format {
        name: "svg-inverted",
        times: Times::Lost,
        extensions: &[".inverted.svg"],
        content_type: "image/svg+xml",
        description: "the same from the leaves on: what took the time, and beneath it who called it",
        writer: svg::write_inverted,
    },
    Format {
        name: "html",
        times: Times::Lost,
        extensions: &[".html"],
        content_type: "text/html; charset=utf-8",
        description: "flame graph as a page of its own, offline: search, zoom, processes and threads, callers, functions",
        writer: html::write,
    },
    Format {
        name: "speedscope",
        times: Times::Shown,
        extensions: &[".speedscope.json"],
        content_type: "application/json",
        description: "speedscope.app, a profile each thread",
        writer: speedscope::write,
    },
    Format {
        name: "firefox",
        times: Times::Shown,
        extensions: &[".firefox.json"],
        content_type: "application/json",
        description: "profiler.firefox.com",
        writer: firefox::write,
    },
    Format {
        name: "chrome",
        times: Times::Shown,
        extensions: &[".trace.json"],
        content_type: "application/json",
        description: "trace events: Perfetto, chrome://tracing",
        writer: chrome::write,
    },
    Format {
        name: "callgrind",
        times: Times::Lost,
        extensions: &[".callgrind"],
        content_type: "text/plain; charset=utf-8",
        description: "KCachegrind, callgrind_annotate; with the cost of each line",
        writer: callgrind::write,
    },
    Format {
        name: "pstats",
        times: Times::Lost,
        extensions: &[".pstats"],
        content_type: "application/octet-stream",
        description: "as of cProfile: pstats, SnakeViz, gprof2dot",
        writer: pstats::write,
    },
    Format {
        name: "dot",
        times: Times::Lost,
        extensions: &[".dot"],
        content_type: "text/vnd.graphviz; charset=utf-8",
        description: "call graph for Graphviz",
        writer: dot::write,
    },
    Format {
        name: "perf",
        times: Times::Lost,
        extensions: &[".perf"],
        content_type: "text/plain; charset=utf-8",
        description: "text of perf script: FlameGraph's tools",
        writer: perf::write,
    },
    Format {
        name: "jsonl",
        times: Times::Kept,
        extensions: &[".jsonl"],
        content_type: "application/jsonl",
        description: "a line of JSON for each sample",
        writer: jsonl::write,
    },
];

/// A format that was not found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The file name has none of the known endings.
    #[error(
        "`{file_name}` does not tell the format: end it with one of {}, or give --format {}",
        all_extensions(),
        all_names()
    )]
    UnknownExtension {
        /// Name without folders, escaped.
        file_name: String,
    },
    /// The file name ends in something that several tools use for different things.
    #[error(
        "`{extension}` stands for several formats: end the file's name with one of {}, or give --format {}",
        all_extensions(),
        all_names()
    )]
    AmbiguousExtension {
        /// The ending.
        extension: &'static str,
    },
    /// There is no format of this name.
    #[error("there is no format `{name}`; there are {}", all_names())]
    UnknownName {
        /// The name, escaped.
        name: String,
    },
}

/// Endings that say too little.
const AMBIGUOUS_EXTENSIONS: &[&str] = &[".json", ".prof"];

impl Format {
    /// The format that is used when nothing tells one.
    #[must_use]
    pub fn default_format() -> &'static Self {
        &FORMATS[0]
    }

    /// The format whose files end like this one.
    pub fn from_path(path: &Path) -> Result<&'static Self, FormatError> {
        let file_name = path.file_name().unwrap_or_default().to_string_lossy();
        let ends_with = |extension: &&str| file_name.ends_with(extension);
        // One ending may be the end of another one: the longest is meant.
        let ending = |format: &Format| {
            let endings = format.extensions.iter().copied().filter(ends_with);
            endings.map(str::len).max()
        };
        let longest = FORMATS.iter().max_by_key(|format| ending(format));
        if let Some(format) = longest.filter(|format| ending(format).is_some()) {
            return Ok(format);
        }
        match AMBIGUOUS_EXTENSIONS
            .iter()
            .find(|extension| ends_with(extension))
        {
            Some(extension) => Err(FormatError::AmbiguousExtension { extension }),
            None => Err(FormatError::UnknownExtension {
                file_name: escape(&file_name).into_owned(),
            }),
        }
    }

    /// The format of this name.
    pub fn from_name(name: &str) -> Result<&'static Self, FormatError> {
        FORMATS
            .iter()
            .find(|format| format.name == name)
            .ok_or_else(|| FormatError::UnknownName {
                name: escape(name).into_owned(),
            })
    }

    /// The format for an output: its name decides when it is given, else the file's name, else (no file, or
    /// standard output, `-`) it is the default.
    pub fn choose(name: Option<&str>, path: Option<&Path>) -> Result<&'static Self, FormatError> {
        match (name, path) {
            (Some(name), _) => Self::from_name(name),
            (None, Some(path)) if path.as_os_str() != "-" => Self::from_path(path),
            (None, _) => Ok(Self::default_format()),
        }
    }

    /// The formats that keep the times of samples, for a message.
    #[must_use]
    pub fn with_times() -> String {
        let formats = FORMATS.iter().filter(|it| it.times != Times::Lost);
        formats.map(|it| it.name).collect::<Vec<_>>().join(", ")
    }

    /// Writes a profile in this format. Fails only when `out` does.
    pub fn write(&self, profile: &Profile, out: &mut dyn Write) -> io::Result<()> {
        (self.writer)(profile, out)
    }
}

fn all_extensions() -> String {
    let extensions = FORMATS.iter().flat_map(|format| format.extensions.iter());
    extensions.copied().collect::<Vec<_>>().join(", ")
}

fn all_names() -> String {
    let names = FORMATS.iter().map(|format| format.name);
    names.collect::<Vec<_>>().join("|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_name_decides() {
        let name = |path: &str| Format::from_path(Path::new(path)).map(|format| format.name);
        assert_eq!(name("/tmp/a.pb.gz"), Ok("pprof"));
        assert_eq!(name("a.folded"), Ok("folded"));
        assert_eq!(name("a.b.svg"), Ok("svg"));
        assert_eq!(name("a.inverted.svg"), Ok("svg-inverted"));
        assert_eq!(name("inverted.svg"), Ok("svg"));
        assert_eq!(name("a.html"), Ok("html"));
        for path in ["a.json", "b.prof", "a.txt", "a", "", "/", "pb.gz/"] {
            let message = name(path).unwrap_err().to_string();
            for format in FORMATS {
                assert!(
                    message.contains(format.extensions[0]) && message.contains(format.name),
                    "{message}"
                );
            }
            assert_eq!(message.lines().count(), 1);
        }
    }

    #[test]
    fn a_given_name_wins_over_the_file_name() {
        let name = |name, path: Option<&str>| {
            Format::choose(name, path.map(Path::new)).map(|format| format.name)
        };
        assert_eq!(name(Some("svg"), Some("a.folded")), Ok("svg"));
        assert_eq!(name(None, Some("-")), Ok("pprof"));
        assert_eq!(name(None, None), Ok("pprof"));
        assert_eq!(
            name(Some("\u{1b}x"), None).unwrap_err().to_string(),
            format!("there is no format `\\u{{1b}}x`; there are {}", all_names())
        );
    }

    #[test]
    fn names_and_endings_are_distinct() {
        let mut seen = std::collections::HashSet::new();
        for format in FORMATS {
            assert!(seen.insert(format.name));
            assert!(
                format
                    .extensions
                    .iter()
                    .all(|extension| seen.insert(extension))
            );
        }
    }
}
