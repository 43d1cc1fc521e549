//! The outermost fields of a message of Protocol Buffers, without what is in them:
//! <https://protobuf.dev/programming-guides/encoding/>.
//!
//! A message that is decoded as a whole can take forty times its bytes in memory: a sample without anything is two bytes long. So
//! the repeated fields of a profile are counted, or looked at one by one.

/// A field with what follows its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field<'a> {
    pub(super) number: u64,
    /// All of it, its number included.
    pub(super) whole: &'a [u8],
    /// What a field has that says its length; of others the whole.
    pub(super) content: &'a [u8],
}

/// The fields of a message.
#[derive(Debug, Clone)]
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

/// Not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Garbled;

impl<'a> Fields<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn field(&mut self) -> Option<Field<'a>> {
        let begin = self.rest;
        let mut rest = begin;
        let key = varint(&mut rest)?;
        let content = match key & 7 {
            0 => {
                varint(&mut rest)?;
                None
            }
            1 => {
                rest = rest.get(8..)?;
                None
            }
            2 => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                let (content, after) = rest.split_at_checked(length)?;
                rest = after;
                Some(content)
            }
            5 => {
                rest = rest.get(4..)?;
                None
            }
            // Groups have been gone for twenty years.
            _ => return None,
        };
        let whole = &begin[..begin.len() - rest.len()];
        self.rest = rest;
        Some(Field {
            number: key >> 3,
            whole,
            content: content.unwrap_or(whole),
        })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, Garbled>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.rest = &[];
        }
        Some(field.ok_or(Garbled))
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..70).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f).checked_shl(shift).unwrap_or(0);
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::generated::perftools::profiles as proto;

    #[test]
    fn fields_are_told_apart_by_their_numbers() {
        let profile = proto::Profile {
            sample: vec![proto::Sample::default(); 3],
            string_table: vec![String::new(), "a".repeat(300)],
            time_nanos: i64::MAX,
            comment: vec![1, -1],
            ..proto::Profile::default()
        };
        let bytes = profile.encode_to_vec();
        let fields: Result<Vec<_>, _> = Fields::new(&bytes).collect();
        let fields = fields.unwrap();
        let numbers: Vec<u64> = fields.iter().map(|it| it.number).collect();
        assert_eq!(numbers, [2, 2, 2, 6, 6, 9, 13]);
        assert_eq!(fields[4].content, "a".repeat(300).as_bytes());
        let wholes: Vec<u8> = fields.iter().flat_map(|it| it.whole).copied().collect();
        assert_eq!(wholes, bytes);
        assert_eq!(Fields::new(&bytes[..20]).next_back_error(), Some(Garbled));
    }

    impl Fields<'_> {
        fn next_back_error(self) -> Option<Garbled> {
            self.last().and_then(Result::err)
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_fields_or_garbled(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let n_bytes: usize = Fields::new(&bytes).flatten().map(|it| it.whole.len()).sum();
            proptest::prop_assert!(n_bytes <= bytes.len());
            // What the decoder takes these are fields of.
            if proto::Profile::decode(&*bytes).is_ok() && !bytes.iter().any(|it| matches!(it & 7, 3 | 4)) {
                proptest::prop_assert_eq!(n_bytes, bytes.len());
            }
        }
    }
}
