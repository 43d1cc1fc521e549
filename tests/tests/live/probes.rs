//! Where `alloc` and `pools` find their probes in every build and allocator that the tests have, as a table: what was
//! found, how, what is missing and why. The table is for the README (`target/probes.md`).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use profiler_agent::ids::Generation;
use profiler_agent::process::facts::Facts;
use profiler_agent::process::probe::Probe;
use profiler_agent::profile::model::ProfileType;
use profiler_agent::python::process::PythonProcess;
use profiler_agent::track::allocators::{Allocators, Found, PoolProbes, Wanted};
use pyagent_tests::interpreters::{self, Interpreter};
use pyagent_tests::packages;
use pyagent_tests::target::Target;

/// Waits, once it has said which C library it runs with.
const WAITS: &str = "
import os, sys
try:
    print(os.confstr('CS_GNU_LIBC_VERSION'), flush=True)
except (ValueError, OSError):
    print('musl', flush=True)
sys.stdin.readline()
";

/// Functions without which `alloc` would be wrong. `calloc` is not among them where it calls `malloc`; that what it does is
/// seen is another test's.
const NEEDED: [&str; 3] = ["malloc", "realloc", "free"];

/// A row of the table.
#[derive(Debug)]
struct Row {
    name: String,
    build: String,
    c_library: String,
    alloc: String,
    pools: String,
    arenas: String,
    mmap: String,
    missing: Vec<String>,
}

fn is_of_pools(probe: Probe) -> bool {
    matches!(
        probe,
        Probe::PoolEnter
            | Probe::PoolLeave
            | Probe::PoolLeaveOnce
            | Probe::ArenaEnter
            | Probe::ArenaLeave
            | Probe::ArenaRelease
    )
}

/// What is looked for, small objects at these steps.
fn wanted(pool_probes: PoolProbes) -> Wanted {
    Wanted {
        types: vec![ProfileType::Pools, ProfileType::Alloc],
        pool_probes,
        any_register: true,
    }
}

/// What is found in a process.
fn find(target: &Target, wanted: Wanted) -> Found {
    let process = PythonProcess {
        pid: target.pid(),
        generation: Generation(1),
        forked_from: None,
        facts: Facts::read(target.pid()).unwrap(),
        interpreter: target.interpreter(),
    };
    Allocators::new(wanted).find(&process)
}

/// What functions of small objects were found, how, and how the kernel does what stands there.
fn pools(found: &Found) -> String {
    let mut sites = found.sites.iter().filter(|site| is_of_pools(site.probe));
    let name = found.names.iter().find_map(|name| {
        let (what, _) = name.split_once(" in ")?;
        let what = what.replace("allocate_from_new_pool", "");
        let how = what.trim().trim_matches(['(', ')']).to_owned();
        let is_one = name.contains("allocate_from_new_pool") || name.contains("arena");
        is_one.then(|| how.replace("the arena allocator", "by its table"))
    });
    match name {
        None => "not found".to_owned(),
        Some(how) if sites.all(|site| site.is_emulated) => format!("{how}, emulated"),
        Some(how) => format!("{how}, single-stepped"),
    }
}

/// The functions of `alloc`, by the name of the file that they are in.
fn functions(found: &Found) -> BTreeMap<String, Vec<&str>> {
    let mut files: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for name in &found.names {
        let Some((function, path)) = name.split_once(" in ") else {
            continue;
        };
        if function.contains(' ') {
            continue;
        }
        let file = Path::new(path).file_name().map_or_else(
            || path.to_owned(),
            |name| name.to_string_lossy().into_owned(),
        );
        files.entry(file).or_default().push(function);
    }
    files
}

/// How many functions there are in the file that the process allocates from.
fn alloc(found: &Found, functions: &[&str]) -> String {
    if functions.is_empty() {
        return "not found".to_owned();
    }
    let sites = || found.sites.iter().filter(|site| !is_of_pools(site.probe));
    let n_emulated = sites().filter(|site| site.is_emulated).count();
    format!(
        "{} by symbol, {n_emulated} of {} probes emulated",
        functions.len(),
        sites().count()
    )
}

