//! Self-contained HTML pages, a flame graph and annotated source: one file with the data, a style and a script of our own
//! beside this file. They work offline, and load and send nothing.
//!
//! Names come from processes that nobody trusts. They pass [`super::escape`], stand in a block of JSON that browsers do
//! not execute, without any character that could end it, and the script only ever shows them as text. The page's content
//! security policy (<https://www.w3.org/TR/CSP3/>) lets no other script run than the one whose hash it names.

mod data;
mod lines;

use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::ser::{CharEscape, CompactFormatter, Formatter, Serializer};
use sha2::{Digest as _, Sha256};

pub use self::lines::{LinesFile, LinesFunction, LinesPage, LinesValue, SplitColumn};
use crate::profile::model::Profile;

/// The parts of a page, each in the order of their text. The page has a `{{policy}}`, `{{style}}`, `{{data}}` and
/// `{{script}}`, each once.
struct Page {
    body: &'static str,
    styles: [&'static str; 2],
    scripts: &'static [&'static str],
}

/// What all pages look like.
const BASE_STYLE: &str = include_str!("base.css");

/// What all scripts begin with.
const COMMON_SCRIPT: &str = include_str!("common.js");

/// The flame graph.
static FLAMES: Page = Page {
    body: include_str!("page.html"),
    styles: [BASE_STYLE, include_str!("page.css")],
    scripts: &[
        COMMON_SCRIPT,
        include_str!("data.js"),
        include_str!("tree.js"),
        include_str!("graph.js"),
        include_str!("panels.js"),
        include_str!("page.js"),
    ],
};

/// Source with what each line takes.
static LINES: Page = Page {
    body: include_str!("lines.html"),
    styles: [BASE_STYLE, include_str!("lines.css")],
    scripts: &[COMMON_SCRIPT, include_str!("lines.js")],
};

/// Writes the profile as a page.
pub(super) fn write(profile: &Profile, out: &mut dyn Write) -> io::Result<()> {
    FLAMES.write(&data::Data::of(profile), out)
}

/// Writes annotated source as a page. Fails only when `out` does.
pub fn write_lines(page: &LinesPage<'_>, out: &mut dyn Write) -> io::Result<()> {
    LINES.write(page, out)
}

impl Page {
    fn write(&self, data: &impl Serialize, out: &mut dyn Write) -> io::Result<()> {
        let (style, script) = (self.styles.concat(), self.scripts.concat());
        let policy = format!(
            "default-src 'none'; script-src {}; style-src {}; base-uri 'none'; form-action 'none'",
            hash(&script),
            hash(&style)
        );
        let mut rest = self.body;
        while let Some((before, (name, after))) = rest
            .split_once("{{")
            .and_then(|(before, after)| Some((before, after.split_once("}}")?)))
        {
            out.write_all(before.as_bytes())?;
            match name {
                "policy" => out.write_all(policy.as_bytes())?,
                "style" => out.write_all(style.as_bytes())?,
                "script" => out.write_all(script.as_bytes())?,
                // The only other one.
                _ => {
                    let mut serializer = Serializer::with_formatter(&mut *out, ForHtml);
                    data.serialize(&mut serializer).map_err(io::Error::from)?;
                }
            }
            rest = after;
        }
        out.write_all(rest.as_bytes())
    }
}

/// A source of a content security policy: exactly this text.
fn hash(text: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)))
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
        for Page {
            body,
            styles,
            scripts,
        } in [&FLAMES, &LINES]
        {
            for part in ["policy", "style", "script", "data"] {
                assert_eq!(body.matches(&format!("{{{{{part}}}}}")).count(), 1);
            }
            assert_eq!(body.matches("{{").count(), 4);
            assert!(!styles.concat().contains("</") && !scripts.concat().contains("</"));
            assert!(!scripts.concat().contains("<!--"));
        }
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
