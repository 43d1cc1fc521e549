//! The dictionary of a request: tables that all of its profiles share.
//!
//! It is built from what is used, so nothing is in it that nothing refers to; by content, so nothing is in it twice; and
//! begins with the zero value in each table.

use std::hash::Hash;

use foldhash::fast::RandomState;
use indexmap::{IndexMap, IndexSet};

use crate::generated::opentelemetry::proto::common::v1::{AnyValue, any_value::Value};
use crate::generated::opentelemetry::proto::profiles::v1development as proto;

/// Bytes of a trace's id, and of a span's.
const ID_BYTES: (usize, usize) = (16, 8);

/// A table: distinct values, each with its place.
type Table<T> = IndexSet<T, RandomState>;

/// Value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Attribute {
    Text(String),
    Number(i64),
}

impl From<Attribute> for AnyValue {
    fn from(attribute: Attribute) -> Self {
        let value = match attribute {
            Attribute::Text(text) => Value::StringValue(text),
            Attribute::Number(number) => Value::IntValue(number),
        };
        Self { value: Some(value) }
    }
}

/// A location: in all of ours there is one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) mapping: i32,
    pub(super) address: u64,
    pub(super) line: proto::Line,
    /// The attribute that says what kind of code it is.
    pub(super) frame_type: Option<i32>,
}

impl From<Place> for proto::Location {
    fn from(place: Place) -> Self {
        Self {
            mapping_index: place.mapping,
            address: place.address,
            lines: vec![place.line],
            attribute_indices: place.frame_type.into_iter().collect(),
        }
    }
}

/// What is in the tables so far.
pub(super) struct Dictionary {
    strings: Table<Box<str>>,
    mappings: Table<proto::Mapping>,
    functions: Table<proto::Function>,
    /// `None` is the zero value.
    locations: Table<Option<Place>>,
    stacks: Table<Box<[i32]>>,
    /// `None` is the zero value.
    attributes: IndexMap<Option<(i32, Attribute)>, (), RandomState>,
}

impl Dictionary {
    pub(super) fn new() -> Self {
        let mut dictionary = Self {
            strings: Table::default(),
            mappings: Table::default(),
            functions: Table::default(),
            locations: Table::default(),
            stacks: Table::default(),
            attributes: IndexMap::default(),
        };
        dictionary.string("");
        dictionary.mapping(proto::Mapping::default());
        dictionary.function(proto::Function::default());
        dictionary.locations.insert(None);
        dictionary.stack([].into());
        dictionary.attributes.insert(None, ());
        dictionary
    }

    pub(super) fn string(&mut self, text: &str) -> i32 {
        match self.strings.get_index_of(text) {
            Some(idx) => idx as i32,
            None => intern(&mut self.strings, text.into()),
        }
    }

    pub(super) fn mapping(&mut self, mapping: proto::Mapping) -> i32 {
        intern(&mut self.mappings, mapping)
    }

    pub(super) fn function(&mut self, function: proto::Function) -> i32 {
        intern(&mut self.functions, function)
    }

    pub(super) fn location(&mut self, place: Place) -> i32 {
        intern(&mut self.locations, Some(place))
    }

    /// Leaf first.
    pub(super) fn stack(&mut self, locations: Box<[i32]>) -> i32 {
        intern(&mut self.stacks, locations)
    }

    pub(super) fn attribute(&mut self, name: &str, value: Attribute) -> i32 {
        let name = self.string(name);
        self.attributes.insert_full(Some((name, value)), ()).0 as i32
    }

    pub(super) fn value_type(&mut self, kind: &str, unit: &str) -> proto::ValueType {
        proto::ValueType {
            type_strindex: self.string(kind),
            unit_strindex: self.string(unit),
        }
    }

    pub(super) fn finish(self) -> proto::ProfilesDictionary {
        let (n_trace_id, n_span_id) = ID_BYTES;
        let no_link = proto::Link {
            trace_id: vec![0; n_trace_id],
            span_id: vec![0; n_span_id],
        };
        let attribute = |entry: Option<(i32, Attribute)>| match entry {
            Some((key_strindex, value)) => proto::KeyValueAndUnit {
                key_strindex,
                value: Some(value.into()),
                unit_strindex: 0,
            },
            None => proto::KeyValueAndUnit::default(),
        };
        let locations = self.locations.into_iter();
        let locations = locations.map(|it| it.map_or_else(Default::default, Into::into));
        let stacks = self.stacks.into_iter().map(|locations| proto::Stack {
            location_indices: locations.into_vec(),
        });
        proto::ProfilesDictionary {
            mapping_table: self.mappings.into_iter().collect(),
            location_table: locations.collect(),
            function_table: self.functions.into_iter().collect(),
            link_table: vec![no_link],
            string_table: self.strings.into_iter().map(String::from).collect(),
            attribute_table: self.attributes.into_keys().map(attribute).collect(),
            stack_table: stacks.collect(),
        }
    }
}

/// Requests are cut long before a table has 2^31 entries.
fn intern<T: Eq + Hash>(table: &mut Table<T>, value: T) -> i32 {
    table.insert_full(value).0 as i32
}
