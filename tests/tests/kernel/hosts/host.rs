//! Programs that run Python, each in its own way.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;

use profiler_agent::ids::Pid;
use pyagent_tests::compiler::compile;
use pyagent_tests::interpreters::Interpreter;
use rustix::process::{Signal, kill_process_group};
use tempfile::TempDir;

use super::truth::Chains;

/// Longest time until a host works.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Apache's configuration; `@DIR@` and `@PORT@` are replaced.
const APACHE: &str = "\
ServerRoot @DIR@
ServerName localhost
PidFile @DIR@/apache.pid
Listen 127.0.0.1:@PORT@
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule wsgi_module /usr/lib/apache2/modules/mod_wsgi.so
ErrorLog @DIR@/apache.log
User www-data
Group www-data
WSGISocketPrefix @DIR@/wsgi
WSGIDaemonProcess web processes=1 threads=2 display-name=@DIR@
WSGIProcessGroup web
WSGIApplicationGroup %{GLOBAL}
WSGIScriptAlias / @DIR@/web.py
<Directory @DIR@>
  Require all granted
</Directory>
";

/// A folder for all of them, whose name is in all of their command lines.
pub(crate) struct Hosts {
    folder: TempDir,
}

/// One that runs; it and its children are killed when dropped.
pub(crate) struct Running {
    name: String,
    child: Child,
    out: PathBuf,
    /// Where it serves HTTP, if it does.
    address: Option<SocketAddr>,
    /// Stacks that it notes before it is ready.
    n_chains: usize,
}

impl Hosts {
    /// With a copy of the workloads: not every user may read the checkout.
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("pyagent-hosts-")
            .tempdir()
            .unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let workloads = Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads/hosts");
        for entry in fs::read_dir(workloads).unwrap().flatten() {
            if entry.path().is_file() {
                fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
            }
        }
        Self { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// What is in the command line of each host, and of no other process.
    pub(crate) fn marker(&self) -> &str {
        self.path().file_name().unwrap().to_str().unwrap()
    }

    fn start(&self, name: &str, command: &mut Command) -> Running {
        let out = self.path().join("out").join(name);
        fs::create_dir_all(&out).unwrap();
        fs::set_permissions(&out, fs::Permissions::from_mode(0o777)).unwrap();
        let log = fs::File::create(self.path().join(format!("{name}.log"))).unwrap();
        let child = command
            .env("HOST_OUT", &out)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Running {
            name: name.to_owned(),
            child,
            out,
            address: None,
            n_chains: 1,
        }
    }

    /// A script of `workloads/hosts`.
    pub(crate) fn script(
        &self,
        name: &str,
        python: &Interpreter,
        arguments: &[&str],
        variables: &[(&str, &str)],
        script: &str,
    ) -> Running {
        let mut command = Command::new(&python.path);
        command
            .args(arguments)
            .arg(self.path().join(script))
            .envs(variables.iter().copied());
        self.start(name, &mut command)
    }

    /// By the frozen `runpy`.
    pub(crate) fn module(&self, name: &str, python: &Interpreter) -> Running {
        let mut command = Command::new(&python.path);
        command
            .args(["-m", "plain", self.marker()])
            .env("PYTHONPATH", self.path());
        self.start(name, &mut command)
    }

    /// A copy of an interpreter, and of its shared library where it has one, in a folder of its own. It is asked
    /// where its standard library is, which it does not find by itself from there.
    fn copy(&self, name: &str, python: &Interpreter, executable: &str) -> (PathBuf, Command) {
        let folder = self.path().join(name);
        fs::create_dir(&folder).unwrap();
        let path = folder.join(executable);
        fs::copy(&python.path, &path).unwrap();
        if let Some(library) = libpython(python) {
            fs::copy(&library, folder.join(library.file_name().unwrap())).unwrap();
        }
        let home = python.stdlib.ancestors().nth(2).unwrap();
        let mut command = Command::new(&path);
        command
            .arg(self.path().join("plain.py"))
            .env("PYTHONHOME", home)
            .env("LD_LIBRARY_PATH", &folder);
        (folder, command)
    }

    /// Under a name that says nothing.
    pub(crate) fn renamed(&self, name: &str, python: &Interpreter) -> Running {
        let (_, mut command) = self.copy(name, python, "service");
        self.start(name, &mut command)
    }

    /// From files that are gone.
    pub(crate) fn deleted(&self, name: &str, python: &Interpreter) -> Running {
        let (folder, mut command) = self.copy(name, python, "python3");
        let running = self.start(name, &mut command);
        running.wait_until_ready();
        fs::remove_dir_all(folder).unwrap();
        running.assert_files_are_gone();
        running
    }

    /// From files in whose place there are now those of something else.
    pub(crate) fn replaced(&self, name: &str, python: &Interpreter) -> Running {
        let (folder, mut command) = self.copy(name, python, "python3");
        let running = self.start(name, &mut command);
        running.wait_until_ready();
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let new = folder.join("new");
            fs::copy("/bin/sh", &new).unwrap();
            fs::rename(new, entry.path()).unwrap();
        }
        running.assert_files_are_gone();
        running
    }

