//! The tables of opcodes against the interpreters, each of which prints its own.

use std::process::Command;

use profiler_agent::python::layout::Version;
use profiler_agent::python::opcodes::opcodes;
use pyagent_tests::interpreters::found;

const PRINTS: &str = include_str!("../../workloads/opcodes.py");

#[test]
fn every_interpreter_has_the_opcodes_of_its_table() {
    for python in found() {
        let (major, minor) = python.minor();
        let Some(opcodes) = opcodes(Version::of_minor(major, minor)) else {
            assert!((major, minor) < (3, 8), "{:?} has no table", python.version);
            continue;
        };
        let output = Command::new(&python.path)
            .args(["-I", "-S", "-c", PRINTS])
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{:?}: {errors}", python.version);
        let text = String::from_utf8(output.stdout).unwrap();
        let mut n_specialized = 0;
        let mut numbers = Vec::new();
        for line in text.lines().skip(1) {
            let words: Vec<&str> = line.split(' ').collect();
            let number: u8 = words[0].parse().unwrap();
            let known = opcodes
                .get(number)
                .unwrap_or_else(|| panic!("{:?}: no {line}", python.version));
            let n_cache_entries = known
                .n_cache_entries
                .map_or("?".to_owned(), |n| n.to_string());
            let shown = format!("{number} {} {n_cache_entries} {}", known.name, known.base);
            assert_eq!(shown, line, "{:?}", python.version);
            n_specialized += u32::from(known.base != number);
            numbers.push(number);
        }
        let more: Vec<u8> = (0..=255)
            .filter(|number| opcodes.get(*number).is_some() && !numbers.contains(number))
            .collect();
        assert!(more.is_empty(), "{:?} has not {more:?}", python.version);
        assert_eq!(n_specialized > 50, minor >= 11, "{:?}", python.version);
        println!(
            "{:?} {}: {} opcodes, {n_specialized} forms",
            python.version,
            python.build,
            numbers.len()
        );
    }
}
