//! The repair of the leaf's instruction against its oracle: real evaluation loops, one machine instruction
//! at a time.
//!
//! A child runs loops of its own (`workloads/leaf_loops.py`) and is single-stepped. The bytecode
//! instruction that it is really at is the one that the last dispatch jump entered; its address is in the
//! register that holds `next_instr` at each dispatch. For each step the frame says an instruction, the
//! repair gives another one or none, and both are compared with the truth. How much the frame lags is
//! counted in steps, not in time: samples gather behind the mispredicted jump, so they lag more often.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    io::{BufRead as _, BufReader},
    ops::Range,
    os::unix::fs::FileExt as _,
    path::Path,
    process::{Child, Stdio},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use iced_x86::{Decoder, DecoderOptions, FlowControl, InstructionInfoFactory, OpAccess};
use nix::{
    sys::{ptrace, signal::Signal, wait::WaitStatus, wait::waitpid},
    unistd::Pid,
};
use object::{Object as _, ObjectSymbol as _};
use profiler_agent::{
    ids::Address,
    native::eval_loop::{EvalLoop, RepairRule, TEXT_BYTES},
};
use profiler_common::event::{N_GENERAL_REGISTERS, UserRegisters};
use pyagent_tests::interpreters::{self, Interpreter};
use serde::Deserialize;

/// Steps inside the evaluation loop that find out which register holds `next_instr`.
const LEARNING_STEPS: u64 = 8_000;

/// What is smaller is not the whole evaluation loop.
const MIN_EVAL_BYTES: u64 = 8192;

/// Steps inside the evaluation loop that are compared.
const EVAL_STEPS: u64 = 40_000;

/// Steps overall, those in C functions too.
const MAX_STEPS: u64 = 1_500_000;

/// Offset of `prev_instr` and `instr_ptr` in a frame, 3.11 to 3.15.
const INSTR_OFFSET: u16 = 56;

const REGISTER_NAMES: [&str; N_GENERAL_REGISTERS] = [
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi",
    "rdi",
];

/// Where a version keeps what the oracle reads. From the headers of 3.11.7, 3.12.1 and 3.13.0, and the debug offsets of
/// 3.14.10 and 3.15.2.
struct Layout {
    /// `PyThreadState.cframe` (3.11, 3.12) or `current_frame` (3.13+).
    tstate_frame: u64,
    /// `_PyCFrame.current_frame`.
    cframe_current_frame: Option<u64>,
    /// `f_code` or `f_executable`.
    frame_code: u64,
    /// `co_code_adaptive`.
    code_first_instr: u64,
}

impl Layout {
    fn of(minor: (u8, u8), free_threaded: bool) -> Option<Self> {
        let (tstate_frame, cframe_current_frame, frame_code, code_first_instr) = match minor {
            (3, 11) => (56, Some(8), 32, 184),
            (3, 12) => (56, Some(0), 0, 192),
            (3, 13) if free_threaded => (72, None, 0, 216),
            (3, 13) => (72, None, 0, 200),
            (3, 14 | 15) => (72, None, 0, 208),
            _ => return None,
        };
        Some(Self {
            tstate_frame,
            cframe_current_frame,
            frame_code,
            code_first_instr,
        })
    }
}

/// What the child says of itself.
#[derive(Deserialize)]
struct Description {
    thread_state: u64,
    eval: u64,
    codes: Vec<CodeObject>,
}

/// A code object of the child's.
#[derive(Deserialize)]
struct CodeObject {
    address: u64,
    /// Address of the first instruction.
    first: u64,
    first_line: u32,
    /// Line of each code unit, by the interpreter's own words.
    lines: Vec<Option<u32>>,
}

impl CodeObject {
    fn range(&self) -> Range<Address> {
        Address(self.first)..Address(self.first + 2 * self.lines.len() as u64)
    }

    /// Line of an instruction; `co_firstlineno` for a frame that has not begun.
    fn line(&self, instr: u64) -> Option<u32> {
        if instr.wrapping_add(2) == self.first {
            return Some(self.first_line);
        }
        self.lines
            .get(usize::try_from(instr.wrapping_sub(self.first) / 2).ok()?)
            .copied()
            .flatten()
    }
}

