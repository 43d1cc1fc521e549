//! Exit codes, and errors that carry one.

use std::process::ExitCode;

use crate::kernel::probe::{Capability, Rights};

/// Everything went well.
pub const OK: u8 = 0;
/// Something failed.
pub const FAILED: u8 = 1;
/// The command line was wrong.
pub const USAGE: u8 = 2;
/// Rights are missing.
pub const RIGHTS: u8 = 3;
/// No process matched.
pub const NOTHING_MATCHED: u8 = 4;
/// Something grew by more than was allowed.
pub const THRESHOLD: u8 = 5;
/// With `-- CMD`: pyagent itself failed.
pub const LAUNCH_FAILED: u8 = 125;
/// With `-- CMD`: it is there but cannot be run.
pub const NOT_EXECUTABLE: u8 = 126;
/// With `-- CMD`: it is not there.
pub const NOT_FOUND: u8 = 127;

/// An error of one line that ends the program with a code of its own.
#[derive(Debug, thiserror::Error)]
pub enum ExitError {
    /// The command line was wrong in a way that clap does not see.
    #[error("{0}")]
    Usage(String),
    /// Rights are missing.
    #[error(
        "{} missing ({}): {}",
        names(.0),
        purposes(.0),
        remedy(.0, is_withheld(.0))
    )]
    Rights(Vec<Capability>),
    /// Somebody else says no.
    #[error("{0}")]
    Forbidden(String),
    /// No process matched.
    #[error("{0}")]
    NothingMatched(String),
}

fn names(capabilities: &[Capability]) -> String {
    capabilities
        .iter()
        .map(|capability| capability.name)
        .collect::<Vec<_>>()
        .join(", ")
}

fn purposes(capabilities: &[Capability]) -> String {
    let purposes: Vec<_> = capabilities
        .iter()
        .map(|capability| capability.purpose)
        .collect();
    format!("needed to {}", purposes.join(", "))
}

/// Whether not even root could have them here, as in a container that was not given them.
fn is_withheld(capabilities: &[Capability]) -> bool {
    let limit = Rights::limit_of_this_process();
    capabilities
        .iter()
        .any(|capability| !limit.has(*capability))
}

/// Where to get them.
fn remedy(capabilities: &[Capability], is_withheld: bool) -> String {
    if !is_withheld {
        return "run pyagent with sudo, or give it the capabilities: sudo setcap \
                cap_bpf,cap_perfmon,cap_sys_ptrace+ep $(command -v pyagent)"
            .to_owned();
    }
    let options = capabilities
        .iter()
        .flat_map(|capability| [" --cap-add ", capability.name.trim_start_matches("CAP_")]);
    format!(
        "this container does not have them; podman and docker: run{}, Kubernetes: securityContext.capabilities.add",
        options.collect::<String>()
    )
}

impl ExitError {
    /// Its exit code.
    #[must_use]
    pub const fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => USAGE,
            Self::Rights(_) | Self::Forbidden(_) => RIGHTS,
            Self::NothingMatched(_) => NOTHING_MATCHED,
        }
    }
}

/// The code of any error.
#[must_use]
pub fn code_of(error: &anyhow::Error) -> ExitCode {
    ExitCode::from(
        error
            .downcast_ref::<ExitError>()
            .map_or(FAILED, ExitError::code),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::probe::{CAP_BPF, CAP_SYS_PTRACE};

    #[test]
    fn who_can_have_rights_is_told_how() {
        let missing = [CAP_BPF, CAP_SYS_PTRACE];
        assert!(remedy(&missing, false).contains("sudo setcap"));
        let in_container = remedy(&missing, true);
        assert!(
            in_container.contains("run --cap-add BPF --cap-add SYS_PTRACE,"),
            "{in_container}"
        );
    }
}
