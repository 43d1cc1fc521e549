//! What `/proc` says of a process: name, command line, start, threads.
//!
//! Everything here is hostile text of bounded length. Arguments are secrets: [`Facts::program`] has the
//! program and its script or module only.

use std::collections::HashMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::cgroup;
use super::container::Container;
use super::pod::Pod;
use super::service::{Declared, LabelOptions, name_of_arguments};
use crate::ids::{Generation, Pid, Tid};

/// Most bytes of a command line that are read.
const MAX_CMDLINE_BYTES: u64 = 64 << 10;

/// Facts of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The process.
    pub pid: Pid,
    /// The kernel's name of its main thread.
    pub comm: String,
    /// Arguments, lossily decoded; empty for kernel threads and zombies.
    pub arguments: Vec<String>,
    /// When it was started: nanoseconds since boot, in steps of the kernel's clock ticks.
    pub started_ns: u64,
    /// The same in wall time, by the clock as it was when the process became known: once told it stays.
    pub started: SystemTime,
    /// The executable as the process sees it; empty when it cannot be read.
    pub executable: String,
    /// Path of its control group; empty when it cannot be read.
    pub cgroup: String,
    /// The container that it is in.
    pub container: Option<Container>,
    /// The Kubernetes pod that it is in, where the API server has told of it: a reading of /proc does not know.
    pub pod: Option<Arc<Pod>>,
    /// The user whose it was then, see [`Facts::owner`].
    pub first_owner: Option<u32>,
    /// What it declares of its service.
    pub declared: Declared,
}

impl Facts {
    /// Reads the facts. An error means that the process has gone, or that /proc hides it.
    pub fn read(pid: Pid) -> std::io::Result<Self> {
        let stat = Stat::read(&format!("/proc/{pid}/stat"))?;
        let visible = Some(pid).filter(|_| stat.has_ended());
        let visible = visible.and_then(stand_in).unwrap_or(pid);
        let executable = fs::read_link(format!("/proc/{visible}/exe"))
            .map(|path| {
                path.to_string_lossy()
                    .trim_end_matches(" (deleted)")
                    .to_owned()
            })
            .unwrap_or_default();
        let groups = cgroup::paths(pid);
        Ok(Self {
            pid,
            comm: comm(pid)?,
            arguments: arguments(visible)?,
            started_ns: tick_ns(stat.start_ticks),
            started: wall_time(tick_ns(stat.start_ticks)),
            executable,
            cgroup: cgroup::path(&groups).to_owned(),
            container: Container::of_process(pid, &groups),
            pod: None,
            first_owner: owner(visible),
            declared: Declared::of_process(visible),
        })
    }

    /// The facts of a child that it has just forked.
    #[must_use]
    pub fn of_child(&self, pid: Pid, generation: Generation) -> Self {
        let per_tick = tick_ns(1).max(1);
        let started_ns = generation.time_ns() / per_tick * per_tick;
        Self {
            pid,
            started_ns,
            started: wall_time(started_ns),
            ..self.clone()
        }
    }

    /// The user whose the process wholly is: the kernel would let that user read its memory (ptrace(2), "access mode
    /// checking"). All of its user ids are the same, and it can be dumped, which a program that gave up another user's
    /// rights, or that was set-user-id, cannot. As it is now; of one that has gone as it was.
    #[must_use]
    pub fn owner(&self) -> Option<u32> {
        let Ok(stat) = Stat::read(&format!("/proc/{}/stat", self.pid)) else {
            return self.first_owner;
        };
        let visible = Some(self.pid).filter(|_| stat.has_ended());
        let owner = owner(visible.and_then(stand_in).unwrap_or(self.pid))?;
        // Its number can be another's by now.
        self.is_there().then_some(owner)
    }

    /// Whether the process is there, and no other one that has its number by now.
    #[must_use]
    pub fn is_there(&self) -> bool {
        let stat = Stat::read(&format!("/proc/{}/stat", self.pid));
        stat.is_ok_and(|stat| tick_ns(stat.start_ticks).abs_diff(self.started_ns) <= 2 * tick_ns(1))
    }