    /// A virtual environment, started by a link to a link.
    pub(crate) fn environment(&self, name: &str, python: &Interpreter) -> Running {
        let folder = self.path().join(name);
        let status = Command::new(&python.path)
            .args(["-I", "-m", "venv", "--without-pip", "--symlinks"])
            .arg(&folder)
            .status();
        assert!(status.unwrap().success());
        let link = folder.join("app");
        symlink("bin/python3", &link).unwrap();
        let mut command = Command::new(link);
        command.arg(self.path().join("plain.py"));
        self.start(name, &mut command)
    }

    /// Code in a zip file.
    pub(crate) fn archive(&self, name: &str, python: &Interpreter) -> Running {
        let folder = self.path().join(name);
        fs::create_dir(&folder).unwrap();
        for (from, to) in [("work.py", "work.py"), ("packed.py", "__main__.py")] {
            fs::copy(self.path().join(from), folder.join(to)).unwrap();
        }
        let archive = self.path().join("app.pyz");
        let status = Command::new(&python.path)
            .args(["-I", "-m", "zipapp"])
            .arg(&folder)
            .arg("-o")
            .arg(&archive)
            .status();
        assert!(status.unwrap().success());
        let mut command = Command::new(&python.path);
        command.arg(archive);
        self.start(name, &mut command)
    }

    /// What `cargo xtask test` packed and compiled; nothing, and said so, without it.
    pub(crate) fn packaged(&self) -> Vec<Running> {
        let Some(folder) = std::env::var_os("PYAGENT_HOSTS").filter(|folder| !folder.is_empty())
        else {
            promised("PYAGENT_HOSTS names no folder with packed programs");
            return Vec::new();
        };
        let folder = PathBuf::from(folder);
        let python = fs::read_to_string(folder.join("python")).unwrap();
        let mut greenlets = Command::new(python.trim());
        greenlets
            .arg(self.path().join("greenlets.py"))
            .env("PYTHONPATH", folder.join("packages"));
        let mut onefile = Command::new(folder.join("onefile"));
        onefile.arg(self.marker());
        let mut compiled = Command::new(folder.join("compiled"));
        compiled.arg(self.marker());
        vec![
            self.start("greenlets", &mut greenlets).with_chains(2),
            self.start("onefile", &mut onefile),
            self.start("compiled", &mut compiled),
        ]
    }

    /// uWSGI and Apache's `mod_wsgi`; what is not installed is said, and left out.
    pub(crate) fn servers(&self) -> Vec<Running> {
        let mut servers = Vec::new();
        if exists("/usr/bin/uwsgi") {
            let port = free_port();
            let mut uwsgi = Command::new("/usr/bin/uwsgi");
            uwsgi
                .args([
                    "--plugin",
                    "python3",
                    "--master",
                    "--processes",
                    "2",
                    "--threads",
                    "2",
                ])
                .args(["--need-app", "--die-on-term", "--http-socket"])
                .arg(format!("127.0.0.1:{port}"))
                .arg("--wsgi-file")
                .arg(self.path().join("web.py"));
            servers.push(self.start("uwsgi", &mut uwsgi).with_port(port));
        }
        if exists("/usr/sbin/apache2") {
            let port = free_port();
            let folder = self.path().to_str().unwrap();
            let configuration = self.path().join("apache.conf");
            let text = APACHE
                .replace("@DIR@", folder)
                .replace("@PORT@", &port.to_string());
            fs::write(&configuration, text).unwrap();
            let mut apache = Command::new("/usr/sbin/apache2");
            apache.args(["-D", "FOREGROUND", "-f"]).arg(configuration);
            servers.push(self.start("apache", &mut apache).with_port(port));
        }
        servers
    }

