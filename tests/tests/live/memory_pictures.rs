//! The pictures of `pyagent mem`, read by CPython's zlib and XML parser: what is drawn is where it was.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use profiler_agent::profile::memory::{MemoryInfo, Resident};
use profiler_agent::view::memory::{MemoryWatch, Observed, png, svg};
use pyagent_tests::picture::{Image, texts_of_svg};

const MIB: u64 = 1 << 20;

/// The first curve, and the horizontal lines behind the curves.
const FIRST: [u8; 3] = [0x00, 0x72, 0xb2];
const RULE: [u8; 3] = [0xdd; 3];

fn observed(pid: u32, program: &str, n_bytes: u64) -> Observed {
    Observed {
        pid,
        start_time: SystemTime::UNIX_EPOCH,
        program: program.to_owned(),
        memory: MemoryInfo {
            resident: Resident {
                anon: n_bytes,
                ..Resident::default()
            },
            gc: None,
        },
        parts: None,
    }
}

/// What process 7 has after so many seconds, in MiB: it jumps, falls, and stands.
const POINTS: [(u64, u64); 6] = [
    (0, 100),
    (10, 700),
    (20, 300),
    (60, 350),
    (61, 0),
    (100, 500),
];

/// A top that is known: the largest is 700 MiB, so that the chart ends at 1000.
const TOP: f64 = 1000.0;

fn watch(program: &str) -> MemoryWatch {
    let mut watch = MemoryWatch::default();
    for (seconds, mebibytes) in POINTS {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let processes = vec![
            observed(7, program, mebibytes * MIB),
            observed(8, "other", 10 * MIB),
        ];
        watch.add(at, processes, None);
    }
    watch
}

struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn png(&self, watch: &MemoryWatch) -> Image {
        let path = self.folder.path().join("a.png");
        fs::write(&path, png::png(watch).unwrap()).unwrap();
        Image::of_png(&path)
    }

    fn svg(&self, watch: &MemoryWatch) -> PathBuf {
        let path = self.folder.path().join("a.svg");
        fs::write(&path, svg::svg(watch).unwrap()).unwrap();
        path
    }
}

/// The chart of an image: its left and right edge, and the middles of its lowest and highest line.
fn chart(image: &Image) -> [f64; 4] {
    let is_rule = |x: usize, y: usize| image.at(x, y) == RULE;
    let rows: Vec<usize> = (0..image.height)
        .filter(|y| (0..image.width).filter(|x| is_rule(*x, *y)).count() > image.width / 2)
        .collect();
    // Each line is so thick.
    let thickness = rows
        .iter()
        .zip(rows[0]..)
        .take_while(|(row, at)| **row == *at)
        .count();
    let middle = |row: usize| row as f64 + thickness as f64 / 2.0;
    let columns: Vec<usize> = (0..image.width).filter(|x| is_rule(*x, rows[0])).collect();
    [
        columns[0] as f64,
        (columns[columns.len() - 1] + 1) as f64,
        middle(rows[rows.len() - thickness]),
        middle(rows[0]),
    ]
}

/// The rows of the first curve in a column; beneath the chart its colour is in the legend.
fn curve_rows(image: &Image, x: usize, zero: f64) -> Vec<usize> {
    let rows = image.rows_with(x, FIRST).into_iter();
    rows.filter(|row| (*row as f64) < zero + 4.0).collect()
}

#[test]
fn the_curve_of_a_png_is_where_the_points_are() {
    let image = Files::new().png(&watch("app.py"));
    let [left, right, zero, top] = chart(&image);
    let (first, last) = (POINTS[0], POINTS[POINTS.len() - 1]);
    let length = (last.0 - first.0) as f64;
    let mut n_checked = 0;
    for pair in POINTS.windows(2) {
        let [(from, before), (to, after)] = [pair[0], pair[1]];
        let x_of = |seconds: u64| left + (right - left) * seconds as f64 / length;
        let y_of = |mebibytes: f64| zero + (top - zero) * mebibytes / TOP;
        // Where the curve bends, and where it is steep, a column has more than one place of it.
        for x in (x_of(from).ceil() as usize + 4)..(x_of(to).floor() as usize).saturating_sub(4) {
            let part = (x as f64 + 0.5 - x_of(from)) / (x_of(to) - x_of(from));
            let expected = y_of(before as f64 + (after as f64 - before as f64) * part);
            // The other process's curve lies above this one there.
            if zero - expected < 16.0 {
                continue;
            }
            let rows = curve_rows(&image, x, zero).into_iter();
            let rows: Vec<f64> = rows.map(|row| row as f64 + 0.5).collect();
            let middle = rows.iter().sum::<f64>() / rows.len() as f64;
            assert!(
                (middle - expected).abs() <= 2.0,
                "column {x}: {middle}, expected {expected}; {rows:?}"
            );
            n_checked += 1;
        }
    }
    assert!(n_checked > 1000, "{n_checked} columns");
    // Nothing of it is left or right of the chart, but the sign in the legend.
    let bottom = zero as usize + 4;
    for x in (0..left as usize - 4).chain(right as usize + 4..image.width) {
        assert!(image.rows_with(x, FIRST).iter().all(|row| *row > bottom));
    }
}

