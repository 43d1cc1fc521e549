//! Looks whose figures are added up by hand, and pictures of them on a terminal that only exists in memory.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::*;
use crate::profile::aggregate::{
    Aggregator, ProcessLabels, ResolvedFrame, ResolvedFunction, ResolvedSample, Taken, ThreadLabels,
};
use crate::profile::model::ValueType;

/// 100 Hz.
const PERIOD_NS: i64 = 10_000_000;

/// A frame: function, file, first line, line.
type At = (&'static str, &'static str, u32, u32);

const MAIN: At = ("main", "/srv/app.py", 1, 5);
const HOT: At = ("hot", "/srv/app.py", 10, 11);
const HOT_ELSEWHERE: At = ("hot", "/srv/app.py", 10, 12);
const QUERY: At = ("Model.query", "/srv/web/model.py", 3, 4);

/// Samples with a stack (leaf first), of a thread of a process.
type Samples<'a> = (i64, &'a [At], u32, u32);

fn look(samples: &[Samples<'_>]) -> Look {
    let mut aggregator =
        Aggregator::new(SystemTime::UNIX_EPOCH, &ValueType::CPU_SAMPLES, PERIOD_NS);
    for (n, stack, pid, tid) in samples {
        let mut process = ProcessLabels::of_pid(*pid);
        process.comm = "python3".into();
        let frames = stack.iter().map(|(name, file, first, line)| ResolvedFrame {
            function: Arc::new(ResolvedFunction::python(name, file, *first)),
            line: *line,
            address: 0,
        });
        aggregator.add(&ResolvedSample {
            frames: frames.collect(),
            labels: Arc::new(ThreadLabels {
                process: Arc::new(process),
                tid: *tid,
                started_ns: 0,
                thread_name: format!("Worker-{tid}").into(),
            }),
            instruction: None,
            values: [*n, *n * PERIOD_NS].into(),
        });
    }
    Look {
        profile: Some(aggregator.finish(Duration::from_secs(1), Vec::new())),
        length: Duration::from_secs(1),
        vitals: Some(Vitals {
            rate_hz: 100.0,
            n_cpus: 2,
            ..Vitals::default()
        }),
        processes: None,
    }
}

/// 60 samples in `hot`, 40 in `query`, of two processes; of one two threads.
fn two_processes() -> Look {
    look(&[
        (60, &[HOT, MAIN], 7, 7),
        (30, &[QUERY, MAIN], 7, 8),
        (10, &[QUERY, MAIN], 9, 9),
    ])
}

fn top(looks: impl IntoIterator<Item = Look>) -> Top {
    let mut top = Top::new(SystemTime::UNIX_EPOCH, None);
    for look in looks {
        top.add(look);
    }
    top
}

fn names(top: &Top, choice: &Choice) -> Vec<(String, f64, f64)> {
    let rows = top.rows(choice);
    let row = |row: &Row<'_>| (row.function(choice), row.own_percent, row.total_percent);
    rows.iter().map(row).collect()
}

/// What the screen shows, a line each, without spaces at their ends.
fn picture(top: &Top, ui: &mut Ui, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, top, ui)).unwrap();
    let buffer = terminal.backend().buffer();
    let rows = buffer.content.chunks(usize::from(width));
    rows.map(|cells| {
        let line: String = cells.iter().map(ratatui::buffer::Cell::symbol).collect();
        line.trim_end().to_owned()
    })
    .collect()
}

fn press(ui: &mut Ui, top: &Top, keys: &str) -> Outcome {
    let mut outcome = Outcome::Redraw;
    for char in keys.chars() {
        let code = match char {
            '\t' => KeyCode::Tab,
            '\n' => KeyCode::Enter,
            '\x1b' => KeyCode::Esc,
            '\x7f' => KeyCode::Backspace,
            '↓' => KeyCode::Down,
            '↑' => KeyCode::Up,
            char => KeyCode::Char(char),
        };
        outcome = ui.on_key(KeyEvent::new(code, KeyModifiers::NONE), top);
    }
    outcome
}

