//! Where probes stand, against its oracle: real interpreters and their C libraries, whose allocator functions are stopped at
//! each of their calls and at each of their returns.
//!
//! A child is attached to with ptrace, and gets a breakpoint at the beginning of each function, where probes would stand, and
//! at the address that each call returns to. There the register of the result says what the caller got, and the probes
//! in between must have said the same.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Stdio},
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    libc::user_regs_struct,
    sys::{
        ptrace,
        signal::Signal,
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};
use profiler_agent::native::{
    allocator::{self, AllocatorFunction, AllocatorKind},
    elf::{Elf, ElfReader, load_bias},
    probe_points::Code,
};
use profiler_agent::python::small_objects::{self, SmallObjects};
use pyagent_tests::interpreters::{self, Interpreter};

const INT3: u8 = 0xcc;

/// A mapped file with allocator functions in it.
struct Allocator {
    path: PathBuf,
    functions: Vec<AllocatorFunction>,
    /// Is added to addresses as linked.
    bias: u64,
}

/// A file that is mapped executable.
struct Mapped {
    path: PathBuf,
    file: File,
    mapping_start: u64,
    mapping_offset: u64,
}

/// The files that a process has mapped executable, each once.
fn mapped_files(pid: Pid) -> Result<Vec<Mapped>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let mut found: Vec<Mapped> = Vec::new();
    for line in maps.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (Some(range), Some(access), Some(offset), Some(path)) =
            (fields.next(), fields.next(), fields.next(), fields.nth(2))
        else {
            continue;
        };
        let path = root.join(path.trim_start_matches('/'));
        if !access.contains('x') || !path.is_file() || found.iter().any(|one| one.path == path) {
            continue;
        }
        let start = range.split('-').next().context("a range")?;
        found.push(Mapped {
            file: File::open(&path)?,
            path,
            mapping_start: u64::from_str_radix(start, 16)?,
            mapping_offset: u64::from_str_radix(offset, 16)?,
        });
    }
    Ok(found)
}

/// Those that have allocator functions.
fn allocators(pid: Pid) -> Result<Vec<Allocator>> {
    let mut found = Vec::new();
    for mapped in mapped_files(pid)? {
        let reader = ElfReader::new(mapped.file.try_clone()?);
        let Ok(elf) = reader.parse() else { continue };
        let functions = allocator::functions(&elf, &Code::of(&elf, &mapped.file));
        if !functions.is_empty() {
            found.push(Allocator {
                bias: mapped.bias(&elf)?,
                path: mapped.path,
                functions,
            });
        }
    }
    Ok(found)
}

impl Mapped {
    /// What is added to addresses as linked.
    fn bias(&self, elf: &Elf<'_>) -> Result<u64> {
        load_bias(&elf.segments(), self.mapping_start, self.mapping_offset)
            .context("where it is loaded")
    }
}

/// A child that is stopped at breakpoints. Killed and reaped when dropped.
struct Traced {
    child: Child,
    stdin: ChildStdin,
    pid: Pid,
    memory: File,
    /// What the breakpoints replaced, by address.
    breakpoints: HashMap<u64, u8>,
}

