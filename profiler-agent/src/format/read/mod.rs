//! Reading profiles: what pyagent writes, and what others write in the same formats. What is read is not trusted: every
//! index is checked, every length bounded.

mod folded;
mod pprof;
mod wire;

use std::io::Read as _;

use flate2::read::MultiGzDecoder;

use crate::profile::model::Profile;

/// Most bytes of a profile, compressed or not.
pub const MAX_BYTES: u64 = 1 << 30;

/// How much one profile may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes, compressed or not.
    pub bytes: u64,
    /// Functions, places, binaries and texts together; sets of labels.
    pub entries: usize,
    /// Different samples.
    pub rows: usize,
}

impl Limits {
    /// Of a file that somebody names.
    pub const FILE: Self = Self {
        bytes: MAX_BYTES,
        entries: 1 << 26,
        rows: 1 << 26,
    };
}

/// Why bytes are no profile that can be read. Each message is one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// There is nothing.
    #[error("it is empty")]
    Empty,
    /// More bytes than it may have.
    #[error("it is larger than {} MiB", .0 >> 20)]
    TooLarge(u64),
    /// More of something than it may have.
    #[error("it has more than {0} different samples, functions, texts or sets of labels")]
    TooMany(usize),
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
    let unpacked = unpacked(bytes, MAX_BYTES)?;
    let bytes = unpacked.as_deref().unwrap_or(bytes);
    if let Some(text) = folded_text(bytes) {
        return folded::parse(text);
    }
    match pprof::decode(bytes, &Limits::FILE) {
        // Names can have any bytes in them.
        Err(error @ ReadError::Unknown(_)) if looks_folded(bytes) => {
            folded::parse(&String::from_utf8_lossy(bytes)).map_err(|_| error)
        }
        decoded => decoded,
    }
}

/// Reads a profile as an agent writes it for others: pprof, within these limits. Its memory is bounded by them too: some ten
/// times the bytes at most.
pub fn read_within(bytes: &[u8], limits: &Limits) -> Result<Profile, ReadError> {
    let unpacked = unpacked(bytes, limits.bytes)?;
    pprof::decode(unpacked.as_deref().unwrap_or(bytes), limits)
}

/// What is compressed, unpacked; `None`: it is not compressed.
fn unpacked(bytes: &[u8], max_bytes: u64) -> Result<Option<Vec<u8>>, ReadError> {
    if bytes.len() as u64 > max_bytes {
        return Err(ReadError::TooLarge(max_bytes));
    }
    if bytes.is_empty() {
        return Err(ReadError::Empty);
    }
    let is_packed = bytes.starts_with(&[0x1f, 0x8b]);
    is_packed.then(|| unpack(bytes, max_bytes)).transpose()
}

/// Whether the first line ends as that of a folded stack.
fn looks_folded(bytes: &[u8]) -> bool {
    let first = bytes.split(|byte| *byte == b'\n').next().unwrap_or(bytes);
    let mut words = first.trim_ascii_end().rsplitn(2, |byte| *byte == b' ');
    let count = words.next().unwrap_or_default();
    !count.is_empty() && count.iter().all(u8::is_ascii_digit) && words.next().is_some()
}

fn unpack(bytes: &[u8], max_bytes: u64) -> Result<Vec<u8>, ReadError> {
    let mut unpacked = Vec::new();
    MultiGzDecoder::new(bytes)
        .take(max_bytes + 1)
        .read_to_end(&mut unpacked)
        .map_err(|error| ReadError::Gzip(error.to_string()))?;
    if unpacked.len() as u64 > max_bytes {
        return Err(ReadError::TooLarge(max_bytes));
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

    #[test]
    fn names_of_folded_stacks_have_any_bytes() {
        for (bytes, name) in [
            (&b"main;f\x1b[31mred 4\nmain 1\n"[..], "f\x1b[31mred"),
            (b"main;f\0 4\nmain 1", "f\0"),
            (b"main;caf\xe9 4\nmain 1", "caf\u{fffd}"),
            (b"main;a\rb 4\r\nmain 1\r\n", "a\rb"),
        ] {
            let profile = read(bytes).unwrap();
            assert_eq!(profile.n_samples(), 5);
            assert!(profile.strings.iter().any(|it| **it == *name), "{name:?}");
        }
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

    #[test]
    fn what_is_too_much_is_refused_before_it_takes_memory() {
        const FEW: Limits = Limits {
            bytes: 1 << 20,
            entries: 100,
            rows: 4,
        };
        let profile = |n: usize| {
            let lines = (0..n).map(|it| format!("main;f{it} 1\n"));
            let profile = read(lines.collect::<String>().as_bytes()).unwrap();
            let mut bytes = Vec::new();
            Format::default_format()
                .write(&profile, &mut bytes)
                .unwrap();
            bytes
        };
        let sum = |bytes: &[u8]| read_within(bytes, &FEW).map(|it| it.n_samples());
        let n_samples = |n| sum(&profile(n));
        assert_eq!(n_samples(4), Ok(4));
        assert_eq!(n_samples(5), Err(ReadError::TooMany(4)));
        assert_eq!(n_samples(200), Err(ReadError::TooMany(100)));
        // Empty entries of tables, and remarks, in two bytes and in one each.
        for (field, n) in [(0x2a, 200), (0x22, 200), (0x32, 200)] {
            let bytes = [field, 0].repeat(n);
            assert_eq!(sum(&bytes), Err(ReadError::TooMany(100)));
        }
        let mut remarks = vec![0x6a, 0xc8, 1];
        remarks.extend([0; 200]);
        assert_eq!(sum(&remarks), Err(ReadError::TooMany(100)));
        let zeros = vec![0; 2 << 20];
        assert_eq!(sum(&zeros), Err(ReadError::TooLarge(1 << 20)));
        // Folded stacks are not what agents send.
        assert!(sum(b"main;f 1\n").is_err());
    }
}
