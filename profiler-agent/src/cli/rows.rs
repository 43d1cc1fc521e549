//! What `report` and `diff` share: in which order and how many rows, of which value, and how they look.

use std::io::IsTerminal;
use std::os::fd::AsFd;

use clap::Args;

use super::exit::ExitError;
use crate::format::escape;
use crate::profile::measure::Measure;
use crate::profile::model::Profile;
use crate::view::report::{SortKey, Style};

/// Rows of a table.
#[derive(Debug, Args, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
pub struct RowsArgs {
    /// Order: tottime, cumtime, samples, name, file, line
    #[arg(long, value_name = "KEY", default_value = "tottime")]
    pub sort: SortKey,
    /// Rows, at most
    #[arg(long, value_name = "N")]
    pub top: Option<usize>,
    /// Another value of the profile, such as alloc_space
    #[arg(long, value_name = "KIND")]
    pub value: Option<String>,
    /// Frames of machine code and of the kernel too
    ///
    /// Else what they take is their Python caller's.
    #[arg(long)]
    pub native: bool,
    /// Without them, also where lines are shown
    #[arg(long, conflicts_with = "native", hide_short_help = true)]
    pub no_native: bool,
    /// Files with their whole paths
    #[arg(long, hide_short_help = true)]
    pub full_filenames: bool,
    /// Functions without their lines
    #[arg(long, hide_short_help = true)]
    pub nolineno: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl RowsArgs {
    /// The profile with the frames that are meant; lines say what is in machine code by themselves.
    pub(super) fn frames(&self, profile: Profile, by_line: bool) -> Profile {
        if self.native || (by_line && !self.no_native) {
            profile
        } else {
            profile.without_native()
        }
    }

    /// The value that was named, or the main one.
    pub(super) fn measure(&self, profile: &Profile) -> Result<Measure, ExitError> {
        let Some(kind) = self.value.as_deref() else {
            return Ok(Measure::main(profile));
        };
        Measure::named(profile, kind).ok_or_else(|| {
            let kinds = profile.sample_types.iter().map(|it| it.kind);
            ExitError::Usage(format!(
                "the profile has no value `{}`; it has {}",
                escape(kind),
                escape(&kinds.collect::<Vec<_>>().join(", "))
            ))
        })
    }

    /// How it looks where it is printed.
    pub(super) fn style(&self) -> Style {
        Style {
            has_full_filenames: self.full_filenames,
            has_no_lines: self.nolineno,
            ..style()
        }
    }
}

/// How it looks on standard output.
pub(super) fn style() -> Style {
    style_of(&std::io::stdout())
}

/// A terminal has a width and, unless NO_COLOR says no, colours.
pub(super) fn style_of(out: &(impl IsTerminal + AsFd)) -> Style {
    if !out.is_terminal() {
        return Style::default();
    }
    let size = rustix::termios::tcgetwinsize(out).ok();
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    Style {
        width: size
            .map(|size| usize::from(size.ws_col))
            .filter(|width| *width > 0),
        has_colors: !no_color && !is_dumb,
        ..Style::default()
    }
}
