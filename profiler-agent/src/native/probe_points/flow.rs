//! Follows the code of a function, and chooses the points on its ways.
//!
//! For each instruction it is found out which registers hold the result already: those whose value, if it is not 0, is what
//! every way from here returns. Backwards from the returns, where it is the register of the convention: a register stays
//! one of them as long as it is not written, and a copy of it makes its source one. Behind a branch that tests whether
//! the register is 0 only the way counts on which it is not.
//!
//! A result appears where such a register is written. From there each way is followed to the first instruction that the
//! kernel emulates, or else to the last that there is.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::{
    Callee, Code, Condition, Flow, FunctionProbes, Instruction, MAX_INSTRUCTIONS, ProbeError,
    ProbePoint, Registers, ResultRegisters, ReturnPoint, Target, Wanted, machine,
};

/// Texts that are given to a function that reports a failed assertion: the condition and the name of the file, at least.
const N_TEXTS_OF_ASSERTION: usize = 2;

/// See [`super::probes_at`].
pub(super) fn probes(
    code: &Code<'_>,
    start: u64,
    wanted: Wanted,
    others: &[u64],
) -> Result<FunctionProbes, ProbeError> {
    let graph = Graph::follow(code, start, others)?;
    let returns = match wanted.results {
        ResultRegisters::None => Vec::new(),
        ResultRegisters::Convention => graph.returns(code, Registers::one(machine::RESULT))?,
        ResultRegisters::AtReturn => graph.return_instructions(code)?,
        ResultRegisters::Any => graph.returns(code, Registers::ALL)?,
    };
    Ok(FunctionProbes {
        enter: graph.enter(code, wanted.n_arguments)?,
        returns,
        n_unseen_ways: graph.n_unseen_ways(),
        callees: graph.callees(wanted.results),
    })
}

/// An instruction of the function.
#[derive(Debug)]
struct Node {
    address: u64,
    instruction: Instruction,
    ways: Vec<Way>,
    n_predecessors: usize,
    end: Option<End>,
}

/// A way to another instruction.
#[derive(Debug, Clone, Copy)]
struct Way {
    to: usize,
    /// On this way the register is 0.
    zero: Option<u8>,
}

/// How a function ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It returns.
    Return,
    /// It jumps to a function that returns its first argument.
    FirstArgument,
    /// It jumps to a function that has probes of its own, or begins anew.
    Other,
    /// It jumps to somewhere.
    Unseen,
}

/// The instructions that are reached from a function's beginning, which is the first.
#[derive(Debug)]
struct Graph {
    nodes: Vec<Node>,
    /// What is called, whether by a jump, and the instructions that do it.
    calls: BTreeMap<(Target, bool), BTreeSet<usize>>,
}

impl Graph {
    fn follow(code: &Code<'_>, start: u64, others: &[u64]) -> Result<Self, ProbeError> {
        let mut graph = Self {
            nodes: Vec::new(),
            calls: BTreeMap::new(),
        };
        let mut targets: Vec<Vec<u64>> = Vec::new();
        let mut idx_by_address = HashMap::new();
        // With the number of texts whose addresses were loaded on the straight line to there.
        let mut next = vec![(start, 0)];
        while let Some((address, n_texts)) = next.pop() {
            if idx_by_address.contains_key(&address) {
                continue;
            }
            if graph.nodes.len() == MAX_INSTRUCTIONS {
                return Err(ProbeError::TooLong);
            }
            let instruction = code.instruction(address)?;
            let (mut leads_to, end) = graph.leads_to(code, address, &instruction, start, others);
            let is_call = matches!(instruction.flow, Flow::Call(_));
            if is_call && n_texts >= N_TEXTS_OF_ASSERTION {
                // glibc's does not return, but shares a function with messages after which the program goes on.
                leads_to.retain(|behind| !code.is_between_blocks(*behind));
            }
            let n_texts = match instruction.flow {
                Flow::Next => {
                    n_texts
                        + usize::from(
                            instruction
                                .loads_address
                                .is_some_and(|address| code.is_text(address)),
                        )
                }
                _ => 0,
            };
            idx_by_address.insert(address, graph.nodes.len());
            next.extend(leads_to.iter().rev().map(|target| (*target, n_texts)));
            targets.push(leads_to);
            graph.nodes.push(Node {
                address,
                instruction,
                ways: Vec::new(),
                n_predecessors: 0,
                end,
            });
        }
        graph.connect(&targets, &idx_by_address);
        Ok(graph)
    }

