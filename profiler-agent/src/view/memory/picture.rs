//! What a picture of resident memory over time shows, and where: curves, and beneath them the lines that touched most.
//! [`super::svg`] writes it as text, [`super::png`] draws it.

use std::time::SystemTime;

use super::{MemoryWatch, Watched};
use crate::format::{bytes_text, escape};
use crate::view::columns::cut_end;

/// All lengths are in pixels of a screen; the origin is at the top left.
const WIDTH: f64 = 1200.0;
const CHART_TOP: f64 = 50.0;
const CHART_HEIGHT: f64 = 360.0;
const CHART_LEFT: f64 = 90.0;
const CHART_RIGHT: f64 = WIDTH - 20.0;
const LINE_HEIGHT: f64 = 18.0;

/// Height of letters.
pub(super) const TEXT_SIZE: f64 = 13.0;
const TITLE_SIZE: f64 = 17.0;

/// Processes that are drawn: those that have most at any time.
const MAX_PROCESSES: usize = 10;

/// Lines of code that are listed.
const MAX_LINES: usize = 20;

/// Characters of a name that are shown.
const MAX_CHARS: usize = 140;

/// Horizontal lines with a number.
const N_TICKS: usize = 5;

/// Width of a curve.
pub(super) const CURVE_WIDTH: f64 = 1.8;

/// Told apart with any common colour blindness (Okabe and Ito).
const COLOURS: [Colour; 8] = [
    Colour(0x00_72_b2),
    Colour(0xd5_5e_00),
    Colour(0x00_9e_73),
    Colour(0xcc_79_a7),
    Colour(0xe6_9f_00),
    Colour(0x56_b4_e9),
    Colour(0x00_00_00),
    Colour(0x99_99_99),
];
const RULE: Colour = Colour(0xdd_dd_dd);

/// Red, green and blue, a byte each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Colour(pub(super) u32);

/// Which end of a text lies at its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A line of text on a baseline, harmless already.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Text {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) anchor: Anchor,
    pub(super) size: f64,
    pub(super) is_bold: bool,
    pub(super) shown: String,
}

/// Something that is drawn.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Shape {
    /// A horizontal line.
    Rule {
        x: [f64; 2],
        y: f64,
        colour: Colour,
    },
    /// A filled rectangle, by its top left corner.
    Box {
        x: f64,
        y: f64,
        width: f64,
        height: f64,
        colour: Colour,
    },
    /// Straight lines from point to point; never empty.
    Curve {
        points: Vec<(f64, f64)>,
        colour: Colour,
    },
    Text(Text),
}

/// A picture on white ground.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Picture {
    pub(super) width: f64,
    pub(super) height: f64,
    /// Later ones lie above.
    pub(super) shapes: Vec<Shape>,
}

/// A curve over time.
struct Curve {
    name: String,
    points: Vec<(SystemTime, u64)>,
}

impl Picture {
    /// Of all that was seen; `None`: nothing was.
    pub(super) fn new(watch: &MemoryWatch) -> Option<Self> {
        let curves = curves(watch);
        let times = curves.iter().flat_map(|curve| &curve.points);
        let start = times.clone().map(|(at, _)| *at).min()?;
        let end = times.clone().map(|(at, _)| *at).max()?;
        let length_s = end
            .duration_since(start)
            .unwrap_or_default()
            .as_secs_f64()
            .max(1e-3);
        let top = rounded_up(times.map(|(_, n_bytes)| *n_bytes).max()?);
        let x = |at: SystemTime| {
            let seconds = at.duration_since(start).unwrap_or_default().as_secs_f64();
            CHART_LEFT + (CHART_RIGHT - CHART_LEFT) * seconds / length_s
        };
        let y = |n_bytes: u64| CHART_TOP + CHART_HEIGHT * (1.0 - n_bytes as f64 / top as f64);
        let mut picture = Self {
            width: WIDTH,
            height: 0.0,
            shapes: Vec::new(),
        };
        picture.shapes.push(Shape::Text(Text {
            size: TITLE_SIZE,
            ..text(
                (CHART_LEFT, 28.0),
                Anchor::Start,
                &format!("Resident memory over {length_s:.0} s"),
            )
        }));
        picture.add_axes(top, length_s, y);
        let legend_top = CHART_TOP + CHART_HEIGHT + 45.0;
        for (idx, curve) in curves.iter().enumerate() {
            let points = curve.points.iter();
            let points = points.map(|(at, n_bytes)| (x(*at), y(*n_bytes))).collect();
            let colour = COLOURS[idx % COLOURS.len()];
            let legend = legend_top + LINE_HEIGHT * idx as f64;
            picture.shapes.extend([
                Shape::Curve { points, colour },
                Shape::Box {
                    x: CHART_LEFT,
                    y: legend - 9.0,
                    width: 14.0,
                    height: 10.0,
                    colour,
                },
                Shape::Text(text(
                    (CHART_LEFT + 22.0, legend),
                    Anchor::Start,
                    &curve.name,
                )),
            ]);
        }
        picture.add_lines(
            watch,
            legend_top + LINE_HEIGHT * (curves.len() as f64 + 1.5),
        );
        Some(picture)
    }

