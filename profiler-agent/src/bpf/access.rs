//! How the kernel programs read the kernel's structures here: chosen once, by what the kernel offers.

use std::fmt;

use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported};
use aya::{Btf as TypeInfo, BtfError as TypeInfoError};

use super::calibration::{CalibrationError, calibrate};
use crate::kernel::btf::{Btf, BtfError};
use crate::kernel::offsets::Offsets;
use crate::kernel::restrictions::is_confidential;

/// Which build of the programs is loaded, and what it is told.
pub enum Access {
    /// Through typed pointers: BTF and 5.15.
    Typed {
        /// Where the facts of a task lie.
        offsets: Offsets,
        /// The kernel's types, as aya wants them.
        btf: TypeInfo,
    },
    /// By reading the kernel's memory.
    Probed {
        /// Where the facts of a task lie.
        offsets: Offsets,
    },
}

/// Why there is no way.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// Lockdown.
    #[error(
        "the kernel's lockdown (confidentiality) refuses the kernel programs: boot with lockdown=integrity or without \
         it, or use `pyagent record --pid PID`"
    )]
    LockedDown,
    /// The kernel has BTF, but not what is needed of it.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// The same, by aya.
    #[error("the kernel's BTF: {0}")]
    TypeInfo(#[from] TypeInfoError),
    /// There is no BTF, and the offsets could not be learned.
    #[error("the kernel has no BTF, and where it keeps a thread's facts could not be learned")]
    Calibration(#[from] CalibrationError),
}

impl Access {
    /// The best that this kernel has.
    pub fn of_running_kernel() -> Result<Self, AccessError> {
        // Typed pointers are allowed then, and reads of user space too. But aya takes a kernel that refuses
        // `bpf_probe_read_kernel` for one before 5.5, and puts `bpf_probe_read` for both, which is refused.
        if is_confidential() {
            return Err(AccessError::LockedDown);
        }
        let btf = match Btf::of_running_kernel() {
            Ok(btf) => btf,
            Err(BtfError::Read { .. }) => return Self::calibrated(),
            Err(error) => return Err(error.into()),
        };
        let offsets = Offsets::of_btf(&btf)?;
        if has_typed_registers() {
            let btf = TypeInfo::from_sys_fs()?;
            Ok(Self::Typed { offsets, btf })
        } else {
            Ok(Self::Probed { offsets })
        }
    }

    /// Without BTF.
    pub fn calibrated() -> Result<Self, AccessError> {
        let offsets = calibrate()?;
        Ok(Self::Probed { offsets })
    }

    /// Where the facts of a task lie.
    #[must_use]
    pub const fn offsets(&self) -> Offsets {
        match self {
            Self::Typed { offsets, .. } | Self::Probed { offsets } => *offsets,
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Typed { .. } => "the kernel's structures are read through typed pointers",
            Self::Probed { .. } => "the kernel's structures are read by address",
        })
    }
}

/// Whether there is `bpf_task_pt_regs` (5.15+), the youngest of what typed access needs.
fn has_typed_registers() -> bool {
    is_helper_supported(ProgramType::PerfEvent, BpfHelper::BPF_FUNC_task_pt_regs).unwrap_or(false)
}
