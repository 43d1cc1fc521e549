//! The import rules of ARCHITECTURE.md: imports go down only; aya, tonic and `unsafe` have their rooms.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};

use super::{
    source::{Source, SourcePath},
    tidy,
};
use crate::workspace;

/// The layers of profiler-agent, and what each may name directly. What may be named through others may be
/// named too: the table is closed transitively. A module that is not listed here is an error: add its row.
const LAYERS: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    ("lib", &[]),
    // One file a subcommand: next to `main`, it may start an agent and ask any stage.
    ("cli", &["agent", "heap"]),
    (
        "agent",
        &[
            "config",
            "serve",
            "push",
            "recorder",
            "view",
            "track",
            "sample",
            "bpf",
            "profile",
            "heap",
            "kubernetes",
        ],
    ),
    // Made by `cli` and taken apart by `agent`: no stage knows it.
    ("config", &["track", "format"]),
    // Who asks can be a question to the API server.
    ("serve", &["secrets", "format", "generated", "kubernetes"]),
    ("push", &["secrets", "format", "generated"]),
    ("secrets", &["format"]),
    ("recorder", &["format", "inflate"]),
    ("view", &["format"]),
    ("format", &["profile", "generated"]),
    ("track", &["python", "native", "kubernetes"]),
    // What the API server says of pods.
    ("kubernetes", &["process", "format"]),
    ("sample", &["python", "native", "kernel", "profile"]),
    // A row of SOURCES names its sample types.
    ("bpf", &["kernel", "profile", "ids"]),
    // Objects by type: one look at the memory of one process.
    ("heap", &["python", "format"]),
    // An interpreter is found in an ELF file; `native` knows nothing of Python.
    ("python", &["native", "process", "profile"]),
    ("native", &["process"]),
    ("kernel", &["process", "inflate"]),
    // What is measured of a process without a sample has its data type there.
    ("process", &["ids", "profile"]),
    ("profile", &[]),
    ("generated", &[]),
    ("inflate", &[]),
    ("ids", &[]),
];

/// A crate, or `unsafe`, that has its rooms: paths below the workspace's root, folders with a slash.
struct Room {
    what: &'static str,
    /// Where the rule holds.
    scope: &'static str,
    rooms: &'static [&'static str],
}

const AYA: Room = Room {
    what: "aya",
    scope: "",
    rooms: &["profiler-agent/src/bpf/"],
};
const TONIC: Room = Room {
    what: "tonic",
    scope: "profiler-agent/src/",
    rooms: &[
        "profiler-agent/src/serve/",
        "profiler-agent/src/push/",
        "profiler-agent/src/generated/",
    ],
};
const UNSAFE: Room = Room {
    what: "`unsafe`",
    scope: "",
    rooms: &[
        "profiler-agent/src/bpf/",
        "profiler-agent/src/process/memory.rs",
        "profiler-agent/build.rs",
        "profiler-ebpf/",
    ],
};

/// Checks every Rust file of the workspace.
pub(super) fn check() -> Result<()> {
    let mut violations = Vec::new();
    let mut n_files = 0;
    for path in tidy::rust_files()? {
        let text = fs::read_to_string(workspace::root().join(&path))?;
        violations.extend(file_violations(&path, &text).with_context(|| path.clone())?);
        n_files += 1;
    }
    if !violations.is_empty() {
        bail!(
            "{} violations:\n{}",
            violations.len(),
            violations.join("\n")
        );
    }
    println!("{n_files} files follow the import rules");
    Ok(())
}

/// What breaks the rules in the file at `path` (below the root), a line each.
fn file_violations(path: &str, text: &str) -> Result<Vec<String>> {
    let source = Source::parse(text)?;
    let mut violations = Vec::new();
    for line in source.unsafe_lines {
        violations.extend(UNSAFE.violation(path, line));
    }
    for named in &source.paths {
        match named.segments.first().map(String::as_str) {
            Some("aya" | "aya_log" | "aya_obj") => {
                violations.extend(AYA.violation(path, named.line));
            }
            Some(name) if name == "tonic" || name.starts_with("tonic_") => {
                violations.extend(TONIC.violation(path, named.line));
            }
            _ => {}
        }
    }
    if let Some(module) = path.strip_prefix("profiler-agent/src/") {
        violations.extend(layer_violations(path, module, &source.paths));
    }
    Ok(violations)
}