    fn add_axes(&mut self, top: u64, length_s: f64, y: impl Fn(u64) -> f64) {
        for tick in 0..=N_TICKS {
            let n_bytes = top / N_TICKS as u64 * tick as u64;
            let part = tick as f64 / N_TICKS as f64;
            // The last one would reach beyond the edge.
            let anchor = if tick == N_TICKS {
                Anchor::End
            } else {
                Anchor::Middle
            };
            let at_x = CHART_LEFT + (CHART_RIGHT - CHART_LEFT) * part;
            self.shapes.extend([
                Shape::Rule {
                    x: [CHART_LEFT, CHART_RIGHT],
                    y: y(n_bytes),
                    colour: RULE,
                },
                Shape::Text(text(
                    (CHART_LEFT - 8.0, y(n_bytes) + 4.0),
                    Anchor::End,
                    &bytes_text(n_bytes as i64),
                )),
                Shape::Text(text(
                    (at_x, CHART_TOP + CHART_HEIGHT + 20.0),
                    anchor,
                    &format!("{:.1} s", length_s * part),
                )),
            ]);
        }
    }

    fn add_lines(&mut self, watch: &MemoryWatch, top: f64) {
        let lines = watch.lines();
        if !lines.is_empty() {
            self.shapes.push(Shape::Text(Text {
                is_bold: true,
                ..text(
                    (CHART_LEFT, top),
                    Anchor::Start,
                    "Memory touched for the first time, by line",
                )
            }));
        }
        let n_lines = lines.len().min(MAX_LINES);
        for (idx, (line, n_bytes)) in lines.into_iter().take(MAX_LINES).enumerate() {
            let at = top + LINE_HEIGHT * (idx as f64 + 1.0);
            let n_bytes = bytes_text(n_bytes);
            self.shapes.extend([
                Shape::Text(text((CHART_LEFT + 70.0, at), Anchor::End, &n_bytes)),
                Shape::Text(text((CHART_LEFT + 84.0, at), Anchor::Start, line)),
            ]);
        }
        self.height = top + LINE_HEIGHT * (n_lines as f64 + 1.5);
    }
}

/// Text of a target, made harmless and cut.
fn text((x, y): (f64, f64), anchor: Anchor, text: &str) -> Text {
    Text {
        x,
        y,
        anchor,
        size: TEXT_SIZE,
        is_bold: false,
        shown: cut_end(&escape(text), MAX_CHARS),
    }
}

/// Of one process what backs its memory, of several the whole of each.
fn curves(watch: &MemoryWatch) -> Vec<Curve> {
    let mut processes: Vec<&Watched> = watch.all().collect();
    let most = |watched: &Watched| {
        watched
            .points
            .iter()
            .map(|point| point.memory.resident.total())
            .max()
    };
    if let [watched] = processes.as_slice() {
        let curve = |name: &str, of: fn(&super::Point) -> u64| Curve {
            name: name.to_owned(),
            points: watched
                .points
                .iter()
                .map(|point| (point.at, of(point)))
                .collect(),
        };
        let title = format!("{} {}: all", watched.pid, watched.program);
        return vec![
            curve(&title, |point| point.memory.resident.total()),
            curve("anonymous", |point| point.memory.resident.anon),
            curve("files", |point| point.memory.resident.file),
            curve("shared", |point| point.memory.resident.shmem),
        ];
    }
    processes.sort_by_key(|watched| std::cmp::Reverse(most(watched)));
    let curve = |watched: &Watched| Curve {
        name: format!("{} {}", watched.pid, watched.program),
        points: watched
            .points
            .iter()
            .map(|point| (point.at, point.memory.resident.total()))
            .collect(),
    };
    processes
        .into_iter()
        .take(MAX_PROCESSES)
        .map(curve)
        .collect()
}

/// The next number of bytes that is 1, 2 or 5 times a power of two of ten in its unit: a round top for the chart.
fn rounded_up(n_bytes: u64) -> u64 {
    let unit = 1_u64 << (n_bytes.max(1).ilog2() / 10 * 10);
    let mut step = unit;
    loop {
        for factor in [1, 2, 5] {
            if let Some(top) = step.checked_mul(factor)
                && top >= n_bytes
            {
                return top.max(N_TICKS as u64);
            }
        }
        match step.checked_mul(10) {
            Some(next) => step = next,
            None => return u64::MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_of_the_chart_is_round_and_not_below_what_is_drawn() {
        assert_eq!(rounded_up(1), 5);
        assert_eq!(rounded_up(900), 1000);
        assert_eq!(rounded_up(3 << 20), 5 << 20);
        assert_eq!(rounded_up(700 << 20), 1000 << 20);
        assert_eq!(rounded_up(u64::MAX), u64::MAX);
    }
}
