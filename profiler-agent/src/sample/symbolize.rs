//! Symbolizing: from addresses to functions and lines, at first sight, while the process is there.
//!
//! What was learned of a code object holds for (generation, code address, identity). A forked child inherits
//! what was known of its parent at the fork, in shared layers.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use profiler_common::event::{PyFrame, PythonStatus, sample_flags};
use profiler_common::layout::InstructionUnit;

use super::code_cache::CodeCache;
use super::decode::RawSample;
use super::native::{KernelSymbols, NativeSymbolizer};
use super::process_labels::process_labels;
use super::thread_labels::{OfProgram, Threads};
use crate::ids::{Address, Generation, Tid};
use crate::native::eval_loop::{EvalLoop, MAX_EVAL_LOOP_BYTES, RepairRule, TEXT_BYTES};
use crate::process::file::FileKey;
use crate::process::memory::{ProcessMemory, ReadMemory as _};
use crate::process::service::LabelOptions;
use crate::profile::aggregate::{
    ProcessLabels, ResolvedFrame, ResolvedFunction, ResolvedSample, ThreadLabels,
};
use crate::profile::instructions::Instruction;
use crate::profile::thread_name::ThreadName;
use crate::python::bytecode::{At, Bytecodes};
use crate::python::code::{self, Code, CodeError, CodeSymbol};
use crate::python::process::PythonProcess;
use crate::python::thread_bytecode::ThreadBytecode;

/// Repair rules that are remembered, over all binaries.
const MAX_RULES: usize = 65_536;

/// Looking for names at the end of a profile takes at most about so long: samples wait meanwhile.
const SETTLE_TIME: Duration = Duration::from_millis(20);

/// What happened to samples on the way through the symbolizer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SymbolizeCounters {
    /// Frames whose code object had gone.
    pub frames_gone: u64,
    /// Frames that could not be read for another reason.
    pub frames_unreadable: u64,
    /// Frames whose code object was not read, because its program has used up the time for that.
    pub frames_over_budget: u64,
    /// Leaf instructions that lagged and were corrected.
    pub leaves_repaired: u64,
    /// Samples by Python status.
    pub by_status: [u64; PythonStatus::ALL.len()],
}

/// One program (generation) of a process.
struct Program {
    process: Arc<PythonProcess>,
    memory: ProcessMemory,
    codes: CodeCache,
    /// Labels that all of its threads share.
    labels: Arc<ProcessLabels>,
    /// Copies of bytecode.
    copies: ThreadBytecode,
    bytecodes: Bytecodes,
    threads: Threads,
}

/// Resolves samples; owns all caches.
#[derive(Default)]
pub struct Symbolizer {
    shows_arguments: bool,
    has_instructions: bool,
    options: LabelOptions,
    programs: HashMap<Generation, Program, RandomState>,
    eval_loops: HashMap<FileKey, EvalLoop>,
    rules: HashMap<(FileKey, u64), RepairRule, RandomState>,
    reasons: HashMap<&'static str, Arc<ResolvedFunction>>,
    native: NativeSymbolizer,
    counters: SymbolizeCounters,
}

impl Symbolizer {
    /// One that says of processes all arguments, or the program alone, and what the user says of them; and of samples their
    /// instruction, or not.
    #[must_use]
    pub fn new(
        shows_arguments: bool,
        has_instructions: bool,
        options: LabelOptions,
        kernel_symbols: KernelSymbols,
    ) -> Self {
        Self {
            shows_arguments,
            has_instructions,
            options,
            native: NativeSymbolizer::new(kernel_symbols),
            ..Self::default()
        }
    }

    /// One for the Python frames of a single process.
    #[must_use]
    pub fn of_process(process: Arc<PythonProcess>) -> Self {
        let mut symbolizer = Self::default();
        symbolizer.add(process);
        symbolizer
    }

    /// A process (or the program it now runs) becomes known.
    pub fn add(&mut self, process: Arc<PythonProcess>) {
        let generation = process.generation;
        let labels = process_labels(&process, self.shows_arguments, &self.options);
        if let Some(program) = self.programs.get_mut(&generation) {
            program.process = process;
            program.relabel(labels);
            return;
        }
        self.programs
            .insert(generation, Program::new(process, labels, CodeCache::new()));
    }

