//! The headers of an ELF file and its tables, read piece by piece: for facts that need a part of a large
//! file. 64 bits, little endian: what the supported machines run.
//!
//! The file belongs to a target and is hostile. It is read with `pread`, never mapped (it can be truncated
//! meanwhile), and each read has a bound that does not come from the file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use object::elf::{FileHeader64, ProgramHeader64, SectionHeader64};
use object::read::elf::FileHeader as _;
use object::{LittleEndian, Pod, pod};

/// Most sections that a file may have; those that are linked to run have about 40.
const MAX_SECTIONS: u16 = 16_384;

/// Most program headers; those of real files have about 15.
const MAX_SEGMENTS: u16 = 1024;

/// Why an ELF file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HeadersError {
    /// It cannot be read, or ends early.
    #[error("ELF file: {0}")]
    Io(#[from] io::Error),
    /// It is no ELF file of 64 bits and little endian.
    #[error("not a 64-bit little-endian ELF file")]
    NotElf,
    /// It has more sections or segments than any real one, or of another size.
    #[error("implausible ELF headers")]
    Implausible,
}

/// The program and section headers of a file.
#[derive(Debug)]
pub(super) struct Headers {
    pub(super) segments: Vec<ProgramHeader64<LittleEndian>>,
    /// Empty where the file was stripped of them.
    pub(super) sections: Vec<SectionHeader64<LittleEndian>>,
}

impl Headers {
    pub(super) fn read(file: &File) -> Result<Self, HeadersError> {
        let header = read_structs::<FileHeader64<LittleEndian>>(file, 0, 1)?
            .into_iter()
            .next();
        let header = header.ok_or(HeadersError::NotElf)?;
        if !header.is_supported() || !header.is_little_endian() {
            return Err(HeadersError::NotElf);
        }
        let endian = LittleEndian;
        let (n_segments, n_sections) = (header.e_phnum(endian), header.e_shnum(endian));
        let has_sizes = (n_segments == 0
            || usize::from(header.e_phentsize(endian))
                == size_of::<ProgramHeader64<LittleEndian>>())
            && (n_sections == 0
                || usize::from(header.e_shentsize(endian))
                    == size_of::<SectionHeader64<LittleEndian>>());
        if !has_sizes || n_segments > MAX_SEGMENTS || n_sections > MAX_SECTIONS {
            return Err(HeadersError::Implausible);
        }
        Ok(Self {
            segments: read_structs(file, header.e_phoff(endian), n_segments.into())?,
            sections: read_structs(file, header.e_shoff(endian), n_sections.into())?,
        })
    }
}

/// Reads `count` structures, whose size must be a multiple of 8. The caller bounds the count.
pub(super) fn read_structs<T: Pod>(file: &File, offset: u64, count: usize) -> io::Result<Vec<T>> {
    let words = read_words(file, offset, (count * size_of::<T>()).div_ceil(8))?;
    let (structs, _) = pod::slice_from_bytes(pod::bytes_of_slice(&words), count)
        .map_err(|()| io::Error::other("structure of an odd size"))?;
    Ok(structs.to_vec())
}

/// Reads bytes as words, so that structures in them are aligned. The caller bounds the count.
pub(super) fn read_words(file: &File, offset: u64, n_words: usize) -> io::Result<Vec<u64>> {
    let mut words = vec![0; n_words];
    file.read_exact_at(pod::bytes_of_slice_mut(&mut words), offset)?;
    Ok(words)
}
