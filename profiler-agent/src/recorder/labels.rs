//! The labels of a process as one JSON object, which keeps their order.

use std::fmt;

use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::Value;

use crate::profile::model::{LabelValue, Labels, Profile, StringId};

/// Labels by name, in their order.
pub(super) type Named = Vec<(String, Value)>;

/// As JSON.
pub(super) fn to_json(profile: &Profile, labels: &Labels) -> String {
    let mut text = String::from("{");
    for (name, value) in labels {
        if text.len() > 1 {
            text.push(',');
        }
        let value = match value {
            LabelValue::Str(id) => quoted(profile, *id),
            LabelValue::Num(number) => number.to_string(),
        };
        text.push_str(&quoted(profile, *name));
        text.push(':');
        text.push_str(&value);
    }
    text.push('}');
    text
}

fn quoted(profile: &Profile, id: StringId) -> String {
    Value::from(profile.str(id)).to_string()
}

/// What was written; `None`: it is damaged.
pub(super) fn of_json(text: &str) -> Option<Named> {
    serde_json::Deserializer::from_str(text)
        .deserialize_map(InOrder)
        .ok()
}

struct InOrder;

impl<'de> Visitor<'de> for InOrder {
    type Value = Named;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of labels")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Named, A::Error> {
        let mut labels = Vec::new();
        while let Some(label) = map.next_entry()? {
            labels.push(label);
        }
        Ok(labels)
    }
}
