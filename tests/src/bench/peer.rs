//! py-spy, to measure beside pyagent: installed from PyPI into a virtual environment under the target folder.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::interpreters::Interpreter;

/// An installed py-spy.
#[derive(Debug)]
pub struct PySpy {
    program: PathBuf,
    /// Name and version, as it says.
    pub version: String,
}

impl PySpy {
    /// Finds it in `folder`, or installs it there.
    pub fn install(interpreter: &Interpreter, folder: &Path) -> Result<Self> {
        let program = folder.join("bin/py-spy");
        if !program.exists() {
            run(Command::new(&interpreter.path)
                .args(["-m", "venv"])
                .arg(folder))?;
            run(Command::new(folder.join("bin/python"))
                .args(["-m", "pip", "install", "--quiet", "py-spy"]))?;
        }
        let output = Command::new(&program)
            .arg("--version")
            .output()
            .context("py-spy")?;
        Ok(Self {
            program,
            version: String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        })
    }

    /// Records a process until the recording is dropped. Returns when py-spy samples.
    pub fn record(&self, pid: u32, rate_hz: u32) -> Result<PySpyRecording> {
        let mut child = Command::new(&self.program)
            .args([
                "record",
                "--format",
                "raw",
                "--output",
                "/dev/null",
                "--duration",
                "3600",
            ])
            .args(["--rate", &rate_hz.to_string(), "--pid", &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start py-spy")?;
        let stdout = child.stdout.take().context("a pipe was asked for")?;
        let mut lines = BufReader::new(stdout);
        let mut line = String::new();
        while !line.contains("Sampling process") {
            line.clear();
            ensure!(
                lines.read_line(&mut line)? > 0,
                "py-spy ended without sampling"
            );
        }
        // It warns when it falls behind, and must not wait for a reader.
        std::thread::spawn(move || lines.read_to_end(&mut Vec::new()));
        Ok(PySpyRecording { child })
    }
}

/// A running `py-spy record`.
#[derive(Debug)]
pub struct PySpyRecording {
    child: Child,
}

impl Drop for PySpyRecording {
    fn drop(&mut self) {
        // As Ctrl-C does: it must let go of the target before it ends.
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT);
        let _ = self.child.wait();
    }
}

fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "{command:?} failed");
    Ok(())
}
