//! A self-contained HTML flame graph: one file with the data, a style and a script of our own beside this file. It
//! works offline, and loads and sends nothing.
//!
//! Names come from processes that nobody trusts. They pass [`super::escape`], stand in a block of JSON that browsers do
//! not execute, without any character that could end it, and the script only ever shows them as text. The page's content
//! security policy (<https://www.w3.org/TR/CSP3/>) lets no other script run than the one whose hash it names.

mod data;

use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize as _;
use serde_json::ser::{CharEscape, CompactFormatter, Formatter, Serializer};
use sha2::{Digest as _, Sha256};

use crate::profile::model::Profile;

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");

/// The parts of the script, in their order.
const SCRIPTS: [&str; 5] = [
    include_str!("data.js"),
    include_str!("tree.js"),
    include_str!("graph.js"),
    include_str!("panels.js"),
    include_str!("page.js"),
];

/// Writes the profile as a page.
pub(super) fn write(profile: &Profile, out: &mut dyn Write) -> io::Result<()> {
    let script = SCRIPTS.concat();
    let policy = format!(
        "default-src 'none'; script-src {}; style-src {}; base-uri 'none'; form-action 'none'",
        hash(&script),
        hash(STYLE)
    );
    let mut rest = PAGE;
    while let Some((before, (name, after))) = rest
        .split_once("{{")
        .and_then(|(before, after)| Some((before, after.split_once("}}")?)))
    {
        out.write_all(before.as_bytes())?;
        match name {
            "policy" => out.write_all(policy.as_bytes())?,
            "style" => out.write_all(STYLE.as_bytes())?,
            "script" => out.write_all(script.as_bytes())?,
            // The only other one.
            _ => write_data(profile, out)?,
        }
        rest = after;
    }
    out.write_all(rest.as_bytes())
}

/// A source of a content security policy: exactly this text.
fn hash(text: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)))
}

fn write_data(profile: &Profile, out: &mut dyn Write) -> io::Result<()> {
    let data = data::Data::of(profile);
    let mut serializer = Serializer::with_formatter(out, ForHtml);
    data.serialize(&mut serializer).map_err(io::Error::from)
}

/// JSON without characters that mean something in HTML, or end a line in a script.
struct ForHtml;

impl Formatter for ForHtml {
    fn write_string_fragment<W: Write + ?Sized>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        let is_special = |char: char| matches!(char, '<' | '>' | '&' | '\u{2028}' | '\u{2029}');
        while let Some(at) = rest.find(is_special) {
            let (before, from) = rest.split_at(at);
            let mut chars = from.chars();
            writer.write_all(before.as_bytes())?;
            if let Some(special) = chars.next() {
                write!(writer, "\\u{:04x}", u32::from(special))?;
            }
            rest = chars.as_str();
        }
        writer.write_all(rest.as_bytes())
    }

    fn write_char_escape<W: Write + ?Sized>(
        &mut self,
        writer: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        CompactFormatter.write_char_escape(writer, escape)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json(text: &str) -> String {
        let mut bytes = Vec::new();
        text.serialize(&mut Serializer::with_formatter(&mut bytes, ForHtml))
            .unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn the_page_has_each_part_once_and_none_ends_another() {
        for part in ["policy", "style", "script", "data"] {
            assert_eq!(PAGE.matches(&format!("{{{{{part}}}}}")).count(), 1);
        }
        assert_eq!(PAGE.matches("{{").count(), 4);
        assert!(!STYLE.contains("</") && !SCRIPTS.concat().contains("</"));
        assert!(!SCRIPTS.concat().contains("<!--"));
    }

    proptest! {
        #[test]
        fn no_text_ends_the_block_and_it_is_read_as_it_was(text in any::<String>()) {
            let json = json(&text);
            let has_special = json.contains(['<', '>', '&', '\u{2028}', '\u{2029}']);
            prop_assert!(!has_special);
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }
    }

    #[test]
    fn what_could_end_the_block_is_written_otherwise() {
        assert_eq!(
            json("</script>\"\u{2028}"),
            "\"\\u003c/script\\u003e\\\"\\u2028\""
        );
    }
}