    /// `embedding.c`: waits, loads the interpreter's library, works for a second in each round.
    pub(crate) fn embedded(
        &self,
        python: &Interpreter,
        wait: Duration,
        n_rounds: usize,
    ) -> Running {
        let program = self.path().join("embedding");
        compile(
            &self.path().join("embedding.c"),
            &program,
            &["-O1", "-ldl", "-lpthread"],
        );
        let source = format!(
            "import os, sys\n\
             sys.path.insert(0, {:?})\n\
             import work\n\
             number = int(os.environ.get('ROUND', '0')) + 1\n\
             os.environ['ROUND'] = str(number)\n\
             exec('def round_%d():\\n    work.spin(1.0)\\nround_%d()' % (number, number))\n",
            self.path()
        );
        let mut command = Command::new(program);
        command
            .arg(libpython(python).expect("it has one"))
            .arg(wait.as_millis().to_string())
            .arg(source)
            .arg(n_rounds.to_string())
            .env("PYTHONHOME", python.stdlib.ancestors().nth(2).unwrap());
        self.start("embedded", &mut command)
    }
}

impl Running {
    /// Notes so many stacks before it is ready.
    pub(crate) fn with_chains(mut self, n_chains: usize) -> Self {
        self.n_chains = n_chains;
        self
    }

    fn with_port(mut self, port: u16) -> Self {
        self.address = Some((Ipv4Addr::LOCALHOST, port).into());
        self
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid(self.child.id())
    }

    /// The stacks that its processes noted, each once.
    pub(crate) fn chains(&self) -> Chains {
        let mut chains: Chains = BTreeMap::new();
        for entry in fs::read_dir(&self.out).unwrap().flatten() {
            let pid = entry.file_name().to_str().unwrap().parse().unwrap();
            let noted = chains.entry(pid).or_default();
            for line in fs::read_to_string(entry.path()).unwrap().lines() {
                let chain = serde_json::from_str(line).unwrap();
                if !noted.contains(&chain) {
                    noted.push(chain);
                }
            }
        }
        chains
    }

    /// Waits until it works.
    pub(crate) fn wait_until_ready(&self) {
        let deadline = Instant::now() + START_LIMIT;
        while self.chains().values().map(Vec::len).sum::<usize>() < self.n_chains {
            assert!(
                Instant::now() < deadline,
                "{} does not work: {}",
                self.name,
                self.log()
            );
            if let Some(address) = self.address {
                request(address);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn wait_until_ended(&mut self) {
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{}: {status}: {}", self.name, self.log());
    }

    fn log(&self) -> String {
        let log = self
            .out
            .ancestors()
            .nth(2)
            .unwrap()
            .join(format!("{}.log", self.name));
        fs::read_to_string(log).unwrap_or_default()
    }

    fn assert_files_are_gone(&self) {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.child.id())).unwrap();
        let is_gone = |line: &str| line.contains("python3") && line.ends_with("(deleted)");
        assert!(maps.lines().any(is_gone), "{maps}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let group = rustix::process::Pid::from_child(&self.child);
        // It may have ended by itself.
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.child.wait();
    }
}

/// Lets them work; asks those that serve.
pub(crate) fn use_for(time: Duration, running: &[Running]) {
    let deadline = Instant::now() + time;
    std::thread::scope(|scope| {
        for address in running.iter().filter_map(|host| host.address) {
            scope.spawn(move || {
                while Instant::now() < deadline {
                    request(address);
                }
            });
        }
    });
    std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
}

/// Asks for a page; whoever does not listen yet is asked again later.
fn request(address: SocketAddr) {
    let Ok(mut stream) = TcpStream::connect(address) else {
        return;
    };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
    let _ = stream.write_all(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n");
    let _ = stream.read_to_end(&mut Vec::new());
}

/// The interpreter's shared library, if it is built with one.
pub(crate) fn libpython(python: &Interpreter) -> Option<PathBuf> {
    if !python.build.split(' ').any(|word| word == "shared") || python.has_own_root() {
        return None;
    }
    let (major, minor) = python.minor();
    let names = [
        format!("libpython{major}.{minor}.so.1.0"),
        format!("libpython{major}.{minor}m.so.1.0"),
    ];
    let folder = python.stdlib.parent()?;
    names
        .into_iter()
        .map(|name| folder.join(name))
        .find(|path| path.exists())
}

/// A port that nobody listens on now.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

fn exists(program: &str) -> bool {
    let exists = Path::new(program).exists();
    if !exists {
        promised(&format!("{program} is not installed"));
    }
    exists
}

/// Says what is missing; CI promises that nothing is.
fn promised(what: &str) {
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "{what}, but CI promises it"
    );
    eprintln!("left out: {what}");
}
