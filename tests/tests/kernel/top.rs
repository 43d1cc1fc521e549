//! `pyagent top` on a terminal of its own: other programs' terminals (vt100, tmux) say what is on the screen, the program that
//! is looked at knows what its functions take. Root.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use pyagent_tests::interpreters;
use pyagent_tests::pyagent::{Pyagent, binary};
use pyagent_tests::target::Target;
use serde_json::Value;
use tempfile::TempDir;

/// `hot` has 60 % of the CPU time and `cold` 40 %, by the process's own clock. A turn takes 73 ms: no multiple of the distance
/// of two samples.
const SIX_TO_FOUR: &str = "
import time
def hot(until):
    while time.process_time() < until:
        for _ in range(100): pass
def cold(until):
    while time.process_time() < until:
        for _ in range(100): pass
def work():
    now = time.process_time()
    while True:
        now += 0.0438
        hot(now)
        now += 0.0292
        cold(now)
print('ready', flush=True)
work()
";

/// What was seen is there within this time, on a machine that has other things to do too.
const PATIENCE: Duration = Duration::from_secs(60);

fn six_to_four(marker: &str) -> Target {
    let mut target = Target::python(&interpreters::newest(), SIX_TO_FOUR, &[marker]);
    assert_eq!(target.line(), "ready");
    target
}

/// pyagent on a terminal.
struct OnTerminal {
    child: Child,
    /// The other end of the terminal.
    master: File,
    /// Its own end, to ask how it is set.
    terminal: Option<OwnedFd>,
    before: Termios,
    parser: Arc<Mutex<vt100::Parser>>,
    /// Takes what is written; ends when nobody has the terminal any more.
    reader: Option<JoinHandle<()>>,
}