    /// A process was forked: the child knows what the parent knew. Called in the order of the kernel's
    /// events, so nothing that the parent learned later gets in.
    pub fn fork(&mut self, parent: Generation, child: Generation, pid: crate::ids::Pid) {
        let Some(parent) = self.programs.get_mut(&parent) else {
            return;
        };
        let process = PythonProcess {
            pid,
            generation: child,
            forked_from: Some(parent.process.generation),
            facts: parent.process.facts.of_child(pid, child),
            ..PythonProcess::clone(&parent.process)
        };
        let codes = parent.codes.fork();
        let labels = process_labels(&process, self.shows_arguments, &self.options);
        self.programs
            .insert(child, Program::new(Arc::new(process), labels, codes));
    }

    /// A program has ended; nothing of it comes any more.
    pub fn remove(&mut self, generation: Generation) {
        self.programs.remove(&generation);
        self.native.remove(generation);
    }

    /// Whether samples of this generation can be resolved.
    #[must_use]
    pub fn knows(&self, generation: Generation) -> bool {
        self.programs.contains_key(&generation)
    }

    /// The process of a generation.
    #[must_use]
    pub fn process(&self, generation: Generation) -> Option<&Arc<PythonProcess>> {
        self.programs
            .get(&generation)
            .map(|program| &program.process)
    }

    /// Every process that is known.
    pub fn processes(&self) -> impl Iterator<Item = &Arc<PythonProcess>> {
        self.programs.values().map(|program| &program.process)
    }

    /// Counters since the start.
    #[must_use]
    pub fn counters(&self) -> &SymbolizeCounters {
        &self.counters
    }

    /// Looks once more for the names of threads that have none yet: a profile is about to end.
    pub fn settle_names(&mut self) {
        let began = Instant::now();
        for program in self.programs.values_mut() {
            if began.elapsed() < SETTLE_TIME {
                program.settle_names();
            }
        }
    }

