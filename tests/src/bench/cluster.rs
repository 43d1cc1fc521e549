//! What it costs to ask a whole cluster: time and memory of `pyagent pull --k8s` with 1 to 1,000 agents, which are the real service
//! over real connections and answer with profiles that were recorded before.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use profiler_agent::format::read::read;

use super::median;
use super::report::Section;
use crate::fake_agents::Behaviour;
use crate::fake_cluster::FakeCluster;
use crate::interpreters::Interpreter;

const N_AGENTS: [usize; 4] = [1, 10, 100, 1000];

/// Runs of each, of which the median counts.
const N_RUNS: usize = 3;

/// Python processes of a node.
const N_PROCESSES: usize = 20;

/// Names a profile that was recorded, to be taken in place of a new one.
const RECORDING: &str = "PYAGENT_BENCH_PROFILE";

const RECORDED: Duration = Duration::from_secs(20);

/// What the processes of a node do: the standard library at work, with its deep stacks and several threads.
const PROGRAM: &str = "
import ast, difflib, glob, json, os, pprint, re, sys, threading, tokenize, zlib
files = sorted(glob.glob(os.path.dirname(os.__file__) + '/*.py'))
def parse(text): return ast.dump(ast.parse(text))
def visit(text):
    class Names(ast.NodeVisitor):
        def visit_Name(self, node): self.generic_visit(node)
    Names().visit(ast.parse(text))
def compare(text): return list(difflib.unified_diff(text.split()[:400], text.split()[200:600]))
def dump(text): return json.loads(json.dumps({str(n): line for n, line in enumerate(text.split())}, indent=1))
def show(text): return pprint.pformat([list(line) for line in text.split()[:50]])
def search(text): return [re.findall(p, text) for p in (r'\\bdef (\\w+)', r'(\\w+)\\s*=\\s*(.+)$', r'#.*')]
def pack(text): return zlib.decompress(zlib.compress(text.encode(), 9))
work = [parse, visit, compare, dump, show, search, pack]
def run(first):
    n = first
    while True:
        with open(files[n % len(files)], encoding='utf-8', errors='replace') as file: text = file.read()
        work[n % len(work)](text)
        n += 1
for n in range(3): threading.Thread(target=run, args=(int(sys.argv[1]) + n,), daemon=True).start()
run(int(sys.argv[1]))
";

/// Processes that end with it.
struct Processes(Vec<Child>);

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It can have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The profile of a node, as an agent writes it: that of [`RECORDING`], else one that is made now.
fn recorded(interpreter: &Interpreter, pyagent: &Path, folder: &Path) -> Result<Vec<u8>> {
    if let Some(path) = std::env::var_os(RECORDING) {
        return fs::read(&path).with_context(|| format!("{RECORDING} names no file"));
    }
    let mut processes = Processes(Vec::new());
    for number in 0..N_PROCESSES {
        let mut python = Command::new(&interpreter.executable);
        python.args(["-c", PROGRAM, &(number * 11).to_string()]);
        python.stdout(Stdio::null());
        processes.0.push(python.spawn()?);
    }
    let path = folder.join("node.pb.gz");
    let mut record = Command::new(pyagent);
    record.args(["record", "--rate", "499", "--duration"]);
    record.arg(format!("{}s", RECORDED.as_secs()));
    for process in &processes.0 {
        record.args(["--pid", &process.id().to_string()]);
    }
    let output = record.arg("--output").arg(&path).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "pyagent record: {said}");
    Ok(fs::read(path)?)
}

/// Seconds, and the most memory in bytes.
fn run(cluster: &FakeCluster, arguments: &[&str]) -> Result<(f64, u64)> {
    let output = cluster.path("cluster.pb.gz");
    // One that was written before is not replaced by itself.
    let _ = fs::remove_file(&output);
    let begun = Instant::now();
    let mut command = cluster.command(&["pull", "--k8s", "-A", "--last", "10m", "-o"]);
    command.arg(&output).args(arguments);
    let mut child = command.stderr(Stdio::piped()).spawn()?;
    let status_file = format!("/proc/{}/status", child.id());
    let mut peak_kib = 0;
    let status = loop {
        if let Ok(status) = fs::read_to_string(&status_file) {
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kib = line.and_then(|it| it.trim().strip_suffix(" kB")?.parse().ok());
            peak_kib = peak_kib.max(kib.unwrap_or(0));
        }
        match child.try_wait()? {
            Some(status) => break status,
            None => sleep(Duration::from_millis(2)),
        }
    };
    let seconds = begun.elapsed().as_secs_f64();
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        std::io::Read::read_to_string(&mut stderr, &mut said)?;
    }
    ensure!(status.success(), "pyagent pull: {said}");
    Ok((seconds, peak_kib * 1024))
}

/// Measures both ways to the agents.
pub fn measure(interpreter: &Interpreter, pyagent: &Path) -> Result<Section> {
    let folder = tempfile::tempdir()?;
    let bytes = recorded(interpreter, pyagent, folder.path())?;
    let profile = read(&bytes).context("what was recorded")?;
    let mut section = Section::new(
        "Asking a whole cluster",
        &format!(
            "`pyagent pull --k8s -A --last 10m`: an API server and agents on loopback, in another process on the same CPUs; each \
             agent answers with the same recorded profile ({} KiB packed, {} different samples, {} stacks, {} sets of labels), which becomes that of its node. Median of {N_RUNS} runs; the most \
             memory of any.",
            bytes.len() >> 10,
            profile.samples.len(),
            profile.stacks.len(),
            profile.label_sets.len(),
        ),
        &[
            "agents",
            "way",
            "seconds",
            "most MiB",
            "different samples",
            "file MiB",
        ],
    );
    let (n_samples, n_rows) = (profile.n_samples(), profile.samples.len());
    drop(profile);
    let bytes = Arc::new(bytes);
    for n_agents in N_AGENTS {
        let cluster = FakeCluster::new();
        for number in 0..n_agents {
            cluster.node(
                &format!("node-{number}"),
                Behaviour::Profile(Arc::clone(&bytes), n_samples),
            );
        }
        for (way, arguments) in [("addresses", &["--k8s-direct"][..]), ("port-forward", &[])] {
            let runs: Result<Vec<(f64, u64)>> =
                (0..N_RUNS).map(|_| run(&cluster, arguments)).collect();
            let runs = runs?;
            let peak = runs.iter().map(|(_, peak)| *peak).max().unwrap_or(0);
            let file = fs::metadata(cluster.path("cluster.pb.gz"))?.len();
            section.push(vec![
                n_agents.to_string(),
                way.to_owned(),
                format!(
                    "{:.2}",
                    median(runs.iter().map(|(seconds, _)| *seconds).collect())
                ),
                format!("{:.0}", peak as f64 / f64::from(1 << 20)),
                (n_agents * n_rows).to_string(),
                format!("{:.2}", file as f64 / f64::from(1 << 20)),
            ]);
        }
    }
    Ok(section)
}