/// A child that is single-stepped. Killed and reaped when dropped.
struct Stepped {
    child: Child,
    pid: Pid,
    memory: File,
    layout: Layout,
    description: Description,
    /// Addresses of the evaluation loop.
    eval: Range<u64>,
    /// Its code.
    text: Vec<u8>,
    facts: HashMap<u64, Facts>,
    /// Where it stands.
    pc: u64,
    leaf: Leaf,
    is_leaf_stale: bool,
    n_steps: u64,
}

/// What one machine instruction does.
#[derive(Clone, Copy)]
struct Facts {
    is_indirect_jump: bool,
    writes_memory: bool,
}

impl Drop for Stepped {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One step inside the evaluation loop.
struct Step {
    pc: u64,
    registers: UserRegisters,
    /// An indirect jump led here.
    is_jumped_to: bool,
    leaf: Leaf,
}

/// The thread's innermost frame, by its thread state.
#[derive(Clone, Copy, Default)]
struct Leaf {
    frame: u64,
    code: u64,
    /// What the frame says of its instruction.
    instr: u64,
}

impl Stepped {
    /// Starts a workload and stops it somewhere in its loop. `None`: the interpreter's evaluation loop is spread over
    /// many functions (built with tail calls, or split by BOLT), and the oracle follows the jumps of one.
    fn start(interpreter: &Interpreter, layout: Layout, workload: &str) -> Result<Option<Self>> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads/leaf_loops.py");
        let mut child = interpreter
            .command(&script)
            .args([workload, &layout.code_first_instr.to_string()])
            .stdout(Stdio::piped())
            .spawn()?;
        let pid = Pid::from_raw(child.id().cast_signed());
        let stdout = child.stdout.take().context("stdout is a pipe")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        // Now it is the interpreter, whatever started it.
        let memory = File::open(format!("/proc/{pid}/mem"))?;
        let mut stepped = Self {
            child,
            pid,
            memory,
            layout,
            description: Description {
                thread_state: 0,
                eval: 0,
                codes: Vec::new(),
            },
            eval: 0..0,
            text: Vec::new(),
            facts: HashMap::new(),
            pc: 0,
            leaf: Leaf::default(),
            is_leaf_stale: true,
            n_steps: 0,
        };
        stepped.description = serde_json::from_str(&line).context("the workload's description")?;
        ptrace::attach(pid).context("ptrace")?;
        ensure!(
            matches!(waitpid(pid, None)?, WaitStatus::Stopped(_, Signal::SIGSTOP)),
            "not stopped"
        );
        stepped.eval = eval_loop(pid, stepped.description.eval)?;
        if stepped.eval.end - stepped.eval.start < MIN_EVAL_BYTES {
            return Ok(None);
        }
        stepped.text = vec![0; (stepped.eval.end - stepped.eval.start) as usize];
        stepped
            .memory
            .read_exact_at(&mut stepped.text, stepped.eval.start)?;
        Ok(Some(stepped))
    }

    /// Steps on to the next machine instruction of the evaluation loop; `None` once there were
    /// [`MAX_STEPS`].
    fn next(&mut self) -> Result<Option<Step>> {
        while self.n_steps < MAX_STEPS {
            let pc = self.pc;
            ptrace::step(self.pid, None)?;
            let status = waitpid(self.pid, None)?;
            ensure!(
                matches!(status, WaitStatus::Stopped(_, Signal::SIGTRAP)),
                "stopped by {status:?}"
            );
            let regs = ptrace::getregs(self.pid)?;
            self.pc = regs.rip;
            self.n_steps += 1;
            // The frame can only be another one if memory was written since it was read.
            let before = self.eval.contains(&pc).then(|| self.facts_at(pc));
            self.is_leaf_stale |= before.is_none_or(|facts| facts.writes_memory);
            if !self.eval.contains(&self.pc) {
                continue;
            }
            if std::mem::take(&mut self.is_leaf_stale) {
                self.leaf = self.read_leaf().unwrap_or_default();
            }
            return Ok(Some(Step {
                pc: self.pc,
                registers: user_registers(&regs),
                is_jumped_to: before.is_some_and(|facts| facts.is_indirect_jump),
                leaf: self.leaf,
            }));
        }
        Ok(None)
    }

