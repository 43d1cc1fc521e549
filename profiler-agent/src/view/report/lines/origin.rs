//! Whether the source that is here can be that which ran: it has the lines of the samples, and functions begin where the profile
//! says.

use crate::format::{escape, thousands};
use crate::profile::lines::Lines;
use crate::profile::model::{FunctionId, Profile};

/// Why it cannot; `None`: nothing speaks against it.
pub(super) fn mismatch(
    profile: &Profile,
    function: FunctionId,
    lines: &Lines,
    source: &[String],
) -> Option<String> {
    let last = lines.keys().next_back().copied().unwrap_or(0);
    if last as usize > source.len() {
        return Some(format!(
            "the source is another one by now: it ends at line {}, and line {} was sampled",
            thousands(source.len() as i64),
            thousands(i64::from(last))
        ));
    }
    let function = profile.functions.get(function.0 as usize)?;
    let name = profile.str(function.name);
    let code = source.get((function.start_line as usize).checked_sub(1)?);
    if code.is_some_and(|code| can_begin(code, name)) {
        return None;
    }
    Some(format!(
        "the source is another one by now: line {} does not begin {}",
        thousands(i64::from(function.start_line)),
        escape(name)
    ))
}

/// Whether a function of this name may begin on this line (`co_firstlineno`): with its first decorator, `def`, `class` or
/// `lambda`. Of comprehensions, modules and what no Python source can name nothing is known.
fn can_begin(code: &str, name: &str) -> bool {
    let code = code.trim_start();
    let name = name.rsplit('.').next().unwrap_or(name);
    if name == "<lambda>" {
        return code.contains("lambda");
    }
    let is_plain = |char: char| char.is_ascii_alphanumeric() || char == '_';
    if name.is_empty() || !name.chars().all(is_plain) || code.starts_with('@') {
        return true;
    }
    code.match_indices(name).any(|(at, _)| {
        let (before, behind) = (&code[..at], &code[at + name.len()..]);
        let word = before.trim_end();
        let is_named = ["def", "class"].iter().any(|it| word.ends_with(it));
        is_named && before.len() > word.len() && !behind.starts_with(|it: char| is_plain(it))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_begin_with_their_names_or_what_decorates_them() {
        for (code, name, expected) in [
            ("def f(x):", "f", true),
            ("    async  def   f(", "A.f", true),
            ("def f[T](x): return x", "f", true),
            ("class A:", "A", true),
            ("@cache", "f", true),
            ("if x: f = lambda: 1", "<lambda>", true),
            ("x = [y for y in z]", "f.<locals>.<listcomp>", true),
            ("import os", "<module>", true),
            ("def счёт():", "сложить", true),
            ("def g(f):", "f", false),
            ("def ff():", "f", false),
            ("    f(x)", "f", false),
            ("undef f", "g", false),
            ("", "f", false),
            ("x = 1", "<lambda>", false),
        ] {
            assert_eq!(can_begin(code, name), expected, "{code} {name}");
        }
    }
}