#[test]
fn percent_are_of_one_cpu_in_the_last_look_and_times_since_the_begin() {
    let idle = look(&[]);
    let top = top([two_processes(), two_processes(), idle]);
    let rows = top.rows(&Choice {
        sort: SortKey::OwnTime,
        ..Choice::default()
    });
    assert_eq!(rows[0].place.name.as_ref(), "hot");
    assert!(rows.iter().all(|row| row.total_percent == 0.0));
    assert_eq!(rows[0].whole.own, 1_200_000_000);
    let of_all = Choice {
        span: Span::Whole,
        ..Choice::default()
    };
    let rows = names(&top, &of_all);
    assert_eq!(rows[0], ("hot (srv/app.py:11)".to_owned(), 40.0, 40.0));
}

#[test]
fn a_recursion_counts_once_and_lines_of_a_function_are_one() {
    let top = top([look(&[(50, &[HOT, HOT_ELSEWHERE, HOT, MAIN], 7, 7)])]);
    let lines = names(&top, &Choice::default());
    let expected = [
        ("hot (srv/app.py:11)".to_owned(), 50.0, 50.0),
        ("hot (srv/app.py:12)".to_owned(), 0.0, 50.0),
        ("main (srv/app.py:5)".to_owned(), 0.0, 50.0),
    ];
    assert_eq!(lines, expected);
    let by_function = Choice {
        by_function: true,
        ..Choice::default()
    };
    let expected = [
        ("hot (srv/app.py:10)".to_owned(), 50.0, 50.0),
        ("main (srv/app.py:1)".to_owned(), 0.0, 50.0),
    ];
    assert_eq!(names(&top, &by_function), expected);
}

#[test]
fn two_threads_can_have_more_than_one_cpu() {
    let top = top([look(&[(100, &[HOT, MAIN], 7, 7), (90, &[HOT, MAIN], 7, 8)])]);
    let of_all = ("hot (srv/app.py:11)".to_owned(), 190.0, 190.0);
    assert_eq!(names(&top, &Choice::default())[0], of_all);
    let by_thread = Choice {
        by_thread: true,
        ..Choice::default()
    };
    let rows = names(&top, &by_thread);
    assert_eq!((rows[0].1, rows[1].1), (100.0, 90.0));
}

#[test]
fn each_key_orders_by_its_column() {
    // `query` was the hottest before, `hot` is now; `main` calls both.
    let before = look(&[(90, &[QUERY, MAIN], 7, 7)]);
    let top = top([before, look(&[(20, &[HOT, MAIN], 7, 7)])]);
    let mut ui = Ui::default();
    for (key, first) in [
        ("1", "hot"),
        ("2", "hot"),
        ("3", "Model.query"),
        ("4", "main"),
    ] {
        press(&mut ui, &top, key);
        assert_eq!(top.rows(&ui.choice)[0].place.name.as_ref(), first, "{key}");
    }
}

#[test]
fn everything_is_there_at_60_columns() {
    let mut ui = Ui::default();
    let picture = picture(&top([two_processes()]), &mut ui, 60, 16);
    assert_eq!(picture[0], format!("pyagent top: 2 processes{:>36}", "1 s"));
    assert_eq!(picture[1], "100 samples/s at 100 Hz, lost 0; GIL not told");
    assert!(
        picture[2].starts_with("on CPU 50.0 % of 2 CPUs "),
        "{picture:?}"
    );
    assert!(picture[2].ends_with('█'), "{picture:?}");
    assert_eq!(picture[3], "");
    assert_eq!(
        picture[4..8],
        [
            "   %Own  %Total  OwnTime TotalTime  Function (file:line)",
            "  60.0%   60.0%    0.60s     0.60s  hot (srv/app.py:11)",
            "  40.0%   40.0%    0.40s     0.40s  Model.query…model.py:4)",
            "   0.0%  100.0%    0.00s     1.00s  main (srv/app.py:5)",
        ]
    );
    assert!(picture[15].starts_with("q quit  ? help"), "{picture:?}");
}

