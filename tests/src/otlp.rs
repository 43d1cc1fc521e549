//! Checks the bytes of a request of OTLP profiles against the rules of its dictionary: what no receiver checks, and what each
//! reader of profiles relies on.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;

use profiler_agent::generated::opentelemetry::proto::collector::profiles::v1development::ExportProfilesServiceRequest;
use profiler_agent::generated::opentelemetry::proto::common::v1::KeyValue;
use profiler_agent::generated::opentelemetry::proto::profiles::v1development::{
    Link, Profile, ProfilesDictionary, Sample,
};
use prost::Message;

/// A table of the dictionary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Table {
    Mapping,
    Location,
    Function,
    Link,
    String,
    Attribute,
    Stack,
}

/// Every way in which the request breaks a rule, a line each.
#[must_use]
pub fn violations(bytes: &[u8]) -> Vec<String> {
    match ExportProfilesServiceRequest::decode(bytes) {
        Ok(request) => of_request(&request),
        Err(error) => vec![format!("it is no request: {error}")],
    }
}

/// As [`violations`], of a request that was decoded.
#[must_use]
pub fn of_request(request: &ExportProfilesServiceRequest) -> Vec<String> {
    let Some(dictionary) = &request.dictionary else {
        return vec!["there is no dictionary".to_owned()];
    };
    let mut check = Check {
        dictionary,
        used: HashMap::new(),
        violations: Vec::new(),
    };
    check.tables();
    check.dictionary();
    let mut ids = HashSet::new();
    for of_resource in &request.resource_profiles {
        let attributes = of_resource.resource.as_ref().map(|it| &it.attributes[..]);
        check.resource(attributes.unwrap_or_default());
        for scope in &of_resource.scope_profiles {
            if scope.profiles.is_empty() {
                check.say("a scope has no profiles".to_owned());
            }
            for profile in &scope.profiles {
                check.profile(profile);
                if !ids.insert(&profile.profile_id) {
                    check.say("two profiles have one id".to_owned());
                }
            }
        }
    }
    check.unused();
    check.violations
}

struct Check<'a> {
    dictionary: &'a ProfilesDictionary,
    used: HashMap<Table, HashSet<usize>>,
    violations: Vec<String>,
}

