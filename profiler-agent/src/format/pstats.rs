//! pstats, as `cProfile` dumps it: marshal of `{(file, line, name): (cc, nc, tt, ct, {caller: (cc, nc, tt, ct)})}` (CPython's
//! Lib/pstats.py and Python/marshal.c). Read by `pstats`, SnakeViz, gprof2dot, pyprof2calltree.
//!
//! Of samples: the numbers of calls are numbers of samples, a recursion counts once. Times are seconds; of memory they are
//! bytes. Machine code has the file `~` and line 0, as built-in functions have in cProfile.

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::escape::escape;
use super::folded::NO_STACK;
use super::text::name_text;
use crate::profile::calls::{calls, functions};
use crate::profile::measure::{Amount, Measure, Unit};
use crate::profile::model::{FrameKind, FunctionId, Profile};

/// File, first line, name.
type Key = (String, u32, String);

/// Of a function, or of what one caller makes it do.
#[derive(Default, Clone, Copy)]
struct Times {
    own: Amount,
    total: Amount,
}

impl Times {
    fn add(&mut self, own: Amount, total: Amount) {
        self.own.add(own);
        self.total.add(total);
    }
}

/// Writes the profile for pstats.
pub(super) fn write(profile: &Profile, out: &mut dyn Write) -> io::Result<()> {
    let measure = Measure::main(profile);
    let mut rows: BTreeMap<Key, (Times, BTreeMap<Key, Times>)> = BTreeMap::new();
    for row in functions(profile, measure) {
        let (times, _) = rows.entry(key(profile, row.function)).or_default();
        times.add(row.own, row.total);
    }
    for call in calls(profile, measure) {
        let (_, callers) = rows.entry(key(profile, call.callee)).or_default();
        let times = callers.entry(key(profile, call.caller)).or_default();
        times.add(call.own, call.total);
    }
    // Of samples without frames: nobody's, and part of the whole.
    let empty = profile.samples.iter();
    let empty = empty.filter(|it| profile.frames(it.stack).next().is_none());
    let mut nobody = Amount::default();
    empty.for_each(|it| nobody.add(measure.of(it)));
    // Without any row it would be no profile for pstats.
    if nobody != Amount::default() || rows.is_empty() {
        let (times, _) = rows
            .entry(("~".to_owned(), 0, NO_STACK.to_owned()))
            .or_default();
        times.add(nobody, nobody);
    }
    let scale = match measure.unit {
        Unit::Time => 1e-9,
        Unit::Bytes | Unit::Count => 1.0,
    };
    let mut marshal = Marshal { out, scale };
    marshal.out.write_all(b"{")?;
    for (key, (times, callers)) in &rows {
        marshal.key(key)?;
        marshal.tuple(5)?;
        marshal.times(*times)?;
        marshal.out.write_all(b"{")?;
        for (key, times) in callers {
            marshal.key(key)?;
            // Whole numbers here, as profile.py has them, break SnakeViz and pyprof2calltree.
            marshal.tuple(4)?;
            marshal.times(*times)?;
        }
        marshal.out.write_all(b"0")?;
    }
    marshal.out.write_all(b"0")
}

fn key(profile: &Profile, function: FunctionId) -> Key {
    match profile.function_frame(function) {
        Some(frame) if frame.kind == FrameKind::Python => (
            escape(frame.filename).into_owned(),
            frame.line,
            name_text(&frame),
        ),
        Some(frame) => ("~".to_owned(), 0, name_text(&frame)),
        None => ("~".to_owned(), 0, String::new()),
    }
}

/// Python/marshal.c: a letter for the type, then the value, little end first.
struct Marshal<'a> {
    out: &'a mut dyn Write,
    /// Seconds, or bytes, for one of the measure's unit.
    scale: f64,
}

impl Marshal<'_> {
    fn tuple(&mut self, n_items: u32) -> io::Result<()> {
        self.out.write_all(b"(")?;
        self.out.write_all(&n_items.to_le_bytes())
    }

    fn key(&mut self, (file, line, name): &Key) -> io::Result<()> {
        self.tuple(3)?;
        self.text(file)?;
        self.int(i64::from(*line))?;
        self.text(name)
    }

    /// cc, nc, tt, ct.
    fn times(&mut self, times: Times) -> io::Result<()> {
        self.int(times.total.n_samples)?;
        self.int(times.total.n_samples)?;
        self.float(times.own.weight as f64 * self.scale)?;
        self.float(times.total.weight as f64 * self.scale)
    }

    /// Of 32 bits, or digits of 15 bits.
    fn int(&mut self, number: i64) -> io::Result<()> {
        if let Ok(small) = i32::try_from(number) {
            self.out.write_all(b"i")?;
            return self.out.write_all(&small.to_le_bytes());
        }
        let mut rest = number.unsigned_abs();
        let mut digits = Vec::new();
        while rest > 0 {
            digits.push((rest & 0x7fff) as u16);
            rest >>= 15;
        }
        let n_digits = digits.len() as i32 * if number < 0 { -1 } else { 1 };
        self.out.write_all(b"l")?;
        self.out.write_all(&n_digits.to_le_bytes())?;
        for digit in digits {
            self.out.write_all(&digit.to_le_bytes())?;
        }
        Ok(())
    }

    fn float(&mut self, number: f64) -> io::Result<()> {
        self.out.write_all(b"g")?;
        self.out.write_all(&number.to_le_bytes())
    }

    fn text(&mut self, text: &str) -> io::Result<()> {
        let n_bytes = u32::try_from(text.len()).map_err(io::Error::other)?;
        self.out.write_all(b"u")?;
        self.out.write_all(&n_bytes.to_le_bytes())?;
        self.out.write_all(text.as_bytes())
    }
}
