//! A picture of resident memory over time, with the lines that touched most beneath.

use std::fmt::Write as _;
use std::time::SystemTime;

use super::{MemoryWatch, Watched};
use crate::format::{bytes_text, escape};
use crate::view::columns::cut_end;

const WIDTH: f64 = 1200.0;
const CHART_TOP: f64 = 50.0;
const CHART_HEIGHT: f64 = 360.0;
const CHART_LEFT: f64 = 90.0;
const CHART_RIGHT: f64 = WIDTH - 20.0;
const LINE_HEIGHT: f64 = 18.0;

/// Processes that are drawn: those that have most at any time.
const MAX_PROCESSES: usize = 10;

/// Lines of code that are listed.
const MAX_LINES: usize = 20;

/// Horizontal lines with a number.
const N_TICKS: usize = 5;

/// Told apart with any common colour blindness (Okabe and Ito).
const COLOURS: [&str; 8] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999",
];

/// A curve.
struct Curve {
    name: String,
    points: Vec<(SystemTime, u64)>,
}

/// The text of the picture.
#[must_use]
pub fn svg(watch: &MemoryWatch) -> String {
    let curves = curves(watch);
    let times = || {
        curves
            .iter()
            .flat_map(|curve| curve.points.iter().map(|(at, _)| *at))
    };
    let start = times().min().unwrap_or(SystemTime::UNIX_EPOCH);
    let end = times().max().unwrap_or(start);
    let length_s = end
        .duration_since(start)
        .unwrap_or_default()
        .as_secs_f64()
        .max(1e-3);
    let most = curves
        .iter()
        .flat_map(|curve| curve.points.iter().map(|(_, n_bytes)| *n_bytes));
    let top = rounded_up(most.max().unwrap_or(1));
    let x = |at: SystemTime| {
        let seconds = at.duration_since(start).unwrap_or_default().as_secs_f64();
        CHART_LEFT + (CHART_RIGHT - CHART_LEFT) * seconds / length_s
    };
    let y = |n_bytes: u64| CHART_TOP + CHART_HEIGHT * (1.0 - n_bytes as f64 / top as f64);
    let lines = watch.lines();
    let n_lines = lines.len().min(MAX_LINES);
    let legend_top = CHART_TOP + CHART_HEIGHT + 45.0;
    let lines_top = legend_top + LINE_HEIGHT * (curves.len() as f64 + 1.5);
    let height = lines_top + LINE_HEIGHT * (n_lines as f64 + 1.5);
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = write!(
        text,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} \
         {height}\" font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" \
         fill=\"#ffffff\"/>\n<text x=\"{CHART_LEFT}\" y=\"28\" font-size=\"17\">Resident memory over {length_s:.0} s</text>\n",
    );
    for tick in 0..=N_TICKS {
        let n_bytes = top / N_TICKS as u64 * tick as u64;
        let at = y(n_bytes);
        let _ = write!(
            text,
            "<line x1=\"{CHART_LEFT}\" x2=\"{CHART_RIGHT}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#dddddd\"/>\n<text \
             x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
            CHART_LEFT - 8.0,
            at + 4.0,
            bytes_text(n_bytes as i64)
        );
        let at_x = CHART_LEFT + (CHART_RIGHT - CHART_LEFT) * tick as f64 / N_TICKS as f64;
        let _ = writeln!(
            text,
            "<text x=\"{at_x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{:.1} s</text>",
            CHART_TOP + CHART_HEIGHT + 20.0,
            length_s * tick as f64 / N_TICKS as f64
        );
    }
    for (idx, curve) in curves.iter().enumerate() {
        let colour = COLOURS[idx % COLOURS.len()];
        let points = curve
            .points
            .iter()
            .map(|(at, n_bytes)| format!("{:.1},{:.1}", x(*at), y(*n_bytes)));
        let points: Vec<_> = points.collect();
        let legend = legend_top + LINE_HEIGHT * idx as f64;
        let _ = write!(
            text,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\" points=\"{}\"/>\n<rect x=\"{CHART_LEFT}\" \
             y=\"{:.1}\" width=\"14\" height=\"10\" fill=\"{colour}\"/>\n<text x=\"{:.1}\" y=\"{legend:.1}\">{}</text>\n",
            points.join(" "),
            legend - 9.0,
            CHART_LEFT + 22.0,
            xml(&curve.name)
        );
    }
    if n_lines > 0 {
        let _ = writeln!(
            text,
            "<text x=\"{CHART_LEFT}\" y=\"{lines_top:.1}\" font-weight=\"bold\">Memory touched for the first time, by line</text>"
        );
    }
    for (idx, (line, n_bytes)) in lines.into_iter().take(MAX_LINES).enumerate() {
        let at = lines_top + LINE_HEIGHT * (idx as f64 + 1.0);
        let _ = write!(
            text,
            "<text x=\"{:.1}\" y=\"{at:.1}\" text-anchor=\"end\">{}</text>\n<text x=\"{:.1}\" y=\"{at:.1}\">{}</text>\n",
            CHART_LEFT + 70.0,
            bytes_text(n_bytes),
            CHART_LEFT + 84.0,
            xml(line)
        );
    }
    text.push_str("</svg>\n");
    text
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

/// Text of a target, as XML takes it.
fn xml(text: &str) -> String {
    let text = cut_end(&escape(text), 140);
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
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