    /// The addresses that an instruction leads to inside of the function, the next one first, or how it ends.
    fn leads_to(
        &mut self,
        code: &Code<'_>,
        address: u64,
        instruction: &Instruction,
        start: u64,
        others: &[u64],
    ) -> (Vec<u64>, Option<End>) {
        let is_last = code.is_last(address, instruction.n_bytes);
        let behind = address.wrapping_add(instruction.n_bytes.into());
        let mut leads_to = Vec::new();
        let mut end = None;
        let mut jump = |graph: &mut Self, target: u64| {
            if target != start && others.contains(&target) {
                graph.add_callee(code, target, true);
                end = Some(End::Other);
            } else {
                leads_to.push(target);
            }
        };
        match instruction.flow {
            Flow::Next if is_last => {}
            Flow::Next => leads_to.push(behind),
            Flow::Call(target) => {
                if let Some(target) = target {
                    self.add_callee(code, target, false);
                }
                let returns = target.is_none_or(|target| code.may_return(target));
                if returns && !is_last {
                    leads_to.push(behind);
                }
            }
            Flow::Jump(target) if target == start => end = Some(End::Other),
            Flow::Jump(target) => jump(self, target),
            Flow::Branch { target, .. } => {
                jump(self, target);
                if !is_last {
                    leads_to.insert(0, behind);
                }
            }
            Flow::JumpThrough(slot) => match code.import(slot).and_then(|it| code.own(it)) {
                // Through the dynamic linker to the file itself, as between functions that others may replace.
                Some(target) if target != start && !others.contains(&target) => {
                    leads_to.push(target);
                }
                _ => end = self.end_through(code, slot),
            },
            Flow::JumpAnywhere => end = Some(End::Unseen),
            Flow::Return => end = Some(End::Return),
            Flow::Stop => {}
        }
        (leads_to, end)
    }

    fn end_through(&mut self, code: &Code<'_>, slot: u64) -> Option<End> {
        let Some(import) = code.import(slot) else {
            return Some(End::Unseen);
        };
        self.add_call(Target::Import(import.clone()), true);
        if code.returns_first_argument(import) {
            Some(End::FirstArgument)
        } else if Code::is_returning(import) {
            Some(End::Other)
        } else {
            None
        }
    }

    fn add_callee(&mut self, code: &Code<'_>, target: u64, is_tail: bool) {
        let function = code.stub(target).map_or(Target::Address(target), |import| {
            Target::Import(import.clone())
        });
        self.add_call(function, is_tail);
    }

    /// By the instruction that is looked at, which becomes the next node.
    fn add_call(&mut self, function: Target, is_tail: bool) {
        let at = self.nodes.len();
        self.calls
            .entry((function, is_tail))
            .or_default()
            .insert(at);
    }

    /// The functions that are called, each once, sorted.
    fn callees(&self, results: ResultRegisters) -> Vec<Callee> {
        let goals: HashSet<usize> = if results == ResultRegisters::None {
            let ends = (0..self.nodes.len()).filter(|&idx| self.nodes[idx].end.is_some());
            ends.collect()
        } else {
            self.appear(&self.holding()).into_iter().collect()
        };
        let callee = |((function, is_tail), at): (&(Target, bool), &BTreeSet<usize>)| Callee {
            function: function.clone(),
            is_tail: *is_tail,
            is_certain: !self.reaches(&goals, at),
        };
        self.calls.iter().map(callee).collect()
    }

    /// Whether a way leads from the beginning to one of `goals` that passes none of `without`.
    fn reaches(&self, goals: &HashSet<usize>, without: &BTreeSet<usize>) -> bool {
        let mut seen = HashSet::new();
        let mut next = vec![0];
        while let Some(idx) = next.pop() {
            if without.contains(&idx) || !seen.insert(idx) {
                continue;
            }
            if goals.contains(&idx) {
                return true;
            }
            let ways = self.nodes.get(idx).map_or(&[][..], |node| &node.ways);
            next.extend(ways.iter().map(|way| way.to));
        }
        false
    }