impl Room {
    fn violation(&self, path: &str, line: usize) -> Option<String> {
        let is_home =
            |room: &&str| path == *room || (room.ends_with('/') && path.starts_with(*room));
        let is_fine = !path.starts_with(self.scope) || self.rooms.iter().any(is_home);
        (!is_fine).then(|| {
            format!(
                "{path}:{line}: {} belongs in {} only",
                self.what,
                self.rooms.join(", ")
            )
        })
    }
}

/// `module` is the file's path below `profiler-agent/src`.
fn layer_violations(path: &str, module: &str, paths: &[SourcePath]) -> Vec<String> {
    let layer = layer_of_file(module);
    // The root of the library only lists the modules.
    if layer == "lib" {
        return Vec::new();
    }
    if !is_layer(layer) {
        return vec![format!(
            "{path}:1: `{layer}` has no row in the layers of xtask/src/check/imports.rs"
        )];
    }
    let violation = |named: &SourcePath| {
        let target = target_layer(module, named)?;
        let text = named.segments.join("::");
        if target == "*" {
            return Some(format!(
                "{path}:{}: `{text}` hides which layer is meant",
                named.line
            ));
        }
        let is_fine = !is_layer(&target) || target == layer || may_name(layer, &target);
        (!is_fine).then(|| {
            format!(
                "{path}:{}: `{layer}` may not name `{target}` (`{text}`)",
                named.line
            )
        })
    };
    paths.iter().filter_map(violation).collect()
}

fn layer_of_file(module: &str) -> &str {
    let first = module.split('/').next().unwrap_or(module);
    first.strip_suffix(".rs").unwrap_or(first)
}

fn is_layer(name: &str) -> bool {
    LAYERS.iter().any(|(layer, _)| *layer == name)
}

fn may_name(layer: &str, target: &str) -> bool {
    let below = LAYERS
        .iter()
        .find(|(name, _)| *name == layer)
        .map_or(&[][..], |(_, below)| below);
    below
        .iter()
        .any(|next| *next == target || may_name(next, target))
}

/// The first module below the crate's root that a path leads to, if it leads out of this file's crate root.
fn target_layer(module: &str, named: &SourcePath) -> Option<String> {
    let segments = &named.segments;
    match segments.first()?.as_str() {
        "crate" | "profiler_agent" => segments.get(1).cloned(),
        "super" | "self" => {
            let n_super = segments
                .iter()
                .take_while(|segment| *segment == "super")
                .count();
            let skipped = n_super + usize::from(segments[0] == "self");
            // Modules between the crate's root and this place in the file.
            let depth = module_depth(module) + named.inline_depth;
            if n_super == depth {
                segments.get(skipped).cloned()
            } else {
                None
            }
        }
        _ => None,
    }
}