#[test]
fn threads_have_a_column_where_there_is_room_for_it() {
    let mut ui = Ui::default();
    let top = top([two_processes()]);
    press(&mut ui, &top, "t");
    let wide = picture(&top, &mut ui, 120, 10);
    assert_eq!(
        wide[5],
        "  60.0%   60.0%    0.60s     0.60s  7 Worker-7              hot (srv/app.py:11)"
    );
    assert_eq!(
        wide[6],
        "  30.0%   30.0%    0.30s     0.30s  7/8 Worker-8            Model.query (web/model.py:4)"
    );
    let narrow = picture(&top, &mut ui, 60, 10);
    assert!(
        narrow[5].starts_with("  60.0%   60.0%    0.60s     0.60s  7 Worker-7  hot"),
        "{narrow:?}"
    );
}

#[test]
fn a_process_is_taken_from_the_list_and_left_again() {
    let mut ui = Ui::default();
    let top = top([two_processes()]);
    press(&mut ui, &top, "\t");
    let list = picture(&top, &mut ui, 60, 12);
    assert!(list[5].starts_with("     all  100.0%    1.00s"), "{list:?}");
    assert!(list[6].starts_with("       7   90.0%    0.90s"), "{list:?}");
    assert!(list[7].starts_with("       9   10.0%    0.10s"), "{list:?}");
    press(&mut ui, &top, "↓↓↓\n");
    let shown = picture(&top, &mut ui, 60, 12);
    assert!(
        shown[0].starts_with("pyagent top: python3 (9)"),
        "{shown:?}"
    );
    assert!(shown[2].starts_with("on CPU 5.0 % of 2 CPUs"), "{shown:?}");
    assert!(shown[5].starts_with("  10.0%   10.0%"), "{shown:?}");
    press(&mut ui, &top, "\x1b");
    assert_eq!(ui.choice.pid, None);
    press(&mut ui, &top, "\t↓↑\n");
    assert_eq!(ui.choice.pid, None);
}

#[test]
fn a_filter_is_typed_kept_and_taken_back() {
    let mut ui = Ui::default();
    let top = top([two_processes()]);
    press(&mut ui, &top, "/QUERIES\x7f\x7f\x7f");
    let typing = picture(&top, &mut ui, 60, 10);
    assert_eq!(typing[3], "filter: QUER");
    assert!(typing[5].contains("Model.query"), "{typing:?}");
    assert_eq!(typing[6], "");
    // Keys are text while it is typed.
    assert_eq!(press(&mut ui, &top, "q"), Outcome::Redraw);
    assert!(picture(&top, &mut ui, 60, 10)[5].contains("nothing has this text"));
    press(&mut ui, &top, "\x7f\n");
    assert_eq!(ui.choice.filter, "QUER");
    press(&mut ui, &top, "\x1b");
    assert_eq!(ui.choice.filter, "");
    // Files count too.
    press(&mut ui, &top, "/model.py\n");
    assert_eq!(top.rows(&ui.choice).len(), 1);
    assert_eq!(press(&mut ui, &top, "q"), Outcome::Quit);
}

#[test]
fn a_paused_picture_stands_still_and_the_sampling_does_not() {
    let mut ui = Ui::default();
    let mut top = top([two_processes()]);
    press(&mut ui, &top, "p");
    top.add(look(&[(100, &[HOT, MAIN], 7, 7)]));
    let paused = picture(&top, &mut ui, 60, 10);
    assert!(paused[0].ends_with("PAUSED"), "{paused:?}");
    assert!(
        paused[5].starts_with("  60.0%   60.0%    0.60s"),
        "{paused:?}"
    );
    press(&mut ui, &top, "p");
    let going = picture(&top, &mut ui, 60, 10);
    assert!(
        going[5].starts_with(" 100.0%  100.0%    1.60s"),
        "{going:?}"
    );
}

#[test]
fn a_reset_forgets_what_was_seen() {
    let mut ui = Ui::default();
    let mut top = top([two_processes()]);
    assert_eq!(press(&mut ui, &top, "r"), Outcome::Reset);
    top.reset(SystemTime::UNIX_EPOCH, None);
    assert!(top.rows(&Choice::default()).is_empty());
    top.add(look(&[(10, &[HOT], 7, 7)]));
    assert_eq!(top.rows(&Choice::default())[0].whole.own, 100_000_000);
}

