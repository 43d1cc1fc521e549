//! Reading profiles: what pyagent writes, and what others write in the same formats. What is read is not trusted: every
//! index is checked, every length bounded.

mod folded;
mod pprof;

use std::io::Read as _;

use flate2::read::MultiGzDecoder;

use crate::profile::model::Profile;

/// Most bytes of a profile, compressed or not.
pub const MAX_BYTES: u64 = 1 << 30;

/// Why bytes are no profile that can be read. Each message is one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// There is nothing.
    #[error("it is empty")]
    Empty,
    /// More than [`MAX_BYTES`].
    #[error("it is larger than {} MiB", MAX_BYTES >> 20)]
    TooLarge,
    /// The compression is broken, or the file was cut.
    #[error("it cannot be unpacked: {0}")]
    Gzip(String),
    /// Neither of the formats.
    #[error(
        "it is neither pprof (.pb.gz) nor folded stacks: {0}; other formats are written by pyagent and read by their viewers"
    )]
    Unknown(String),
    /// pprof that contradicts itself.
    #[error("it is damaged: {0}")]
    Damaged(String),
}

/// Reads a profile: pprof, compressed by gzip or not, or folded stacks. The bytes say which.
pub fn read(bytes: &[u8]) -> Result<Profile, ReadError> {
    if bytes.len() as u64 > MAX_BYTES {
        return Err(ReadError::TooLarge);
    }
    if bytes.is_empty() {
        return Err(ReadError::Empty);
    }
    if bytes.starts_with(&[0x1f, 0x8b]) {
        let unpacked = unpack(bytes)?;
        return match folded_text(&unpacked) {
            Some(text) => folded::parse(text),
            None => pprof::decode(&unpacked),
        };
    }
    match folded_text(bytes) {
        Some(text) => folded::parse(text),
        None => pprof::decode(bytes),
    }
}

fn unpack(bytes: &[u8]) -> Result<Vec<u8>, ReadError> {
    let mut unpacked = Vec::new();
    MultiGzDecoder::new(bytes)
        .take(MAX_BYTES + 1)
        .read_to_end(&mut unpacked)
        .map_err(|error| ReadError::Gzip(error.to_string()))?;
    if unpacked.len() as u64 > MAX_BYTES {
        return Err(ReadError::TooLarge);
    }
    if unpacked.is_empty() {
        return Err(ReadError::Empty);
    }
    Ok(unpacked)
}

/// The text, when it is one without control characters: pprof begins with one.
fn folded_text(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?;
    let is_text = |char: char| !char.is_control() || char == '\t';
    let mut lines = text.lines().take(100);
    lines.all(|line| line.chars().all(is_text)).then_some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::Format;

    #[test]
    fn what_is_no_profile_is_said_in_one_line() {
        for (bytes, part) in [
            (&b""[..], "empty"),
            (b"\x1f\x8bbroken", "unpacked"),
            (b"hello world", "neither"),
            (b"\x7fELF\x02\x01\x01\x00\x00", "neither"),
            (b"{\"a\": 1}", "neither"),
        ] {
            let message = read(bytes).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
            assert_eq!(message.lines().count(), 1);
        }
    }

    #[test]
    fn folded_stacks_come_back_as_they_were() {
        let text = "main (/srv/app.py:3);[libz.so.1] deflate;copy_[k] 4\nmain (/srv/app.py:9) 2\n[no stack] 1\n";
        let profile = read(text.as_bytes()).unwrap();
        assert_eq!(profile.n_samples(), 7);
        let mut written = Vec::new();
        Format::from_name("folded")
            .unwrap()
            .write(&profile, &mut written)
            .unwrap();
        let mut expected: Vec<&str> = text.lines().collect();
        expected.sort_unstable();
        let written = String::from_utf8(written).unwrap();
        assert_eq!(written.lines().collect::<Vec<_>>(), expected);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_profile_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = read(&bytes);
        }

        #[test]
        fn any_lines_are_a_profile_or_none(text in "([a-z ;()\\[\\]:0-9_#]{0,30} [0-9]{1,20}\n){0,8}") {
            let _ = read(text.as_bytes());
        }
    }
}
