//! str and bytes as `repr` writes them: what is not printable is escaped.

use std::fmt::Write as _;

/// The quote around a text: the other one if it has this one alone.
fn quote(has_single: bool, has_double: bool) -> char {
    if has_single && !has_double { '"' } else { '\'' }
}

/// A text in pieces that belong together: the quote, and what stands for each character.
pub(super) struct Quoted {
    pub(super) quote: char,
    pub(super) pieces: Vec<String>,
}

/// A str, by its code points; those that are no characters (lone surrogates) are escaped too.
pub(super) fn of_str(codes: &[u32]) -> Quoted {
    let has = |char: char| codes.contains(&u32::from(char));
    let quote = quote(has('\''), has('"'));
    let pieces = codes.iter().map(|code| piece(*code, quote));
    Quoted {
        quote,
        pieces: pieces.collect(),
    }
}

fn piece(code: u32, quote: char) -> String {
    let escaped = |code: u32| match code {
        0..=0xff => format!("\\x{code:02x}"),
        0x100..=0xffff => format!("\\u{code:04x}"),
        _ => format!("\\U{code:08x}"),
    };
    match char::from_u32(code) {
        Some('\\') => "\\\\".to_owned(),
        Some('\n') => "\\n".to_owned(),
        Some('\r') => "\\r".to_owned(),
        Some('\t') => "\\t".to_owned(),
        Some(char) if char == quote => format!("\\{char}"),
        Some(' ' | '\'' | '"') => char::from_u32(code).into_iter().collect(),
        Some(char) if char.is_ascii_graphic() || is_printable(char) => char.to_string(),
        Some(_) | None => escaped(code),
    }
}

/// Whether a character of no ASCII is shown as itself. What this library takes for none, and spaces of other kinds, are not.
fn is_printable(char: char) -> bool {
    !char.is_ascii() && !char.is_whitespace() && char.escape_debug().count() == 1
}

/// bytes, with the `b` in front left to the caller.
pub(super) fn of_bytes(bytes: &[u8]) -> Quoted {
    let quote = quote(bytes.contains(&b'\''), bytes.contains(&b'"'));
    let piece = |byte: &u8| match byte {
        b'\\' => "\\\\".to_owned(),
        b'\n' => "\\n".to_owned(),
        b'\r' => "\\r".to_owned(),
        b'\t' => "\\t".to_owned(),
        byte if char::from(*byte) == quote => format!("\\{quote}"),
        b' '..=b'~' => char::from(*byte).to_string(),
        byte => {
            let mut text = String::new();
            // Writing to a String does not fail.
            let _ = write!(text, "\\x{byte:02x}");
            text
        }
    };
    Quoted {
        quote,
        pieces: bytes.iter().map(piece).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(quoted: &Quoted) -> String {
        format!("{0}{1}{0}", quoted.quote, quoted.pieces.concat())
    }

    #[test]
    fn texts_are_escaped_as_python_does() {
        for (text, shown) in [
            ("", "''"),
            ("a b", "'a b'"),
            ("it's", "\"it's\""),
            ("\"it's\"", "'\"it\\'s\"'"),
            (
                "a\\b\n\r\t\0\x1b[2J\x7f",
                "'a\\\\b\\n\\r\\t\\x00\\x1b[2J\\x7f'",
            ),
            ("naïve 函数 😀", "'naïve 函数 😀'"),
            (
                "\u{202e}\u{a0}\u{ad}\u{e0001}",
                "'\\u202e\\xa0\\xad\\U000e0001'",
            ),
        ] {
            let codes: Vec<u32> = text.chars().map(u32::from).collect();
            assert_eq!(whole(&of_str(&codes)), shown);
        }
        assert_eq!(whole(&of_str(&[0xdcff, 0x11_0000])), "'\\udcff\\U00110000'");
        assert_eq!(whole(&of_bytes(b"a'\xff\0\n")), "\"a'\\xff\\x00\\n\"");
    }
}