impl Check<'_> {
    fn say(&mut self, violation: String) {
        self.violations.push(violation);
    }

    fn len(&self, table: Table) -> usize {
        let tables = self.dictionary;
        match table {
            Table::Mapping => tables.mapping_table.len(),
            Table::Location => tables.location_table.len(),
            Table::Function => tables.function_table.len(),
            Table::Link => tables.link_table.len(),
            Table::String => tables.string_table.len(),
            Table::Attribute => tables.attribute_table.len(),
            Table::Stack => tables.stack_table.len(),
        }
    }

    fn uses(&mut self, table: Table, index: i32, by: &str) {
        match usize::try_from(index) {
            Ok(index) if index < self.len(table) => {
                self.used.entry(table).or_default().insert(index);
            }
            _ => self.say(format!(
                "{by} refers to {table:?} {index}, which is not there"
            )),
        }
    }

    /// Element 0 is the zero value, and nothing is there twice.
    fn tables(&mut self) {
        let tables = self.dictionary;
        self.table(Table::Mapping, &tables.mapping_table);
        self.table(Table::Location, &tables.location_table);
        self.table(Table::Function, &tables.function_table);
        self.table(Table::Attribute, &tables.attribute_table);
        self.table(Table::Stack, &tables.stack_table);
        // Ids of zeros are no ids, as empty ones.
        let is_zero = |id: &[u8]| id.iter().all(|byte| *byte == 0);
        let links = tables.link_table.iter().map(|link| {
            if is_zero(&link.trace_id) && is_zero(&link.span_id) {
                Link::default()
            } else {
                link.clone()
            }
        });
        self.table(Table::Link, &links.collect::<Vec<_>>());
        if tables.string_table.first().is_none_or(|it| !it.is_empty()) {
            self.say("String 0 is not the zero value".to_owned());
        }
        self.distinct(Table::String, &tables.string_table, |it| {
            it.as_bytes().to_vec()
        });
    }

    fn table<T: Message + Debug + Default + PartialEq>(&mut self, table: Table, entries: &[T]) {
        if entries.first() != Some(&T::default()) {
            self.say(format!("{table:?} 0 is not the zero value"));
        }
        self.distinct(table, entries, Message::encode_to_vec);
    }

    fn distinct<T: Debug>(&mut self, table: Table, entries: &[T], key: impl Fn(&T) -> Vec<u8>) {
        let mut seen = HashSet::new();
        for (index, entry) in entries.iter().enumerate() {
            if !seen.insert(key(entry)) {
                self.say(format!("{table:?} {index} is there twice: {entry:?}"));
            }
        }
    }

    /// What the tables refer to.
    fn dictionary(&mut self) {
        let tables = self.dictionary;
        for mapping in &tables.mapping_table {
            self.uses(Table::String, mapping.filename_strindex, "a mapping");
            self.attributes(&mapping.attribute_indices, "a mapping");
        }
        for location in &tables.location_table {
            self.uses(Table::Mapping, location.mapping_index, "a location");
            self.attributes(&location.attribute_indices, "a location");
            for line in &location.lines {
                self.uses(Table::Function, line.function_index, "a line");
            }
        }
        for function in &tables.function_table {
            self.uses(Table::String, function.name_strindex, "a function");
            self.uses(Table::String, function.system_name_strindex, "a function");
            self.uses(Table::String, function.filename_strindex, "a function");
        }
        for (attribute, index) in tables.attribute_table.iter().zip(0..) {
            self.uses(Table::String, attribute.key_strindex, "an attribute");
            self.uses(Table::String, attribute.unit_strindex, "an attribute");
            if index > 0 && attribute.key_strindex == 0 {
                self.say(format!("Attribute {index} has no key"));
            }
        }
        for stack in &tables.stack_table {
            for location in &stack.location_indices {
                self.uses(Table::Location, *location, "a stack");
                if *location == 0 {
                    self.say("a stack has the location 0, which is none".to_owned());
                }
            }
        }
    }

    /// References to attributes: no two of one key.
    fn attributes(&mut self, indices: &[i32], by: &str) {
        let mut keys = HashSet::new();
        for index in indices {
            self.uses(Table::Attribute, *index, by);
            let attribute = usize::try_from(*index).ok();
            let attribute = attribute.and_then(|it| self.dictionary.attribute_table.get(it));
            if attribute.is_some_and(|it| !keys.insert(it.key_strindex)) {
                self.say(format!("{by} has two attributes of one key"));
            }
        }
    }

    fn resource(&mut self, attributes: &[KeyValue]) {
        let mut keys = HashSet::new();
        if let Some(twice) = attributes.iter().find(|it| !keys.insert(&*it.key)) {
            self.say(format!("a resource has `{}` twice", twice.key));
        }
        if !keys.contains("service.name") {
            self.say("a resource has no service.name".to_owned());
        }
    }

    fn profile(&mut self, profile: &Profile) {
        for (what, value_type) in [
            ("a sample type", &profile.sample_type),
            ("a period type", &profile.period_type),
        ] {
            let value_type = value_type.unwrap_or_default();
            self.uses(Table::String, value_type.type_strindex, what);
            self.uses(Table::String, value_type.unit_strindex, what);
            if value_type.type_strindex == 0 || value_type.unit_strindex == 0 {
                self.say(format!("{what} says nothing"));
            }
        }
        if profile.samples.is_empty() {
            self.say("a profile has no samples".to_owned());
        }
        if profile.time_unix_nano == 0 || profile.duration_nano == 0 {
            self.say("a profile has no time".to_owned());
        }
        let is_id = profile.profile_id.len() == 16 && profile.profile_id.iter().any(|it| *it != 0);
        if !is_id {
            self.say("an id of a profile is not 16 bytes, or all zeros".to_owned());
        }
        self.attributes(&profile.attribute_indices, "a profile");
        let mut identities = HashSet::new();
        for sample in &profile.samples {
            self.sample(sample);
            let identity = (
                sample.stack_index,
                &sample.attribute_indices,
                sample.link_index,
            );
            if !identities.insert(identity) {
                self.say("two samples are of one stack with the same attributes".to_owned());
            }
        }
    }

    fn sample(&mut self, sample: &Sample) {
        self.uses(Table::Stack, sample.stack_index, "a sample");
        self.uses(Table::Link, sample.link_index, "a sample");
        self.attributes(&sample.attribute_indices, "a sample");
        // One value, one value each time, or a time each time it was seen.
        let (n_values, n_times) = (sample.values.len(), sample.timestamps_unix_nano.len());
        let is_fine = match (n_values, n_times) {
            (1, 0) => true,
            (0, n) => n > 0,
            (n, m) => n == m,
        };
        if !is_fine {
            self.say(format!(
                "a sample has {n_values} values and {n_times} times"
            ));
        }
    }

    fn unused(&mut self) {
        for table in [
            Table::Mapping,
            Table::Location,
            Table::Function,
            Table::Link,
            Table::String,
            Table::Attribute,
            Table::Stack,
        ] {
            let used = self.used.remove(&table).unwrap_or_default();
            for index in (1..self.len(table)).filter(|index| !used.contains(index)) {
                self.say(format!("nothing refers to {table:?} {index}"));
            }
        }
    }
}