#[test]
fn a_process_that_has_ended_keeps_its_name_after_a_reset() {
    let mut top = top([two_processes()]);
    let listed = Listed {
        pid: 7,
        name: "web.py".to_owned(),
        python_version: "3.13".to_owned(),
    };
    top.add(Look {
        processes: Some(vec![listed.clone()]),
        ..two_processes()
    });
    top.add(Look {
        processes: Some(Vec::new()),
        ..look(&[])
    });
    let mut ui = Ui::default();
    ui.choice.pid = Some(7);
    assert_eq!(press(&mut ui, &top, "r"), Outcome::Reset);
    top.reset(SystemTime::UNIX_EPOCH, ui.choice.pid);
    let shown = picture(&top, &mut ui, 60, 12);
    assert!(
        shown[0].starts_with("pyagent top: web.py (7, Python 3.13, ended)"),
        "{shown:?}"
    );
    // The other one is forgotten.
    assert_eq!(top.processes.len(), 1);
    top.reset(SystemTime::UNIX_EPOCH, None);
    assert!(picture(&top, &mut ui, 60, 12)[0].contains("web.py"));
}

#[test]
fn in_a_report_the_head_stands_above_its_columns() {
    let mut ui = Ui::default();
    ui.choice.by_thread = true;
    let text = text(&top([two_processes()]), &ui);
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("Time  ") || line.contains('('))
        .collect();
    let [head, row] = [lines[0], lines[1]];
    assert_eq!(head.find("Function"), row.find("hot (srv"), "{text}");
    assert_eq!(head.find("Thread"), row.find("7 Worker-7"), "{text}");
}

#[test]
fn the_gil_has_a_share_only_where_it_is_known() {
    let vitals = |known, held| {
        Some(Vitals {
            n_gil_known: Some(known),
            n_gil_held: held,
            ..Vitals::default()
        })
    };
    let mut top = Top::new(SystemTime::UNIX_EPOCH, vitals(1000, 900));
    let with = |known, held| Look {
        vitals: vitals(known, held),
        ..two_processes()
    };
    top.add(with(1100, 920));
    assert_eq!(top.gil_share(Span::Last), Gil::Share(0.2));
    top.add(with(1200, 1020));
    assert_eq!(top.gil_share(Span::Last), Gil::Share(1.0));
    assert_eq!(top.gil_share(Span::Whole), Gil::Share(0.6));
    top.add(with(1200, 1020));
    assert_eq!(top.gil_share(Span::Last), Gil::Unknown);
    top.add(Look {
        profile: None,
        ..with(1200, 1020)
    });
    assert_eq!(top.gil_share(Span::Last), Gil::NoSamples);
}

#[test]
fn the_column_of_the_gil_is_there_where_it_is_known_and_fits() {
    let sample = |tid, n: i64| ResolvedSample {
        frames: vec![ResolvedFrame {
            function: Arc::new(ResolvedFunction::python("hot", "/srv/app.py", 10)),
            line: 11,
            address: 0,
        }],
        labels: Arc::new(ThreadLabels {
            process: Arc::new(ProcessLabels::of_pid(7)),
            tid,
            started_ns: 0,
            thread_name: "T".into(),
        }),
        values: [n, n * PERIOD_NS].into(),
        instruction: None,
    };
    let mut aggregator =
        Aggregator::new(SystemTime::UNIX_EPOCH, &ValueType::CPU_SAMPLES, PERIOD_NS);
    for (tid, n, holds_gil) in [(7, 30, Some(true)), (8, 20, Some(false)), (9, 5, None)] {
        let taken = Taken {
            holds_gil,
            at_ns: None,
        };
        aggregator.add_taken(&sample(tid, n), taken);
    }
    let known = Look {
        profile: Some(aggregator.finish(Duration::from_secs(1), Vec::new())),
        ..look(&[])
    };
    let top = top([known]);
    let mut by_thread = Ui::default();
    by_thread.choice.by_thread = true;
    let shown = picture(&top, &mut by_thread, 100, 12);
    assert!(shown[4].contains("%GIL"), "{shown:?}");
    for (row, percent) in shown[5..8].iter().zip([" 30.0%", "  0.0%", "     -"]) {
        assert_eq!(&row[34..41], format!(" {percent}"), "{shown:?}");
    }
    let mut ui = Ui::default();
    press(&mut ui, &top, "5");
    assert_eq!(top.rows(&ui.choice)[0].gil_percent, Some(30.0));
    assert!(!picture(&top, &mut ui, 79, 12)[4].contains("%GIL"));
    assert_eq!(json(&top, &ui)["functions"][0]["gil_percent"], 30.0);
    assert!(text(&top, &ui).contains("  30.0%  hot (srv/app.py:11)"));
}

