//! From the bytes of a record to a sample or a lifecycle event. Total: any bytes give a value or an error.

use profiler_common::event::{
    KernelStatus, LifecycleRecord, MAX_KERNEL_FRAMES, MAX_PYTHON_FRAMES, N_GENERAL_REGISTERS,
    PyFrame, PythonStatus, RECORD_VERSION, RecordKind, SampleRecord, UserRegisters, sample_flags,
};

use crate::ids::{Address, Generation, Pid, Tid};
use crate::process::block::{Block, Release};
use crate::process::lifecycle::{Change, Lifecycle};

/// Why a record could not be decoded. The ring's records come from this build's own programs, so this means
/// damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Shorter than its parts.
    #[error("cut record")]
    Cut,
    /// Of another version.
    #[error("record of version {0}")]
    Version(u16),
    /// Of an unknown kind.
    #[error("record of kind {0}")]
    Kind(u16),
}

/// A decoded record.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// A sample.
    Sample(Box<RawSample>),
    /// A process came, changed its program or went.
    Lifecycle(Lifecycle),
    /// Small pages of some process were put together into a huge one, at this time in nanoseconds since boot.
    Collapse(u64),
    /// Memory whose allocation was sampled was given back.
    Release(Release),
}

/// A sample as the kernel took it; nothing has a name yet.
#[derive(Debug, Clone, PartialEq)]
pub struct RawSample {
    /// Nanoseconds since boot.
    pub time_ns: u64,
    /// Program that the process ran.
    pub generation: Generation,
    /// Process.
    pub pid: Pid,
    /// Thread.
    pub tid: Tid,
    /// When it began, in nanoseconds since boot; 0 when unknown.
    pub thread_started_ns: u64,
    /// CPU.
    pub cpu: u32,
    /// Row of the source table.
    pub source: u8,
    /// What the sample stands for, in the source's unit.
    pub period: u64,
    /// What the event is about: for a page fault the address that was touched, for an allocation that of the memory.
    pub address: Address,
    /// Size of an allocation; else 0.
    pub n_bytes: u64,
    /// User-space instruction address; 0 when unknown.
    pub user_ip: Address,
    /// `PyThreadState`; 0 when none was found.
    pub thread_state: Address,
    /// Its `pthread_t`; 0 without a thread state.
    pub thread_ident: u64,
    /// The thread state's current frame.
    pub frame: Address,
    /// Bits of [`sample_flags`].
    pub flags: u32,
    /// Outcome of the Python part.
    pub python_status: PythonStatus,
    /// Outcome of the kernel part.
    pub kernel_status: KernelStatus,
    /// Name of the thread, as the kernel has it.
    pub comm: [u8; 16],
    /// User registers, when the PC was in the eval loop.
    pub registers: Option<UserRegisters>,
    /// Python frames, leaf first.
    pub python: Vec<PyFrame>,
    /// Kernel addresses, leaf first.
    pub kernel: Vec<u64>,
}

impl RawSample {
    /// Whether all of these flags are set.
    #[must_use]
    pub const fn has(&self, flags: u32) -> bool {
        self.flags & flags == flags
    }
}

/// Little-endian words of a record, in order.
struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (bytes, rest) = self.rest.split_first_chunk::<N>().ok_or(DecodeError::Cut)?;
        self.rest = rest;
        Ok(*bytes)
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.take().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.take().map(u64::from_le_bytes)
    }
}

/// Decodes a record.
pub fn decode(bytes: &[u8]) -> Result<Record, DecodeError> {
    let mut reader = Reader { rest: bytes };
    let version = reader.u16()?;
    if version != RECORD_VERSION {
        return Err(DecodeError::Version(version));
    }
    let kind = reader.u16()?;
    let _size_bytes = reader.u32()?;
    let time_ns = reader.u64()?;
    match RecordKind::from_u16(kind) {
        Some(RecordKind::Sample) => {
            sample(&mut reader, time_ns).map(|sample| Record::Sample(Box::new(sample)))
        }
        Some(kind @ (RecordKind::Fork | RecordKind::Exec | RecordKind::Exit)) => {
            lifecycle(&mut reader, kind).map(Record::Lifecycle)
        }
        Some(RecordKind::Collapse) => Ok(Record::Collapse(time_ns)),
        Some(RecordKind::Release) => release(&mut reader, time_ns).map(Record::Release),
        None => Err(DecodeError::Kind(kind)),
    }
}