/// How many modules deep a file is: `ids.rs` and `profile/mod.rs` 1, `profile/model.rs` 2, the roots 0.
fn module_depth(module: &str) -> usize {
    if module == "main.rs" || module == "lib.rs" {
        return 0;
    }
    let path = Path::new(module);
    path.components().count() - usize::from(path.ends_with("mod.rs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violations(path: &str, text: &str) -> Vec<String> {
        file_violations(path, text).unwrap()
    }

    fn assert_one(path: &str, text: &str, part: &str) {
        let found = violations(path, text);
        assert!(
            found.len() == 1 && found[0].contains(part),
            "{path}: {text}: {found:?}"
        );
    }

    fn assert_none(path: &str, text: &str) {
        let found = violations(path, text);
        assert!(found.is_empty(), "{path}: {text}: {found:?}");
    }

    #[test]
    fn imports_may_go_down_and_not_up() {
        assert_none(
            "profiler-agent/src/serve/grpc.rs",
            "use crate::{format, profile::model::Profile};",
        );
        assert_none(
            "profiler-agent/src/track/mod.rs",
            "use crate::process::maps; fn f(_: crate::ids::Pid) {}",
        );
        assert_one(
            "profiler-agent/src/profile/model.rs",
            "use crate::format::FORMATS;",
            "`profile` may not name `format`",
        );
        assert_one(
            "profiler-agent/src/process/maps.rs",
            "fn f() { crate::python::version() }",
            "may not name `python`",
        );
        assert_one(
            "profiler-agent/src/native/elf.rs",
            "use crate::python::code;",
            "may not name `python`",
        );
    }

    #[test]
    fn nobody_imports_agent() {
        assert_one(
            "profiler-agent/src/serve/mod.rs",
            "use crate::{agent::Event, profile};",
            "may not name `agent`",
        );
        assert_none(
            "profiler-agent/src/main.rs",
            "use profiler_agent::agent::Agent;",
        );
    }

    #[test]
    fn the_table_of_layers_has_no_cycle_and_no_unknown_name() {
        for (layer, below) in LAYERS {
            assert!(
                below.iter().all(|name| is_layer(name)),
                "{layer}: {below:?}"
            );
            // A cycle of others would not end here; the depth of the table bounds it.
            assert!(
                !reaches(layer, layer, LAYERS.len()),
                "{layer} may name itself through others"
            );
        }
    }

    fn reaches(from: &str, to: &str, depth: usize) -> bool {
        let below = LAYERS.iter().find(|(name, _)| *name == from).unwrap().1;
        depth > 0
            && below
                .iter()
                .any(|next| *next == to || reaches(next, to, depth - 1))
    }

    #[test]
    fn super_is_followed_to_the_layer() {
        assert_one(
            "profiler-agent/src/format/mod.rs",
            "use super::serve;",
            "may not name `serve`",
        );
        assert_none("profiler-agent/src/format/pprof.rs", "use super::serve;");
        assert_one(
            "profiler-agent/src/format/pprof.rs",
            "use super::super::serve;",
            "may not name `serve`",
        );
        let tests = "mod tests { use super::*; use super::super::super::view; }";
        assert_one(
            "profiler-agent/src/format/pprof.rs",
            tests,
            "may not name `view`",
        );
    }

    #[test]
    fn paths_inside_macros_count_and_comments_do_not() {
        assert_one(
            "profiler-agent/src/ids.rs",
            "fn f() { println!(\"{}\", crate::agent::X); }",
            "`agent`",
        );
        assert_none(
            "profiler-agent/src/ids.rs",
            "//! See `crate::agent`.\n/// [`crate::serve`]\npub struct X;",
        );
    }

    #[test]
    fn a_glob_over_the_crate_hides_nothing() {
        assert_one(
            "profiler-agent/src/ids.rs",
            "use crate::*;",
            "hides which layer",
        );
    }

    #[test]
    fn a_module_without_a_row_is_named() {
        assert_one("profiler-agent/src/utils.rs", "", "`utils` has no row");
    }

    #[test]
    fn aya_stays_in_its_room() {
        assert_none("profiler-agent/src/bpf/ring.rs", "use aya::maps::RingBuf;");
        assert_none("profiler-ebpf/src/main.rs", "use aya_ebpf::macros::map;");
        assert_one(
            "profiler-agent/src/track/mod.rs",
            "fn f(_: &aya::Ebpf) {}",
            "aya belongs in",
        );
        assert_one("tests/tests/kernel.rs", "use aya;", "aya belongs in");
    }

    #[test]
    fn tonic_stays_in_its_rooms() {
        assert_none("profiler-agent/src/serve/grpc.rs", "use tonic::Status;");
        assert_none("tests/tests/live.rs", "use tonic::Request;");
        assert_one(
            "profiler-agent/src/agent.rs",
            "use tonic_health::server;",
            "tonic belongs in",
        );
    }

    #[test]
    fn unsafe_stays_in_its_rooms() {
        let text = "fn f() { unsafe { g() } }";
        assert_none("profiler-agent/src/process/memory.rs", text);
        assert_none("profiler-agent/src/bpf/load.rs", text);
        assert_none("profiler-ebpf/src/memory.rs", text);
        assert_one(
            "profiler-agent/src/process/maps.rs",
            text,
            "`unsafe` belongs in",
        );
        assert_one("profiler-common/src/event.rs", text, "`unsafe` belongs in");
        assert_one("tests/src/lib.rs", text, "`unsafe` belongs in");
    }
}