    /// What the machine instruction at a PC of the evaluation loop does.
    fn facts_at(&mut self, pc: u64) -> Facts {
        if let Some(&facts) = self.facts.get(&pc) {
            return facts;
        }
        let instruction = Decoder::new(64, self.text_at(pc), DecoderOptions::NONE).decode();
        let is_call = matches!(
            instruction.flow_control(),
            FlowControl::Call | FlowControl::IndirectCall
        );
        let mut info_factory = InstructionInfoFactory::new();
        let memory = info_factory.info(&instruction).used_memory();
        let facts = Facts {
            is_indirect_jump: instruction.flow_control() == FlowControl::IndirectBranch,
            writes_memory: is_call
                || memory.iter().any(|memory| {
                    !matches!(
                        memory.access(),
                        OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
                    )
                }),
        };
        self.facts.insert(pc, facts);
        facts
    }

    /// Fails in a frame switch: 3.11 and 3.12 publish `cframe` before `cframe.current_frame` is written.
    fn read_leaf(&self) -> Result<Leaf> {
        let root = self.read(self.description.thread_state + self.layout.tstate_frame)?;
        let frame = match self.layout.cframe_current_frame {
            Some(offset) => self.read(root + offset)?,
            None => root,
        };
        if frame == 0 {
            return Ok(Leaf::default());
        }
        // The low bits are tags (3.14+).
        let code = self.read(frame + self.layout.frame_code)? & !3;
        let instr = self.read(frame + u64::from(INSTR_OFFSET))?;
        Ok(Leaf { frame, code, instr })
    }

    fn read(&self, address: u64) -> Result<u64> {
        let mut bytes = [0; 8];
        self.memory
            .read_exact_at(&mut bytes, address)
            .with_context(|| format!("reading {address:#x}"))?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Code from a PC of the evaluation loop on.
    fn text_at(&self, pc: u64) -> &[u8] {
        let start = (pc - self.eval.start) as usize;
        &self.text[start..self.text.len().min(start + TEXT_BYTES)]
    }

    fn code(&self, address: u64) -> Option<&CodeObject> {
        self.description
            .codes
            .iter()
            .find(|code| code.address == address)
    }
}

/// Addresses of the function that begins at `start`: its size is that of its symbol.
fn eval_loop(pid: Pid, start: u64) -> Result<Range<u64>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let path = maps
        .lines()
        .find(|line| {
            let bounds = line
                .split(' ')
                .next()
                .and_then(|bounds| bounds.split_once('-'));
            bounds.is_some_and(|(from, to)| {
                let [from, to] =
                    [from, to].map(|bound| u64::from_str_radix(bound, 16).unwrap_or(0));
                (from..to).contains(&start)
            })
        })
        .and_then(|line| line.find('/').map(|at| &line[at..]))
        .context("no file is mapped at the evaluation loop")?;
    let bytes = fs::read(path)?;
    let elf = object::File::parse(&*bytes)?;
    let symbol = elf
        .dynamic_symbols()
        .find(|symbol| symbol.name() == Ok("_PyEval_EvalFrameDefault"));
    Ok(start
        ..start
            + symbol
                .context("the evaluation loop is no dynamic symbol")?
                .size())
}

fn user_registers(regs: &nix::libc::user_regs_struct) -> UserRegisters {
    UserRegisters {
        general: [
            regs.r15, regs.r14, regs.r13, regs.r12, regs.rbp, regs.rbx, regs.r11, regs.r10,
            regs.r9, regs.r8, regs.rax, regs.rcx, regs.rdx, regs.rsi, regs.rdi,
        ],
        sp: regs.rsp,
    }
}

/// Index of the register that holds `next_instr` behind a dispatch jump: the one whose value is most often
/// what the frame says next.
fn learn_register(stepped: &mut Stepped) -> Result<usize> {
    let mut n_right = [0_u64; N_GENERAL_REGISTERS];
    let mut n_stores = 0;
    let mut dispatch: Option<Step> = None;
    for _ in 0..LEARNING_STEPS {
        let Some(step) = stepped.next()? else {
            break;
        };
        if step.is_jumped_to {
            dispatch = Some(step);
            continue;
        }
        let Some(entered) = &dispatch else { continue };
        if step.leaf.frame == entered.leaf.frame && step.leaf.instr != entered.leaf.instr {
            n_stores += 1;
            for (n_right, register) in n_right.iter_mut().zip(entered.registers.general) {
                *n_right += u64::from(register == step.leaf.instr);
            }
            dispatch = None;
        }
    }
    let (register_idx, &n_right) = n_right
        .iter()
        .enumerate()
        .max_by_key(|(_, n_right)| **n_right)
        .context("there are registers")?;
    ensure!(
        n_right * 100 >= n_stores * 95 && n_stores >= 100,
        "no register holds next_instr: {n_right} of {n_stores}"
    );
    Ok(register_idx)
}