/// The fields in the order of [`profiler_common::event::ReleaseRecord`].
fn release(reader: &mut Reader<'_>, time_ns: u64) -> Result<Release, DecodeError> {
    let address = Address(reader.u64()?);
    let n_bytes = reader.u64()?;
    let pid = Pid(reader.u32()?);
    let source = reader.u32()? as u8;
    Ok(Release {
        time_ns,
        n_bytes,
        block: Block {
            pid,
            source,
            address,
        },
    })
}

/// The fields in the order of [`SampleRecord`].
fn sample(reader: &mut Reader<'_>, time_ns: u64) -> Result<RawSample, DecodeError> {
    let generation = Generation(reader.u64()?);
    let user_ip = Address(reader.u64()?);
    let thread_state = Address(reader.u64()?);
    let thread_ident = reader.u64()?;
    let frame = Address(reader.u64()?);
    let period = reader.u64()?;
    let address = Address(reader.u64()?);
    let n_bytes = reader.u64()?;
    let thread_started_ns = reader.u64()?;
    let (pid, tid) = (Pid(reader.u32()?), Tid(reader.u32()?));
    let (cpu, flags) = (reader.u32()?, reader.u32()?);
    let (python_status, kernel_status, source, _) =
        (reader.u8()?, reader.u8()?, reader.u8()?, reader.u8()?);
    let (n_kernel, n_python) = (usize::from(reader.u16()?), usize::from(reader.u16()?));
    let comm = reader.take()?;
    let registers = registers(reader)?;
    if n_kernel > MAX_KERNEL_FRAMES || n_python > MAX_PYTHON_FRAMES {
        return Err(DecodeError::Cut);
    }
    let mut python = Vec::with_capacity(n_python);
    for _ in 0..n_python {
        let (code, instr) = (reader.u64()?, reader.u64()?);
        python.push(PyFrame {
            code,
            instr,
            identity: reader.u32()?,
            flags: reader.u32()?,
        });
    }
    let kernel = (0..n_kernel)
        .map(|_| reader.u64())
        .collect::<Result<_, _>>()?;
    Ok(RawSample {
        time_ns,
        generation,
        pid,
        tid,
        thread_started_ns,
        cpu,
        source,
        period,
        address,
        n_bytes,
        user_ip,
        thread_state,
        thread_ident,
        frame,
        flags,
        python_status: PythonStatus::from_u8(python_status).unwrap_or_default(),
        kernel_status: KernelStatus::from_u8(kernel_status).unwrap_or_default(),
        comm,
        registers: (flags & sample_flags::USER_REGISTERS != 0).then_some(registers),
        python,
        kernel,
    })
}

fn registers(reader: &mut Reader<'_>) -> Result<UserRegisters, DecodeError> {
    let mut general = [0; N_GENERAL_REGISTERS];
    for register in &mut general {
        *register = reader.u64()?;
    }
    Ok(UserRegisters {
        general,
        sp: reader.u64()?,
    })
}

/// The fields in the order of [`LifecycleRecord`].
fn lifecycle(reader: &mut Reader<'_>, kind: RecordKind) -> Result<Lifecycle, DecodeError> {
    let generation = Generation(reader.u64()?);
    let previous = Generation(reader.u64()?);
    let pid = Pid(reader.u32()?);
    let parent = Pid(reader.u32()?);
    let comm = reader.take()?;
    let change = match kind {
        RecordKind::Fork => Change::Fork {
            parent,
            parent_generation: previous,
            generation,
        },
        RecordKind::Exit => Change::Exit {
            generation: previous,
        },
        RecordKind::Exec | RecordKind::Sample | RecordKind::Collapse | RecordKind::Release => {
            Change::Exec {
                previous,
                generation,
            }
        }
    };
    Ok(Lifecycle { change, pid, comm })
}