#[test]
fn what_has_ended_stays_and_says_so() {
    let mut ui = Ui::default();
    let mut top = top([look(&[(60, &[HOT, MAIN], 7, 7)])]);
    top.end("process 7 has ended".to_owned());
    let picture = picture(&top, &mut ui, 60, 10);
    assert!(
        picture[0].starts_with("pyagent top: python3 (7, ended)"),
        "{picture:?}"
    );
    assert_eq!(picture[3], "process 7 has ended");
    assert!(picture[5].contains("hot (srv/app.py:11)"), "{picture:?}");
}

#[test]
fn no_size_and_no_name_breaks_the_picture() {
    let hostile: At = (
        "\x1b[2J\u{202e}evil\n日本語日本語日本語日本語日本語",
        "\x07\r/x.py",
        1,
        2,
    );
    let top = top([look(&[(50, &[hostile, MAIN], 7, 7)]), two_processes()]);
    for keys in ["", "t", "\t", "?", "x/evil", "日本語日本語日本語\n"] {
        for width in [1, 2, 9, 20, 33, 35, 37, 45, 59, 60, 120, 400] {
            for height in [1, 2, 4, 5, 6, 7, 24] {
                let mut ui = Ui::default();
                press(&mut ui, &top, keys);
                for line in picture(&top, &mut ui, width, height) {
                    assert!(!line.contains(char::is_control), "{line:?}");
                }
            }
        }
    }
    for line in text(&top, &Ui::default()).lines() {
        assert!(!line.contains(char::is_control), "{line:?}");
    }
}

#[test]
fn the_report_has_what_was_asked_for_and_says_what_is_left_out() {
    let ui = Ui {
        top: Some(1),
        ..Ui::default()
    };
    let top = top([two_processes(), look(&[])]);
    let report = text(&top, &ui);
    assert!(
        report.starts_with("100 samples of 2 processes in 2 s\n"),
        "{report}"
    );
    assert!(
        report.contains("\n50 samples/s at 100 Hz, lost 0; GIL not told\n"),
        "{report}"
    );
    assert!(
        report.contains("\non CPU 25.0 % of 2 CPUs; waiting is not in it\n"),
        "{report}"
    );
    assert!(
        report.contains("\n  30.0%   30.0%    0.60s     0.60s  hot (srv/app.py:11)\n1 of 3 rows"),
        "{report}"
    );
    let json = json(&top, &ui);
    assert_eq!(json["functions"].as_array().unwrap().len(), 1);
    assert_eq!(json["functions"][0]["own_percent"], 30.0);
    assert_eq!(json["processes"][0]["cpu_percent"], 45.0);
    assert_eq!(json["gil_percent"], serde_json::Value::Null);
    assert_eq!(json["on_cpu_percent"], 25.0);
}

#[test]
fn more_threads_than_are_kept_are_counted_together() {
    let mut top = Top::new(SystemTime::UNIX_EPOCH, None);
    let stacks: Vec<Samples<'_>> = (1..40_000).map(|tid| (1, &[HOT][..], tid, tid)).collect();
    top.add(look(&stacks));
    let own: i64 = top
        .rows(&Choice::default())
        .iter()
        .map(|row| row.whole.own)
        .sum();
    assert_eq!(own, 39_999 * PERIOD_NS);
    assert!(top.kept.threads.len() <= 1 << 14);
    top.add(Look {
        processes: Some(Vec::new()),
        ..look(&[])
    });
    assert!(top.processes.len() <= MAX_PROCESSES);
}
