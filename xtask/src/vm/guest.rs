//! What runs inside of a guest, how it is packed, and how its console is read.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::mode::{HIDE_BTF, Mode, N_POSSIBLE_CPUS, UNPLUG, WATCH_MAPS};
use crate::command;

/// The kernel's command line. `panic=-1` and QEMU's `-no-reboot`: a guest that panics is over. `no_timer_check`: on a
/// busy host an emulated timer comes so late that the kernel takes it for broken.
pub(super) const KERNEL_COMMAND_LINE: &str =
    "quiet loglevel=1 panic=-1 no_timer_check rdinit=/init";

/// What is run inside, in this order: a name, and a shell command that finds the workload's pid in `$PID`.
const COMMANDS: [(&str, &str); 8] = [
    ("kernel", "uname -r"),
    ("possible", "cat /sys/devices/system/cpu/possible"),
    ("doctor", "/pyagent doctor $PID"),
    ("cpu before", CPU_TICKS),
    (
        "record",
        "( /pyagent record --pid $PID --duration 5 -o /tmp/out.folded 2> /tmp/record; code=$?; cat /tmp/record; \
         exit $code )",
    ),
    ("cpu after", CPU_TICKS),
    ("folded", "cat /tmp/out.folded"),
    ("maps", "sort -n /tmp/maps 2>/dev/null | tail -n 1"),
];

/// The commands that must exit with 0. Not `doctor`: it may find fault with a guest this small.
const MUST_SUCCEED: [&str; 5] = ["kernel", "cpu before", "record", "cpu after", "folded"];