/// A NUL-padded name as text.
#[must_use]
pub fn comm_text(comm: &[u8; 16]) -> String {
    let end = comm
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(comm.len());
    String::from_utf8_lossy(&comm[..end]).into_owned()
}

const _: () = assert!(size_of::<SampleRecord>() > size_of::<LifecycleRecord>());

#[cfg(test)]
mod tests {
    use super::*;
    use profiler_common::event::{RecordHead, SampleHeader};

    /// The bytes of a sample as the kernel would send it, made from the shared structures field by field.
    fn bytes_of(header: &SampleHeader, frames: &[PyFrame], kernel: &[u64]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(header.head.version.to_le_bytes());
        bytes.extend(header.head.kind.to_le_bytes());
        bytes.extend(header.head.size_bytes.to_le_bytes());
        for word in [
            header.head.time_ns,
            header.generation,
            header.user_ip,
            header.thread_state,
            header.thread_ident,
            header.frame,
            header.period,
            header.address,
            header.n_bytes,
            header.thread_started_ns,
        ] {
            bytes.extend(word.to_le_bytes());
        }
        for word in [header.pid, header.tid, header.cpu, header.flags] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend([
            header.python_status,
            header.kernel_status,
            header.source,
            header.reserved,
        ]);
        bytes.extend(header.n_kernel.to_le_bytes());
        bytes.extend(header.n_python.to_le_bytes());
        bytes.extend(header.comm);
        assert_eq!(
            bytes.len(),
            size_of::<SampleHeader>(),
            "the header has no padding"
        );
        bytes.extend([7; 128]);
        for frame in frames {
            bytes.extend(frame.code.to_le_bytes());
            bytes.extend(frame.instr.to_le_bytes());
            bytes.extend(frame.identity.to_le_bytes());
            bytes.extend(frame.flags.to_le_bytes());
        }
        bytes.extend(kernel.iter().flat_map(|address| address.to_le_bytes()));
        bytes
    }

    #[test]
    fn a_sample_comes_back_as_it_was_sent() {
        let header = SampleHeader {
            head: RecordHead {
                version: RECORD_VERSION,
                kind: RecordKind::Sample as u16,
                size_bytes: 0,
                time_ns: 5,
            },
            generation: 6,
            pid: 7,
            tid: 8,
            thread_started_ns: 11,
            flags: sample_flags::USER_REGISTERS | sample_flags::GIL_HELD,
            python_status: PythonStatus::Complete as u8,
            n_python: 1,
            n_kernel: 2,
            ..SampleHeader::default()
        };
        let frame = PyFrame {
            code: 1,
            instr: 2,
            identity: 3,
            flags: 4,
        };
        let Ok(Record::Sample(sample)) = decode(&bytes_of(&header, &[frame], &[9, 10])) else {
            panic!("no sample")
        };
        assert_eq!(
            (sample.pid, sample.tid, sample.generation),
            (Pid(7), Tid(8), Generation(6))
        );
        assert_eq!(sample.thread_started_ns, 11);
        assert_eq!((sample.python, sample.kernel), (vec![frame], vec![9, 10]));
        assert_eq!(
            sample.registers.map(|registers| registers.sp),
            Some(0x0707_0707_0707_0707)
        );
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_give_a_value(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..600), kind in 0_u16..8) {
            if bytes.len() > 4 {
                bytes[..2].copy_from_slice(&RECORD_VERSION.to_le_bytes());
                bytes[2..4].copy_from_slice(&kind.to_le_bytes());
            }
            let _ = decode(&bytes);
        }
    }
}
