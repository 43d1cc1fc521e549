//! The disk with the agent's windows is full.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use tempfile::TempDir;

use super::Account;
use super::scene::{Scene, metric, recorder_problem, wait};
use crate::push::{Collector, CollectorSetup};

/// A file system in memory, of a size; gone with it.
#[derive(Debug)]
pub struct SmallDisk(TempDir);

impl SmallDisk {
    /// With these options of `mount`, such as `size=4m`.
    ///
    /// # Panics
    /// When it cannot be mounted.
    #[must_use]
    pub fn new(options: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "none"])
            .arg(folder.path())
            .status()
            .expect("mount is there");
        assert!(status.success());
        Self(folder)
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Fills all of it, until the file that this returns is removed.
    ///
    /// # Panics
    /// When it has more than 8 MiB.
    #[must_use]
    pub fn fill(&self) -> std::path::PathBuf {
        let ballast = self.path().join("ballast");
        // As much as there is.
        assert!(fs::write(&ballast, vec![0; 8 << 20]).is_err());
        ballast
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

/// It is full for so long, from the first window on that it costs. `None`, said: there is no Collector.
///
/// # Panics
/// When the agent fails, or writes all the same.
#[must_use]
pub fn is_full(time: Duration) -> Option<Account> {
    let disk = SmallDisk::new("size=4m");
    let mut scene = Scene::new();
    scene.data = disk.path().join("data");
    let collector = Collector::start(scene.folder.path(), &CollectorSetup::default())?;
    let agent = scene.agent(&format!("otlp=http://127.0.0.1:{}", collector.port), &[]);
    scene.wait_windows(3);
    let ballast = disk.fill();
    // The files of the database may have had room for some windows more.
    wait("a window that cannot be written", || {
        scene.look();
        recorder_problem(&agent).is_some()
    });
    sleep(time);
    let problem = recorder_problem(&agent);
    assert!(
        problem.is_some_and(|it| it.contains("the disk is full")),
        "it was not full"
    );
    fs::remove_file(ballast).expect("it is ours");
    scene.wait_windows(3);
    let lost = metric(&agent, "pyagent_windows_lost_total");
    let account = scene.finish(agent, &collector, 1);
    Some(account.counted(usize::try_from(lost).expect("a small number")))
}