    fn connect(&mut self, targets: &[Vec<u64>], idx_by_address: &HashMap<u64, usize>) {
        for (from, targets) in targets.iter().enumerate() {
            for target in targets {
                let Some(&to) = idx_by_address.get(target) else {
                    continue;
                };
                self.nodes[from].ways.push(Way { to, zero: None });
                self.nodes[to].n_predecessors += 1;
            }
        }
        self.learn_zeros();
    }

    /// Tells the ways of branches on which the tested register is 0. The test is the branch itself, or the only
    /// instruction before it.
    fn learn_zeros(&mut self) {
        for from in 0..self.nodes.len() {
            let tested = self.nodes[from].instruction.tests;
            let Some(tested) = tested else { continue };
            let is_branch = |node: &Node| matches!(node.instruction.flow, Flow::Branch { .. });
            let branch = match self.nodes[from].ways[..] {
                _ if is_branch(&self.nodes[from]) => from,
                [Way { to, .. }] if self.nodes[to].n_predecessors == 1 => to,
                _ => continue,
            };
            let Flow::Branch { target, condition } = self.nodes[branch].instruction.flow else {
                continue;
            };
            let node = &self.nodes[branch];
            let is_jump = |way: &Way| self.nodes[way.to].address == target;
            let n_jumps = node.ways.iter().filter(|way| is_jump(way)).count();
            let zero_idx = match condition {
                Condition::Zero => node.ways.iter().position(is_jump),
                Condition::NotZero => node.ways.iter().position(|way| !is_jump(way)),
                Condition::Other => None,
            };
            if let Some(zero_idx) = zero_idx.filter(|_| n_jumps == 1) {
                self.nodes[branch].ways[zero_idx].zero = Some(tested);
            }
        }
    }

    /// On the straight line from the beginning on the first instruction that is emulated; the beginning if an argument is
    /// written before that.
    fn enter(&self, code: &Code<'_>, n_arguments: usize) -> Result<ProbePoint, ProbeError> {
        let arguments = machine::ARGUMENTS.iter().take(n_arguments);
        let arguments = arguments.fold(Registers::NONE, |registers, &idx| {
            registers.or(Registers::one(idx))
        });
        let first = self.nodes.first().ok_or(ProbeError::NoEnter)?;
        if first.n_predecessors > 0 {
            return Err(ProbeError::NoEnter);
        }
        let mut node = first;
        while !node.instruction.is_emulated {
            let [Way { to, .. }] = node.ways[..] else {
                node = first;
                break;
            };
            let next = &self.nodes[to];
            let writes = node.instruction.writes.and(arguments);
            if !writes.is_empty() || next.n_predecessors > 1 {
                node = first;
                break;
            }
            node = next;
        }
        code.point(node.address, node.instruction.is_emulated)
    }

    fn n_unseen_ways(&self) -> usize {
        let ends = self
            .nodes
            .iter()
            .filter(|node| node.end == Some(End::Unseen));
        ends.count()
    }

    /// The points on the ways back, with the result in one of the `allowed` registers.
    fn returns(&self, code: &Code<'_>, allowed: Registers) -> Result<Vec<ReturnPoint>, ProbeError> {
        let holding: Vec<Registers> = self
            .holding()
            .into_iter()
            .map(|registers| registers.and(allowed))
            .collect();
        let appear = self.appear(&holding);
        let mut chosen = HashSet::new();
        self.walk(&holding, &appear, |idx, is_last| {
            let is_chosen = is_last || self.nodes[idx].instruction.is_emulated;
            if is_chosen {
                chosen.insert(idx);
            }
            is_chosen
        });
        self.drop_needless(&holding, &appear, &mut chosen);
        let points = chosen.into_iter().map(|idx| {
            let node = &self.nodes[idx];
            let general_idx = if holding[idx].contains(machine::RESULT) {
                machine::RESULT
            } else {
                holding[idx].first().unwrap_or(machine::RESULT)
            };
            let point = code.point(node.address, node.instruction.is_emulated)?;
            Ok(ReturnPoint { point, general_idx })
        });
        let mut points: Vec<_> = points.collect::<Result<_, _>>()?;
        points.sort_unstable();
        Ok(points)
    }

