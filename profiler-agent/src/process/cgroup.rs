//! `/proc/PID/cgroup`: the control groups of a process (cgroups(7)), of version 1, 2 and both at once.
//!
//! Paths are as this process sees them: from a cgroup namespace of its own they can begin with `/..`.

use std::fs::File;
use std::io::Read as _;

use crate::ids::Pid;

/// Most bytes that are read; a line has at most a path's 4 KiB, and there are at most a dozen hierarchies.
const MAX_BYTES: u64 = 64 << 10;

/// What the kernel appends when the group has been removed.
const REMOVED: &str = " (deleted)";

/// The paths of a process's groups, the most telling first; each once. Empty when they cannot be read.
#[must_use]
pub fn paths(pid: Pid) -> Vec<String> {
    let mut bytes = Vec::new();
    match File::open(format!("/proc/{pid}/cgroup")) {
        // What was read until an error counts.
        Ok(file) => drop(file.take(MAX_BYTES).read_to_end(&mut bytes)),
        Err(_) => return Vec::new(),
    }
    parse(&String::from_utf8_lossy(&bytes))
}

/// The path to show: the first that is not the root.
#[must_use]
pub fn path(paths: &[String]) -> &str {
    let not_root = paths.iter().find(|path| *path != "/");
    not_root.or(paths.first()).map_or("", |path| path)
}

/// Lines are `hierarchy:controllers:path`. Version 2 comes first, then what systemd manages, then the rest in the
/// kernel's order: a manager that uses version 1 for resources alone keeps its tree in the first two.
fn parse(text: &str) -> Vec<String> {
    let mut ranked: Vec<(u8, &str)> = text.lines().filter_map(ranked_path).collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    let mut paths: Vec<String> = Vec::new();
    for (_, path) in ranked {
        if !paths.iter().any(|known| known == path) {
            paths.push(path.to_owned());
        }
    }
    paths
}

fn ranked_path(line: &str) -> Option<(u8, &str)> {
    let mut fields = line.splitn(3, ':');
    let (hierarchy, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    if !path.starts_with('/') {
        return None;
    }
    let rank = match (hierarchy, controllers) {
        ("0", "") => 0,
        (_, "name=systemd") => 1,
        _ => 2,
    };
    Some((rank, path.strip_suffix(REMOVED).unwrap_or(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2_comes_first_then_systemds_tree_then_the_rest_each_path_once() {
        let text =
            "12:cpu,cpuacct:/a\n11:memory:/b\n1:name=systemd:/user.slice\n0::/c\n3:pids:/a\n";
        assert_eq!(parse(text), ["/c", "/user.slice", "/a", "/b"]);
    }

    #[test]
    fn a_colon_belongs_to_the_path_and_a_removed_group_keeps_its_path() {
        let text = "0::/kubepods-pod1.slice:cri-containerd:ab (deleted)\n";
        assert_eq!(parse(text), ["/kubepods-pod1.slice:cri-containerd:ab"]);
    }

    #[test]
    fn the_path_to_show_is_the_first_below_the_root() {
        let paths = |texts: &[&str]| -> Vec<String> {
            texts.iter().map(|text| (*text).to_owned()).collect()
        };
        assert_eq!(path(&paths(&["/", "/a", "/b"])), "/a");
        assert_eq!(path(&paths(&["/"])), "/");
        assert_eq!(path(&[]), "");
    }

    #[test]
    fn the_groups_of_this_process_are_read() {
        assert!(!paths(Pid(std::process::id())).is_empty());
    }

    proptest::proptest! {
        #[test]
        fn any_text_gives_a_value(text in "[0-9:a/=. \n(deleted)]{0,200}|\\PC{0,200}") {
            let _ = parse(&text);
        }
    }
}
