//! What the control group of this process allows: memory (`memory.max`) and CPU time (`cpu.max`), of version 1 and 2, also where a
//! container sees nothing but its own group.
//!
//! <https://docs.kernel.org/admin-guide/cgroup-v2.html>, <https://docs.kernel.org/admin-guide/cgroup-v1/memory.html>

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Most bytes of a file that is read: a node with 500 pods has some thousand mounts.
const MAX_BYTES: u64 = 4 << 20;

/// A limit of version 1 from here on is none: the largest number of pages.
const NO_LIMIT: u64 = 1 << 62;

/// Version of the interface of a control group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Names of files, by version.
struct Names {
    memory_max: &'static str,
    memory_used: &'static str,
}

impl Version {
    const fn names(self) -> Names {
        match self {
            Self::One => Names {
                memory_max: "memory.limit_in_bytes",
                memory_used: "memory.usage_in_bytes",
            },
            Self::Two => Names {
                memory_max: "memory.max",
                memory_used: "memory.current",
            },
        }
    }

    /// CPUs that a group may use, as parts of one; `None`: all.
    fn cpus(self, folder: &Path) -> Option<f64> {
        let (quota, period) = match self {
            Self::Two => {
                let text = read(&folder.join("cpu.max"))?;
                let mut words = text.split_ascii_whitespace();
                let quota = words.next()?.parse::<f64>().ok()?;
                (quota, words.next()?.parse::<f64>().ok()?)
            }
            Self::One => {
                let of = |name| number(&folder.join(name));
                // Without a limit it is -1, which is no number here.
                let (quota, period) = (of("cpu.cfs_quota_us")?, of("cpu.cfs_period_us")?);
                (quota as f64, period as f64)
            }
        };
        (quota > 0.0 && period > 0.0).then_some(quota / period)
    }
}

/// How much memory there is, and what of it is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryUse {
    /// What may be taken, in bytes.
    pub max: u64,
    /// What is, without files' pages that the kernel can drop.
    pub used: u64,
}

impl MemoryUse {
    /// What is taken, in percent.
    #[must_use]
    pub fn percent(self) -> u64 {
        self.used.saturating_mul(100) / self.max.max(1)
    }
}

/// The control group that bounds the memory of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryGroup {
    version: Version,
    folder: PathBuf,
}

impl MemoryGroup {
    /// Reads it; `None`: there is no limit (any more).
    #[must_use]
    pub fn read(&self) -> Option<MemoryUse> {
        let names = self.version.names();
        let max = memory_max(self.version, &self.folder)?;
        let all = number(&self.folder.join(names.memory_used))?;
        let stat = read(&self.folder.join("memory.stat")).unwrap_or_default();
        let field = |name: &str| {
            let mut lines = stat.lines().filter_map(|line| line.split_once(' '));
            let found = lines.find(|(other, _)| *other == name);
            found.and_then(|(_, number)| number.trim().parse().ok())
        };
        // Memory of tmpfs is among the files' and cannot be dropped.
        let (files, shared): (Option<u64>, Option<u64>) = match self.version {
            Version::One => (field("total_cache"), field("total_shmem")),
            Version::Two => (field("file"), field("shmem")),
        };
        let droppable = files.unwrap_or(0).saturating_sub(shared.unwrap_or(0));
        Some(MemoryUse {
            max,
            used: all.saturating_sub(droppable),
        })
    }
}

/// What this process may use.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Limits {
    /// The group that bounds its memory; `None`: none does.
    pub memory: Option<MemoryGroup>,
    /// CPUs, as parts of one; `None`: all.
    pub cpus: Option<f64>,
}

impl Limits {
    /// Those of this process.
    #[must_use]
    pub fn of_this_process() -> Self {
        let read = |path: &str| read(Path::new(path)).unwrap_or_default();
        Self::of(
            &read("/proc/self/cgroup"),
            &read("/proc/self/mountinfo"),
            Path::new("/"),
        )
    }

    /// By what the kernel says of groups and mounts; `root` is where the mounts are found.
    fn of(groups: &str, mounts: &str, root: &Path) -> Self {
        let memory = folders(groups, mounts, root, "memory");
        let memory = memory.into_iter().filter_map(|(version, folder)| {
            let max = memory_max(version, &folder)?;
            Some((max, MemoryGroup { version, folder }))
        });
        let cpus = folders(groups, mounts, root, "cpu");
        let cpus = cpus
            .into_iter()
            .filter_map(|(version, folder)| version.cpus(&folder));
        Self {
            memory: memory.min_by_key(|(max, _)| *max).map(|(_, group)| group),
            cpus: cpus.min_by(f64::total_cmp),
        }
    }
}

/// What a group's memory is limited to; `None`: it is not.
fn memory_max(version: Version, folder: &Path) -> Option<u64> {
    // `max` is no number.
    let max = number(&folder.join(version.names().memory_max))?;
    (max < NO_LIMIT).then_some(max)
}

