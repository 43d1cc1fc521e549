//! Memory read page by page and kept for a while: for structures whose objects lie close together, where a
//! system call costs more than a copy of 4 KiB.
//!
//! What it gives is as old as the page: whoever compares two moments calls [`Pages::forget`] between them.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
};

use super::memory::{MemoryError, ReadMemory};
use crate::ids::Address;

/// Bytes of a page, the smallest unit that is mapped or not on every supported machine.
const PAGE_BYTES: usize = 4096;

/// Most pages kept (1 MiB).
const MAX_PAGES: usize = 256;

/// A cache of pages over some memory.
#[derive(Debug)]
pub struct Pages<'a, M> {
    memory: &'a M,
    by_start: RefCell<HashMap<u64, Box<[u8; PAGE_BYTES]>>>,
    n_fetched: Cell<u32>,
}

impl<'a, M: ReadMemory> Pages<'a, M> {
    /// An empty cache.
    #[must_use]
    pub fn new(memory: &'a M) -> Self {
        Self {
            memory,
            by_start: RefCell::default(),
            n_fetched: Cell::new(0),
        }
    }

    /// Drops every page, so that later reads see the memory as it is then.
    pub fn forget(&self) {
        self.by_start.borrow_mut().clear();
    }

    /// How many pages were read so far.
    #[must_use]
    pub fn n_fetched(&self) -> u32 {
        self.n_fetched.get()
    }
}

impl<M: ReadMemory> ReadMemory for Pages<'_, M> {
    fn read(&self, address: Address, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let mut pages = self.by_start.borrow_mut();
        let mut at = address.0;
        let mut rest = buffer;
        while !rest.is_empty() {
            let in_page = at as usize % PAGE_BYTES;
            let start = at - in_page as u64;
            if !pages.contains_key(&start) {
                if pages.len() == MAX_PAGES {
                    pages.clear();
                }
                let mut page = Box::new([0; PAGE_BYTES]);
                self.n_fetched.set(self.n_fetched.get().saturating_add(1));
                self.memory.read(Address(start), &mut page[..])?;
                pages.insert(start, page);
            }
            let n_bytes = rest.len().min(PAGE_BYTES - in_page);
            let (part, behind) = rest.split_at_mut(n_bytes);
            part.copy_from_slice(&pages[&start][in_page..in_page + n_bytes]);
            at = at
                .checked_add(n_bytes as u64)
                .ok_or(MemoryError::Unmapped(address))?;
            rest = behind;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::memory_image::MemoryImage;

    #[test]
    fn reads_across_pages_are_those_of_the_memory() {
        let bytes = (0..3 * PAGE_BYTES).map(|idx| (idx / 7) as u8).collect();
        let image = MemoryImage { bytes };
        let pages = Pages::new(&image);
        for (start, n_bytes) in [
            (0, 8),
            (4090, 12),
            (4095, 4098),
            (0, 3 * PAGE_BYTES),
            (100, 0),
        ] {
            let mut buffer = vec![0; n_bytes];
            pages
                .read(Address(MemoryImage::BASE + start as u64), &mut buffer)
                .unwrap();
            assert_eq!(buffer, image.bytes[start..start + n_bytes]);
        }
        assert_eq!(pages.n_fetched(), 3);
    }

    #[test]
    fn a_page_that_is_not_mapped_is_an_error_and_the_others_are_not() {
        let image = MemoryImage {
            bytes: vec![1; PAGE_BYTES],
        };
        let pages = Pages::new(&image);
        let end = MemoryImage::BASE + PAGE_BYTES as u64;
        assert_eq!(pages.read(Address(end - 8), &mut [0; 8]), Ok(()));
        assert_eq!(
            pages.read(Address(end - 8), &mut [0; 9]),
            Err(MemoryError::Unmapped(Address(end)))
        );
        assert!(pages.read(Address(u64::MAX - 3), &mut [0; 8]).is_err());
    }

    /// Memory that can change while it is read.
    struct Shared<'a, 'b>(&'a RefCell<&'b mut MemoryImage>);
    impl ReadMemory for Shared<'_, '_> {
        fn read(&self, address: Address, buffer: &mut [u8]) -> Result<(), MemoryError> {
            self.0.borrow().read(address, buffer)
        }
    }

    #[test]
    fn after_forgetting_the_memory_is_read_again() {
        let mut image = MemoryImage {
            bytes: vec![0; PAGE_BYTES],
        };
        let memory = RefCell::new(&mut image);
        let shared = Shared(&memory);
        let pages = Pages::new(&shared);
        let read = || {
            let mut byte = [0];
            pages.read(Address(MemoryImage::BASE), &mut byte).unwrap();
            byte[0]
        };
        assert_eq!(read(), 0);
        memory.borrow_mut().write(MemoryImage::BASE, &[7]);
        assert_eq!(read(), 0);
        pages.forget();
        assert_eq!(read(), 7);
    }
}