    /// Whether it is called like an interpreter.
    #[must_use]
    pub fn is_called_python(&self) -> bool {
        let program = self.arguments.first().map_or("", String::as_str);
        let names = [&*self.comm, &*self.executable, program];
        names.iter().any(|name| {
            let name = name.rsplit('/').next().unwrap_or_default();
            name.starts_with("python") || name.starts_with("pypy")
        })
    }

    /// What it runs: all arguments if they may be shown, else [`Facts::program`].
    #[must_use]
    pub fn cmdline(&self, show_arguments: bool) -> String {
        if show_arguments {
            self.arguments.join(" ")
        } else {
            self.program()
        }
    }

    /// UID of its Kubernetes pod, as its control group has it.
    #[must_use]
    pub fn pod_uid(&self) -> Option<&str> {
        self.container.as_ref()?.pod_uid.as_deref()
    }

    /// What its container is called in its pod.
    #[must_use]
    pub fn pod_container(&self) -> Option<&str> {
        self.container.as_ref()?.pod_container.as_deref()
    }

    /// Name of the service that it is part of: what it declares, what the user says, what Kubernetes knows
    /// ([`Pod::service_name`], else its container's name in the pod), its container's name, what its arguments tell, the
    /// kernel's name of it.
    #[must_use]
    pub fn service_name(&self, options: &LabelOptions) -> String {
        let said = options.service_name.clone();
        if options.is_for_all
            && let Some(name) = said
        {
            return name;
        }
        let declared = Some(&self.declared.name).filter(|name| !name.is_empty());
        let container = self.container.as_ref().and_then(|it| it.name.clone());
        let pod = self.pod.as_ref().map(|pod| pod.service_name());
        declared
            .cloned()
            .or(said)
            .or_else(|| pod.or(self.pod_container()).map(str::to_owned))
            .or_else(|| container.filter(|name| !name.is_empty()))
            .or_else(|| name_of_arguments(&self.arguments))
            .unwrap_or_else(|| self.comm.clone())
    }

    /// The program with its script (`python app.py`) or module (`python -m http.server`), without the rest.
    #[must_use]
    pub fn program(&self) -> String {
        let Some((program, rest)) = self.arguments.split_first() else {
            return self.comm.clone();
        };
        let mut shown = program.clone();
        let mut rest = rest.iter();
        while let Some(argument) = rest.next() {
            match argument.as_str() {
                "-m" => {
                    if let Some(module) = rest.next() {
                        shown = format!("{shown} -m {module}");
                    }
                    break;
                }
                // The code itself can hold anything.
                "-c" => {
                    shown.push_str(" -c");
                    break;
                }
                // Options of the interpreter that take a value.
                "-W" | "-X" | "--check-hash-based-pycs" => {
                    rest.next();
                }
                option if option.starts_with('-') => {}
                script => {
                    shown = format!("{shown} {script}");
                    break;
                }
            }
        }
        shown
    }
}

/// `comm` of a process, without its newline.
pub fn comm(pid: Pid) -> std::io::Result<String> {
    let bytes = fs::read(format!("/proc/{pid}/comm"))?;
    Ok(String::from_utf8_lossy(bytes.trim_ascii_end()).into_owned())
}

/// `comm` of one thread.
pub fn thread_comm(pid: Pid, tid: Tid) -> std::io::Result<String> {
    let bytes = fs::read(format!("/proc/{pid}/task/{tid}/comm"))?;
    Ok(String::from_utf8_lossy(bytes.trim_ascii_end()).into_owned())
}

/// The arguments of a process, lossily decoded.
pub fn arguments(pid: Pid) -> std::io::Result<Vec<String>> {
    let mut bytes = Vec::new();
    fs::File::open(format!("/proc/{pid}/cmdline"))?
        .take(MAX_CMDLINE_BYTES)
        .read_to_end(&mut bytes)?;
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(&bytes);
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    Ok(bytes
        .split(|byte| *byte == 0)
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .collect())
}

/// Whether a process is there and has not ended. Its main thread may have.
#[must_use]
pub fn is_alive(pid: Pid) -> bool {
    Stat::read(&format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.has_ended() || stat.n_threads > 1)
}

/// Whether a process has ended, and its parent has not asked for it yet.
#[must_use]
pub fn is_zombie(pid: Pid) -> bool {
    Stat::read(&format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.state == 'Z' && stat.n_threads <= 1)
}