    fn return_instructions(&self, code: &Code<'_>) -> Result<Vec<ReturnPoint>, ProbeError> {
        let returns = self
            .nodes
            .iter()
            .filter(|node| node.end == Some(End::Return));
        let points = returns.map(|node| {
            Ok(ReturnPoint {
                point: code.point(node.address, node.instruction.is_emulated)?,
                general_idx: machine::RESULT,
            })
        });
        let mut points: Vec<_> = points.collect::<Result<_, _>>()?;
        points.sort_unstable();
        Ok(points)
    }

    /// For each instruction the registers that hold the result before it.
    fn holding(&self) -> Vec<Registers> {
        let mut holding = vec![Registers::ALL; self.nodes.len()];
        let returning = self.returning();
        let mut is_settled = false;
        // Each turn takes at least one register from one instruction, or is the last.
        while !is_settled {
            is_settled = true;
            for &idx in returning.iter().rev() {
                let registers = self.nodes[idx].holding(&holding);
                is_settled &= registers == holding[idx];
                holding[idx] = registers;
            }
        }
        holding
    }

    /// The instructions from which a way leads to an end of the function, in order. From the others the program ends.
    fn returning(&self) -> BTreeSet<usize> {
        let mut predecessors = vec![Vec::new(); self.nodes.len()];
        for (idx, node) in self.nodes.iter().enumerate() {
            for way in &node.ways {
                predecessors[way.to].push(idx);
            }
        }
        let ends = (0..self.nodes.len()).filter(|&idx| self.nodes[idx].end.is_some());
        let mut next: Vec<usize> = ends.collect();
        let mut returning = BTreeSet::new();
        while let Some(idx) = next.pop() {
            if returning.insert(idx) {
                next.extend(&predecessors[idx]);
            }
        }
        returning
    }

    /// The instructions before which a result appears that is not known to be 0.
    fn appear(&self, holding: &[Registers]) -> Vec<usize> {
        let returning = self.returning();
        let mut appear: BTreeSet<usize> = BTreeSet::new();
        if holding
            .first()
            .is_some_and(|registers| !registers.is_empty())
        {
            appear.insert(0);
        }
        for (node, before) in self.nodes.iter().zip(holding) {
            for way in &node.ways {
                let zeros = [way.zero, node.instruction.zeroes];
                let zeros = zeros.into_iter().flatten().map(Registers::one);
                let known = zeros.fold(Registers::NONE, Registers::or);
                let is_new = before.is_empty() || way.zero.is_some();
                if is_new && !holding[way.to].without(known).is_empty() {
                    appear.insert(way.to);
                }
            }
        }
        appear.intersection(&returning).copied().collect()
    }

    /// Goes from where results appear on all ways as long as a register holds them. `stops` is asked at each instruction,
    /// and told whether it is the last of its way.
    fn walk(
        &self,
        holding: &[Registers],
        appear: &[usize],
        mut stops: impl FnMut(usize, bool) -> bool,
    ) {
        let mut seen = HashSet::new();
        let mut next = appear.to_vec();
        while let Some(idx) = next.pop() {
            if !seen.insert(idx) {
                continue;
            }
            let node = &self.nodes[idx];
            let onwards = node.ways.iter().filter(|way| way.zero.is_none());
            let moves_away = onwards.clone().any(|way| holding[way.to].is_empty());
            let is_last = node.end.is_some() || moves_away;
            if !stops(idx, is_last) {
                next.extend(onwards.map(|way| way.to));
            }
        }
    }

    /// Drops points without which all ways still pass one. An emulated one is not given up for one that is
    /// single-stepped.
    fn drop_needless(&self, holding: &[Registers], appear: &[usize], chosen: &mut HashSet<usize>) {
        let is_emulated = |idx: usize| self.nodes[idx].instruction.is_emulated;
        let mut order: Vec<usize> = chosen.iter().copied().collect();
        order.sort_unstable_by_key(|&idx| (is_emulated(idx), idx));
        for idx in order {
            chosen.remove(&idx);
            let counts = |at| chosen.contains(&at) && (is_emulated(at) || !is_emulated(idx));
            let mut is_needed = false;
            let from_here = [idx];
            let from = if is_emulated(idx) {
                &from_here[..]
            } else {
                appear
            };
            self.walk(holding, from, |at, is_last| {
                is_needed |= is_last && !counts(at);
                counts(at)
            });
            if is_needed {
                chosen.insert(idx);
            }
        }
    }
}