/// The row of a process, and what is wrong with it.
fn row_of(
    python: &Interpreter,
    name: String,
    allocator: Option<(&str, &Path)>,
) -> (Row, Vec<String>) {
    let mut command = Command::new(&python.path);
    command.args(["-I", "-S", "-B", "-c", WAITS]);
    if let Some((_, library)) = allocator {
        command.env("LD_PRELOAD", library);
    }
    let mut target = Target::start(&mut command);
    let c_library = target.line();
    let found = find(&target, wanted(PoolProbes::Pools));
    let found_arenas = find(&target, wanted(PoolProbes::Arenas));
    let found_maps = find(
        &target,
        Wanted {
            types: vec![ProfileType::Mmap],
            ..wanted(PoolProbes::Auto)
        },
    );
    let mappers = functions(&found_maps);
    let mappers = mappers.values().find(|names| names.contains(&"mmap"));
    let mappers = mappers.map_or(&[][..], Vec::as_slice);
    let files = functions(&found);
    let is_of_allocator = |file: &str| {
        // It is a link to one whose name says more.
        let name_of = |library: &Path| library.file_name()?.to_str().map(str::to_owned);
        allocator
            .is_none_or(|(_, library)| name_of(library).is_some_and(|name| file.starts_with(&name)))
    };
    // The dynamic linker has a `malloc` of its own, for itself.
    let own = files
        .iter()
        .filter(|(file, functions)| is_of_allocator(file) && functions.contains(&"malloc"))
        .max_by_key(|(_, functions)| functions.len());
    let own = own.map_or(&[][..], |(_, functions)| functions.as_slice());
    let row = Row {
        build: match allocator {
            Some(_) => format!("{}, preloaded", own.join(" ")),
            None => python.build.clone(),
        },
        alloc: alloc(&found, own),
        pools: pools(&found),
        arenas: pools(&found_arenas),
        mmap: alloc(&found_maps, mappers),
        missing: found.missing.clone(),
        name,
        c_library,
    };
    let mut wrong = Vec::new();
    for function in NEEDED {
        if !own.contains(&function) {
            wrong.push(format!("{}: no {function}: {:?}", row.name, found.missing));
        }
    }
    if !["mmap", "munmap"].iter().all(|name| mappers.contains(name)) {
        wrong.push(format!("{}: no mmap: {:?}", row.name, found_maps.missing));
    }
    // A build without the GIL allocates from mimalloc, and says so.
    let has_pools = found.sites.iter().any(|site| is_of_pools(site.probe))
        || found_arenas
            .sites
            .iter()
            .any(|site| is_of_pools(site.probe));
    if python.free_threaded
        != found
            .missing
            .iter()
            .any(|it| it.contains("without the GIL"))
    {
        wrong.push(format!("{}: {:?}", row.name, found.missing));
    }
    if !python.free_threaded && !has_pools {
        wrong.push(format!("{}: neither pools nor arenas", row.name));
    }
    (row, wrong)
}

#[test]
fn every_build_and_allocator_has_its_probes_or_says_why_not() {
    let mut rows = Vec::new();
    let mut wrong = Vec::new();
    for python in interpreters::supported() {
        let (major, minor, micro) = python.version;
        let (row, more) = row_of(&python, format!("CPython {major}.{minor}.{micro}"), None);
        rows.push(row);
        wrong.extend(more);
    }
    let newest = interpreters::newest();
    for (name, library) in packages::allocators() {
        let (row, more) = row_of(&newest, name.to_owned(), Some((name, &library)));
        rows.push(row);
        wrong.extend(more);
    }
    let mut table = String::from(
        "| what | build | C library | `alloc` | `pools`: each pool | else each arena | `mmap` | missing |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let missing = row.missing.join("; ");
        writeln!(
            table,
            "| {} | {} | {} | {} | {} | {} | {} | {missing} |",
            row.name, row.build, row.c_library, row.alloc, row.pools, row.arenas, row.mmap
        )
        .expect("writing to a String does not fail");
    }
    println!("{table}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/probes.md");
    std::fs::write(path, table).expect("the target folder is there");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
