//! Memory of a made-up process, for tests: one contiguous range of bytes.

use super::memory::{MemoryError, ReadMemory};
use crate::ids::Address;

/// A range of memory that begins at [`MemoryImage::BASE`]; all else is unmapped.
#[derive(Debug, Clone)]
pub(crate) struct MemoryImage {
    pub(crate) bytes: Vec<u8>,
}

impl MemoryImage {
    /// Address of the first byte.
    pub(crate) const BASE: u64 = 0x7f00_0000_0000;

    /// Writes at an address, which must lie in the image.
    pub(crate) fn write(&mut self, address: u64, bytes: &[u8]) {
        let start = (address - Self::BASE) as usize;
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
    }

    /// Writes a word.
    pub(crate) fn write_word(&mut self, address: u64, word: u64) {
        self.write(address, &word.to_le_bytes());
    }
}

impl ReadMemory for MemoryImage {
    fn read(&self, address: Address, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let start = address
            .0
            .checked_sub(Self::BASE)
            .ok_or(MemoryError::Unmapped(address))? as usize;
        let end = start
            .checked_add(buffer.len())
            .ok_or(MemoryError::Unmapped(address))?;
        buffer.copy_from_slice(
            self.bytes
                .get(start..end)
                .ok_or(MemoryError::Unmapped(address))?,
        );
        Ok(())
    }
}
