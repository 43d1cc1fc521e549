//! What `-h` and `--help` of every verb say, compared with what they said before: a change shows in the review of its commit.
//! `INSTA_UPDATE=always cargo test --test offline help` writes it anew.

use std::process::Command;

use pyagent_tests::pyagent::binary;

const VERBS: [&str; 15] = [
    "",
    "record",
    "pull",
    "report",
    "convert",
    "diff",
    "stat",
    "top",
    "dump",
    "mem",
    "leaks",
    "heap",
    "doctor",
    "completions",
    "man",
];

fn said(verb: &str, flag: &str) -> String {
    let mut pyagent = Command::new(binary());
    pyagent.args(Some(verb).filter(|verb| !verb.is_empty()));
    let output = pyagent.arg(flag).env_clear().output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn help_says_what_it_said() {
    for verb in VERBS {
        let name = if verb.is_empty() { "pyagent" } else { verb };
        insta::assert_snapshot!(format!("{name}_short"), said(verb, "-h"));
        insta::assert_snapshot!(format!("{name}_long"), said(verb, "--help"));
    }
}

#[test]
fn every_verb_is_looked_at() {
    let help = said("", "-h");
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    let named = commands.lines().take_while(|line| !line.is_empty());
    let named = named.filter_map(|line| line.split_whitespace().next());
    let named: Vec<&str> = named.filter(|name| *name != "help").collect();
    assert_eq!(named, VERBS[1..]);
}

#[test]
fn shells_and_man_take_what_is_printed_for_them() {
    for shell in ["bash", "zsh", "fish"] {
        let text = said("completions", shell);
        assert!(
            text.contains("convert") && text.contains("all-python"),
            "{shell}"
        );
    }
    let mut bash = Command::new("bash");
    bash.args(["-n", "-c", &said("completions", "bash")]);
    assert!(bash.status().unwrap().success());
    for verb in &VERBS[1..] {
        let page = said("man", verb);
        assert!(page.contains(".TH pyagent"), "{verb}: {page}");
    }
}