impl OnTerminal {
    fn start(columns: u16, arguments: &[&str]) -> Self {
        const ROWS: u16 = 24;
        let size = Winsize {
            ws_row: ROWS,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(&size, None).unwrap();
        let before = tcgetattr(&pty.slave).unwrap();
        let end = || Stdio::from(pty.slave.try_clone().unwrap());
        // A session of its own, of which it is the terminal, becomes pyagent.
        let script = "echo what was there before; exec \"$0\" \"$@\"";
        let child = Command::new("setsid")
            .args(["--ctty", "sh", "-c", script])
            .arg(binary())
            .arg("top")
            .args(arguments)
            .env("TERM", "xterm-256color")
            .env_remove("PYAGENT_PID")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        let parser = Arc::new(Mutex::new(vt100::Parser::new(ROWS, columns, 0)));
        let master = File::from(pty.master);
        let (mut reader, written) = (master.try_clone().unwrap(), parser.clone());
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n_read @ 1..) = reader.read(&mut bytes) {
                written.lock().unwrap().process(&bytes[..n_read]);
            }
        });
        Self {
            child,
            master,
            terminal: Some(pty.slave),
            before,
            parser,
            reader: Some(reader),
        }
    }

    fn screen(&self) -> Vec<String> {
        let parser = self.parser.lock().unwrap();
        let (_, columns) = parser.screen().size();
        let rows = parser.screen().rows(0, columns);
        rows.map(|row| row.trim_end().to_owned()).collect()
    }

    #[track_caller]
    fn wait_for(&self, what: &str, is_there: impl Fn(&[String]) -> bool) -> Vec<String> {
        wait_for_screen(|| self.screen(), what, is_there)
    }

    fn press(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    fn resize(&self, columns: u16) {
        let size = rustix::termios::Winsize {
            ws_row: 24,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        self.parser
            .lock()
            .unwrap()
            .screen_mut()
            .set_size(24, columns);
        rustix::termios::tcsetwinsize(&self.master, size).unwrap();
    }

    /// Waits for its end; the terminal must be as it was.
    #[track_caller]
    fn finish(mut self) -> (ExitStatus, Vec<String>) {
        let status = self.child.wait().unwrap();
        let terminal = self.terminal.take().unwrap();
        let after = tcgetattr(&terminal).unwrap();
        assert_eq!(after, self.before, "the terminal is set as it was");
        drop(terminal);
        // What was written last.
        self.reader.take().unwrap().join().unwrap();
        let shown = self.screen();
        assert_eq!(shown[0], "what was there before", "{shown:?}");
        let parser = self.parser.lock().unwrap();
        assert!(!parser.screen().alternate_screen());
        assert!(!parser.screen().hide_cursor());
        drop(parser);
        (status, shown)
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// pyagent in a window of tmux, with a server of its own.
struct InTmux {
    /// Where its socket lies.
    dir: TempDir,
}

impl InTmux {
    fn start(columns: u16, arguments: &[&str]) -> Self {
        let tmux = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        // A shell stays when pyagent has ended, to show what it leaves.
        let columns = columns.to_string();
        tmux.run(&["new-session", "-d", "-x", &columns, "-y", "24", "sh"]);
        let words = [&[binary().to_str().unwrap(), "top"], arguments].concat();
        tmux.run(&["send-keys", "-l", &words.join(" ")]);
        tmux.press(&["Enter"]);
        tmux
    }

    fn run(&self, words: &[&str]) -> String {
        let output = Command::new("tmux")
            .arg("-S")
            .arg(self.dir.path().join("socket"))
            .args(["-f", "/dev/null"])
            .args(words)
            .env("LC_ALL", "C.UTF-8")
            .env_remove("TMUX")
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "tmux {words:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Keys by tmux's names.
    fn press(&self, keys: &[&str]) {
        self.run(&[&["send-keys"], keys].concat());
    }

    fn screen(&self) -> Vec<String> {
        let screen = self.run(&["capture-pane", "-p"]);
        screen
            .lines()
            .map(|row| row.trim_end().to_owned())
            .collect()
    }

    #[track_caller]
    fn wait_for(&self, what: &str, is_there: impl Fn(&[String]) -> bool) -> Vec<String> {
        wait_for_screen(|| self.screen(), what, is_there)
    }
}

impl Drop for InTmux {
    fn drop(&mut self) {
        // Ends pyagent too, where a test has failed before `q`.
        self.run(&["kill-server"]);
    }
}

/// Waits until a screen is as it should be; what it shows then.
#[track_caller]
fn wait_for_screen(
    screen: impl Fn() -> Vec<String>,
    what: &str,
    is_there: impl Fn(&[String]) -> bool,
) -> Vec<String> {
    let begun = Instant::now();
    loop {
        let screen = screen();
        if is_there(&screen) {
            return screen;
        }
        let shown = screen.join("\n");
        assert!(begun.elapsed() < PATIENCE, "no {what}:\n{shown}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The first row of a function: %Own, %Total, OwnTime, TotalTime.
fn row(screen: &[String], function: &str) -> Option<[f64; 4]> {
    let line = screen.iter().skip(5).find(|line| {
        let mut words = line.split_whitespace().skip(4);
        words.any(|word| word == function)
    })?;
    let numbers: Vec<f64> = line
        .split_whitespace()
        .take(4)
        .filter_map(|word| word.trim_end_matches(['%', 's']).parse().ok())
        .collect();
    numbers.try_into().ok()
}

fn own_time(screen: &[String], function: &str) -> f64 {
    row(screen, function).map_or(0.0, |[_, _, own, _]| own)
}

/// 60 % within five standard deviations of so many samples.
#[track_caller]
fn assert_six_to_four(hot: f64, cold: f64) {
    let n_samples = (hot + cold) * 99.0;
    let allowed = 5.0 * (0.6 * 0.4 / n_samples).sqrt();
    let share = hot / (hot + cold);
    assert!(
        (share - 0.6).abs() <= allowed,
        "{share} of {n_samples} samples"
    );
}

#[test]
fn the_screen_shows_what_the_functions_take_and_keys_do_what_the_help_says() {
    let target = six_to_four("top-keys");
    let pid = target.pid().to_string();
    let mut top = OnTerminal::start(60, &["--pid", &pid, "--function"]);
    let screen = top.wait_for("two seconds", |screen| own_time(screen, "hot") > 2.0);
    assert_six_to_four(own_time(&screen, "hot"), own_time(&screen, "cold"));
    assert!(
        screen[0].starts_with(&format!("pyagent top: -c ({pid}, Python 3.")),
        "{screen:?}"
    );
    assert!(screen[1].contains(" at 99 Hz, lost 0; GIL "), "{screen:?}");
    assert!(screen[2].starts_with("on CPU "), "{screen:?}");
    let [own, total, ..] = row(&screen, "work").unwrap();
    assert!(total > own + 10.0, "{screen:?}");
    // Only the interpreter's own thread runs, and it holds the lock.
    if !interpreters::newest().free_threaded {
        let gil = screen[1].split("GIL ").nth(1).unwrap();
        let gil: f64 = gil.trim_end_matches(" %").parse().unwrap();
        assert!(gil > 90.0, "{screen:?}");
    }

    top.press("4");
    top.wait_for("order by TotalTime", |it| it[5].contains("<module> ("));
    top.press("3");
    top.wait_for("order by OwnTime", |it| it[5].contains(" hot ("));
    top.press("t");
    top.wait_for("thread", |it| {
        it[4].contains("TotalTime  Thread") && it[5].contains(&format!("  {pid} "))
    });
    top.press("t/COLD");
    top.wait_for("filter", |it| {
        it[3].starts_with("filter: COLD") && it[5].contains(" cold (") && it[6].is_empty()
    });
    top.press("\r");
    top.wait_for("filter that is kept", |it| {
        it[3] == "filter: COLD (Esc: all)"
    });
    top.press("\x1b");
    top.wait_for("everything", |it| {
        it[3] != "filter: COLD (Esc: all)" && row(it, "hot").is_some()
    });
    top.press("l");
    top.wait_for("lines", |it| it[4].ends_with("(file:line)"));
    top.press("l");
    top.wait_for("functions", |it| it[4].contains("(file:first"));

    top.press("p");
    let paused = top.wait_for("pause", |it| it[0].ends_with("PAUSED"));
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(top.screen(), paused);
    top.press("p");
    let before = own_time(&paused, "hot");
    top.wait_for("what ran meanwhile", |it| {
        own_time(it, "hot") > before + 1.0
    });
    top.press("r");
    top.wait_for("begin anew", |it| {
        row(it, "hot").is_some_and(|[_, _, own, _]| own < before)
    });

    top.press("\t");
    top.wait_for("processes", |it| {
        it[4].contains("PID") && it[5].contains(" all ") && it[6].contains(&pid)
    });
    top.press("\x1b[B\r");
    top.wait_for("process", |it| {
        it[0].contains(&format!("({pid}, ")) && it[4].contains("%Own")
    });
    top.press("?");
    top.wait_for("help", |it| {
        it.iter().any(|line| line.contains("sort by OwnTime"))
    });
    top.press("x");
    top.wait_for("table", |it| it[4].contains("%Own"));
    top.resize(120);
    top.wait_for("wide head", |it| it[23].contains("p pause"));
    top.press("q");
    let (status, _) = top.finish();
    assert!(status.success());
}

#[test]
fn keys_and_screens_in_tmux_are_those_of_the_other_terminal() {
    let target = six_to_four("top-tmux");
    let pid = target.pid().to_string();
    let tmux = InTmux::start(60, &["--pid", &pid, "--function"]);
    let screen = tmux.wait_for("two seconds", |screen| {
        screen.len() > 5 && own_time(screen, "hot") > 2.0
    });
    assert_six_to_four(own_time(&screen, "hot"), own_time(&screen, "cold"));

    tmux.press(&["4"]);
    tmux.wait_for("order by TotalTime", |it| it[5].contains("<module> ("));
    tmux.press(&["3", "/", "C", "O", "L", "D", "Enter"]);
    tmux.wait_for("filter", |it| {
        it[3] == "filter: COLD (Esc: all)" && it[5].contains(" cold (")
    });
    tmux.press(&["Escape"]);
    tmux.wait_for("everything", |it| row(it, "hot").is_some());
    tmux.press(&["t"]);
    tmux.wait_for("threads", |it| it[4].contains("TotalTime  Thread"));
    tmux.press(&["t", "Tab"]);
    tmux.wait_for("processes", |it| {
        it[5].contains(" all ") && it[6].contains(&pid)
    });
    tmux.press(&["Down", "Enter"]);
    tmux.wait_for("process", |it| {
        it[0].contains(&format!("({pid}, ")) && it[4].contains("%Own")
    });

    // What another terminal of the same size shows of the same process has the same rows.
    let mut other = OnTerminal::start(60, &["--pid", &pid, "--function"]);
    other.wait_for("a second", |screen| own_time(screen, "hot") > 1.0);
    tmux.press(&["p"]);
    other.press("p");
    let is_paused = |screen: &[String]| screen[0].ends_with("PAUSED");
    let here = tmux.wait_for("pause", is_paused);
    let there = other.wait_for("pause", is_paused);
    let words = |screen: &[String]| -> Vec<Vec<String>> {
        let is_figure = |word: &&str| word.starts_with(|first: char| first.is_ascii_digit());
        // The curve above the table is of other seconds.
        let mut rows: Vec<Vec<String>> = [&screen[..2], &screen[4..]]
            .concat()
            .iter()
            .map(|row| row.split_whitespace().filter(|it| !is_figure(it)))
            .map(|row| row.map(str::to_owned).collect())
            .collect();
        // Functions that take the same have no order.
        rows.sort();
        rows
    };
    assert_eq!(words(&here), words(&there), "{here:#?}\n{there:#?}");
    other.press("q");
    assert!(other.finish().0.success());

    tmux.run(&["resize-window", "-x", "120", "-y", "30"]);
    tmux.wait_for("wide head", |it| {
        it.last().is_some_and(|row| row.contains("p pause"))
    });
    tmux.press(&["q"]);
    tmux.wait_for("the shell's screen", |it| {
        let last = it.iter().rfind(|row| !row.is_empty());
        last.is_some_and(|row| row.ends_with(['#', '$']))
    });
}

#[test]
fn a_process_that_ends_stays_on_the_screen_and_control_c_ends_the_rest() {
    let target = six_to_four("top-ends");
    let pid = target.pid().to_string();
    let mut top = OnTerminal::start(80, &["--pid", &pid]);
    top.wait_for("row", |screen| own_time(screen, "hot") > 0.1);
    drop(target);
    let ended = format!("process {pid} has ended");
    let screen = top.wait_for("end", |screen| screen[3] == ended);
    assert!(own_time(&screen, "hot") > 0.1, "{screen:?}");
    top.press("\x03");
    let (status, _) = top.finish();
    assert!(status.success());
}

#[test]
fn a_signal_gives_the_terminal_back() {
    let target = six_to_four("top-signal");
    let top = OnTerminal::start(80, &["--pid", &target.pid().to_string()]);
    top.wait_for("row", |screen| own_time(screen, "hot") > 0.1);
    let pid = nix::unistd::Pid::from_raw(top.child.id().cast_signed());
    kill(pid, Signal::SIGTERM).unwrap();
    let (status, _) = top.finish();
    assert!(status.success());
}

fn top(arguments: &[&str]) -> Output {
    Command::new(binary())
        .arg("top")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[track_caller]
fn assert_refused(output: &Output, exit_code: i32, reason: &str) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(exit_code), "{errors}");
    assert!(errors.contains(reason), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert!(output.stdout.is_empty());
}

#[track_caller]
fn assert_json(document: &Value) {
    let of = |name: &str| {
        let functions = document["functions"].as_array().unwrap();
        let row = functions.iter().find(|row| row["function"] == name);
        row.unwrap_or_else(|| panic!("{document}"))["own_seconds"]
            .as_f64()
            .unwrap()
    };
    assert_six_to_four(of("hot"), of("cold"));
    assert_eq!(
        document["processes"].as_array().unwrap().len(),
        1,
        "{document}"
    );
    assert_eq!(document["lost"], 0, "{document}");
}

#[test]
fn a_pipe_gets_one_report_of_this_host_or_of_an_agent() {
    let target = six_to_four("top-report");
    let pid = target.pid().to_string();
    let report = top(&["--pid", &pid, "-d", "1500ms", "--top", "1", "--function"]);
    assert!(report.status.success());
    let text = String::from_utf8(report.stdout).unwrap();
    assert!(!text.contains('\x1b'), "{text}");
    assert!(text.contains("in 1.5 s\n"), "{text}");
    assert!(text.contains(" hot (<string>:3)\n1 of 4 rows"), "{text}");

    let report = top(&["--pid", &pid, "-d", "2s", "--json", "--function"]);
    assert_json(&serde_json::from_slice(&report.stdout).unwrap());

    let arguments = ["--cmdline", "top-report", "--listen", "127.0.0.1:0"];
    let mut agent = Pyagent::start(&arguments, "go tool pprof");
    let address = agent.address();
    let report = top(&[&address, "-d", "2s", "--json", "--function"]);
    assert_json(&serde_json::from_slice(&report.stdout).unwrap());
    assert_refused(
        &top(&[&address, "--pid", "4194303", "-d", "1s"]),
        4,
        "no profiled process matches",
    );

    // An agent that goes while it is looked at.
    let on_terminal = OnTerminal::start(100, &[&address, "--pid", &pid]);
    on_terminal.wait_for("row", |screen| own_time(screen, "hot") > 0.1);
    agent.kill();
    let (status, shown) = on_terminal.finish();
    assert_eq!(status.code(), Some(1), "{shown:?}");
    assert!(shown[1].starts_with("pyagent: "), "{shown:?}");
    assert!(shown[1..].concat().contains(&address), "{shown:?}");
    assert_refused(&top(&[&address, "-d", "1s"]), 1, "no agent answers");
}

#[test]
fn what_cannot_be_shown_is_told_in_one_line() {
    assert_refused(
        &top(&["--pid", "4194303"]),
        4,
        "there is no process 4194303",
    );
    assert_refused(&top(&["--idle"]), 2, "--idle cannot be answered yet");
    let arguments = ["127.0.0.1:7099", "--pid", "1", "--subprocesses"];
    assert_refused(&top(&arguments), 2, "--subprocesses is for this host");
    let sleeping = Target::start(Command::new("sleep").arg("30"));
    let pid = sleeping.pid().to_string();
    assert_refused(&top(&["--pid", &pid]), 4, "runs no CPython");
}