/// What was seen of one workload.
#[derive(Default)]
struct Figures {
    n_steps: u64,
    n_dispatches: u64,
    /// Jumps that entered no instruction of the leaf, or not the handler of its opcode.
    n_other_jumps: u64,
    /// Steps at which the frame does not yet say the instruction that was entered.
    n_lagging: u64,
    /// Of those: the repair gives the true instruction.
    n_right: u64,
    /// Of those: it gives another instruction of the same line. YIELD_VALUE of 3.13 stores where the generator
    /// goes on, the instruction behind it.
    n_right_line: u64,
    /// Of those: it gives none. The first instruction of a code object is refused, see `PendingStore`.
    n_none: u64,
    lagging_pcs: BTreeSet<u64>,
    none_pcs: BTreeMap<u64, u64>,
    /// Steps at which the frame's own line is wrong, and at which it is after the repair.
    n_wrong_lines_before: u64,
    n_wrong_lines_after: u64,
    /// Steps, lagging or not, at which the repair gives a wrong line.
    wrong_pcs: BTreeMap<u64, String>,
    /// Repairs that were believed though they are about a frame that is not the leaf.
    n_other_frame: u64,
}

/// The instruction that the last dispatch entered.
struct Entered {
    frame: u64,
    instr: u64,
    /// What the frame said then.
    stale: u64,
    is_stored: bool,
}

/// Steps through a workload and compares.
fn compare(stepped: &mut Stepped) -> Result<(usize, Figures)> {
    let register_idx = learn_register(stepped)?;
    let eval_loop = EvalLoop::of(&stepped.text, INSTR_OFFSET);
    let mut rules = HashMap::new();
    let mut handlers: HashMap<u8, u64> = HashMap::new();
    let mut entered: Option<Entered> = None;
    let mut figures = Figures::default();
    while figures.n_steps < EVAL_STEPS {
        let Some(step) = stepped.next()? else {
            break;
        };
        let Some(code) = stepped.code(step.leaf.code) else {
            entered = None;
            continue;
        };
        if step.is_jumped_to {
            let instr = step.registers.general[register_idx];
            let is_inside = code.range().contains(&Address(instr));
            let is_dispatch = is_inside && {
                let opcode = (stepped.read(instr)? & 0xff) as u8;
                *handlers.entry(opcode).or_insert(step.pc) == step.pc
            };
            if is_dispatch {
                figures.n_dispatches += 1;
                entered = Some(Entered {
                    frame: step.leaf.frame,
                    instr,
                    stale: step.leaf.instr,
                    is_stored: false,
                });
            } else {
                figures.n_other_jumps += 1;
            }
        }
        let Some(entered) = &mut entered else {
            continue;
        };
        let rule = *rules
            .entry(step.pc)
            .or_insert_with(|| eval_loop.decide(stepped.text_at(step.pc)));
        figures.add(&step, code, rule, entered, stepped.eval.start);
    }
    Ok((register_idx, figures))
}

impl Figures {
    fn add(
        &mut self,
        step: &Step,
        code: &CodeObject,
        rule: RepairRule,
        entered: &mut Entered,
        eval_start: u64,
    ) {
        let leaf = step.leaf;
        entered.is_stored |= leaf.instr != entered.stale || leaf.instr == entered.instr;
        // Behind a frame switch the new leaf is right: it has not begun, or was stored before its call.
        let truth = if leaf.frame == entered.frame {
            entered.instr
        } else {
            leaf.instr
        };
        let is_lagging = leaf.frame == entered.frame && !entered.is_stored;
        let pending = rule.apply(&step.registers);
        let repaired = pending
            .and_then(|pending| pending.instr_in(code.range()))
            .map(|instr| instr.0);
        let pc = step.pc - eval_start;
        let true_line = code.line(truth);
        self.n_steps += 1;
        self.n_wrong_lines_before += u64::from(code.line(leaf.instr) != true_line);
        self.n_wrong_lines_after +=
            u64::from(code.line(repaired.unwrap_or(leaf.instr)) != true_line);
        if is_lagging {
            self.n_lagging += 1;
            self.lagging_pcs.insert(pc);
        }
        let Some(repaired) = repaired else {
            if is_lagging {
                self.n_none += 1;
                *self.none_pcs.entry(pc).or_default() += 1;
            }
            return;
        };
        self.n_other_frame +=
            u64::from(pending.is_some_and(|pending| pending.frame.0 != leaf.frame));
        if code.line(repaired) != true_line {
            let [repaired, truth] =
                [repaired, truth].map(|instr| instr.wrapping_sub(code.first).cast_signed());
            let message =
                format!("lagging: {is_lagging}, +{repaired} for +{truth}, line {true_line:?}");
            self.wrong_pcs.insert(pc, message);
        } else if is_lagging {
            self.n_right += u64::from(repaired == truth);
            self.n_right_line += u64::from(repaired != truth);
        }
    }

