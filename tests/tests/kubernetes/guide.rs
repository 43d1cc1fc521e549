//! docs/kubernetes.md, followed word for word: what it tells to type works on a new cluster, from the installation to the end.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use pyagent_tests::cluster::Cluster;
use pyagent_tests::pyagent::binary;

/// The chapters that a reader can type as they are; the others have names of the reader's own in them.
const CHAPTERS: [&str; 3] = ["## Install", "## The whole cluster", "## Remove"];

/// Blocks of commands of a chapter: lines that are indented by four blanks.
fn commands(guide: &str, chapter: &str) -> Vec<String> {
    let (_, text) = guide
        .split_once(&format!("{chapter}\n"))
        .unwrap_or_else(|| panic!("there is no {chapter}"));
    let text = text.split("\n## ").next().unwrap();
    let mut blocks = Vec::new();
    let mut block = String::new();
    for line in text.lines() {
        match line.strip_prefix("    ") {
            Some(line) => writeln!(block, "{line}").unwrap(),
            None if block.is_empty() => {}
            None => blocks.push(std::mem::take(&mut block)),
        }
    }
    blocks.extend((!block.is_empty()).then_some(block));
    assert!(!blocks.is_empty(), "{chapter}");
    blocks
}

#[test]
fn every_command_of_the_guide_works_as_it_stands() {
    let Some(cluster) = Cluster::get() else {
        return;
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let guide = fs::read_to_string(root.join("docs/kubernetes.md")).unwrap();
    // Where the reader stands: what is written goes elsewhere.
    let folder = tempfile::tempdir().unwrap();
    symlink(
        root.canonicalize().unwrap().join("deploy"),
        folder.path().join("deploy"),
    )
    .unwrap();
    // The guide's own program.
    cluster.deploy_program("default", "shop");
    let programs = binary().parent().unwrap().display();
    for chapter in CHAPTERS {
        for block in commands(&guide, chapter) {
            // The reader's Ctrl-C.
            let typed = block.replace(
                "pyagent top",
                "timeout --preserve-status --signal=INT 10 pyagent top",
            );
            let mut shell = cluster.command("bash");
            shell
                .args(["-euo", "pipefail", "-c"])
                .arg(format!("export PATH={programs}:$PATH\n{typed}"))
                .current_dir(folder.path());
            let output = shell.output().unwrap();
            let said = [output.stdout, output.stderr]
                .map(|text| String::from_utf8_lossy(&text).into_owned())
                .concat();
            assert!(
                output.status.success(),
                "{chapter}: {block}{said}\n{}",
                cluster.state()
            );
            eprintln!("{block}{said}");
        }
    }
    for file in ["cpu.html", "shop.pb.gz"] {
        let written = fs::metadata(folder.path().join(file)).unwrap();
        assert!(written.len() > 1000, "{file}");
    }
}
