//! The times of samples: files of other profilers with times that cannot be, and what becomes of them in each format.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use profiler_agent::format::FORMATS;
use profiler_agent::format::read::read;
use profiler_agent::generated::perftools::profiles::{
    Function, Label, Line, Location, Profile, Sample, ValueType,
};
use prost::Message as _;
use pyagent_tests::pyagent::run;
use pyagent_tests::samples::{build, bytes, program};
use serde_json::Value;

const START: i64 = 1_767_225_600_000_000_000;
const MS: i64 = 1_000_000;

/// A profile as libdatadog writes it: a sample each event, with its time as the label `end_timestamp_ns`.
fn pprof(start: i64, times: &[Option<i64>]) -> Vec<u8> {
    let texts = [
        "",
        "samples",
        "count",
        "cpu",
        "nanoseconds",
        "end_timestamp_ns",
        "f",
        "/srv/app.py",
        "thread id",
        "g",
    ];
    let sample = |(idx, time): (usize, &Option<i64>)| {
        let thread = Label {
            key: 8,
            num: 7,
            ..Label::default()
        };
        let time = time.map(|num| Label {
            key: 5,
            num,
            ..Label::default()
        });
        Sample {
            location_id: vec![1 + idx as u64 % 2],
            value: vec![1, 10 * MS],
            label: [thread].into_iter().chain(time).collect(),
        }
    };
    let profile = Profile {
        sample_type: vec![
            ValueType { r#type: 1, unit: 2 },
            ValueType { r#type: 3, unit: 4 },
        ],
        sample: times.iter().enumerate().map(sample).collect(),
        location: (1..=2)
            .map(|id| Location {
                id,
                line: vec![Line {
                    function_id: id,
                    line: 3,
                    ..Line::default()
                }],
                ..Location::default()
            })
            .collect(),
        function: vec![
            Function {
                id: 1,
                name: 6,
                filename: 7,
                ..Function::default()
            },
            Function {
                id: 2,
                name: 9,
                filename: 7,
                ..Function::default()
            },
        ],
        string_table: texts.map(str::to_owned).to_vec(),
        time_nanos: start,
        duration_nanos: if start == 0 { 0 } else { 1000 * MS },
        period_type: Some(ValueType { r#type: 3, unit: 4 }),
        period: 10 * MS,
        ..Profile::default()
    };
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&profile.encode_to_vec()).unwrap();
    gzip.finish().unwrap()
}

fn convert(input: &[u8], format: &str) -> (String, String) {
    let output = run("convert", &["-", "--format", format, "-o", "-"], input);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{format}: {said}");
    // pprof is no text.
    (String::from_utf8_lossy(&output.stdout).into_owned(), said)
}

/// Name, begin and end of the bars, in milliseconds. An end is that of the bar that began last.
fn bars(input: &[u8]) -> Vec<(String, f64, f64)> {
    let trace: Value = serde_json::from_str(&convert(input, "chrome").0).unwrap();
    let (mut open, mut bars) = (Vec::new(), Vec::new());
    for event in trace["traceEvents"].as_array().unwrap() {
        let name = event["name"].as_str().unwrap().to_owned();
        let ms = || event["ts"].as_f64().unwrap() / 1e3;
        match event["ph"].as_str().unwrap() {
            "B" => open.push((name, ms())),
            "E" => {
                let (began, from) = open.pop().unwrap();
                assert_eq!(began, name);
                bars.push((name, from, ms()));
            }
            _ => {}
        }
    }
    assert!(open.is_empty(), "{open:?}");
    bars
}

#[test]
fn times_of_other_profilers_are_read_in_whatever_order_they_are() {
    // f, g, f, g: in the order of the times f f g g, then nothing for a while.
    let at = |ms: i64| Some(START + ms * MS);
    let file = pprof(START, &[at(110), at(120), at(100), at(130), at(300)]);
    assert_eq!(
        bars(&file),
        [
            ("f".to_owned(), 95.0, 115.0),
            ("g".to_owned(), 115.0, 135.0),
            ("f".to_owned(), 295.0, 305.0)
        ]
    );
    // Without a begin the course begins with its first sample.
    let file = pprof(0, &[at(110), at(120), at(100), at(130), at(300)]);
    assert_eq!(bars(&file)[0], ("f".to_owned(), 5.0, 25.0));
}

#[test]
fn what_cannot_be_a_time_is_counted_and_left_out_of_the_course() {
    let at = |ms: i64| Some(START + ms * MS);
    for wrong in [
        0,
        -1,
        1,
        i64::MIN,
        i64::MAX,
        START - 7_200_000 * MS,
        START + 7_200_000 * MS,
    ] {
        let file = pprof(START, &[at(100), None, Some(wrong), at(110), None]);
        let (trace, said) = convert(&file, "chrome");
        let trace: Value = serde_json::from_str(&trace).unwrap();
        assert_eq!(trace["otherData"]["samples_without_time"], 3, "{wrong}");
        assert!(
            trace["otherData"]["comments"]
                .to_string()
                .contains("outside of the profile's"),
            "{trace}"
        );
        assert!(said.contains("3 samples have no time"), "{said}");
        assert_eq!(
            bars(&file),
            [
                ("f".to_owned(), 95.0, 105.0),
                ("g".to_owned(), 105.0, 115.0)
            ]
        );
        // In the sums they are, and in pprof again.
        let folded = convert(&file, "folded").0;
        assert_eq!(folded, "f (/srv/app.py:3) 3\ng (/srv/app.py:3) 2\n");
        let again = run("convert", &["-", "--format", "pprof", "-o", "-"], &file).stdout;
        assert_eq!(convert(&again, "folded").0, folded);
        assert_eq!(bars(&again), bars(&file));
    }
}

#[test]
fn no_times_make_any_format_fail() {
    let hostile = [
        vec![Some(i64::MIN), Some(i64::MAX), Some(0), Some(1), None],
        vec![Some(1), Some(i64::MAX)],
        vec![Some(5); 2000],
        (0..2000).map(|idx| Some(i64::MAX - idx)).collect(),
    ];
    for times in &hostile {
        for start in [0, -5, i64::MIN, i64::MAX, START] {
            let profile = read(&pprof(start, times)).unwrap();
            for format in FORMATS {
                let shown = bytes(format.name, &profile);
                assert!(shown.len() < 4 << 20, "{}: {}", format.name, shown.len());
                if matches!(format.name, "chrome" | "firefox" | "speedscope") {
                    let _: Value = serde_json::from_slice(&shown).unwrap();
                }
            }
        }
    }
}

#[test]
fn without_times_everything_is_as_before() {
    let profile = build(&program());
    for name in ["chrome", "firefox", "speedscope", "jsonl"] {
        let shown = String::from_utf8(bytes(name, &profile)).unwrap();
        assert!(
            !shown.contains("timestamp_unix_nano") && !shown.contains("without_time\":0"),
            "{name}"
        );
    }
    let trace: Value = serde_json::from_slice(&bytes("chrome", &profile)).unwrap();
    assert!(
        trace["otherData"]["note"]
            .as_str()
            .unwrap()
            .starts_with("sums")
    );
}
