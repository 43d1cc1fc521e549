//! The source of what a profile shows, from the files that it names.
//!
//! A profile names whatever a process said: only Python files are read, and of a process in a container as it sees them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::ids::Pid;
use crate::process::file::open_in_root;
use crate::profile::model::{Profile, label};
use crate::view::report::{Source, Sources};

/// Most bytes of a file that are read.
const MAX_BYTES: u64 = 8 << 20;

/// Most bytes of all files.
const MAX_ALL_BYTES: usize = 128 << 20;

/// Reads these files, those that are there; of the others it says why not.
pub(super) fn read(profile: &Profile, files: Vec<String>) -> Sources {
    let containers = in_containers(profile);
    // Folded stacks do not say when they were recorded.
    let end = (profile.start > UNIX_EPOCH).then(|| profile.start + profile.duration);
    let mut left = MAX_ALL_BYTES;
    let read = files.into_iter().map(|name| {
        let source = if left == 0 {
            Err("too much source before it".to_owned())
        } else {
            open(&name, containers.get(name.as_str()).copied())
                .and_then(|file| source(file, end, &mut left))
        };
        (name, source)
    });
    read.collect()
}

fn open(name: &str, container: Option<Pid>) -> Result<File, String> {
    let path = Path::new(name);
    if name.starts_with('<') {
        return Err("it was made while the program ran".to_owned());
    }
    if path.extension().is_none_or(|it| it != "py") {
        return Err("only .py files are read".to_owned());
    }
    match container {
        Some(pid) => open_in_root(pid, path)
            .map(|(file, _)| file)
            .map_err(|_| format!("the container of process {pid} does not have it, or has ended")),
        None => regular(path),
    }
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

fn regular(path: &Path) -> Result<File, String> {
    let reason = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => "there is no such file on this host".to_owned(),
        ErrorKind::PermissionDenied => "it may not be read".to_owned(),
        _ => error.to_string(),
    };
    // A pipe would not be opened before somebody writes to it.
    if !std::fs::metadata(path).map_err(reason)?.is_file() {
        return Err("it is no regular file".to_owned());
    }
    File::open(path).map_err(reason)
}

fn source(file: File, end: Option<SystemTime>, left: &mut usize) -> Result<Source, String> {
    let changed = file
        .metadata()
        .and_then(|metadata| metadata.modified())
        .ok();
    let mut bytes = Vec::new();
    file.take(MAX_BYTES)
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    *left = left.saturating_sub(bytes.len());
    // As Python, which does not run such a file.
    if bytes.contains(&0) {
        return Err("it is no text".to_owned());
    }
    let text = String::from_utf8_lossy(&bytes);
    let text = text.trim_start_matches('\u{feff}');
    // As Python counts lines: a carriage return alone ends one too.
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    Ok(Source {
        lines: text
            .lines()
            .map(|line| line.replace('\t', "    "))
            .collect(),
        is_newer: end.is_some_and(|end| changed.is_some_and(|changed| changed > end)),
    })
}
