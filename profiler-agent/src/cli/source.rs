//! The source of what a profile shows, from the files that it names.
//!
//! A profile names whatever a process said: only Python files are read, and of a process in a container as it sees them.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use crate::ids::Pid;
use crate::process::file::open_in_root;
use crate::profile::model::{Profile, label};
use crate::view::report::Source;

/// Most bytes of a file that are read.
const MAX_BYTES: u64 = 8 << 20;

/// Reads these files, those that are there.
pub(super) fn read(profile: &Profile, files: Vec<String>) -> BTreeMap<String, Source> {
    let containers = in_containers(profile);
    let mut sources = BTreeMap::new();
    for name in files {
        let is_python = Path::new(&name).extension().is_some_and(|it| it == "py");
        if !is_python {
            continue;
        }
        let file = match containers.get(name.as_str()) {
            Some(pid) => open_in_root(*pid, Path::new(&name))
                .ok()
                .map(|(file, _)| file),
            None => regular(Path::new(&name)),
        };
        if let Some(source) = file.and_then(lines) {
            sources.insert(name, source);
        }
    }
    sources
}

/// Files of processes in containers, with one of the processes.
fn in_containers(profile: &Profile) -> HashMap<&str, Pid> {
    let mut files = HashMap::new();
    for sample in &profile.samples {
        if profile.label(sample.labels, label::CONTAINER_ID).is_none() {
            continue;
        }
        let pid = profile.thread(sample.labels).pid;
        let Ok(pid) = u32::try_from(pid) else {
            continue;
        };
        for frame in profile.frames(sample.stack) {
            files.entry(frame.filename).or_insert(Pid(pid));
        }
    }
    files
}

fn regular(path: &Path) -> Option<File> {
    // A pipe would not be opened before somebody writes to it.
    let is_file = std::fs::metadata(path).ok()?.is_file();
    is_file.then(|| File::open(path).ok()).flatten()
}

fn lines(file: File) -> Option<Source> {
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    Some(
        text.lines()
            .map(|line| line.replace('\t', "    "))
            .collect(),
    )
}
