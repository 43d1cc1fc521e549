//! Flame graph: an SVG for a browser, drawn by inferno, with search and zoom.
//!
//! Colours tell where code comes from: the program's own red to orange, packages blue, the standard library
//! yellow, native code green, the kernel orange, remarks grey. The same profile gives the same picture.

use std::hash::{BuildHasher as _, Hasher as _};
use std::io::{self, Write};

use foldhash::fast::FixedState;
use inferno::flamegraph::color::{Color, PaletteMap};
use inferno::flamegraph::{self, Direction, Options};

use super::folded;
use super::text::{Origin, frame_text_in, origin};
use super::title::title;
use crate::profile::model::{Frame, FrameKind, Profile};

/// What is drawn for a profile without samples: inferno refuses to draw nothing.
pub(super) const EMPTY: &str = r##"<?xml version="1.0" standalone="no"?>
<svg version="1.1" width="1200" height="80" xmlns="http://www.w3.org/2000/svg">
<rect width="100%" height="100%" fill="#eeeeee"/>
<text x="50%" y="45" text-anchor="middle" font-family="monospace" font-size="16">No samples: the selected processes did nothing of what was recorded.</text>
</svg>
"##;

/// Writes the profile as a flame graph.
pub(super) fn write(profile: &Profile, out: &mut dyn Write) -> io::Result<()> {
    draw(profile, Direction::Straight, out)
}

/// Writes the profile as a flame graph of callers: stacks begin with their leaves, which are above.
pub(super) fn write_inverted(profile: &Profile, out: &mut dyn Write) -> io::Result<()> {
    draw(profile, Direction::Inverted, out)
}

fn draw(profile: &Profile, direction: Direction, out: &mut dyn Write) -> io::Result<()> {
    let lines: Vec<String> = folded::stacks(profile)
        .into_iter()
        .filter(|(_, n_samples)| *n_samples > 0)
        .map(|(stack, n_samples)| format!("{stack} {n_samples}"))
        .collect();
    if lines.is_empty() {
        return out.write_all(EMPTY.as_bytes());
    }
    let mut palette = palette(profile);
    let mut options = Options::default();
    options.reverse_stack_order = direction == Direction::Inverted;
    options.direction = direction;
    options.title = format!("pyagent: {}", title(profile));
    options.subtitle = subtitle(profile);
    quantity_name(profile).clone_into(&mut options.count_name);
    "Frame:".clone_into(&mut options.name_type);
    options.palette_map = Some(&mut palette);
    options.deterministic = true;
    flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), out)
}

/// What the counts of the picture count.
fn quantity_name(profile: &Profile) -> &'static str {
    match profile.weight_idx() {
        0 => "samples",
        weight_idx => profile.sample_types[weight_idx].unit,
    }
}

fn subtitle(profile: &Profile) -> Option<String> {
    let comments: Vec<_> = profile
        .comments
        .iter()
        .map(|comment| super::escape(comment))
        .collect();
    (!comments.is_empty()).then(|| comments.join("; "))
}

fn palette(profile: &Profile) -> PaletteMap {
    let mut palette = PaletteMap::default();
    for idx in 0..profile.locations.len() {
        let Some(frame) = profile.frame(crate::profile::model::LocationId(idx as u32)) else {
            continue;
        };
        palette.insert(
            folded::unambiguous(&frame_text_in(profile, &frame)),
            color(&frame),
        );
    }
    for sample in &profile.samples {
        palette.insert(folded::process_text(profile, sample), rgb(190, 190, 190));
    }
    palette
}

/// The colour of a frame: its hue by origin, its shade by name, so that neighbours differ.
fn color(frame: &Frame<'_>) -> Color {
    let mut hasher = FixedState::default().build_hasher();
    hasher.write(frame.name.as_bytes());
    let shade = (hasher.finish() % 50) as u8;
    match frame.kind {
        FrameKind::Python => match origin(frame.filename) {
            Origin::Program => rgb(205 + shade, 90 + shade, 60),
            Origin::Package => rgb(80 + shade, 165 + shade, 205 + shade),
            Origin::StandardLibrary => rgb(205 + shade, 190 + shade, 60 + shade),
        },
        FrameKind::Native => rgb(90 + shade, 190 + shade, 90 + shade),
        FrameKind::Kernel => rgb(230, 130 + shade, 20 + shade),
        FrameKind::Reason => rgb(160, 160, 160),
    }
}

fn rgb(r: u8, g: u8, b: u8) -> Color {
    Color { r, g, b }
}