/// Beside the commands, where it is asked for: the bytes that the maps of a running pyagent take, as the kernel counts
/// them, every few seconds.
const NOTE_MAPS: &str = "\
grep -q WATCH_MAPS /proc/cmdline && while sleep 3; do
  for pid in $(pidof pyagent); do
    cat /proc/$pid/fdinfo/* 2>/dev/null | awk '/^memlock:/ { n += $2 } END { print n + 0 }' >> /tmp/maps
  done
done &
";

/// Beside the commands, where it is asked for: the second CPU goes and comes back, once while it is recorded. While an
/// emulated CPU comes and goes everything stands still, for seconds on some kernels.
const UNPLUG_AND_REPLUG: &str = "\
grep -q UNPLUG /proc/cmdline && {
  until grep -q ^recording /tmp/record 2>/dev/null; do sleep 0.1; done
  sleep 0.5
  echo 0 > /sys/devices/system/cpu/cpu1/online
  sleep 0.5
  echo 1 > /sys/devices/system/cpu/cpu1/online
} &
";

/// Kernel memory of all maps for each possible CPU, at most: the ring buffer is in proportion to the CPUs that there
/// are, and counted apart.
const MAX_MAP_BYTES_A_CPU: u64 = 96 << 10;

/// Of the ring buffer of two CPUs: its pages and, up to 6.1, no more than that.
const RING_BYTES: u64 = 4 << 20;

/// The counter of `record` for CPUs that came while it sampled.
const ATTACHED_LATE: &str = "cpu_attached_late";

/// What `record` says when it does without the kernel programs.
const FROM_OUTSIDE: &str = "stacks are read from outside";

/// What `doctor` says where the kernel takes the programs of every source.
const ALL_LOAD: &str = "they load; ";

/// What `doctor` says of a kernel whose BTF is hidden.
const WITHOUT_BTF: &str = ", without BTF";

/// CPU time of the workload by the kernel, in ticks of 10 ms.
const CPU_TICKS: &str = "awk '{ print $14 + $15 }' /proc/$PID/stat";

/// The function that the workload spends its time in; the profile must name it.
const BUSY_FUNCTION: &str = "spin_in_the_guest";

/// Share of the workload's CPU time that the profile must have samples for, those of the timer that did not come
/// included: an emulated CPU stands still for as long as the host likes, and its clock runs on.
const MIN_SHARE: f64 = 0.8;

/// Samples that there must be in any case.
const MIN_BUSY_SAMPLES: u64 = 20;

/// Ticks of CPU time in the 5 s of the recording.
const MAX_TICKS: u64 = 500;

/// Samples for a tick of CPU time, at 99 Hz.
const SAMPLES_PER_TICK: f64 = 0.99;

/// Says on a pipe that it is running, then spins.
fn workload() -> String {
    format!(
        "import sys\n\
         def {BUSY_FUNCTION}():\n    \
             n = 0\n    \
             while True:\n        \
                 n += 1\n\
         open('/tmp/ready', 'w').write('ready\\n')\n\
         {BUSY_FUNCTION}()\n"
    )
}

/// Marks the beginning and the end of a command's output on the console.
const MARK: &str = "@@";

/// The first process of the guest.
fn init() -> String {
    let mut script = String::from(
        "#!/bin/busybox sh\n\
         /bin/busybox mkdir -p /proc /sys /dev /tmp /sbin /usr/sbin\n\
         /bin/busybox --install -s\n\
         export PATH=/usr/bin:/bin:/usr/sbin:/sbin HOME=/tmp\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sysfs /sys\n\
         mount -t devtmpfs devtmpfs /dev\n\
         mount -t tmpfs tmpfs /tmp\n\
         mount -t securityfs securityfs /sys/kernel/security\n\
         grep -q HIDE_BTF /proc/cmdline && mount -t tmpfs tmpfs /sys/kernel/btf\n\
         mkfifo /tmp/ready\n\
         /usr/bin/python3.11 -I -S /workload.py &\n\
         PID=$!\n\
         read -r _ < /tmp/ready\n",
    )
    .replace("HIDE_BTF", HIDE_BTF);
    script.push_str(&NOTE_MAPS.replace("WATCH_MAPS", WATCH_MAPS));
    script.push_str(&UNPLUG_AND_REPLUG.replace("UNPLUG", UNPLUG));
    for (name, command) in COMMANDS {
        let run =
            format!("echo '{MARK}begin {name}'\n{command} 2>&1\necho \"{MARK}end {name} $?\"\n");
        script.push_str(&run);
    }
    script.push_str("poweroff -f\n");
    script
}

/// Packs the root, the binary, the workload and the first process into one archive below `scratch`, with a `busybox`
/// of this machine.
pub(super) fn initramfs(
    base: &Path,
    busybox: &Path,
    binary: &Path,
    scratch: &Path,
) -> Result<PathBuf> {
    let root = scratch.join("overlay");
    fs::create_dir(&root)?;
    fs::copy(binary, root.join("pyagent"))?;
    fs::write(root.join("workload.py"), workload())?;
    fs::write(root.join("init"), init())?;
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))?;
    let overlay = scratch.join("overlay.cpio");
    archive(busybox, &root, &overlay)?;
    // The kernel unpacks archives that follow each other.
    let mut bytes = fs::read(base.join("root.cpio"))?;
    bytes.extend(fs::read(&overlay)?);
    let path = scratch.join("initramfs.cpio");
    fs::write(&path, bytes)?;
    Ok(path)
}

/// Packs `root` into a cpio archive.
pub(super) fn archive(busybox: &Path, root: &Path, to: &Path) -> Result<()> {
    let mut pack = Command::new("sh");
    pack.args([
        "-c",
        "find . | \"$1\" cpio -o -H newc -R 0:0 > \"$2\"",
        "sh",
    ]);
    command::output(pack.arg(busybox).arg(to).current_dir(root)).map(drop)
}

/// Reads the console: what the guest found, or why it failed.
pub(super) fn verdict(console: &str, mode: Mode) -> Result<String> {
    for name in MUST_SUCCEED {
        let (output, exit_code) = section(console, name)?;
        ensure!(
            exit_code == "0",
            "`{name}` ended with {exit_code}: {}",
            output.trim()
        );
    }
    let (folded, _) = section(console, "folded")?;
    let is_busy = |line: &&str| line.contains(BUSY_FUNCTION);
    let n_busy: u64 = folded
        .lines()
        .filter(is_busy)
        .filter_map(count_of_line)
        .sum();
    let n_samples: u64 = folded.lines().filter_map(count_of_line).sum();
    ensure!(n_busy > 0, "no stack of the profile names {BUSY_FUNCTION}");
    let (record, _) = section(console, "record")?;
    let (doctor, _) = section(console, "doctor")?;
    ensure!(
        doctor.contains(WITHOUT_BTF) == (mode == Mode::WithoutBtf),
        "whether there is BTF is not as the mode wants it: {doctor}"
    );
    ensure!(
        doctor.contains(ALL_LOAD) != mode.is_remote(),
        "whether the kernel programs of every source load is not as the mode wants it: {doctor}"
    );
    ensure!(
        record.contains(FROM_OUTSIDE) == mode.is_remote(),
        "whether stacks were read from outside is not as the mode wants it: {record}"
    );
    if mode == Mode::ManyCpus {
        let (possible, _) = section(console, "possible")?;
        ensure!(
            possible.trim() == format!("0-{}", N_POSSIBLE_CPUS - 1),
            "the kernel's possible CPUs are {possible}"
        );
        let (bytes, _) = section(console, "maps")?;
        let bytes: u64 = bytes.trim().parse().with_context(|| bytes.to_owned())?;
        let a_cpu = bytes.saturating_sub(RING_BYTES) / N_POSSIBLE_CPUS;
        ensure!(
            (1..=MAX_MAP_BYTES_A_CPU).contains(&a_cpu),
            "the maps take {a_cpu} bytes for each possible CPU, {bytes} in all"
        );
    }
    ensure!(
        record.contains(ATTACHED_LATE) == (mode == Mode::Unplugged),
        "whether CPUs came while it sampled is not as the mode wants it: {record}"
    );
    if mode.is_remote() {
        // A sample from outside stands for the time since the one before: there is no number to expect.
        ensure!(
            n_busy >= MIN_BUSY_SAMPLES,
            "{n_busy} of {n_samples} samples name {BUSY_FUNCTION}: {record}"
        );
        let (release, _) = section(console, "kernel")?;
        return Ok(format!(
            "{}, {n_busy} of {n_samples} samples in {BUSY_FUNCTION}, from outside",
            release.trim()
        ));
    }
    let n_missed = counter(record, "timer_missed");
    let n_ticks = ticks(console, "cpu after")?.saturating_sub(ticks(console, "cpu before")?);
    // Loading the programs takes seconds in emulation, and the workload runs meanwhile.
    let n_expected = n_ticks.min(MAX_TICKS) as f64 * SAMPLES_PER_TICK;
    ensure!(
        n_busy >= MIN_BUSY_SAMPLES && (n_busy + n_missed) as f64 >= n_expected * MIN_SHARE,
        "{n_busy} of {n_samples} samples name {BUSY_FUNCTION}, {n_missed} ticks of the timer were missed; the \
         workload's CPU time stands for {n_expected:.0}: {record}"
    );
    let (release, _) = section(console, "kernel")?;
    Ok(format!(
        "{}, {n_busy} of {n_samples} samples in {BUSY_FUNCTION}, {n_missed} ticks missed, CPU time for \
         {n_expected:.0}",
        release.trim()
    ))
}

/// A counter in the summary of a recording, which names those that are not 0.
fn counter(record: &str, name: &str) -> u64 {
    let rest = record
        .split_once(&format!("{name}: "))
        .map(|(_, rest)| rest);
    let number = rest.and_then(|rest| rest.split([' ', '\n']).next());
    number
        .and_then(|number| number.replace(',', "").parse().ok())
        .unwrap_or(0)
}

/// What [`CPU_TICKS`] printed.
fn ticks(console: &str, name: &str) -> Result<u64> {
    let (output, _) = section(console, name)?;
    let ticks = output.trim().parse();
    ticks.with_context(|| format!("`{name}` printed {output:?}"))
}

/// The count at the end of a folded line.
fn count_of_line(line: &str) -> Option<u64> {
    line.rsplit_once(' ')?.1.parse().ok()
}

/// Output and exit code of one command.
fn section<'a>(console: &'a str, name: &str) -> Result<(&'a str, &'a str)> {
    let begin = format!("{MARK}begin {name}\n");
    let end = format!("{MARK}end {name} ");
    let (_, rest) = console
        .split_once(&begin)
        .with_context(|| format!("the guest did not get as far as `{name}`"))?;
    let (output, rest) = rest
        .split_once(&end)
        .with_context(|| format!("the guest did not end `{name}`"))?;
    Ok((output, rest.lines().next().unwrap_or_default().trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(record_exit_code: u8, folded: &str) -> String {
        format!(
            "boot\n@@begin kernel\n6.1.0\n@@end kernel 0\n\
             @@begin doctor\nkernel programs {ALL_LOAD}fine\n@@end doctor 0\n@@begin cpu before\n100\n@@end cpu before 0\n\
             @@begin record\n  timer_missed: 105 (of a CPU)\n@@end record {record_exit_code}\n\
             @@begin cpu after\n1600\n@@end cpu after 0\n\
             @@begin folded\n{folded}\n@@end folded 0\n"
        )
    }

    #[test]
    fn a_profile_that_names_the_busy_function_passes() {
        let folded = format!("<module>;{BUSY_FUNCTION} 490\n<module> 5");
        let summary = verdict(&console(0, &folded), Mode::Plain).unwrap();
        assert_eq!(
            summary,
            format!(
                "6.1.0, 490 of 495 samples in {BUSY_FUNCTION}, 105 ticks missed, CPU time for 495"
            )
        );
    }

    #[test]
    fn a_profile_that_does_not_name_it_fails() {
        assert!(verdict(&console(0, "<module> 495"), Mode::Plain).is_err());
        assert!(verdict(&console(0, &format!("{BUSY_FUNCTION} 19")), Mode::Plain).is_err());
        // 105 ticks were missed, and 495 are expected.
        assert!(verdict(&console(0, &format!("{BUSY_FUNCTION} 290")), Mode::Plain).is_err());
        assert!(verdict(&console(0, &format!("{BUSY_FUNCTION} 292")), Mode::Plain).is_ok());
        assert!(verdict(&console(0, ""), Mode::Plain).is_err());
    }

    #[test]
    fn what_is_read_from_outside_passes_only_where_the_kernel_refuses_the_programs() {
        let folded = format!("<module>;{BUSY_FUNCTION} 20");
        let outside = console(0, &folded)
            .replace("timer_missed", FROM_OUTSIDE)
            .replace(ALL_LOAD, "");
        assert!(verdict(&outside, Mode::Confidentiality).is_ok());
        assert!(verdict(&outside, Mode::Plain).is_err());
        let folded = format!("<module>;{BUSY_FUNCTION} 490");
        assert!(verdict(&console(0, &folded), Mode::Confidentiality).is_err());
        assert!(verdict(&console(0, &folded), Mode::WithoutBtf).is_err());
    }

    #[test]
    fn a_recording_that_fails_fails() {
        let folded = format!("<module>;{BUSY_FUNCTION} 490");
        assert!(
            verdict(&console(3, &folded), Mode::Plain)
                .unwrap_err()
                .to_string()
                .contains("`record` ended with 3")
        );
    }

    #[test]
    fn a_guest_that_stops_half_way_fails() {
        let error = verdict("@@begin kernel\n6.1.0\n@@end kernel 0\n", Mode::Plain).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("did not get as far as `cpu before`"),
            "{error}"
        );
    }
}