    /// Says what a thread is called by now, if that is known.
    #[must_use = "it does nothing but to look names up"]
    pub fn newest_names<'a>(&'a self) -> impl Fn(&ThreadLabels) -> Option<&'a ThreadName> {
        let mut programs: HashMap<u32, Vec<&'a Program>, RandomState> = HashMap::default();
        for program in self.programs.values() {
            programs
                .entry(program.process.pid.0)
                .or_default()
                .push(program);
        }
        move |thread| {
            let programs = programs.get(&thread.process.pid)?;
            let names = programs
                .iter()
                .filter_map(|program| program.threads.name(Tid(thread.tid), thread.started_ns));
            names.max_by_key(|name| name.rank)
        }
    }

    /// Code objects that are remembered, for the status.
    #[must_use]
    pub fn n_codes(&self) -> usize {
        self.programs
            .values()
            .map(|program| program.codes.len())
            .sum()
    }

    /// Forgets the code objects of the programs that take most memory for them, until half of it is free: they are read again.
    pub fn shrink(&mut self) {
        let mut programs: Vec<(usize, &mut Program)> = self
            .programs
            .values_mut()
            .map(|program| (program.codes.n_bytes(), program))
            .collect();
        let all: usize = programs.iter().map(|(n_bytes, _)| n_bytes).sum();
        programs.sort_unstable_by_key(|(n_bytes, _)| std::cmp::Reverse(*n_bytes));
        let mut n_freed = 0;
        for (n_bytes, program) in programs {
            if n_freed * 2 >= all {
                break;
            }
            n_freed += n_bytes;
            program.codes.forget();
            program.copies = ThreadBytecode::default();
            program.bytecodes = Bytecodes::default();
        }
    }

    /// Whether a frame is shown: it is none of the interpreter's own.
    pub fn shows(&mut self, generation: Generation, frame: &PyFrame) -> bool {
        let Some(program) = self.programs.get_mut(&generation) else {
            return false;
        };
        !matches!(program.code(frame, &mut self.counters), Ok(Code::Internal))
    }

    /// Names everything in a sample. `None`: its program is not known (yet).
    pub fn resolve(&mut self, sample: &RawSample) -> Option<ResolvedSample> {
        let process = self.process(sample.generation)?.clone();
        let interpreter = &process.interpreter;
        let mut frames = Vec::with_capacity(sample.kernel.len() + sample.python.len() + 2);
        let in_eval = interpreter.eval.contains(sample.user_ip.0)
            || interpreter.eval_cold.contains(sample.user_ip.0);
        self.native.kernel_frames(&sample.kernel, &mut frames);
        // Where the loop has no place of its own the symbols tell it from the rest.
        let is_known_eval = in_eval && interpreter.binary.eval_is_exact;
        if !is_known_eval && !sample.user_ip.is_null() {
            let parent = process
                .forked_from
                .and_then(|parent| self.programs.get(&parent));
            let parent = parent.map(|parent| parent.process.pid);
            self.native
                .leaf_frame(&process, parent, sample.user_ip, &mut frames);
        }
        let program = self.programs.get_mut(&sample.generation)?;
        let unit = interpreter.layout.walk.instruction_unit;
        let n_outside = frames.len();
        let is_misled = program.is_misled(sample);
        let mut is_innermost = self.has_instructions;
        let mut instruction = None;
        let python = if is_misled { &[][..] } else { &sample.python };
        for (idx, frame) in python.iter().enumerate() {
            let code = program.code(frame, &mut self.counters);
            let symbol = match code {
                Ok(Code::Function(symbol)) => symbol,
                Ok(Code::Internal) => continue,
                Err(error) => {
                    frames.push(reason_frame(&mut self.reasons, code_reason(error)));
                    is_innermost = false;
                    continue;
                }
            };
            let layout = &interpreter.layout.code;
            let executed =
                program
                    .copies
                    .of_frame(&program.memory, layout, frame, symbol.instructions());
            let mut instr = frame.instr;
            if idx == 0
                && let Some(true_instr) = pending_instruction(
                    &mut self.eval_loops,
                    &mut self.rules,
                    program,
                    sample,
                    &executed,
                )
            {
                self.counters.leaves_repaired += u64::from(true_instr != instr);
                instr = true_instr;
            }
            instr = in_own_bytecode(instr, &executed, &symbol);
            if is_innermost {
                let at = At {
                    frame,
                    symbol: &symbol,
                    executed: &executed,
                    instr,
                };
                instruction = program.instruction(at);
                is_innermost = false;
            }
            let line = symbol.line(instr, unit);
            frames.push(ResolvedFrame {
                function: symbol.function.clone(),
                line,
                address: 0,
            });
        }
        // A thread that begins or ends has nothing but the interpreter's own frames.
        let status = match sample.python_status {
            _ if is_misled && !sample.frame.is_null() => PythonStatus::FrameSwitch,
            PythonStatus::Complete if frames.len() == n_outside => PythonStatus::NoFrame,
            status => status,
        };
        self.counters.by_status[status as usize] += 1;
        if let Some(reason) = status_reason(status) {
            frames.push(reason_frame(&mut self.reasons, reason));
        }
        let labels = program.labels(sample);
        Some(ResolvedSample {
            frames,
            labels,
            instruction,
            values: [1, i64::try_from(sample.period).unwrap_or(i64::MAX)].into(),
        })
    }
}

impl Program {
    fn new(process: Arc<PythonProcess>, labels: ProcessLabels, codes: CodeCache) -> Self {
        Self {
            memory: ProcessMemory::new(process.pid),
            labels: Arc::new(labels),
            process,
            codes,
            copies: ThreadBytecode::default(),
            bytecodes: Bytecodes::default(),
            threads: Threads::default(),
        }
    }

    /// Of a child that has just begun, what its parent is was all that was known.
    fn relabel(&mut self, labels: ProcessLabels) {
        if *self.labels != labels {
            self.labels = Arc::new(labels);
            self.threads.relabel(&self.labels);
        }
    }

    /// Whether the kernel, where it tried registers as frames, took something for one that is none: the thread
    /// begins, say, and has no frame yet.
    fn is_misled(&mut self, sample: &RawSample) -> bool {
        let (memory, layout) = (&self.memory, &self.process.interpreter.layout);
        let leaf = sample.python.first();
        leaf.is_some_and(|leaf| {
            sample.has(sample_flags::REPAIRED)
                && matches!(
                    self.codes.get(leaf, || code::read(memory, layout, leaf)),
                    Err(CodeError::Gone)
                )
        })
    }

    fn code(
        &mut self,
        frame: &PyFrame,
        counters: &mut SymbolizeCounters,
    ) -> Result<Code, CodeError> {
        let (memory, layout) = (&self.memory, &self.process.interpreter.layout);
        let code = self.codes.get(frame, || code::read(memory, layout, frame));
        match &code {
            Ok(_) => {}
            Err(CodeError::Gone | CodeError::ProcessGone) => counters.frames_gone += 1,
            Err(CodeError::Denied | CodeError::Damaged) => counters.frames_unreadable += 1,
            Err(CodeError::OverBudget) => counters.frames_over_budget += 1,
        }
        code
    }

