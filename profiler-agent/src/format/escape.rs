//! Text of targets made harmless: what moves a cursor, hides text or turns its direction is shown, not obeyed.
//!
//! Names of functions, files, threads and processes are whatever a target says. Every format and view passes
//! them through [`escape`]; nothing else is changed, so that names in any script, and emoji, stay as they are.

use std::borrow::Cow;
use std::fmt::Write as _;

/// The text with each character that is not shown as itself written as Rust would: `\n`, `\u{202e}`.
///
/// That is: control characters (escape sequences begin with one), characters that set the direction of text,
/// separators of lines and paragraphs, and invisible ones. Joiners (U+200C, U+200D) stay: scripts and emoji
/// need them. A backslash stays as it is.
#[must_use]
pub fn escape(text: &str) -> Cow<'_, str> {
    let Some(first) = text.find(is_unsafe) else {
        return Cow::Borrowed(text);
    };
    let (before, rest) = text.split_at(first);
    let mut escaped = String::with_capacity(text.len() + 16);
    escaped.push_str(before);
    for char in rest.chars() {
        if is_unsafe(char) {
            // Writing to a `String` cannot fail.
            let _ = write!(escaped, "{}", Escape(char));
        } else {
            escaped.push(char);
        }
    }
    Cow::Owned(escaped)
}

/// Shows a character as an escape, whatever the standard library takes for printable.
struct Escape(char);

impl std::fmt::Display for Escape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            '\t' | '\r' | '\n' => write!(f, "{}", self.0.escape_default()),
            char => write!(f, "{}", char.escape_unicode()),
        }
    }
}

fn is_unsafe(char: char) -> bool {
    char.is_control()
        || matches!(char,
            '\u{ad}' // soft hyphen
            | '\u{61c}' // Arabic letter mark
            | '\u{180e}' // Mongolian vowel separator
            | '\u{200b}' // zero width space
            | '\u{200e}'..='\u{200f}' // direction marks
            | '\u{2028}'..='\u{202e}' // separators; embeddings and overrides of direction
            | '\u{2060}'..='\u{206f}' // invisible operators, isolates of direction
            | '\u{feff}' // byte order mark
            | '\u{fff9}'..='\u{fffb}' // annotations between lines
            | '\u{fffe}'..='\u{ffff}' // no characters; XML refuses them
            | '\u{e0000}'..='\u{e007f}' // tags
        )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ordinary_names_stay() {
        for name in [
            "<listcomp>",
            "Привет.мир",
            "函数",
            "👩‍💻",
            "a\\b",
            "naïve",
            "می‌خواهم",
        ] {
            assert!(matches!(escape(name), Cow::Borrowed(same) if same == name));
        }
    }

    #[test]
    fn hostile_names_are_shown() {
        assert_eq!(escape("a\x1b[2Jb"), "a\\u{1b}[2Jb");
        assert_eq!(escape("a\nb\r\t"), "a\\nb\\r\\t");
        assert_eq!(escape("nimda\u{202e}"), "nimda\\u{202e}");
        assert_eq!(escape("\u{9b}31m\0\u{7f}"), "\\u{9b}31m\\u{0}\\u{7f}");
        assert_eq!(escape("\u{2066}\u{200b}"), "\\u{2066}\\u{200b}");
    }

    proptest! {
        #[test]
        fn nothing_unsafe_is_left_and_it_settles(text in any::<String>()) {
            let escaped = escape(&text).into_owned();
            prop_assert!(!escaped.chars().any(is_unsafe));
            prop_assert_eq!(escape(&escaped), escaped.as_str());
        }
    }
}
