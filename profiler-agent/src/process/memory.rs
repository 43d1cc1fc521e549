//! Memory of a target process, read from outside with `process_vm_readv`. Read only, never a pause.

use std::io::IoSliceMut;

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use profiler_common::unwind::{Fault, ReadUser, Window};

use super::facts;
use crate::ids::{Address, Pid};

/// Why memory could not be read.
#[derive(thiserror::Error, Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryError {
    /// The process has ended.
    #[error("no such process")]
    Gone,
    /// The rights are missing (CAP_SYS_PTRACE), or a security module forbids it.
    #[error("not permitted to read the process's memory (needs CAP_SYS_PTRACE)")]
    Denied,
    /// Nothing is mapped there, or not all of it.
    #[error("nothing is mapped at {0}")]
    Unmapped(Address),
}

/// Gives memory that this process has freed back to the kernel, as far as the C library keeps it and can be told (glibc).
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) has no preconditions, and may be called by any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Memory that can be read by address: a process, or a recorded image.
pub trait ReadMemory {
    /// Fills `buffer` from `address`; all or nothing.
    fn read(&self, address: Address, buffer: &mut [u8]) -> Result<(), MemoryError>;

    /// The u64 at `address`, little endian.
    fn read_u64(&self, address: Address) -> Result<u64, MemoryError> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The u32 at `address`, little endian.
    fn read_u32(&self, address: Address) -> Result<u32, MemoryError> {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }
}

/// The memory of a process.
#[derive(Debug, Clone, Copy)]
pub struct ProcessMemory {
    pid: Pid,
}

impl ProcessMemory {
    /// The memory of `pid`; nothing is opened until it is read.
    #[must_use]
    pub fn new(pid: Pid) -> Self {
        Self { pid }
    }

    /// Whether this process may read it: tried, since rights, security modules and Yama all have a say.
    #[must_use]
    pub fn is_readable(self) -> bool {
        // Nothing is mapped at 0: a refusal comes before that is found out.
        !matches!(
            self.read(Address(0), &mut [0]),
            Err(MemoryError::Gone | MemoryError::Denied)
        )
    }
}

impl ReadMemory for ProcessMemory {
    fn read(&self, address: Address, buffer: &mut [u8]) -> Result<(), MemoryError> {
        match Self::read_shown(self.pid, address, buffer) {
            Err(MemoryError::Gone) => match facts::stand_in(self.pid) {
                Some(other) => Self::read_shown(other, address, buffer),
                None => Err(MemoryError::Gone),
            },
            result => result,
        }
    }
}

impl ProcessMemory {
    fn read_shown(pid: Pid, address: Address, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let len = buffer.len();
        let pid = nix::unistd::Pid::from_raw(pid.0.cast_signed());
        let remote = [RemoteIoVec {
            base: address.0 as usize,
            len,
        }];
        match process_vm_readv(pid, &mut [IoSliceMut::new(buffer)], &remote) {
            Ok(n_read) if n_read == len => Ok(()),
            Err(Errno::ESRCH) => Err(MemoryError::Gone),
            Err(Errno::EPERM) => Err(MemoryError::Denied),
            Ok(_) | Err(_) => Err(MemoryError::Unmapped(address)),
        }
    }
}

/// Most ranges that one call of `process_vm_readv` takes (`UIO_MAXIOV`).
pub const MAX_RANGES: usize = 1024;

impl ProcessMemory {
    /// Fills `buffer` with pieces of `piece_bytes` from as many addresses ([`MAX_RANGES`] at most), in their order.
    /// Returns how many came: one that cannot be read ends it.
    pub fn read_pieces(
        self,
        addresses: &[Address],
        piece_bytes: usize,
        buffer: &mut [u8],
    ) -> Result<usize, MemoryError> {
        let pid = facts::stand_in(self.pid).unwrap_or(self.pid);
        let remote: Vec<RemoteIoVec> = addresses
            .iter()
            .take(MAX_RANGES)
            .map(|address| RemoteIoVec {
                base: address.0 as usize,
                len: piece_bytes,
            })
            .collect();
        let len = buffer.len().min(remote.len() * piece_bytes);
        let pid = nix::unistd::Pid::from_raw(pid.0.cast_signed());
        let local = &mut [IoSliceMut::new(&mut buffer[..len])];
        match process_vm_readv(pid, local, &remote) {
            Ok(n_read) => Ok(n_read / piece_bytes.max(1)),
            Err(Errno::ESRCH) => Err(MemoryError::Gone),
            Err(Errno::EPERM) => Err(MemoryError::Denied),
            Err(_) => Ok(0),
        }
    }
}

/// [`ReadUser`] over any memory: the kernel's unwinding steps, run from outside.
#[derive(Debug)]
pub struct RemoteReader<'a, M>(pub &'a M);

impl<M: ReadMemory> ReadUser for RemoteReader<'_, M> {
    fn words<const N: usize>(&mut self, address: u64) -> Result<[u64; N], Fault> {
        let mut words = [0; N];
        self.fill(address, &mut words)?;
        Ok(words)
    }

    fn u32(&mut self, address: u64) -> Result<u32, Fault> {
        self.0.read_u32(Address(address)).map_err(|_| Fault)
    }

    fn window(&mut self, address: u64, n_bytes: u64, window: &mut Window) -> Result<(), Fault> {
        let words = window
            .words_mut()
            .get_mut(..n_bytes as usize / 8)
            .ok_or(Fault)?;
        self.fill(address, words)
    }
}

impl<M: ReadMemory> RemoteReader<'_, M> {
    fn fill(&self, address: u64, words: &mut [u64]) -> Result<(), Fault> {
        let mut bytes = [0; profiler_common::unwind::WINDOW_BYTES as usize];
        let bytes = bytes.get_mut(..size_of_val(words)).ok_or(Fault)?;
        self.0.read(Address(address), bytes).map_err(|_| Fault)?;
        for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*chunk);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_memory_is_read_and_unmapped_memory_is_an_error() {
        let memory = ProcessMemory::new(Pid(std::process::id()));
        let value = 0x1122_3344_5566_7788_u64;
        assert_eq!(memory.read_u64(Address(&raw const value as u64)), Ok(value));
        assert_eq!(
            memory.read_u64(Address(8)),
            Err(MemoryError::Unmapped(Address(8)))
        );
        let gone = ProcessMemory::new(Pid(u32::MAX >> 2));
        assert_eq!(
            gone.read_u64(Address(&raw const value as u64)),
            Err(MemoryError::Gone)
        );
    }
}
