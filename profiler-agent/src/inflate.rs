//! Unpacks many small pieces, one after the other.
//!
//! What inflates has 48 KiB and more of its own, aligned to 64 bytes. Made anew for each piece, between things that stay, it leaves
//! holes that the C library does not fill again: glibc before 2.38 takes fresh memory for what is aligned
//! (<https://sourceware.org/bugzilla/show_bug.cgi?id=14581>). A minute of sampling kept 100 MiB of them. So it is made once.

use flate2::{Decompress, FlushDecompress, Status};

/// What inflates.
#[derive(Debug)]
pub struct Inflater {
    decompress: Decompress,
    has_header: bool,
}

impl Inflater {
    /// For pieces with the header of zlib, or without.
    #[must_use]
    pub fn new(has_header: bool) -> Self {
        Self {
            decompress: Decompress::new(has_header),
            has_header,
        }
    }

    /// Unpacks a piece. `None`: it is damaged, or has more than `max_bytes`.
    pub fn unpack(&mut self, packed: &[u8], max_bytes: usize) -> Option<Vec<u8>> {
        self.decompress.reset(self.has_header);
        let mut unpacked = Vec::with_capacity((packed.len() * 4).clamp(64, max_bytes.max(64)));
        loop {
            let done = usize::try_from(self.decompress.total_in()).ok()?;
            let status = self.decompress.decompress_vec(
                packed.get(done..)?,
                &mut unpacked,
                FlushDecompress::Finish,
            );
            match status.ok()? {
                Status::StreamEnd => return (unpacked.len() <= max_bytes).then_some(unpacked),
                // There was no room for the rest; where there was, the rest is missing.
                Status::Ok | Status::BufError
                    if unpacked.len() == unpacked.capacity() && unpacked.len() <= max_bytes =>
                {
                    unpacked.reserve(unpacked.len());
                }
                Status::Ok | Status::BufError => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::ZlibEncoder;
    use proptest::prelude::*;

    use super::*;

    fn packed(plain: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    proptest! {
        #[test]
        fn pieces_come_back_one_after_the_other(
            pieces in prop::collection::vec(prop::collection::vec(0_u8..4, 0..3000), 1..8),
            cut in 0_usize..100,
        ) {
            let mut inflater = Inflater::new(true);
            for plain in pieces {
                let packed = packed(&plain);
                // What was damaged before is no matter.
                let _ = inflater.unpack(&packed[..packed.len().min(cut)], 4096);
                prop_assert_eq!(inflater.unpack(&packed, plain.len()), Some(plain.clone()));
                if let Some(less) = plain.len().checked_sub(1) {
                    prop_assert_eq!(inflater.unpack(&packed, less), None);
                }
                prop_assert_eq!(inflater.unpack(&packed[..packed.len() - 5], 1 << 20), None);
            }
        }

        #[test]
        fn any_bytes_are_unpacked_or_not(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Inflater::new(true).unpack(&bytes, 1000);
            let _ = Inflater::new(false).unpack(&bytes, 1000);
        }
    }

    #[test]
    fn a_bomb_takes_no_more_than_it_may() {
        let packed = packed(&vec![0; 64 << 20]);
        assert_eq!(Inflater::new(true).unpack(&packed, 1 << 20), None);
    }
}
