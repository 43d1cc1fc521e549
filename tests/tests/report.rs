//! `pyagent report` over files: what it prints, and what it says of files that are none.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use profiler_agent::format::Format;
use profiler_agent::format::read::read;
use pyagent_tests::pyagent::binary;
use serde_json::Value;

/// What py-spy writes of a program (`--format raw`).
const STACKS: &str = "\
<module> (app.py:20);main (app.py:15);render (web/view.py:7) 60
<module> (app.py:20);main (app.py:16);query (web/model.py:9);connect (/usr/lib/python3/dist-packages/sql/db.py:88) 30
<module> (app.py:20);main (app.py:17) 10
";

fn report(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(binary())
        .arg("report")
        .args(arguments)
        .env_remove("PYAGENT_ADDR")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may have refused its arguments already.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// The stacks as pyagent writes them.
fn pprof() -> Vec<u8> {
    let mut bytes = Vec::new();
    let profile = read(STACKS.as_bytes()).unwrap();
    let format = Format::from_name("pprof").unwrap();
    format.write(&profile, &mut bytes).unwrap();
    bytes
}

fn text(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout.clone()).unwrap()
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
        (&["--by", "comm"], "no sample has such a label"),
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
    assert!(printed.contains("the source is not here: "), "{printed}");
    assert!(printed.contains("       6         50   50.0%"), "{printed}");
}