/// The id under which the kernel shows the memory, the mappings and the files of a process whose main thread has ended
/// while others go on: one of those. `None` for every other process, whose own id it is.
#[must_use]
pub fn stand_in(pid: Pid) -> Option<Pid> {
    let stat = Stat::read(&format!("/proc/{pid}/stat")).ok()?;
    if !stat.has_ended() || stat.n_threads < 2 {
        return None;
    }
    let is_there = |tid: &Tid| {
        Stat::read(&format!("/proc/{pid}/task/{tid}/stat")).is_ok_and(|stat| !stat.has_ended())
    };
    tids(pid)
        .ok()?
        .into_iter()
        .find(is_there)
        .map(|tid| Pid(tid.0))
}

/// Every process of this /proc.
pub fn all_pids() -> std::io::Result<Vec<Pid>> {
    Ok(numbers("/proc")?.map(Pid).collect())
}

/// The children of these processes, theirs, and so on, as far as they are there now.
#[must_use]
pub fn descendants(pids: &[Pid]) -> Vec<Pid> {
    let mut children: HashMap<Pid, Vec<Pid>> = HashMap::new();
    for pid in all_pids().unwrap_or_default() {
        if let Ok(stat) = Stat::read(&format!("/proc/{pid}/stat")) {
            children.entry(stat.parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut next = pids.to_vec();
    while let Some(pid) = next.pop() {
        // Taken out, so that no process is met twice.
        for child in children.remove(&pid).unwrap_or_default() {
            if !pids.contains(&child) {
                found.push(child);
                next.push(child);
            }
        }
    }
    found
}

/// The process that an id is a thread of, when it is not the id of a process itself.
#[must_use]
pub fn thread_of(id: Pid) -> Option<Pid> {
    let process = status_field(&format!("/proc/{id}/status"), "Tgid:")?;
    let process = Pid(process.parse().ok()?);
    (process != id).then_some(process)
}

/// The user that all user ids of a process are of, and its memory too.
fn owner(pid: Pid) -> Option<u32> {
    let ids = status_field(&format!("/proc/{pid}/status"), "Uid:")?;
    let mut ids = ids
        .split_ascii_whitespace()
        .map(|id| id.parse::<u32>().ok());
    let owner = ids.next()??;
    // A file there belongs to root when the process cannot be dumped.
    let of_memory = fs::metadata(format!("/proc/{pid}/mem")).ok()?.uid();
    (ids.all(|id| id == Some(owner)) && of_memory == owner).then_some(owner)
}

/// Whether this process ignores SIGHUP, as under `nohup`.
#[must_use]
pub fn ignores_hangup() -> bool {
    let ignored = status_field("/proc/self/status", "SigIgn:");
    let mask = ignored.and_then(|mask| u64::from_str_radix(&mask, 16).ok());
    mask.is_some_and(|mask| mask & 1 != 0)
}

/// The value of a field of a `status` file.
pub(super) fn status_field(path: &str, name: &str) -> Option<String> {
    let status = fs::read_to_string(path).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(value.trim().to_owned())
}

/// The threads of a process.
pub fn tids(pid: Pid) -> std::io::Result<Vec<Tid>> {
    Ok(numbers(&format!("/proc/{pid}/task"))?.map(Tid).collect())
}

fn numbers(folder: &str) -> std::io::Result<impl Iterator<Item = u32>> {
    Ok(fs::read_dir(folder)?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()))
}

/// The fields of a `stat` file that are used here (proc_pid_stat(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// State: `R` runs, `S` sleeps, `Z` is a zombie.
    pub state: char,
    /// Parent process.
    pub parent: Pid,
    /// Threads of the process; 1 for a zombie.
    pub n_threads: u32,
    /// Time of the start, in clock ticks since boot.
    pub start_ticks: u64,
}

impl Stat {
    /// Reads the `stat` file of a process or thread.
    pub fn read(path: &str) -> std::io::Result<Self> {
        let bytes = fs::read(path)?;
        Self::parse(&bytes)
            .ok_or_else(|| std::io::Error::other(format!("{path}: unexpected format")))
    }

    /// Time of the start, in nanoseconds since boot, by ticks.
    #[must_use]
    pub fn started_ns(&self) -> u64 {
        tick_ns(self.start_ticks)
    }

    /// A zombie, or about to go.
    pub(super) fn has_ended(self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        // The name is in parentheses and can hold anything, parentheses too.
        let after_name = bytes.iter().rposition(|byte| *byte == b')')? + 2;
        let text = std::str::from_utf8(bytes.get(after_name..)?).ok()?;
        let mut fields = text.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let parent = Pid(fields.next()?.parse().ok()?);
        // state is field 3, num_threads field 20, starttime field 22.
        let n_threads = fields.nth(15)?.parse().ok()?;
        let start_ticks = fields.nth(1)?.parse().ok()?;
        Some(Self {
            state,
            parent,
            n_threads,
            start_ticks,
        })
    }
}

/// Size of a process's address space in pages; it changes when something is mapped.
pub fn n_mapped_pages(pid: Pid) -> std::io::Result<u64> {
    match n_pages_shown(pid)? {
        0 => stand_in(pid).map_or(Ok(0), n_pages_shown),
        n_pages => Ok(n_pages),
    }
}

fn n_pages_shown(pid: Pid) -> std::io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm"))?;
    text.split_ascii_whitespace()
        .next()
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| std::io::Error::other("statm: unexpected format"))
}

