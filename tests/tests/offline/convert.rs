//! `pyagent convert`: what goes in comes out in another format, and what cannot is said in a line.

use std::fs;
use std::process::Output;

use pyagent_tests::pyagent::{run, text};
use pyagent_tests::samples::{build, bytes, program};

const FOLDED: &str = "main (/a.py:3);f (/a.py:9) 2\nmain (/a.py:4);f (/a.py:9) 3\nmain (/a.py:4);[libz.so.1] deflate 1\n";

fn convert(arguments: &[&str], input: &[u8]) -> Output {
    run("convert", arguments, input)
}

#[test]
fn a_profile_that_is_converted_there_and_back_is_the_same() {
    let pprof = bytes("pprof", &build(&program()));
    let folded = convert(&["-", "--format", "folded", "-o", "-"], &pprof);
    let expected = String::from_utf8(bytes("folded", &build(&program()))).unwrap();
    assert_eq!(text(&folded), expected);
    let again = convert(&["-", "--format", "pprof", "-o", "-"], &pprof);
    let folded = convert(&["-", "--format", "folded", "-o", "-"], &again.stdout);
    assert_eq!(text(&folded), expected);
    // A file's name says the format, and nothing is on standard output.
    let folder = tempfile::tempdir().unwrap();
    let (path, out) = (folder.path().join("in"), folder.path().join("out.folded"));
    fs::write(&path, &pprof).unwrap();
    let named = [path.to_str().unwrap(), "-o", out.to_str().unwrap()];
    assert_eq!(text(&convert(&named, b"")), "");
    assert_eq!(fs::read_to_string(&out).unwrap(), expected);
}

#[test]
fn lines_and_machine_code_can_be_left_out() {
    let folded = |more: &[&str]| {
        let arguments = [&["-", "--format", "folded", "-o", "-"], more].concat();
        text(&convert(&arguments, FOLDED.as_bytes()))
    };
    assert_eq!(
        folded(&["--nolineno"]),
        "main (/a.py);[libz.so.1] deflate 1\nmain (/a.py);f (/a.py) 5\n"
    );
    assert_eq!(
        folded(&["--no-native"]),
        "main (/a.py:3);f (/a.py:9) 2\nmain (/a.py:4) 1\nmain (/a.py:4);f (/a.py:9) 3\n"
    );
    // py-spy's word for what is shown anyway.
    assert_eq!(folded(&["--native"]), folded(&[]));
    // pprof says where functions begin.
    let pprof = bytes("pprof", &build(&program()));
    let arguments = ["-", "--function", "--format", "folded", "-o", "-"];
    let folded = text(&convert(&arguments, &pprof));
    assert!(folded.contains("main (/srv/app.py:2);fib.<locals>.step (/srv/app.py:11);"));
    assert!(!folded.contains("/srv/app.py:12"), "{folded}");
}

#[test]
fn what_cannot_be_done_is_said_in_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.svg");
    let out = out.to_str().unwrap();
    let cases: [(&[&str], &[u8], i32, &str); 7] = [
        (&["-"], b"", 2, "where to?"),
        (&["-", "-o", "x.json"], b"", 2, "several formats"),
        (
            &["-", "-o", "x.svg", "--format", "nosuch"],
            b"",
            2,
            "there is no format",
        ),
        (&["/nosuch.pb.gz", "-o", out], b"", 1, "/nosuch.pb.gz"),
        (&["-", "-o", out], b"\x1f\x8bbroken", 1, "unpacked"),
        (&["-", "-o", out], b"", 1, "empty"),
        (&["-", "-o", "/nosuch/x.svg"], b"a 1\n", 1, "/nosuch"),
    ];
    for (arguments, input, code, part) in cases {
        let output = convert(arguments, input);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(part), "{arguments:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    assert!(fs::read_dir(folder.path()).unwrap().next().is_none());
}

#[test]
fn threads_stand_at_the_roots_and_files_have_their_whole_paths() {
    let pprof = bytes("pprof", &build(&program()));
    let folded = |more: &[&str], input: &[u8]| {
        let arguments = [&["-", "--format", "folded", "-o", "-"], more].concat();
        text(&convert(&arguments, input))
    };
    let threads = folded(&["--threads"], &pprof);
    // py-spy's texts; thread 8 has no name. A number behind a space would be taken for a count.
    for root in [
        ";thread (7): нить_7;",
        ";thread (8);",
        ";thread (9): нить_9",
    ] {
        assert!(threads.contains(root), "{root}: {threads}");
    }
    let sum = |text: &str| -> i64 {
        let counts = text.lines().map(|line| line.rsplit_once(' ').unwrap().1);
        counts.map(|count| count.parse::<i64>().unwrap()).sum()
    };
    assert_eq!(sum(&threads), sum(&folded(&[], &pprof)));
    let of_8 = |line: &&str| line.contains(";thread (8)");
    let of_8: Vec<&str> = threads.lines().filter(of_8).collect();
    assert_eq!(sum(&of_8.join("\n")), 55, "{threads}");
    // Twice changes nothing but the depth: what was read is a frame like others.
    let library = "f (/usr/lib/python3/dist-packages/sql/db.py:8) 3\n";
    assert_eq!(folded(&[], library.as_bytes()), "f (sql/db.py:8) 3\n");
    assert_eq!(folded(&["--full-filenames"], library.as_bytes()), library);
}
