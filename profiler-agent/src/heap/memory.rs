//! The target's memory, as much of it as can be read without disturbing it: pages that are there, and what comes from a
//! file from the file itself.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use crate::ids::{Address, Pid};
use crate::process::file;
use crate::process::maps::{self, FileId, Mapping};
use crate::process::memory::{MAX_RANGES, MemoryError, ProcessMemory, ReadMemory};
use crate::process::regions::Resident;

/// Most files that are kept open.
const MAX_FILES: usize = 256;

/// Memory that is read only where its pages are present.
#[derive(Debug)]
pub struct QuietMemory {
    pid: Pid,
    memory: ProcessMemory,
    /// What is there.
    pub resident: Resident,
    files: Vec<Mapping>,
    opened: RefCell<HashMap<FileId, Option<File>>>,
}

impl QuietMemory {
    /// Looks up what is there now.
    pub fn of_process(pid: Pid) -> std::io::Result<Self> {
        Ok(Self {
            pid,
            memory: ProcessMemory::new(pid),
            resident: Resident::of_process(pid)?,
            files: maps::of_process(pid)?,
            opened: RefCell::default(),
        })
    }

    /// Reads pieces of `piece_bytes` from as many addresses and gives each that could be read to `take`, with its place
    /// among the addresses.
    pub fn read_pieces(
        &self,
        addresses: &[Address],
        piece_bytes: usize,
        take: &mut dyn FnMut(usize, &[u8]),
    ) -> Result<(), MemoryError> {
        let mut buffer = vec![0; MAX_RANGES.min(addresses.len()) * piece_bytes];
        let there: Vec<usize> = (0..addresses.len())
            .filter(|idx| self.resident.contains(addresses[*idx], piece_bytes as u64))
            .collect();
        let mut rest = &there[..];
        while !rest.is_empty() {
            let batch = &rest[..rest.len().min(MAX_RANGES)];
            let wanted: Vec<Address> = batch.iter().map(|idx| addresses[*idx]).collect();
            let n_read = self
                .memory
                .read_pieces(&wanted, piece_bytes, &mut buffer)?
                .min(batch.len());
            for (idx, piece) in batch[..n_read].iter().zip(buffer.chunks(piece_bytes)) {
                take(*idx, piece);
            }
            // The one that ended the reading is left out.
            let n_done = if n_read < batch.len() {
                n_read + 1
            } else {
                n_read
            };
            rest = &rest[n_done..];
        }
        Ok(())
    }

    fn read_file(&self, address: Address, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let unmapped = MemoryError::Unmapped(address);
        let idx = self
            .files
            .partition_point(|mapping| mapping.end.0 <= address.0);
        let mapping = self
            .files
            .get(idx)
            .filter(|mapping| mapping.start.0 <= address.0 && !mapping.is_vdso())
            .filter(|mapping| mapping.end.0 - address.0 >= buffer.len() as u64)
            .ok_or(unmapped)?;
        let mut opened = self.opened.borrow_mut();
        if opened.len() >= MAX_FILES && !opened.contains_key(&mapping.file) {
            opened.clear();
        }
        let file = opened
            .entry(mapping.file)
            .or_insert_with(|| Some(file::open_mapped(self.pid, mapping).ok()?.0))
            .as_ref()
            .ok_or(unmapped)?;
        let offset = mapping
            .file_offset
            .saturating_add(address.0 - mapping.start.0);
        file.read_exact_at(buffer, offset).map_err(|_| unmapped)
    }
}

impl ReadMemory for QuietMemory {
    fn read(&self, address: Address, buffer: &mut [u8]) -> Result<(), MemoryError> {
        if self.resident.contains(address, buffer.len() as u64) {
            self.memory.read(address, buffer)
        } else {
            self.read_file(address, buffer)
        }
    }
}
