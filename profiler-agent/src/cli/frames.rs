//! What frames a profile is written with: the words that py-spy has for it.

use clap::Args;

use crate::profile::model::Profile;

/// Which frames, and what they show.
#[derive(Debug, Args, Clone, Default)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
pub struct FramesArgs {
    /// One frame a function, at its first line
    #[arg(long, short_alias = 'F', hide_short_help = true)]
    pub function: bool,
    /// One frame a function, without lines
    #[arg(long, conflicts_with = "function", hide_short_help = true)]
    pub nolineno: bool,
    /// A frame for the thread at the root of each stack
    #[arg(long, short_alias = 't', hide_short_help = true)]
    pub threads: bool,
    /// Files with their whole paths, in the formats whose frames are texts: folded, svg, html, firefox
    #[arg(long, hide_short_help = true)]
    pub full_filenames: bool,
    /// With machine code and the kernel: as it is without this word, which py-spy has
    #[arg(long, short_alias = 'n', hide_short_help = true)]
    pub native: bool,
    /// Without machine code and the kernel: what they take is their Python caller's
    #[arg(long, conflicts_with = "native", hide_short_help = true)]
    pub no_native: bool,
}

impl FramesArgs {
    /// Whether they ask for another profile than the one that was recorded.
    #[must_use]
    pub const fn change_anything(&self) -> bool {
        self.function || self.nolineno || self.threads || self.full_filenames || self.no_native
    }

    /// The profile with these frames.
    #[must_use]
    pub fn apply(&self, mut profile: Profile) -> Profile {
        if self.no_native {
            profile = profile.without_native();
        }
        if self.function || self.nolineno {
            profile = profile.by_function(self.function);
        }
        if self.threads {
            profile = profile.by_thread();
        }
        profile.has_full_filenames |= self.full_filenames;
        profile
    }
}
