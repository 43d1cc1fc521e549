//! The samples of one process, one type and one window, as bytes.
//!
//! Stacks are a tree from the root: a node is a place and its caller, so what stacks share is written once. Numbers are
//! varints, differences where they are small; all of it is compressed when that makes it shorter. Functions and texts are
//! numbers of rows elsewhere. What is read back may be damaged: decoding is total, and bounded.

use std::collections::HashMap;

use flate2::{Compress, Compression, FlushCompress, Status};
use foldhash::fast::RandomState;
use prost::encoding::{decode_varint, encode_varint};

use crate::inflate::Inflater;
use crate::profile::model::{MAX_VALUES, Values};

/// First byte: how the rest is written.
const PLAIN: u8 = 0;
const COMPRESSED: u8 = 1;

/// Most bytes of a part when it is not compressed.
const MAX_BYTES: usize = 64 << 20;

/// Compresses nothing that is shorter.
const MIN_COMPRESSED_BYTES: usize = 128;

/// A place in a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    /// Row of the function.
    pub(super) function: i64,
    /// Line, 0 when not known.
    pub(super) line: u32,
    /// Address for native and kernel frames, else 0.
    pub(super) address: u64,
}

/// The value of a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LabelValue {
    /// Row of the text.
    Str(i64),
    /// A number.
    Num(i64),
}

/// A call: a place, and who called it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Node {
    /// Index of the caller; `None`: it is a root.
    pub(super) caller: Option<u32>,
    /// Index of the place.
    pub(super) place: u32,
}

/// A sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample {
    /// Index of the leaf's node; `None`: it has no frames.
    pub(super) leaf: Option<u32>,
    /// Index of the labels.
    pub(super) labels: u32,
    /// Values.
    pub(super) values: Values,
}

/// Labels beside those of the process: rows of their names, and what they say.
pub(super) type Labels = Vec<(i64, LabelValue)>;

/// In place of the row of a name: the number is no label, but says when the thread began, in nanoseconds since boot. Rows
/// begin with 1.
pub(super) const THREAD_START: i64 = 0;

/// The samples of one process, one type and one window.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Samples {
    pub(super) labels: Vec<Labels>,
    pub(super) places: Vec<Place>,
    /// Callers come first.
    pub(super) nodes: Vec<Node>,
    pub(super) rows: Vec<Sample>,
}

/// Puts [`Samples`] together.
#[derive(Debug, Default)]
pub(super) struct Builder {
    samples: Samples,
    places: HashMap<Place, u32, RandomState>,
    nodes: HashMap<(Option<u32>, u32), u32, RandomState>,
}

/// What is wrong with bytes that should be samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("recorded samples are damaged")]
pub(super) struct Damaged;

impl Builder {
    /// The index of new labels.
    pub(super) fn labels(&mut self, labels: Labels) -> u32 {
        self.samples.labels.push(labels);
        self.samples.labels.len() as u32 - 1
    }

    /// The node of a call.
    pub(super) fn call(&mut self, caller: Option<u32>, place: Place) -> u32 {
        let Samples { places, nodes, .. } = &mut self.samples;
        let place = *self.places.entry(place).or_insert_with(|| {
            places.push(place);
            places.len() as u32 - 1
        });
        *self.nodes.entry((caller, place)).or_insert_with(|| {
            nodes.push(Node { caller, place });
            nodes.len() as u32 - 1
        })
    }

    /// Adds a sample.
    pub(super) fn sample(&mut self, leaf: Option<u32>, labels: u32, values: Values) {
        self.samples.rows.push(Sample {
            leaf,
            labels,
            values,
        });
    }

    /// What was added.
    pub(super) fn samples(&self) -> &Samples {
        &self.samples
    }

    /// Empty again, with the room that it has.
    pub(super) fn clear(&mut self) {
        let Samples {
            labels,
            places,
            nodes,
            rows,
        } = &mut self.samples;
        labels.clear();
        places.clear();
        nodes.clear();
        rows.clear();
        self.places.clear();
        self.nodes.clear();
    }
}

/// Signed numbers so that small ones are short.
fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -((number & 1).cast_signed())
}

/// Writes parts, one after the other: what compresses is as large as many parts, and is made once.
#[derive(Debug)]
pub(super) struct Encoder {
    compress: Compress,
    plain: Vec<u8>,
}

impl Default for Encoder {
    fn default() -> Self {
        Self {
            compress: Compress::new(Compression::fast(), true),
            plain: Vec::new(),
        }
    }
}

