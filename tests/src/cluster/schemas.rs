//! What the API takes, as schemas for kubeconform: made of what the API itself says (OpenAPI v2), strict, each in a file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

/// Where a schema points to another one.
const REFERENCE: &str = "#/definitions/";

/// What is written as text or as a number.
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const NUMBER_OR_TEXT: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";

/// Kinds that are of every group.
const OF_ALL_GROUPS: [&str; 2] = ["DeleteOptions", "WatchEvent"];

/// How kubeconform finds them in their folder.
pub(super) const FILE_NAMES: &str = "{{.ResourceKind}}{{.KindSuffix}}.json";

/// Writes the schemas of all kinds into a folder.
///
/// # Panics
/// When this is no OpenAPI.
pub(super) fn write(open_api: &Value, folder: &Path) {
    let definitions = open_api["definitions"].as_object().expect("OpenAPI v2");
    let strict: BTreeMap<&str, Value> = definitions
        .iter()
        .map(|(name, schema)| (&**name, strict(name, schema)))
        .collect();
    for (name, schema) in definitions {
        let kinds = schema["x-kubernetes-group-version-kind"].as_array();
        for kind in kinds.into_iter().flatten() {
            let text = |key: &str| kind[key].as_str().unwrap_or_default();
            if OF_ALL_GROUPS.contains(&text("kind")) {
                continue;
            }
            let mut needed = BTreeSet::new();
            find_references(&strict[&**name], &strict, &mut needed);
            let mut schema = strict[&**name].clone();
            schema["definitions"] = needed
                .iter()
                .map(|it| ((*it).to_owned(), strict[it].clone()))
                .collect();
            let group = text("group").split('.').next().unwrap_or_default();
            let group = if group.is_empty() {
                String::new()
            } else {
                format!("-{group}")
            };
            let file = format!("{}{group}-{}.json", text("kind"), text("version"));
            let path = folder.join(file.to_lowercase());
            fs::write(path, schema.to_string()).expect("the folder is ours");
        }
    }
}

/// Nothing may be in an object that is not named; everything may be null.
fn strict(name: &str, schema: &Value) -> Value {
    match name {
        QUANTITY => json!({"type": ["string", "number"]}),
        NUMBER_OR_TEXT => json!({"type": ["string", "integer"]}),
        _ => strict_part(schema),
    }
}

fn strict_part(schema: &Value) -> Value {
    if let Some(reference) = schema["$ref"].as_str() {
        return json!({"$ref": reference});
    }
    let mut strict = Map::new();
    for (key, value) in schema.as_object().into_iter().flatten() {
        match &**key {
            "properties" => {
                let properties = value.as_object().into_iter().flatten();
                let properties = properties.map(|(name, it)| (name.clone(), strict_part(it)));
                strict.insert(key.clone(), properties.collect());
                strict.entry("additionalProperties").or_insert(json!(false));
                strict.entry("type").or_insert(json!(["object", "null"]));
            }
            "items" | "additionalProperties" if value.is_object() => {
                strict.insert(key.clone(), strict_part(value));
            }
            "type" => {
                strict.insert(key.clone(), json!([value, "null"]));
            }
            "required" | "enum" | "additionalProperties" => {
                strict.insert(key.clone(), value.clone());
            }
            _ => {}
        }
    }
    strict.into()
}

/// All that a schema points to, and what that points to.
fn find_references<'a>(
    schema: &Value,
    all: &BTreeMap<&'a str, Value>,
    found: &mut BTreeSet<&'a str>,
) {
    match schema {
        Value::Object(parts) => {
            let reference = parts.get("$ref").and_then(Value::as_str);
            let name = reference.and_then(|it| it.strip_prefix(REFERENCE));
            if let Some((name, of_name)) = name.and_then(|it| all.get_key_value(it))
                && found.insert(name)
            {
                find_references(of_name, all, found);
            }
            for part in parts.values() {
                find_references(part, all, found);
            }
        }
        Value::Array(parts) => {
            for part in parts {
                find_references(part, all, found);
            }
        }
        _ => {}
    }
}