    /// Prints what was seen; gives what is wrong with it.
    fn report(&self, name: &str, register: &str) -> Option<String> {
        let Self {
            n_steps,
            n_dispatches,
            n_other_jumps,
            n_lagging,
            n_right,
            n_right_line,
            n_none,
            ..
        } = self;
        let Self {
            n_wrong_lines_before,
            n_wrong_lines_after,
            n_other_frame,
            ..
        } = self;
        let [n_lagging_pcs, n_none_pcs, n_wrong_pcs] = [
            self.lagging_pcs.len(),
            self.none_pcs.len(),
            self.wrong_pcs.len(),
        ];
        eprintln!(
            "{name}: next_instr in {register}; {n_steps} steps, {n_dispatches} dispatches, {n_other_jumps} other \
             jumps; {n_lagging} steps lag at {n_lagging_pcs} PCs: {n_right} repaired, {n_right_line} to the same \
             line, {n_none} not repaired at {n_none_pcs} PCs; wrong lines: {n_wrong_lines_before} before, \
             {n_wrong_lines_after} after; {n_other_frame} repairs of another frame; wrong repairs at \
             {n_wrong_pcs} PCs"
        );
        // One in a hundred is left to builds that nobody has looked at; those that were have none.
        let is_good = self.wrong_pcs.is_empty()
            && *n_other_frame == 0
            && *n_wrong_lines_before > 500
            && n_wrong_lines_after * 100 <= *n_wrong_lines_before
            && (n_right + n_right_line) * 100 >= n_lagging * 95;
        let Self {
            none_pcs,
            wrong_pcs,
            ..
        } = self;
        (!is_good).then(|| {
            format!(
                "{name}: not repaired, steps by PC: {none_pcs:x?}; wrong, by PC: {wrong_pcs:#x?}"
            )
        })
    }
}

#[test]
fn the_repaired_leaf_is_the_instruction_that_the_last_dispatch_entered() {
    let interpreters = interpreters::found();
    let failures: Vec<String> = thread::scope(|scope| {
        // Each child is stepped by the thread that attached to it.
        let steppers: Vec<_> = interpreters
            .iter()
            .map(|one| scope.spawn(|| failures_of(one)))
            .collect();
        steppers
            .into_iter()
            .flat_map(|stepper| stepper.join().expect("a stepper returns its failures"))
            .collect()
    });
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Steps through every workload with one interpreter.
fn failures_of(interpreter: &Interpreter) -> Vec<String> {
    let mut failures = Vec::new();
    let (major, minor, micro) = interpreter.version;
    if !interpreter.has_libraries() {
        eprintln!("{major}.{minor}.{micro}: left out, a build without ctypes");
        return failures;
    }
    if interpreter.is_debug() {
        eprintln!(
            "{major}.{minor}.{micro}: left out, a debug build keeps what is looked for on its stack"
        );
        return failures;
    }
    for workload in ["arithmetic", "statements", "calls"] {
        let Some(layout) = Layout::of((major, minor), interpreter.free_threaded) else {
            break;
        };
        let name = format!("{major}.{minor}.{micro} {workload}");
        let compared = Stepped::start(interpreter, layout, workload)
            .and_then(|stepped| stepped.map(|mut stepped| compare(&mut stepped)).transpose());
        match compared {
            Ok(Some((register_idx, figures))) => {
                failures.extend(figures.report(&name, REGISTER_NAMES[register_idx]));
            }
            Ok(None) => eprintln!("{name}: skipped, the evaluation loop is spread over functions"),
            Err(error) => failures.push(format!("{name}: {error:#}")),
        }
    }
    failures
}
