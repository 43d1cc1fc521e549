//! Callgrind, for KCachegrind and `callgrind_annotate`: <https://valgrind.org/docs/manual/cl-format.html>.
//!
//! A sampler knows what each line takes itself, and what each line's calls take: both are there. A call is counted for each
//! sample that it is in. Machine code has no file (`???`) and its module as the object.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Write};

use foldhash::fast::RandomState;

use super::escape::escape;
use super::folded::NO_STACK;
use super::text::name_text;
use crate::profile::measure::Measure;
use crate::profile::model::{FrameKind, FunctionId, Profile, StackId, ValueType, Values};

/// What a function takes: by line its own, by line and callee what calls take.
#[derive(Default)]
struct Costs {
    own: BTreeMap<u32, Values>,
    calls: BTreeMap<(u32, FunctionId), Values>,
}

/// Writes the profile for KCachegrind.
pub(super) fn write(profile: &Profile, out: &mut dyn Write) -> io::Result<()> {
    let columns = columns(profile);
    let types = columns.iter().map(|idx| event(profile.sample_types[*idx]));
    let events = types.collect::<Vec<_>>().join(" ");
    let whole = profile
        .samples
        .iter()
        .fold(Values::default(), |mut sum, it| {
            sum.add(it.values);
            sum
        });
    writeln!(out, "# callgrind format\nversion: 1")?;
    writeln!(out, "creator: pyagent {}", env!("CARGO_PKG_VERSION"))?;
    writeln!(out, "cmd: {}", super::title::title(profile))?;
    for comment in &profile.comments {
        writeln!(out, "desc: Note: {}", escape(comment))?;
    }
    writeln!(out, "positions: line\nevents: {events}")?;
    writeln!(out, "summary: {}\n", numbers(&columns, whole))?;
    let mut names = Names::new(profile);
    for (function, costs) in costs(profile) {
        writeln!(out, "{}", names.of(function, ""))?;
        for (line, values) in &costs.own {
            writeln!(out, "{line} {}", numbers(&columns, *values))?;
        }
        for ((line, callee), values) in &costs.calls {
            let start = profile.function_frame(*callee).map_or(0, |it| it.line);
            writeln!(out, "{}", names.of(Some(*callee), "c"))?;
            writeln!(out, "calls={} {start}", values[0].max(1))?;
            writeln!(out, "{line} {}", numbers(&columns, *values))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// The values, that which matters most first: it is what viewers begin with.
fn columns(profile: &Profile) -> Vec<usize> {
    let main = Measure::main(profile).idx;
    let others = (0..profile.sample_types.len()).filter(|idx| *idx != main);
    [main].into_iter().chain(others).collect()
}

/// CPU time is `ns`, as others call it; the rest has its own name.
fn event(kind: ValueType) -> String {
    let name = if kind == ValueType::CPU {
        "ns"
    } else {
        kind.kind
    };
    let is_word = |char: char| char.is_ascii_alphanumeric() || char == '_';
    name.chars()
        .map(|char| if is_word(char) { char } else { '_' })
        .collect()
}

fn numbers(columns: &[usize], values: Values) -> String {
    let texts = columns.iter().map(|idx| values[*idx].to_string());
    texts.collect::<Vec<_>>().join(" ")
}

/// What each function takes; of samples without frames nobody's.
fn costs(profile: &Profile) -> BTreeMap<Option<FunctionId>, Costs> {
    let mut by_stack: HashMap<StackId, Values, RandomState> = HashMap::default();
    for sample in &profile.samples {
        by_stack.entry(sample.stack).or_default().add(sample.values);
    }
    let mut costs: BTreeMap<Option<FunctionId>, Costs> = BTreeMap::new();
    let mut seen = HashSet::new();
    for (stack, values) in by_stack {
        seen.clear();
        let mut callee = None;
        for frame in profile.frames(stack) {
            let of_function = costs.entry(Some(frame.function)).or_default();
            match callee {
                None => of_function.own.entry(frame.line).or_default().add(values),
                Some(callee) => {
                    // A recursion takes its time once.
                    if seen.insert((frame.function, frame.line, callee)) {
                        let call = of_function.calls.entry((frame.line, callee));
                        call.or_default().add(values);
                    }
                }
            }
            callee = Some(frame.function);
        }
        if callee.is_none() {
            let nobody = costs.entry(None).or_default();
            nobody.own.entry(0).or_default().add(values);
        }
    }
    costs
}

/// Names by number: each is written out once (the format's name compression).
struct Names<'a> {
    profile: &'a Profile,
    objects: Table,
    files: Table,
    functions: Table,
}

#[derive(Default)]
struct Table(HashMap<String, usize, RandomState>);

impl Table {
    /// `(1) name` the first time, then `(1)`.
    fn number(&mut self, name: String) -> String {
        let next = self.0.len() + 1;
        match self.0.entry(name) {
            std::collections::hash_map::Entry::Occupied(known) => format!("({})", known.get()),
            std::collections::hash_map::Entry::Vacant(new) => {
                let text = format!("({next}) {}", new.key());
                new.insert(next);
                text
            }
        }
    }
}

impl<'a> Names<'a> {
    fn new(profile: &'a Profile) -> Self {
        Self {
            profile,
            objects: Table::default(),
            files: Table::default(),
            functions: Table::default(),
        }
    }

    /// The lines that say which function follows; `prefix`: `c` for one that is called.
    fn of(&mut self, function: Option<FunctionId>, prefix: &str) -> String {
        let frame = function.and_then(|it| self.profile.function_frame(it));
        let (object, file, name) = match frame {
            Some(frame) if frame.kind == FrameKind::Python => (
                "[python]".to_owned(),
                escape(frame.filename).into_owned(),
                escape(frame.name).into_owned(),
            ),
            Some(frame) => (
                escape(frame.filename).into_owned(),
                String::new(),
                match frame.kind {
                    FrameKind::Native => escape(frame.name).into_owned(),
                    _ => name_text(&frame),
                },
            ),
            None => (String::new(), String::new(), NO_STACK.to_owned()),
        };
        let or_unknown = |text: String| {
            if text.is_empty() {
                "???".to_owned()
            } else {
                text
            }
        };
        format!(
            "{prefix}ob={}\n{prefix}fl={}\n{prefix}fn={}",
            self.objects.number(or_unknown(object)),
            self.files.number(or_unknown(file)),
            self.functions.number(or_unknown(name)),
        )
    }
}
