//! What failed tests say, for the end of a run.

/// Lines of what a failed test has printed that are repeated at the end: the last ones, where the reason stands.
const MAX_FAILURE_LINES: usize = 20;

/// What failed tests have printed, as they stand in what a test binary prints: behind `---- name stdout ----`, without
/// their backtraces.
#[derive(Debug, Default)]
pub(super) struct Failures {
    /// Of each test its name and lines.
    pub(super) tests: Vec<(String, Vec<String>)>,
    is_inside: bool,
    in_backtrace: bool,
}

impl Failures {
    /// Takes the next line of a test binary.
    pub(super) fn line(&mut self, line: &str) {
        let name = line
            .strip_prefix("---- ")
            .and_then(|rest| rest.strip_suffix(" stdout ----"));
        if let Some(name) = name {
            self.tests.push((name.to_owned(), Vec::new()));
            (self.is_inside, self.in_backtrace) = (true, false);
            return;
        }
        match line {
            "failures:" => self.is_inside = false,
            "stack backtrace:" => self.in_backtrace = true,
            _ => {}
        }
        let is_of_backtrace = line.starts_with(' ') || line.starts_with("note: ");
        if self.in_backtrace && !is_of_backtrace && line != "stack backtrace:" {
            self.in_backtrace = false;
        }
        if self.is_inside
            && !self.in_backtrace
            && !line.is_empty()
            && let Some((_, lines)) = self.tests.last_mut()
        {
            lines.push(line.to_owned());
        }
    }

    /// All of them, the last lines of each, below what is said of them.
    pub(super) fn text(&self, verdict: &str) -> String {
        let of_test = |(name, lines): &(String, Vec<String>)| {
            let skipped = lines.len().saturating_sub(MAX_FAILURE_LINES);
            let lines = lines[skipped..].iter().map(|line| format!("    {line}\n"));
            format!("{verdict} {name}\n{}", lines.collect::<String>())
        };
        self.tests.iter().map(of_test).collect()
    }

    /// Those whose test is named.
    pub(super) fn of(&self, names: &[&String]) -> Vec<(String, Vec<String>)> {
        let is_named = |(name, _): &&(String, Vec<String>)| names.contains(&name);
        self.tests.iter().filter(is_named).cloned().collect()
    }
}

/// What was wrong at the first time.
#[derive(Debug, Default)]
pub(super) struct Wrong {
    /// And for good.
    pub(super) failed: Failures,
    /// And right when it was measured again.
    pub(super) passed_again: Failures,
}

impl Wrong {
    /// Adds what was wrong elsewhere.
    pub(super) fn add(&mut self, mut other: Self) {
        self.failed.tests.append(&mut other.failed.tests);
        self.passed_again
            .tests
            .append(&mut other.passed_again.tests);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_tests_say_is_kept_without_backtraces() {
        let output = "\
test a ... ok
test b ... FAILED
failures:

---- b stdout ----
3.14: 5 of 6

thread 'b' (7) panicked at tests/b.rs:1:2:
wrong
stack backtrace:
   0: __rustc::rust_begin_unwind
             at /rustc/library/std/src/panicking.rs:689:5
note: Some details are omitted, run with `RUST_BACKTRACE=full` for a verbose backtrace.

---- c stdout ----
thread 'c' (8) panicked at tests/b.rs:3:4:
also wrong

failures:
    b
    c

test result: FAILED. 1 passed; 2 failed; 0 ignored";
        let mut failures = Failures::default();
        for line in output.lines() {
            failures.line(line);
        }
        let expected = "\
FAILED b
    3.14: 5 of 6
    thread 'b' (7) panicked at tests/b.rs:1:2:
    wrong
FAILED c
    thread 'c' (8) panicked at tests/b.rs:3:4:
    also wrong
";
        assert_eq!(failures.text("FAILED"), expected);
    }
}