impl Encoder {
    /// A part as bytes; of each sample so many values.
    pub(super) fn encode(&mut self, samples: &Samples, n_values: usize) -> Vec<u8> {
        self.plain.clear();
        samples.encode_plain(n_values.min(MAX_VALUES), &mut self.plain);
        if self.plain.len() >= MIN_COMPRESSED_BYTES {
            let mut compressed = Vec::with_capacity(self.plain.len());
            compressed.push(COMPRESSED);
            self.compress.reset();
            // What would be longer has no room, and does not end.
            let status =
                self.compress
                    .compress_vec(&self.plain, &mut compressed, FlushCompress::Finish);
            if matches!(status, Ok(Status::StreamEnd)) {
                return compressed;
            }
        }
        [&[PLAIN], self.plain.as_slice()].concat()
    }
}

/// Reads parts, one after the other.
#[derive(Debug)]
pub(super) struct Decoder {
    inflater: Inflater,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            inflater: Inflater::new(true),
        }
    }
}

impl Decoder {
    /// Reads what [`Encoder::encode`] wrote: every index in it is valid.
    pub(super) fn decode(&mut self, bytes: &[u8], n_values: usize) -> Result<Samples, Damaged> {
        let (kind, rest) = bytes.split_first().ok_or(Damaged)?;
        match *kind {
            PLAIN => Samples::decode_plain(rest, n_values),
            COMPRESSED => {
                let plain = self.inflater.unpack(rest, MAX_BYTES).ok_or(Damaged)?;
                Samples::decode_plain(&plain, n_values)
            }
            _ => Err(Damaged),
        }
    }
}

impl Samples {
    fn encode_plain(&self, n_values: usize, out: &mut Vec<u8>) {
        let mut put = |number: u64| encode_varint(number, out);
        put(self.labels.len() as u64);
        for labels in &self.labels {
            put(labels.len() as u64);
            for (name, value) in labels {
                put(name.cast_unsigned());
                let (kind, number) = match *value {
                    LabelValue::Str(text) => (0, text.cast_unsigned()),
                    LabelValue::Num(number) => (1, zigzag(number)),
                };
                put(kind);
                put(number);
            }
        }
        put(self.places.len() as u64);
        let mut before = Place {
            function: 0,
            line: 0,
            address: 0,
        };
        for place in &self.places {
            put(zigzag(place.function.wrapping_sub(before.function)));
            put(zigzag(i64::from(place.line) - i64::from(before.line)));
            put(place.address);
            before = *place;
        }
        put(self.nodes.len() as u64);
        for (idx, node) in (0_u32..).zip(&self.nodes) {
            put(node
                .caller
                .map_or(0, |caller| u64::from(idx.saturating_sub(caller))));
            put(u64::from(node.place));
        }
        put(self.rows.len() as u64);
        for sample in &self.rows {
            put(sample.leaf.map_or(0, |leaf| u64::from(leaf) + 1));
            put(u64::from(sample.labels));
            for idx in 0..n_values {
                put(zigzag(sample.values[idx]));
            }
        }
    }

    fn decode_plain(bytes: &[u8], n_values: usize) -> Result<Self, Damaged> {
        let mut from = Numbers(bytes);
        let mut samples = Self::default();
        for _ in 0..from.count()? {
            let labels = (0..from.count()?).map(|_| {
                let name = from.next()?.cast_signed();
                let value = match from.next()? {
                    0 => LabelValue::Str(from.next()?.cast_signed()),
                    1 => LabelValue::Num(unzigzag(from.next()?)),
                    _ => return Err(Damaged),
                };
                Ok((name, value))
            });
            let labels = labels.collect::<Result<_, _>>()?;
            samples.labels.push(labels);
        }
        let (mut function, mut line) = (0_i64, 0_i64);
        for _ in 0..from.count()? {
            function = function.wrapping_add(unzigzag(from.next()?));
            line = line.wrapping_add(unzigzag(from.next()?));
            samples.places.push(Place {
                function,
                line: u32::try_from(line).map_err(|_| Damaged)?,
                address: from.next()?,
            });
        }
        for idx in 0..from.count()? {
            let caller = match from.next()? {
                0 => None,
                // Callers come first, so there is no circle.
                distance => Some((idx as u64).checked_sub(distance).ok_or(Damaged)? as u32),
            };
            let place = from.index(samples.places.len())?;
            samples.nodes.push(Node { caller, place });
        }
        for _ in 0..from.count()? {
            let leaf = match from.next()? {
                0 => None,
                number => Some(within(number - 1, samples.nodes.len())?),
            };
            let labels = from.index(samples.labels.len())?;
            let mut values = [0; MAX_VALUES];
            for value in values.iter_mut().take(n_values) {
                *value = unzigzag(from.next()?);
            }
            samples.rows.push(Sample {
                leaf,
                labels,
                values: values.into(),
            });
        }
        from.0.is_empty().then_some(samples).ok_or(Damaged)
    }
}