impl Drop for Traced {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Traced {
    /// Starts a workload and stops it while it waits for a line.
    fn start(interpreter: &Interpreter, workload: &str, arguments: &[&str]) -> Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("workloads")
            .join(workload);
        let mut child = interpreter
            .command(&script)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let pid = Pid::from_raw(child.id().cast_signed());
        let stdout = child.stdout.take().context("stdout is a pipe")?;
        let stdin = child.stdin.take().context("stdin is a pipe")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line == "ready\n", "the workload says {line:?}");
        let memory = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{pid}/mem"))?;
        ptrace::attach(pid).context("ptrace")?;
        ensure!(
            matches!(waitpid(pid, None)?, WaitStatus::Stopped(_, Signal::SIGSTOP)),
            "not stopped"
        );
        Ok(Self {
            child,
            stdin,
            pid,
            memory,
            breakpoints: HashMap::new(),
        })
    }

    fn insert(&mut self, address: u64) -> Result<()> {
        if self.breakpoints.contains_key(&address) {
            return Ok(());
        }
        let mut byte = [0];
        self.memory.read_exact_at(&mut byte, address)?;
        self.memory.write_all_at(&[INT3], address)?;
        self.breakpoints.insert(address, byte[0]);
        Ok(())
    }

    /// Lets it do its work and gives the registers at each breakpoint to `at`, until `at` says that it is enough or it ends.
    fn run(
        &mut self,
        mut at: impl FnMut(&mut Self, &user_regs_struct) -> Result<bool>,
    ) -> Result<()> {
        self.stdin.write_all(b"go\n")?;
        let mut signal = None;
        let mut is_enough = false;
        while !is_enough {
            ptrace::cont(self.pid, signal.take())?;
            match waitpid(self.pid, None)? {
                WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
                WaitStatus::Stopped(_, Signal::SIGSTOP) => continue,
                WaitStatus::Stopped(_, other) => {
                    signal = Some(other);
                    continue;
                }
                WaitStatus::Exited(_, 0) => return Ok(()),
                status => bail!("ended: {status:?}"),
            }
            let mut registers = ptrace::getregs(self.pid)?;
            registers.rip -= 1;
            let address = registers.rip;
            let original = *self
                .breakpoints
                .get(&address)
                .context("no breakpoint there")?;
            ptrace::setregs(self.pid, registers)?;
            is_enough = at(self, &registers)?;
            self.memory.write_all_at(&[original], address)?;
            ptrace::step(self.pid, None)?;
            ensure!(
                matches!(
                    waitpid(self.pid, None)?,
                    WaitStatus::Stopped(_, Signal::SIGTRAP)
                ),
                "not stepped"
            );
            self.memory.write_all_at(&[INT3], address)?;
        }
        Ok(())
    }

    fn read(&self, address: u64) -> Result<u64> {
        let mut bytes = [0; 8];
        self.memory.read_exact_at(&mut bytes, address)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// `UserRegisters::general`.
fn general(registers: &user_regs_struct, general_idx: u8) -> u64 {
    let general = [
        registers.r15,
        registers.r14,
        registers.r13,
        registers.r12,
        registers.rbp,
        registers.rbx,
        registers.r11,
        registers.r10,
        registers.r9,
        registers.r8,
        registers.rax,
        registers.rcx,
        registers.rdx,
        registers.rsi,
        registers.rdi,
    ];
    general[usize::from(general_idx)]
}

/// What stands at an address.
#[derive(Default)]
struct Stand {
    /// The functions, by their indexes, that begin there.
    begins: Vec<usize>,
    enters: Vec<usize>,
    /// With the register of the result.
    returns: Vec<(usize, u8)>,
}

/// A call that has not returned.
struct Call {
    function: usize,
    /// Where the return address lies.
    sp: u64,
    return_address: u64,
    arguments: [u64; 3],
    n_enters: usize,
    /// What the first return point said, and how many said something.
    result: Option<u64>,
    n_hits: usize,
    /// It ended in a jump to another one.
    is_replaced: bool,
}

/// What was seen of one function.
#[derive(Default)]
struct Seen {
    n_calls: usize,
    n_results: usize,
    n_hits: usize,
    /// Returned by a function that it ended in.
    n_replaced: usize,
    n_single_stepped: usize,
    failures: BTreeSet<String>,
}

/// Calls to see of the most used function.
const MAX_CALLS: usize = 3000;

fn compare(traced: &mut Traced, allocator: &Allocator) -> Result<Vec<Seen>> {
    let mut stands: BTreeMap<u64, Stand> = BTreeMap::new();
    let mut single_stepped = BTreeSet::new();
    for (idx, function) in allocator.functions.iter().enumerate() {
        let at = |address: u64| address.wrapping_add(allocator.bias);
        let Ok(probes) = &function.probes else {
            continue;
        };
        stands
            .entry(at(function.address))
            .or_default()
            .begins
            .push(idx);
        stands
            .entry(at(probes.enter.address))
            .or_default()
            .enters
            .push(idx);
        for point in &probes.returns {
            let address = at(point.point.address);
            stands
                .entry(address)
                .or_default()
                .returns
                .push((idx, point.general_idx));
            if !point.point.is_emulated {
                single_stepped.insert(address);
            }
        }
    }
    for &address in stands.keys() {
        traced.insert(address)?;
    }
    let mut seen: Vec<Seen> = allocator
        .functions
        .iter()
        .map(|_| Seen::default())
        .collect();
    let mut calls: Vec<Call> = Vec::new();
    traced.run(|traced, registers| {
        let address = registers.rip;
        // What has returned to here.
        let returned = calls.iter().position(|call| call.sp < registers.rsp);
        if let Some(first) = returned {
            for call in calls.drain(first..) {
                let is_here = call.return_address == address && call.sp + 8 == registers.rsp;
                seen[call.function].add(
                    &call,
                    &allocator.functions[call.function],
                    is_here.then_some(registers.rax),
                );
            }
        }
        let Some(stand) = stands.get(&address) else {
            return Ok(seen.iter().any(|seen| seen.n_calls >= MAX_CALLS));
        };
        let arguments = [registers.rdi, registers.rsi, registers.rdx];
        for &function in &stand.begins {
            let return_address = traced.read(registers.rsp)?;
            for call in calls.iter_mut().filter(|call| call.sp == registers.rsp) {
                call.is_replaced = true;
            }
            calls.push(Call {
                function,
                sp: registers.rsp,
                return_address,
                arguments,
                n_enters: 0,
                result: None,
                n_hits: 0,
                is_replaced: false,
            });
            traced.insert(return_address)?;
        }
        for &function in &stand.enters {
            if let Some(call) = calls.iter_mut().rfind(|call| call.function == function) {
                call.n_enters += 1;
                let n_arguments = allocator.functions[function].kind.wanted().n_arguments;
                if arguments[..n_arguments] != call.arguments[..n_arguments] {
                    seen[function].failures.insert("an argument is lost".into());
                }
            }
        }
        for &(function, general_idx) in &stand.returns {
            let value = general(registers, general_idx);
            let is_status = allocator.functions[function].kind == AllocatorKind::Indirect;
            if value == 0 && !is_status {
                continue;
            }
            if let Some(call) = calls.iter_mut().rfind(|call| call.function == function) {
                call.n_hits += 1;
                call.result.get_or_insert(value);
                seen[function].n_single_stepped += usize::from(single_stepped.contains(&address));
            }
        }
        Ok(false)
    })?;
    Ok(seen)
}

impl Seen {
    fn add(&mut self, call: &Call, function: &AllocatorFunction, returned: Option<u64>) {
        self.n_calls += 1;
        self.n_hits += call.n_hits;
        if call.n_enters != 1 {
            self.failures
                .insert(format!("{} hits of enter in a call", call.n_enters));
        }
        if function.kind == AllocatorKind::Release {
            return;
        }
        let Some(returned) = returned else {
            self.failures.insert("its return was not seen".into());
            return;
        };
        if call.is_replaced && call.result.is_none() {
            self.n_replaced += 1;
            return;
        }
        if function.kind == AllocatorKind::Indirect {
            if call.result != Some(returned) {
                self.failures
                    .insert(format!("returned {returned:#x}, seen {:x?}", call.result));
            }
            return;
        }
        let expected = (returned != 0).then_some(returned);
        self.n_results += usize::from(expected.is_some());
        if call.result != expected {
            self.failures.insert(format!(
                "returned {returned:#x}, seen {:x?}, arguments {:x?}",
                call.result, call.arguments
            ));
        }
    }
}

/// What the functions of one file are, a line each.
fn table(allocator: &Allocator) -> String {
    let mut lines = String::new();
    for function in &allocator.functions {
        let calls: Vec<String> = function
            .calls
            .iter()
            .map(|call| format!("{}{}", if call.is_tail { "->" } else { "" }, call.name))
            .collect();
        let what = match &function.probes {
            Ok(probes) => {
                let n_emulated = probes
                    .returns
                    .iter()
                    .filter(|point| point.point.is_emulated)
                    .count();
                format!(
                    "enter +{:#x} {}, {} of {} returns emulated {:x?}, {} unseen ways, calls {}",
                    probes.enter.address - function.address,
                    if probes.enter.is_emulated {
                        "emulated"
                    } else {
                        "single-stepped"
                    },
                    n_emulated,
                    probes.returns.len(),
                    probes
                        .returns
                        .iter()
                        .map(|point| (point.point.address, point.general_idx))
                        .collect::<Vec<_>>(),
                    probes.n_unseen_ways,
                    calls.join(" ")
                )
            }
            Err(error) => error.to_string(),
        };
        lines += &format!("  {:16} {:?}: {what}\n", function.name, function.kind);
    }
    lines
}

fn failures_of(interpreter: &Interpreter) -> Result<Vec<String>> {
    let (major, minor, micro) = interpreter.version;
    let name = format!("{major}.{minor}.{micro} {}", interpreter.build);
    let mut failures = Vec::new();
    let mut traced = Traced::start(interpreter, "allocations.py", &[])?;
    let allocators = allocators(traced.pid)?;
    let mut report = String::new();
    let mut is_first = true;
    for allocator in &allocators {
        let path = allocator.path.components().skip(4).collect::<PathBuf>();
        report += &format!("{name}: {}\n{}", path.display(), table(allocator));
        if !allocator
            .functions
            .iter()
            .any(|function| function.name == "malloc")
            || !is_first
        {
            continue;
        }
        is_first = false;
        let seen = compare(&mut traced, allocator)?;
        for (function, seen) in allocator.functions.iter().zip(seen) {
            if seen.n_calls > 0 {
                report += &format!(
                    "    {}: {} calls, {} results, {} hits, {} of them single-stepped, {} returned by another\n",
                    function.name,
                    seen.n_calls,
                    seen.n_results,
                    seen.n_hits,
                    seen.n_single_stepped,
                    seen.n_replaced
                );
            }
            // Free-threaded builds have an allocator of their own, and debug builds put marks around blocks of calloc.
            let is_used = ["malloc", "realloc", "free"].contains(&function.name);
            if is_used && seen.n_calls == 0 && !interpreter.free_threaded {
                failures.push(format!("{name}: no call of {}", function.name));
            }
            failures.extend(
                seen.failures
                    .iter()
                    .take(5)
                    .map(|failure| format!("{name} {}: {failure}", function.name)),
            );
        }
    }
    eprintln!("{report}");
    if is_first {
        failures.push(format!("{name}: no malloc"));
    }
    Ok(failures)
}

/// Objects of 64 bytes that are made.
const N_OBJECTS: usize = 1_000_000;

/// Bytes of a pool: `POOL_SIZE` of Objects/obmalloc.c.
fn pool_bytes(minor: (u8, u8)) -> usize {
    if minor >= (3, 10) { 16 << 10 } else { 4 << 10 }
}

/// What is wrong with where small objects are probed in one interpreter.
fn pool_failures_of(interpreter: &Interpreter) -> Result<Vec<String>> {
    let (major, minor, micro) = interpreter.version;
    let name = format!("{major}.{minor}.{micro} {}", interpreter.build);
    let mut traced = Traced::start(interpreter, "pools.py", &[&N_OBJECTS.to_string()])?;
    let mut found = None;
    for mapped in mapped_files(traced.pid)? {
        let reader = ElfReader::new(mapped.file.try_clone()?);
        let Ok(elf) = reader.parse() else { continue };
        let [exported] = elf.symbols(["PyObject_GetArenaAllocator"]);
        if exported.is_some() {
            let by_symbol = small_objects::by_symbol(&elf);
            let by_signature = small_objects::by_signature(&elf, &mapped.file);
            found = Some((
                small_objects::find(&elf, &mapped.file),
                by_symbol,
                by_signature,
                mapped.bias(&elf)?,
            ));
        }
    }
    let (found, by_symbol, by_signature, bias) = found.context("no CPython is mapped")?;
    let mut failures = Vec::new();
    if by_signature.is_some() && by_symbol.is_some() && by_signature != by_symbol {
        failures.push(format!(
            "{name}: signature {by_signature:x?}, symbol {by_symbol:x?}"
        ));
    }
    let (address, probes, found_by) = match found {
        Ok(SmallObjects::Pools {
            address,
            probes,
            found_by,
        }) => (address, probes, found_by),
        Ok(SmallObjects::Arenas { allocator }) => {
            eprintln!("{name}: arenas, allocator at {allocator:#x}");
            return Ok(failures);
        }
        Err(error) => {
            failures.push(format!("{name}: {error}"));
            return Ok(failures);
        }
    };
    let n_emulated = probes
        .returns
        .iter()
        .filter(|point| point.point.is_emulated)
        .count();
    let enter = probes.enter.address.wrapping_add(bias);
    traced.insert(enter)?;
    let mut n_hits = 0;
    traced.run(|_, registers| {
        n_hits += usize::from(registers.rip == enter);
        Ok(n_hits > N_OBJECTS / 10)
    })?;
    let expected = N_OBJECTS * 64 / pool_bytes(interpreter.minor());
    eprintln!(
        "{name}: pools at {address:#x} by {found_by:?} (symbol {by_symbol:x?}, signature {by_signature:x?}), enter +{:#x} \
         emulated: {}, {n_emulated} of {} returns emulated; {n_hits} hits, {expected} expected",
        probes.enter.address - address,
        probes.enter.is_emulated,
        probes.returns.len(),
    );
    // mimalloc gives out what free-threaded builds make; debug builds put marks around each object.
    let expected = if interpreter.free_threaded {
        0
    } else {
        expected
    };
    if !interpreter.is_debug() && n_hits.abs_diff(expected) * 50 > expected {
        failures.push(format!("{name}: {n_hits} hits, {expected} expected"));
    }
    Ok(failures)
}

#[test]
fn a_pool_is_seen_for_each_of_its_size_in_small_objects() {
    assert_none_fails(pool_failures_of);
}

#[test]
fn each_call_of_an_allocator_is_seen_once_with_what_its_caller_gets() {
    assert_none_fails(failures_of);
}

/// Asks for the failures of every interpreter, two at a time.
fn assert_none_fails(failures_of: fn(&Interpreter) -> Result<Vec<String>>) {
    let interpreters = interpreters::found();
    let of_one = |one: &Interpreter| {
        failures_of(one).unwrap_or_else(|error| vec![format!("{}: {error:#}", one.path.display())])
    };
    let of_some = |some: &[Interpreter]| some.iter().flat_map(of_one).collect::<Vec<_>>();
    let (first, second) = interpreters.split_at(interpreters.len() / 2);
    let failures = thread::scope(|scope| {
        // Each child is stepped by the thread that attached to it.
        let other = scope.spawn(|| of_some(first));
        let mut failures = of_some(second);
        failures.extend(other.join().expect("a stepper returns its failures"));
        failures
    });
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
