//! `pyagent report` over files: what it prints, and what it says of files that are none.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use profiler_agent::format::Format;
use profiler_agent::format::read::read;
use pyagent_tests::pyagent::{binary, run, text};
use pyagent_tests::samples::{FILLED, FILLING, build, bytes, memory, program};
use serde_json::Value;

/// What py-spy writes of a program (`--format raw`).
const STACKS: &str = "\
<module> (app.py:20);main (app.py:15);render (web/view.py:7) 60
<module> (app.py:20);main (app.py:16);query (web/model.py:9);connect (/usr/lib/python3/dist-packages/sql/db.py:88) 30
<module> (app.py:20);main (app.py:17) 10
";

fn report(arguments: &[&str], input: &[u8]) -> Output {
    run("report", arguments, input)
}

/// The stacks as pyagent writes them.
fn pprof() -> Vec<u8> {
    let mut written = Vec::new();
    let profile = read(STACKS.as_bytes()).unwrap();
    let format = Format::from_name("pprof").unwrap();
    format.write(&profile, &mut written).unwrap();
    written
}

#[test]
fn files_of_each_format_that_is_read_show_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let folded = folder.path().join("app.folded");
    fs::write(&folded, STACKS).unwrap();
    let pprof = pprof();
    let packed = folder.path().join("app.pb.gz");
    fs::write(&packed, &pprof).unwrap();
    let of_folded = text(&report(&[folded.to_str().unwrap()], b""));
    assert_eq!(of_folded, text(&report(&[packed.to_str().unwrap()], b"")));
    assert_eq!(of_folded, text(&report(&["-"], &pprof)));
    let lines: Vec<&str> = of_folded
        .lines()
        .filter(|line| line.contains('%'))
        .collect();
    assert!(
        lines[1].ends_with(" 60.0%          60   60.0%  render  web/view.py"),
        "{of_folded}"
    );
    assert!(
        lines[2].ends_with(" 30.0%          30   30.0%  connect  sql/db.py"),
        "{of_folded}"
    );
    assert!(
        lines[3].ends_with(" 10.0%         100  100.0%  main  app.py"),
        "{of_folded}"
    );
}

#[test]
fn each_view_prints_text_and_json() {
    for (arguments, part) in [
        (&["--functions"][..], "render"),
        (&["--callers", "connect"], "query  web/model.py"),
        (&["--callees", "main"], "render  web/view.py"),
        (&["--tree"], "60  60.0%  render"),
        (&["--processes"], "100.0%"),
        (&["--threads"], "100.0%"),
    ] {
        let all = [&["-"], arguments].concat();
        let printed = text(&report(&all, STACKS.as_bytes()));
        assert!(printed.contains(part), "{arguments:?}: {printed}");
        // What is counted is not said in such a file.
        assert!(
            !printed.contains('\x1b') && !printed.contains("CPU"),
            "{printed}"
        );
        let all = [&["-", "--json"], arguments].concat();
        let document: Value =
            serde_json::from_str(&text(&report(&all, STACKS.as_bytes()))).unwrap();
        assert_eq!(document["total"], 100, "{arguments:?}");
    }
}