/// Numbers that are read one after the other.
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn next(&mut self) -> Result<u64, Damaged> {
        decode_varint(&mut self.0).map_err(|_| Damaged)
    }

    /// How many things follow: no more than there are bytes, since each takes one at least.
    fn count(&mut self) -> Result<usize, Damaged> {
        let count = self.next()?;
        if count > self.0.len() as u64 {
            return Err(Damaged);
        }
        Ok(count as usize)
    }

    fn index(&mut self, len: usize) -> Result<u32, Damaged> {
        within(self.next()?, len)
    }
}

fn within(number: u64, len: usize) -> Result<u32, Damaged> {
    if number < len as u64 {
        u32::try_from(number).map_err(|_| Damaged)
    } else {
        Err(Damaged)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn samples() -> impl Strategy<Value = Samples> {
        let place = (
            any::<i64>(),
            any::<u32>(),
            prop_oneof![Just(0), any::<u64>()],
        );
        let stack = prop::collection::vec(0_usize..6, 0..6);
        let values = prop::collection::vec(any::<i64>(), MAX_VALUES);
        let label = (any::<i64>(), any::<bool>(), any::<i64>());
        let labels = prop::collection::vec(prop::collection::vec(label, 0..4), 1..4);
        (
            prop::collection::vec(place, 6),
            labels,
            prop::collection::vec((stack, 0_usize..4, values), 0..30),
        )
            .prop_map(|(places, labels, rows)| {
                let mut builder = Builder::default();
                let n_labels = labels.len();
                for set in labels {
                    let value = |(name, is_text, number)| {
                        let value = if is_text {
                            LabelValue::Str(number)
                        } else {
                            LabelValue::Num(number)
                        };
                        (name, value)
                    };
                    builder.labels(set.into_iter().map(value).collect());
                }
                for (stack, labels, values) in rows {
                    let mut leaf = None;
                    for idx in stack {
                        let (function, line, address) = places[idx];
                        let place = Place {
                            function,
                            line,
                            address,
                        };
                        leaf = Some(builder.call(leaf, place));
                    }
                    let values: [i64; MAX_VALUES] = values.try_into().unwrap();
                    builder.sample(leaf, (labels % n_labels) as u32, values.into());
                }
                builder.samples().clone()
            })
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(samples in samples()) {
            let bytes = Encoder::default().encode(&samples, MAX_VALUES);
            prop_assert_eq!(Decoder::default().decode(&bytes, MAX_VALUES), Ok(samples));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), plain in any::<bool>()) {
            let bytes = if plain { [&[PLAIN], bytes.as_slice()].concat() } else { bytes };
            if let Ok(samples) = Decoder::default().decode(&bytes, 2) {
                for (idx, node) in (0_u32..).zip(&samples.nodes) {
                    prop_assert!(node.caller.is_none_or(|caller| caller < idx));
                    prop_assert!((node.place as usize) < samples.places.len());
                }
                for sample in &samples.rows {
                    prop_assert!(sample.leaf.is_none_or(|leaf| (leaf as usize) < samples.nodes.len()));
                    prop_assert!((sample.labels as usize) < samples.labels.len());
                }
            }
        }

        #[test]
        fn a_damaged_byte_does_no_harm(samples in samples(), at in any::<prop::sample::Index>(), bit in 0..8) {
            let mut bytes = Encoder::default().encode(&samples, 2);
            let at = at.index(bytes.len());
            bytes[at] ^= 1_u8 << bit;
            let _ = Decoder::default().decode(&bytes, 2);
        }
    }

    #[test]
    fn what_stacks_share_is_written_once() {
        let place = |function| Place {
            function,
            line: 1,
            address: 0,
        };
        let mut builder = Builder::default();
        let labels = builder.labels(Vec::new());
        for leaf in 0..100 {
            let mut node = None;
            for caller in 0..50 {
                node = Some(builder.call(node, place(caller)));
            }
            let node = builder.call(node, place(1000 + leaf));
            builder.sample(Some(node), labels, [1, 10_101_010].into());
        }
        let samples = builder.samples().clone();
        assert_eq!(samples.nodes.len(), 150);
        assert!(Encoder::default().encode(&samples, 2).len() < 1000);
    }
}
