//! The wall clock is set, as far as the agent sees it: a library that is loaded with it shifts what the C library says. The
//! clock of the host is not touched.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::Account;
use super::scene::Scene;
use crate::compiler::{self, compile, workload};
use crate::push::{Collector, CollectorSetup};
use crate::pyagent::binary;

/// Seconds that the clock is off, one after the other: an hour ahead, right again, a day back, ten years ahead, right.
pub const OFFSETS: [i64; 5] = [3600, 0, -86_400, 315_576_000, 0];

fn set(file: &Path, offset: i64) {
    // In place, since the agent has it mapped.
    use std::os::unix::fs::FileExt as _;
    let file = fs::OpenOptions::new().write(true).open(file);
    file.and_then(|file| file.write_all_at(&offset.to_ne_bytes(), 0))
        .expect("the file is ours");
}

/// The clock is set to each of [`OFFSETS`]. `None`, said: there is no Collector or no C compiler.
///
/// # Panics
/// When the agent fails, or did not see the clock.
#[must_use]
pub fn jumps() -> Option<Account> {
    if !compiler::is_there() {
        return None;
    }
    let scene = Scene::new();
    let collector = Collector::start(scene.folder.path(), &CollectorSetup::default())?;
    let library = scene.folder.path().join("clock.so");
    compile(&workload("clock.c"), &library, &["-shared", "-fPIC", "-O2"]);
    let file = scene.folder.path().join("offset");
    fs::write(&file, 0_i64.to_ne_bytes()).expect("the folder is ours");
    let mut command = Command::new(binary());
    command
        .env("LD_PRELOAD", &library)
        .env("CLOCK_OFFSET", &file);
    let push = format!("otlp=http://127.0.0.1:{}", collector.port);
    let agent = scene.agent_by(&mut command, &push, &[]);
    scene.wait_windows(2);
    for offset in OFFSETS {
        set(&file, offset);
        scene.wait_windows(4);
    }
    let account = scene.finish(agent, &collector, OFFSETS.len());
    let times: Vec<i64> = scene
        .arrivals(&collector)
        .iter()
        .map(|it| it.time_ns)
        .collect();
    let (least, most) = (times.iter().min()?, times.iter().max()?);
    let span_s = (most - least) / 1_000_000_000;
    assert!(
        span_s > 300_000_000,
        "it saw {span_s} s: the clock was not set"
    );
    Some(account)
}