/// Dark pixels of a part.
fn n_dark(image: &Image, x: std::ops::Range<usize>, y: std::ops::Range<usize>) -> usize {
    let columns = |y: usize| x.clone().filter(move |x| image.at(*x, y)[0] < 100);
    y.map(|y| columns(y).count()).sum()
}

#[test]
fn the_letters_of_a_png_are_there_and_differ() {
    let files = Files::new();
    let image = files.png(&watch("app.py"));
    let [left, right, zero, top] = chart(&image);
    // Numbers left of the highest and the lowest line, times below, a title above.
    let [left, right, zero, top] = [left, right, zero, top].map(|at| at as usize);
    for row in [top, zero] {
        assert!(n_dark(&image, 0..left, row - 16..row + 16) > 50);
    }
    assert!(n_dark(&image, left..right, 0..top - 16) > 500);
    assert!(n_dark(&image, left..right, zero + 16..zero + 60) > 300);
    // Another name has other letters, of which there are none in what is empty.
    let named = |name: &str| {
        let image = files.png(&watch(name));
        let rows = zero + 60..image.height;
        (n_dark(&image, left..right, rows), image)
    };
    let (with_few, _) = named("i");
    let (with_many, wide) = named(&"W".repeat(500));
    assert!(with_many > with_few + 1000, "{with_few}, {with_many}");
    // What is too long ends before the edge.
    assert_eq!(n_dark(&wide, wide.width - 8..wide.width, 0..wide.height), 0);
    assert_ne!(named("日本").1, named("").1);
}

#[test]
fn names_are_text_in_an_svg_whatever_they_are() {
    let files = Files::new();
    for (name, shown) in [
        ("a<b>&amp;</text>\"'.py", "a<b>&amp;</text>\"'.py"),
        ("]]><!-- <![CDATA[", "]]><!-- <![CDATA["),
        ("\x1b[2J\0\u{ffff}\n", "\\u{1b}[2J\\u{0}\\u{ffff}\\n"),
        ("日本.py", "日本.py"),
    ] {
        let texts = texts_of_svg(&files.svg(&watch(name)));
        assert!(texts.contains(&format!("7 {shown}")), "{texts:?}");
        assert!(texts.contains(&"1000.0 MiB".to_owned()), "{texts:?}");
        assert!(texts.contains(&"100.0 s".to_owned()), "{texts:?}");
    }
}

#[test]
fn of_an_empty_watch_there_is_no_picture_and_a_single_point_is_a_dot() {
    let mut watch = MemoryWatch::default();
    assert!(svg::svg(&watch).is_none() && png::png(&watch).is_none());
    watch.add(SystemTime::UNIX_EPOCH, Vec::new(), None);
    assert!(svg::svg(&watch).is_none() && png::png(&watch).is_none());
    watch.add(
        SystemTime::UNIX_EPOCH,
        vec![observed(7, "a", 700 * MIB), observed(8, "b", MIB)],
        None,
    );
    let files = Files::new();
    assert!(!texts_of_svg(&files.svg(&watch)).is_empty());
    let image = files.png(&watch);
    let [left, _, zero, top] = chart(&image);
    let rows = curve_rows(&image, left as usize, zero);
    let middle = rows.iter().sum::<usize>() as f64 / rows.len() as f64 + 0.5;
    let expected = zero + (top - zero) * 0.7;
    assert!((middle - expected).abs() <= 2.0, "{middle}, {expected}");
}