impl Node {
    /// The registers that hold the result before it, from those of the instructions that follow.
    fn holding(&self, holding: &[Registers]) -> Registers {
        match self.end {
            Some(End::Return) => return Registers::one(machine::RESULT),
            Some(End::FirstArgument) => return Registers::one(machine::ARGUMENTS[0]),
            Some(End::Other | End::Unseen) => return Registers::NONE,
            None => {}
        }
        let behind = self.ways.iter().fold(Registers::ALL, |registers, way| {
            let zero = way.zero.map_or(Registers::NONE, Registers::one);
            registers.and(holding[way.to].or(zero))
        });
        let mut written = self.instruction.writes;
        if matches!(self.instruction.flow, Flow::Call(_)) {
            written = written.or(machine::CLOBBERED_BY_CALLS);
        }
        let kept = behind.without(written);
        match self.instruction.copies {
            Some((to, from)) if behind.contains(to) => kept.or(Registers::one(from)),
            _ => kept,
        }
    }
}

#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod tests {
    use std::io::Write as _;

    use object::elf::{ELFCLASS64, ELFDATA2LSB, ELFMAG, EM_X86_64, ET_DYN, EV_CURRENT, PT_LOAD};
    use proptest::prelude::*;

    use super::*;
    use crate::native::elf::ElfReader;

    /// Bytes before the code: the file's header and one program header.
    const START: u64 = 64 + 56;

    const RAX: u8 = machine::RESULT;
    const R8: u8 = 9;

    fn probes_of(text: &[u8], wanted: Wanted) -> Result<FunctionProbes, ProbeError> {
        let mut bytes = ELFMAG.to_vec();
        bytes.extend([ELFCLASS64.0, ELFDATA2LSB.0, 1]);
        bytes.resize(16, 0);
        bytes.extend(ET_DYN.0.to_le_bytes());
        bytes.extend(EM_X86_64.0.to_le_bytes());
        bytes.extend(u32::from(EV_CURRENT.0).to_le_bytes());
        // Entry, program headers, section headers; flags; sizes and counts.
        for word in [0, 64, 0_u64] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(0_u32.to_le_bytes());
        for half in [64, 56, 1, 64, 0, 0_u16] {
            bytes.extend(half.to_le_bytes());
        }
        bytes.extend(PT_LOAD.0.to_le_bytes());
        bytes.extend(5_u32.to_le_bytes());
        let n_bytes = START + text.len() as u64;
        for word in [0, 0, 0, n_bytes, n_bytes, 0x1000] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(text);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let reader = ElfReader::new(file.try_clone().unwrap());
        let elf = reader.parse().unwrap();
        super::super::probes_at(&Code::of(&elf, &file), START, wanted, &[])
    }

    fn wanted(results: ResultRegisters) -> Wanted {
        Wanted {
            n_arguments: 1,
            results,
        }
    }

    /// Offset of the enter, and offsets and registers of the returns.
    fn offsets(text: &[u8], results: ResultRegisters) -> (u64, Vec<(u64, u8)>) {
        let probes = probes_of(text, wanted(results)).unwrap();
        let returns = probes.returns.iter();
        (
            probes.enter.address - START,
            returns
                .map(|point| (point.point.address - START, point.general_idx))
                .collect(),
        )
    }

    #[test]
    fn the_branch_behind_the_test_of_a_result_is_a_return() {
        let text = [
            0x48, 0x83, 0xec, 0x08, //       sub $0x8,%rsp
            0x55, //                         push %rbp
            0xff, 0xd1, //                   call *%rcx
            0x48, 0x85, 0xc0, //             test %rax,%rax
            0x74, 0x03, //                   je 15
            0x5d, 0x59, 0xc3, //             pop %rbp; pop %rcx; ret
            0x31, 0xc0, 0x5d, 0x59, 0xc3, // xor %eax,%eax; pop %rbp; pop %rcx; ret
        ];
        let expected = (4, vec![(10, RAX)]);
        assert_eq!(offsets(&text, ResultRegisters::Convention), expected);
        assert_eq!(offsets(&text, ResultRegisters::None), (4, Vec::new()));
        assert_eq!(
            offsets(&text, ResultRegisters::AtReturn).1,
            [(14, RAX), (19, RAX)]
        );
    }

    #[test]
    fn a_result_is_found_before_it_is_in_the_register_of_the_convention() {
        let text = [
            0xff, 0xd1, //       call *%rcx
            0x49, 0x89, 0xc0, // mov %rax,%r8
            0xeb, 0x00, //       jmp 7
            0x4c, 0x89, 0xc0, // mov %r8,%rax
            0xc3, //             ret
        ];
        assert_eq!(offsets(&text, ResultRegisters::Any).1, [(5, R8)]);
        // It is in that one before it is moved away, and again at the end.
        let both = [(2, RAX), (10, RAX)];
        assert_eq!(offsets(&text, ResultRegisters::Convention).1, both);
    }

    #[test]
    fn a_branch_is_no_return_where_a_way_behind_it_writes_the_register() {
        let text = [
            0xff, 0xd1, // call *%rcx
            0x72, 0x02, // jb 6
            0x5d, 0xc3, // pop %rbp; ret
            0xff, 0xd1, // call *%rcx
            0xc3, //       ret
        ];
        assert_eq!(offsets(&text, ResultRegisters::Any).1, [(5, RAX), (8, RAX)]);
    }

    #[test]
    fn the_beginning_is_taken_where_an_argument_is_written_before_the_first_emulated_instruction() {
        // mov %rsi,%rdi; push %rbp; pop %rbp; ret
        let text = [0x48, 0x89, 0xf7, 0x55, 0x5d, 0xc3];
        assert_eq!(offsets(&text, ResultRegisters::None).0, 0);
        // mov %rdi,%rsi
        let text = [0x48, 0x89, 0xfe, 0x55, 0x5d, 0xc3];
        assert_eq!(offsets(&text, ResultRegisters::None).0, 3);
    }

    #[test]
    fn a_beginning_that_is_jumped_to_is_refused() {
        // dec %rdi; jne 0; ret
        let text = [0x48, 0xff, 0xcf, 0x75, 0xfb, 0xc3];
        let probes = probes_of(&text, wanted(ResultRegisters::None));
        assert_eq!(probes, Err(ProbeError::NoEnter));
    }

    #[test]
    fn a_function_may_begin_anew() {
        // test %rdi,%rdi; je 7; jmp 0; ret
        let text = [0x48, 0x85, 0xff, 0x74, 0x02, 0xeb, 0xf9, 0xc3];
        assert_eq!(offsets(&text, ResultRegisters::None).0, 3);
    }

    #[test]
    fn too_long_a_function_and_one_that_leaves_the_file_are_refused() {
        let probes = probes_of(&[0x90; MAX_INSTRUCTIONS + 1], wanted(ResultRegisters::Any));
        assert_eq!(probes, Err(ProbeError::TooLong));
        let probes = probes_of(&[0x90; 3], wanted(ResultRegisters::Any));
        assert_eq!(probes, Err(ProbeError::NotInFile(START + 3)));
    }

    #[test]
    fn a_jump_to_somewhere_is_counted() {
        // push %rbp; test %rdi,%rdi; je 8; jmp *%rax; ret
        let text = [0x55, 0x48, 0x85, 0xff, 0x74, 0x02, 0xff, 0xe0, 0xc3];
        let probes = probes_of(&text, wanted(ResultRegisters::Any)).unwrap();
        assert_eq!(probes.n_unseen_ways, 1);
    }

    proptest! {
        #[test]
        fn any_bytes_give_points_in_the_file_or_a_reason(
            text in proptest::collection::vec(any::<u8>(), 0..200),
            n_arguments in 0..5_usize,
        ) {
            for results in [ResultRegisters::Any, ResultRegisters::Convention] {
                if let Ok(probes) = probes_of(&text, Wanted { n_arguments, results }) {
                    let returns = probes.returns.iter().map(|point| point.point);
                    for point in returns.chain([probes.enter]) {
                        prop_assert!(point.file_offset < START + text.len() as u64);
                    }
                }
            }
        }
    }
}
