//! The GNU build id of an ELF file: the note by which symbol servers and profile stores know a binary.

use std::fmt;
use std::fs::File;

use object::elf::{ELF_NOTE_GNU, FileHeader64, NT_GNU_BUILD_ID, PT_NOTE};
use object::read::elf::{NoteIterator, ProgramHeader as _};
use object::{LittleEndian, pod};

use super::headers::{Headers, HeadersError, read_words};

/// Most bytes of notes that are read of one segment.
const MAX_NOTE_BYTES: u64 = 64 * 1024;

/// Most bytes of a build id. Linkers write 8 to 20; with `--build-id=0x...` anybody can write more.
const MAX_BYTES: usize = 64;

/// A build id; shown as lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BuildId(Box<[u8]>);

impl BuildId {
    /// The build id of a file; `None` when it has none, or one of no plausible length.
    pub fn of_file(file: &File) -> Result<Option<Self>, HeadersError> {
        let endian = LittleEndian;
        let segments = Headers::read(file)?.segments;
        for segment in segments
            .iter()
            .filter(|segment| segment.p_type(endian) == PT_NOTE)
        {
            let n_bytes = segment.p_filesz(endian).min(MAX_NOTE_BYTES) as usize;
            // The last word may go over the segment's end; notes are never the end of a file.
            let Ok(words) = read_words(file, segment.p_offset(endian), n_bytes.div_ceil(8)) else {
                continue;
            };
            let notes = &pod::bytes_of_slice(&words)[..n_bytes];
            let notes = NoteIterator::<FileHeader64<LittleEndian>>::new(
                endian,
                segment.p_align(endian),
                notes,
            );
            let build_id = notes
                .into_iter()
                .flatten()
                .map_while(Result::ok)
                .find(|note| note.name() == ELF_NOTE_GNU && note.n_type(endian) == NT_GNU_BUILD_ID);
            if let Some(note) = build_id {
                let bytes = note.desc();
                return Ok((1..=MAX_BYTES)
                    .contains(&bytes.len())
                    .then(|| Self(bytes.into())));
            }
        }
        Ok(None)
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