/// Nanoseconds of so many clock ticks.
fn tick_ns(ticks: u64) -> u64 {
    let per_second = rustix::param::clock_ticks_per_second();
    ticks.saturating_mul(1_000_000_000 / per_second.max(1))
}

/// Nanoseconds since the start of the system, as the kernel programs stamp samples.
#[must_use]
pub fn boot_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(Duration::new(time.tv_sec as u64, time.tv_nsec as u32).as_nanos())
        .unwrap_or(u64::MAX)
}

/// When a thread began, in nanoseconds since boot, by ticks of 10 ms; `None`: it has ended.
#[must_use]
pub fn thread_started_ns(pid: Pid, tid: Tid) -> Option<u64> {
    let stat = Stat::read(&format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    Some(stat.started_ns())
}

/// Wall time of a moment in nanoseconds since boot, by the clock as it is now: the same each time, unless it was set.
fn wall_time(at_ns: u64) -> SystemTime {
    /// The clock is disciplined by less than this between two looks, and set by more.
    const STEP: Duration = Duration::from_millis(100);
    static BOOT: Mutex<Option<SystemTime>> = Mutex::new(None);
    let since_boot = Duration::from_nanos(at_ns);
    let boot = SystemTime::now() - Duration::from_nanos(boot_ns());
    let mut known = BOOT.lock().unwrap_or_else(PoisonError::into_inner);
    let is_same = |known: &SystemTime| {
        let apart = boot.duration_since(*known);
        apart.unwrap_or_else(|error| error.duration()) < STEP
    };
    let boot = known.filter(is_same).unwrap_or(boot);
    *known = Some(boot);
    boot + since_boot
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Command, Stdio};

    use nix::sys::signal::{Signal, kill};

    use super::*;

    fn shown(arguments: &[&str]) -> String {
        let facts = Facts {
            pid: Pid(1),
            comm: "x".into(),
            arguments: arguments
                .iter()
                .map(|argument| (*argument).to_owned())
                .collect(),
            started_ns: 0,
            started: SystemTime::UNIX_EPOCH,
            executable: String::new(),
            cgroup: String::new(),
            container: None,
            pod: None,
            first_owner: None,
            declared: Declared::default(),
        };
        facts.program()
    }

    #[test]
    fn a_service_is_called_as_declared_then_as_said_then_as_in_kubernetes() {
        let mut facts = Facts::read(Pid(std::process::id())).unwrap();
        facts.declared = Declared::default();
        facts.container = Some(Container {
            id: "8a1b2c3d4e5f6071".repeat(4),
            runtime: None,
            pod_uid: Some("9d4a".into()),
            pod_container: None,
            name: Some("k8s_app_web-7f-x2_shop".into()),
        });
        let mut options = LabelOptions::default();
        assert_eq!(facts.service_name(&options), "k8s_app_web-7f-x2_shop");
        // What the kubelet's mounts tell, as long as the API server has not.
        let container = facts.container.as_mut().unwrap();
        container.pod_container = Some("app".into());
        assert_eq!(facts.service_name(&options), "app");
        facts.pod = Some(Arc::new(Pod {
            name: "web-7f-x2".into(),
            ..Pod::default()
        }));
        assert_eq!(facts.service_name(&options), "web-7f-x2");
        options.service_name = Some("said".into());
        assert_eq!(facts.service_name(&options), "said");
        facts.declared.name = "declared".into();
        assert_eq!(facts.service_name(&options), "declared");
    }

    #[test]
    fn descendants_are_children_and_theirs_and_nobody_else() {
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 60 & echo $!; exec sleep 60"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(shell.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let grandchild = Pid(line.trim().parse().unwrap());
        let child = Pid(shell.id());
        assert_eq!(descendants(&[child]), [grandchild]);
        assert_eq!(descendants(&[grandchild]), []);
        let own = descendants(&[Pid(std::process::id())]);
        assert!(own.contains(&child) && own.contains(&grandchild), "{own:?}");
        assert_eq!(descendants(&[child, grandchild]), []);
        kill(
            nix::unistd::Pid::from_raw(grandchild.0.cast_signed()),
            Signal::SIGKILL,
        )
        .unwrap();
        shell.kill().unwrap();
        shell.wait().unwrap();
    }

    #[test]
    fn a_process_is_that_users_whose_all_its_ids_are() {
        let own = rustix::process::getuid();
        if !own.is_root() {
            println!("skipped: other users' processes can be made by root only");
            assert!(std::env::var_os("CI").is_none(), "CI runs as root");
            return;
        }
        let start = |arguments: &[&str]| {
            let mut child = Command::new("setpriv")
                .args(arguments)
                .args(["--clear-groups", "sh", "-p", "-c", "echo; exec sleep 60"])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut line = String::new();
            let mut out = BufReader::new(child.stdout.take().unwrap());
            out.read_line(&mut line).unwrap();
            child
        };
        let mut other = start(&["--reuid", "1234", "--regid", "1234"]);
        // A program that can take its rights up again.
        let mut mixed = start(&["--ruid", "1234", "--regid", "1234"]);
        let facts = [&other, &mixed].map(|child| Facts::read(Pid(child.id())).unwrap());
        let owners = [facts[0].owner(), facts[1].owner()];
        other.kill().unwrap();
        mixed.kill().unwrap();
        other.wait().unwrap();
        mixed.wait().unwrap();
        assert_eq!(owners, [Some(1234), None]);
        // It has gone: as it was.
        assert_eq!(facts[0].owner(), Some(1234));
        assert_eq!(facts[1].owner(), None);
        let own_facts = Facts::read(Pid(std::process::id())).unwrap();
        assert_eq!(own_facts.owner(), Some(own.as_raw()));
    }

    #[test]
    fn a_process_that_got_the_number_of_another_is_not_that_one() {
        let mut facts = Facts::read(Pid(std::process::id())).unwrap();
        assert!(facts.is_there());
        // What a fork is known by is the time of its event, which is less than a tick off.
        facts.started_ns += tick_ns(1);
        assert!(facts.is_there());
        facts.started_ns -= tick_ns(5);
        assert!(!facts.is_there());
        facts.pid = Pid(4_194_305);
        assert!(!facts.is_there());
    }

    #[test]
    fn only_program_and_script_or_module_are_shown() {
        assert_eq!(
            shown(&["python3", "app.py", "--password", "secret"]),
            "python3 app.py"
        );
        assert_eq!(
            shown(&["python3", "-u", "-X", "dev", "-m", "http.server", "8000"]),
            "python3 -m http.server"
        );
        assert_eq!(shown(&["python3", "-c", "token = 'secret'"]), "python3 -c");
        assert_eq!(shown(&["gunicorn: master"]), "gunicorn: master");
        assert_eq!(shown(&[]), "x");
    }

    #[test]
    fn a_name_with_parentheses_does_not_confuse_stat() {
        let line = b"12 (a) b (c) S 7 12 12 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 9";
        assert_eq!(
            Stat::parse(line),
            Some(Stat {
                state: 'S',
                parent: Pid(7),
                n_threads: 1,
                start_ticks: 4242
            })
        );
    }

    #[test]
    fn the_facts_of_this_process_are_read() {
        let facts = Facts::read(Pid(std::process::id())).unwrap();
        assert!(facts.started <= SystemTime::now());
        assert!(!facts.arguments.is_empty() && !facts.executable.is_empty());
    }
}