    /// The instruction of a frame; `None`: it has not begun, it cannot be read, or there is no time left to read it.
    fn instruction(&mut self, at: At<'_>) -> Option<Instruction> {
        let interpreter = &self.process.interpreter;
        let (version, is_known) = (interpreter.version, self.bytecodes.knows(at.frame));
        let mut found = || {
            self.bytecodes
                .instruction(&self.memory, &interpreter.layout, version, at)
        };
        if is_known {
            found()
        } else {
            self.codes.on_budget(found)?
        }
    }

    fn labels(&mut self, sample: &RawSample) -> Arc<ThreadLabels> {
        let facts = OfProgram {
            process: &self.process,
            memory: &self.memory,
        };
        self.threads.labels(sample, &self.labels, &facts)
    }

    fn settle_names(&mut self) {
        let facts = OfProgram {
            process: &self.process,
            memory: &self.memory,
        };
        self.threads.settle(&facts);
    }
}

/// The leaf's true instruction when the sampled PC lies between the interpreter's dispatch jump and its store
/// of the instruction (`native::eval_loop`).
fn pending_instruction(
    eval_loops: &mut HashMap<FileKey, EvalLoop>,
    rules: &mut HashMap<(FileKey, u64), RepairRule, RandomState>,
    program: &Program,
    sample: &RawSample,
    executed: &Range<Address>,
) -> Option<u64> {
    let interpreter = &program.process.interpreter;
    let stores_late = match interpreter.layout.walk.instruction_unit {
        InstructionUnit::PrevInstr | InstructionUnit::InstrPtr => true,
        InstructionUnit::LastiBytes | InstructionUnit::LastiUnits => false,
    };
    if !stores_late || sample.has(sample_flags::REPAIRED) {
        return None;
    }
    let registers = sample.registers.as_ref()?;
    let instr_offset = interpreter.layout.walk.frame_instr;
    let binary = interpreter.binary_key;
    let eval_loop = eval_loops.entry(binary).or_insert_with(|| {
        let range = &interpreter.eval;
        let n_bytes = (range.end.saturating_sub(range.start) as usize).min(MAX_EVAL_LOOP_BYTES);
        let mut text = vec![0; n_bytes];
        let text = match program.memory.read(Address(range.start), &mut text) {
            Ok(()) => text.as_slice(),
            Err(_) => &[],
        };
        EvalLoop::of(text, instr_offset)
    });
    if rules.len() >= MAX_RULES {
        rules.clear();
    }
    let pc_in_binary = sample.user_ip.0.wrapping_sub(interpreter.eval.start);
    let rule = rules.entry((binary, pc_in_binary)).or_insert_with(|| {
        let mut text = [0; TEXT_BYTES];
        match program.memory.read(sample.user_ip, &mut text) {
            Ok(()) => eval_loop.decide(&text),
            Err(_) => RepairRule::None,
        }
    });
    let store = rule.apply(registers)?;
    if store.frame != sample.frame {
        return None;
    }
    store.instr_in(executed.clone()).map(|instr| instr.0)
}

/// The instruction of the code object's own bytecode that stands where `instr` stands in what is executed.
fn in_own_bytecode(instr: u64, executed: &Range<Address>, symbol: &CodeSymbol) -> u64 {
    let own = symbol.instructions().start;
    instr.wrapping_sub(executed.start.0).wrapping_add(own.0)
}

fn code_reason(error: CodeError) -> &'static str {
    match error {
        CodeError::Gone => "code object gone",
        CodeError::ProcessGone => "process gone before it was read",
        CodeError::Denied => "memory not readable",
        CodeError::Damaged => "damaged code object",
        CodeError::OverBudget => "code object not read: too many new ones",
    }
}

/// The remark at the root of a stack that is not complete.
fn status_reason(status: PythonStatus) -> Option<&'static str> {
    (status != PythonStatus::Complete).then(|| status.reason())
}

fn reason_frame(
    reasons: &mut HashMap<&'static str, Arc<ResolvedFunction>>,
    reason: &'static str,
) -> ResolvedFrame {
    let function = reasons
        .entry(reason)
        .or_insert_with(|| Arc::new(ResolvedFunction::reason(reason)));
    ResolvedFrame {
        function: function.clone(),
        line: 0,
        address: 0,
    }
}