#[test]
fn what_cannot_be_shown_is_one_line_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let cut = folder.path().join("cut.pb.gz");
    let pprof = pprof();
    fs::write(&cut, &pprof[..pprof.len() / 2]).unwrap();
    let (cut, folder) = (cut.to_str().unwrap(), folder.path().to_str().unwrap());
    for (arguments, code, part) in [
        (&["nosuch.pb.gz"][..], 1, "nosuch.pb.gz"),
        (&[cut], 1, "unpacked"),
        (&[folder], 1, "cannot read"),
        (&["-", "--sort", "speed"], 2, "tottime, time"),
        (&["-", "1.5"], 2, "between 0.0 and 1.0"),
        (&["-", "("], 2, "regular expression"),
        (&["-", "--last", "5m"], 2, "agents"),
        (&["-", "--value", "alloc_space"], 2, "it has samples"),
        (&["-", "--tree", "--callers"], 2, "cannot be used with"),
        (&["-", "--by", "comm"], 4, "the samples have no labels"),
        (
            &["-", "--filter", "nosuch=."],
            4,
            "no sample has the label `nosuch`",
        ),
        (&["-", "--label", "\u{1b}[2J=."], 4, "`\\u{1b}[2J`"),
        (&["-", "--html"], 2, "--lines"),
        (&["-", "--hide", "x"], 2, "--tree"),
        (&["-", "--show", "x"], 2, "--tree"),
        (&["-", "--callers", "--show-all"], 2, "--tree"),
        (&["-", "--threads", "nosuch"], 4, "no row matches"),
        (
            &["-", "--tree", "nosuch"],
            4,
            "no function matches `nosuch`",
        ),
        (
            &["-", "--tree", "query", "nosuch"],
            4,
            "no function matches `nosuch`",
        ),
        (&["-", "-o", "x.html"], 2, "--lines --html"),
        (
            &["-", "--lines", "--html", "--json"],
            2,
            "cannot be used with",
        ),
        (
            &["-", "--lines", "--html", "-o", "/nosuch/x.html"],
            1,
            "/nosuch",
        ),
        (&["-", "--subprocesses"], 2, "is for what is recorded"),
        (&["-", "--native", "--no-native"], 2, "cannot be used with"),
        (&["127.0.0.1:1", "--last", "5m"], 1, "no agent answers"),
    ] {
        let output = report(arguments, STACKS.as_bytes());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
        assert!(errors.contains(part), "{arguments:?}: {errors}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_reader_that_goes_is_no_error() {
    let mut child = Command::new(binary())
        .args(["report", "-", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    child
        .stdin
        .take()
        .unwrap()
        .write_all(STACKS.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{errors}");
}

#[test]
fn the_source_is_shown_with_what_each_line_takes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("app.py");
    let source = "\
import zlib

def work(data):
    total = 0
    for byte in data:
        total += byte
    return zlib.compress(data), helper(total)

def helper(total):
    return total * 2
";
    fs::write(&file, source).unwrap();
    let file = file.display();
    // 100 samples: 20 in the loop, 50 in its body, 25 in zlib, 3 in the kernel, 2 in what it calls.
    let stacks = format!(
        "work ({file}:5) 20\nwork ({file}:6) 50\nwork ({file}:7);[libz.so.1] deflate 25\n\
         work ({file}:7);copy_[k] 3\nwork ({file}:7);helper ({file}:10) 2\n"
    );
    let printed = text(&report(&["-", "--lines", "work"], stacks.as_bytes()));
    let rows: Vec<Vec<&str>> = printed
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let row = |number: &str| {
        let found = rows.iter().find(|row| row.first() == Some(&number));
        found
            .unwrap_or_else(|| panic!("{number} in {printed}"))
            .clone()
    };
    assert!(
        printed.contains(": 98 of its own, 100 in all (100.0%)\n"),
        "{printed}"
    );
    assert_eq!(row("3"), ["3", "def", "work(data):"]);
    assert_eq!(
        row("5"),
        ["5", "20", "20.0%", "20", "for", "byte", "in", "data:"]
    );
    assert_eq!(row("6"), ["6", "50", "50.0%", "50", "total", "+=", "byte"]);
    assert_eq!(row("7")[..5], ["7", "30", "30.0%", "25", "3"]);
    // It ends where the next one begins.
    assert!(
        !rows.iter().any(|row| row.first() == Some(&"9")),
        "{printed}"
    );
    let document: Value = serde_json::from_str(&text(&report(
        &["-", "--lines", "--json"],
        stacks.as_bytes(),
    )))
    .unwrap();
    let work = &document["lines"][0];
    assert_eq!(
        (&work["function"], &work["self"]),
        (&"work".into(), &98.into())
    );
    assert_eq!(work["lines"][2]["native"], 25);
    assert_eq!(
        work["lines"][2]["source"],
        "    return zlib.compress(data), helper(total)"
    );
    // Without the file the figures are there still.
    drop(folder);
    let printed = text(&report(&["-", "--lines", "work"], stacks.as_bytes()));
    assert!(
        printed.contains("the source is not here (there is no such file"),
        "{printed}"
    );
    assert!(printed.contains("       6         50   50.0%"), "{printed}");
}

#[test]
fn restrictions_mean_rows_of_threads_and_stacks_of_the_tree() {
    let pprof = bytes("pprof", &build(&program()));
    let threads = |restrictions: &[&str]| {
        let arguments = [&["-", "--threads", "--json"], restrictions].concat();
        let document: Value = serde_json::from_str(&text(&report(&arguments, &pprof))).unwrap();
        let rows = document["by"].as_array().unwrap();
        let tid = |row: &Value| row["labels"]["tid"].as_str().unwrap().to_owned();
        rows.iter().map(tid).collect::<Vec<_>>()
    };
    assert_eq!(threads(&[]), ["7", "8", "9"]);
    assert_eq!(threads(&["2"]), ["7", "8"]);
    assert_eq!(threads(&["0.3"]), ["7"]);
    assert_eq!(threads(&["^9 "]), ["9"]);
    let tree = |restrictions: &[&str]| {
        let arguments = [&["-", "--tree", "--json"], restrictions].concat();
        let document: Value =
            serde_json::from_str(&text(&report(&arguments, STACKS.as_bytes()))).unwrap();
        let rows = document["tree"].as_array().unwrap().clone();
        let row = |row: &Value| {
            let name = row["function"].as_str().unwrap_or("").to_owned();
            (name, row["total"].as_i64().unwrap(), row["parent"].as_u64())
        };
        rows.iter().map(row).collect::<Vec<_>>()
    };
    let row = |name: &str, total, parent| (name.to_owned(), total, parent);
    let query = [
        row("", 30, None),
        row("<module>", 30, Some(0)),
        row("main", 30, Some(1)),
        row("query", 30, Some(2)),
        row("connect", 30, Some(3)),
    ];
    assert_eq!(tree(&["query"]), query);
    assert_eq!(tree(&["query", "connect", "2"]), query[..3]);
    assert_eq!(tree(&["query", "--top", "3"]), query[..4]);
    assert_eq!(tree(&[]).len(), 6);
    // 30 of 100 in one file, 60 in another: no stack goes through both.
    let printed = text(&report(
        &["-", "--tree", "query", "render"],
        STACKS.as_bytes(),
    ));
    assert!(
        printed.ends_with("not shown: stacks without what was asked for, 100.0%\n"),
        "{printed}"
    );
}

#[test]
fn a_source_that_is_no_text_is_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("app.py");
    fs::write(&file, b"def work():\n    secret = 1\0\n").unwrap();
    let stacks = format!("work ({}:2) 20\n", file.display());
    let printed = text(&report(&["-", "--lines"], stacks.as_bytes()));
    assert!(
        printed.contains("the source is not here (it is no text): ") && !printed.contains("secret"),
        "{printed}"
    );
}

#[test]
fn labels_that_there_are_stand_in_the_refusal_of_others() {
    let pprof = bytes("pprof", &build(&program()));
    for arguments in [
        &["-", "--filter", "nosuch=x"][..],
        &["-", "--by", "comm,nosuch"],
        &["-", "--tree", "--json", "--label", "nosuch=x"],
    ] {
        let output = report(arguments, &pprof);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{errors}");
        assert!(
            errors.contains("`nosuch`; there are comm, pid, python_version, thread_name, tid"),
            "{errors}"
        );
        assert_eq!((errors.lines().count(), output.stdout.len()), (1, 0));
    }
    assert!(text(&report(&["-", "--by", "comm,tid"], &pprof)).contains("python3"));
}

#[test]
fn a_profile_of_memory_shows_what_lines_allocate_and_keep() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("fill.py");
    fs::write(&file, FILLING).unwrap();
    let pprof = bytes("pprof", &memory(file.display().to_string().leak()));
    let printed = text(&report(&["-", "--lines", "--value", "inuse_space"], &pprof));
    let row = |label: &str| {
        let rows = printed
            .lines()
            .map(|it| it.split_whitespace().collect::<Vec<_>>());
        let found = rows.into_iter().find(|row| row.first() == Some(&label));
        found.unwrap_or_else(|| panic!("{label} in {printed}"))
    };
    let head = "line in use % of its own allocated at peak temporary objects source";
    assert_eq!(row("line").join(" "), head);
    let mib = "MiB";
    assert_eq!(
        row("2")[..11],
        [
            "2", "10.0", mib, "71.4%", "10.0", mib, "10.0", mib, "10.0", mib, "10"
        ]
    );
    // Line 3 gave everything back; the objects of line 4 are those of what it calls.
    let line = "3 0 B 0.0% 50.0 MiB 512.0 KiB 50.0 MiB 100 bytes(1 << 19)";
    assert_eq!(row("3").join(" "), line);
    let line = "4 4.0 MiB 28.6% 6.0 MiB 6.0 MiB 3 part(cache)";
    assert_eq!(row("4").join(" "), line);
    assert!(
        printed.contains("changed after the profile was recorded"),
        "{printed}"
    );
    let document: Value =
        serde_json::from_str(&text(&report(&["-", "--lines", "--json"], &pprof))).unwrap();
    let fill = document["lines"].as_array().unwrap().iter();
    let fill = fill.clone().find(|it| it["function"] == "fill").unwrap();
    for (idx, kind) in (0..).zip([
        "alloc_objects",
        "alloc_space",
        "inuse_objects",
        "inuse_space",
        "peak_space",
        "temporary_space",
    ]) {
        for (line, row) in [(2, 0), (3, 1), (8, 2)] {
            let expected = FILLED.iter().find(|(it, _)| *it == line).unwrap().1[idx];
            assert_eq!(
                fill["lines"][row]["values"][kind], expected,
                "{kind} {line}"
            );
        }
    }
}

#[test]
fn places_are_short_whole_or_without_lines() {
    let pprof = bytes("pprof", &build(&program()));
    let folded = "f (/usr/lib/python3/dist-packages/sql/db.py:88) 3\n";
    let shown = |more: &[&str], input: &[u8]| text(&report(&[&["-"], more].concat(), input));
    assert!(shown(&[], &pprof).contains("main  /srv/app.py:2\n"));
    assert!(shown(&["--nolineno"], &pprof).contains("main  /srv/app.py\n"));
    assert!(shown(&["--tree", "--nolineno"], &pprof).contains("/srv/app.py"));
    assert!(shown(&[], folded.as_bytes()).contains("f  sql/db.py"));
    let whole = "f  /usr/lib/python3/dist-packages/sql/db.py";
    assert!(shown(&["--full-filenames"], folded.as_bytes()).contains(whole));
    assert!(shown(&["--callers", "--full-filenames"], folded.as_bytes()).contains(whole));
    // py-spy's word for what the table is anyway.
    assert_eq!(
        shown(&["--function"], &pprof),
        shown(&["--functions"], &pprof)
    );
    assert_eq!(shown(&["--no-native"], &pprof), shown(&[], &pprof));
    assert!(shown(&["--native"], &pprof).contains("deflate"));
    // Where lines are shown, machine code is the Python line's own time without it.
    let work = "work (/srv/a.py:7);[libz.so.1] deflate 5\n";
    let native = |more: &[&str]| {
        let more = [&["--lines", "--json"], more].concat();
        let document: Value = serde_json::from_str(&shown(&more, work.as_bytes())).unwrap();
        let line = &document["lines"][0]["lines"][0];
        (line["python"].clone(), line["native"].clone())
    };
    assert_eq!(native(&[]), (0.into(), 5.into()));
    assert_eq!(native(&["--no-native"]), (5.into(), 0.into()));
}
