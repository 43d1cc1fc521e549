//! The `.dat` files of memory_profiler's `mprof`: one process and its children, MiB over time. `mprof plot` reads them
//! (`read_mprofile_file` in mprof.py).

use std::fmt::Write as _;

use super::{MemoryWatch, Point, Watched};
use crate::format::{escape, unix_seconds};

/// The text of a file. The process with this id is the main one, everything else a child, numbered in the order of the
/// process ids.
#[must_use]
pub fn dat(watch: &MemoryWatch, main: u32) -> String {
    let mut text = String::new();
    let (own, children): (Vec<&Watched>, Vec<&Watched>) =
        watch.all().partition(|watched| watched.pid == main);
    let program = own.first().map_or("", |watched| &watched.program);
    // Writing to a String does not fail.
    let _ = writeln!(text, "CMDLINE {}", escape(program));
    for point in own.iter().flat_map(|watched| &watched.points) {
        let _ = writeln!(text, "MEM {}", measured(point));
    }
    for (idx, child) in children.into_iter().enumerate() {
        for point in &child.points {
            let _ = writeln!(text, "CHLD {idx} {}", measured(point));
        }
    }
    text
}

fn measured(point: &Point) -> String {
    let mebibytes = point.memory.resident.total() as f64 / f64::from(1 << 20);
    format!("{mebibytes:.6} {:.4}", unix_seconds(point.at))
}