/// Folders of a process's group and of those that it is in, of this controller, of version 1 or 2.
fn folders(groups: &str, mounts: &str, root: &Path, controller: &str) -> Vec<(Version, PathBuf)> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let version = match (number, controllers) {
            ("0", "") => Version::Two,
            (_, names) if names.split(',').any(|name| name == controller) => Version::One,
            _ => continue,
        };
        for (of_mount, mounted_at) in mounts
            .lines()
            .filter_map(|it| mount(it, version, controller))
        {
            // In a namespace of its own a group begins with the mount's root, elsewhere it lies below that.
            let below = Path::new(path)
                .strip_prefix(&of_mount)
                .unwrap_or(Path::new(""));
            let mounted_at = root.join(mounted_at.trim_start_matches('/'));
            let is_plain = !below.iter().any(|part| part == "..");
            let own = if is_plain {
                mounted_at.join(below)
            } else {
                mounted_at.clone()
            };
            let above = own.ancestors().take_while(|it| it.starts_with(&mounted_at));
            found.extend(above.map(|folder| (version, folder.to_owned())));
        }
    }
    found
}

/// The root of a mount of control groups, and where it is mounted: `ID PARENT DEV ROOT PLACE OPTIONS ... - TYPE SOURCE OPTIONS`
/// (proc_pid_mountinfo(5)).
fn mount(line: &str, version: Version, controller: &str) -> Option<(String, String)> {
    let (fields, of_type) = line.split_once(" - ")?;
    let mut of_type = of_type.split(' ');
    let kind = of_type.next()?;
    let is_it = match version {
        Version::Two => kind == "cgroup2",
        Version::One => {
            let options = of_type.nth(1)?;
            kind == "cgroup" && options.split(',').any(|option| option == controller)
        }
    };
    let mut fields = fields.split(' ').skip(3);
    let (root, place) = (fields.next()?, fields.next()?);
    is_it.then(|| (root.to_owned(), place.to_owned()))
}

fn number(path: &Path) -> Option<u64> {
    read(path)?.trim().parse().ok()
}

fn read(path: &Path) -> Option<String> {
    let mut text = String::new();
    let file = fs::File::open(path).ok()?;
    file.take(MAX_BYTES).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files below a folder.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    fn limits(
        groups: &str,
        mounts: &str,
        root: &tempfile::TempDir,
    ) -> (Option<MemoryUse>, Option<f64>) {
        let limits = Limits::of(groups, mounts, root.path());
        (limits.memory.and_then(|group| group.read()), limits.cpus)
    }

    const OF_2: &str = "30 24 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n";

    #[test]
    fn of_version_2_the_narrowest_group_above_counts() {
        let root = tree(&[
            ("sys/fs/cgroup/a/memory.max", "1000000\n"),
            ("sys/fs/cgroup/a/memory.current", "700000\n"),
            (
                "sys/fs/cgroup/a/memory.stat",
                "anon 5\nfile 300000\nshmem 100000\n",
            ),
            ("sys/fs/cgroup/a/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("sys/fs/cgroup/a/b/cpu.max", "10000 100000\n"),
        ]);
        let used = MemoryUse {
            max: 1_000_000,
            used: 500_000,
        };
        assert_eq!(limits("0::/a/b\n", OF_2, &root), (Some(used), Some(0.1)));
        // Nothing is said of another one.
        assert_eq!(limits("0::/c\n", OF_2, &root), (None, None));
    }

    #[test]
    fn in_a_namespace_of_its_own_the_group_is_the_mounts_root() {
        let root = tree(&[
            ("sys/fs/cgroup/memory.max", "4096\n"),
            ("sys/fs/cgroup/memory.current", "1024\n"),
            ("sys/fs/cgroup/cpu.max", "200000 100000\n"),
        ]);
        let used = MemoryUse {
            max: 4096,
            used: 1024,
        };
        for groups in ["0::/\n", "0::/../../b\n"] {
            assert_eq!(
                limits(groups, OF_2, &root),
                (Some(used), Some(2.0)),
                "{groups}"
            );
        }
    }

    #[test]
    fn of_version_1_a_container_sees_its_group_as_the_root() {
        let mounts = "\
            40 30 0:30 /kubepods/pod1/c1 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n\
            41 30 0:31 /kubepods/pod1/c1 /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n\
            42 30 0:32 / /sys/fs/cgroup/pids ro - cgroup cgroup rw,pids\n";
        let groups =
            "9:memory:/kubepods/pod1/c1\n5:cpu,cpuacct:/kubepods/pod1/c1\n2:pids:/x\n0::/\n";
        let root = tree(&[
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "268435456\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "100000000\n"),
            (
                "sys/fs/cgroup/memory/memory.stat",
                "cache 1\ntotal_cache 40000000\ntotal_shmem 0\n",
            ),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "10000\n"),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
        ]);
        let used = MemoryUse {
            max: 268_435_456,
            used: 60_000_000,
        };
        assert_eq!(limits(groups, mounts, &root), (Some(used), Some(0.1)));
        // No limit is a large one, or a negative.
        let root = tree(&[
            (
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n"),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
        ]);
        assert_eq!(limits(groups, mounts, &root), (None, None));
    }

    #[test]
    fn any_text_gives_limits_or_none() {
        let root = tree(&[
            ("sys/fs/cgroup/memory.max", "many\n"),
            ("sys/fs/cgroup/cpu.max", "0 0\n"),
        ]);
        for (groups, mounts) in [
            ("", ""),
            ("0::/", " - "),
            ("::\n0:\n", "a - cgroup2\n - cgroup x\n"),
            ("0::/\n", OF_2),
        ] {
            assert_eq!(limits(groups, mounts, &root), (None, None));
        }
        let _ = Limits::of_this_process();
    }
}
