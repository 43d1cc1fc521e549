//! A browser that opens files without a network, driven by its DevTools protocol over a pipe
//! (<https://chromedevtools.github.io/devtools-protocol/>).

use std::env;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long it may take to answer; it is not measured.
const PATIENCE: Duration = Duration::from_secs(60);

/// A browser with one page.
#[derive(Debug)]
pub struct Browser {
    child: Child,
    input: Option<ChildStdin>,
    output: Receiver<Value>,
    n_calls: u64,
    session: String,
    /// What the page complained of, and what it asked for beside itself.
    complaints: Vec<String>,
    _folder: TempDir,
}

impl Browser {
    /// Starts one whose page is so large.
    ///
    /// # Panics
    /// When there is none, or it does not start.
    #[must_use]
    pub fn start(width: u32, height: u32) -> Self {
        let launcher = env::var_os("PYAGENT_BROWSER").filter(|path| !path.is_empty());
        let launcher = launcher.expect(
            "PYAGENT_BROWSER is not set: `cargo xtask test` sets it, or says why it cannot",
        );
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut child = Command::new(launcher)
            .arg(format!(
                "--user-data-dir={}",
                folder.path().join("user").display()
            ))
            // Its own sandbox does not let root in; it opens nothing but what a test wrote.
            .args([
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--disable-extensions",
            ])
            .args([
                "--disable-background-networking",
                "--disable-component-update",
            ])
            .args([
                "--proxy-server=127.0.0.1:9",
                "--force-device-scale-factor=1",
            ])
            .env("HOME", folder.path())
            .env("XDG_CACHE_HOME", folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the browser starts");
        let from = BufReader::new(child.stdout.take().expect("it is piped"));
        let (sender, output) = channel();
        thread::spawn(move || {
            for message in from.split(0).map_while(Result::ok) {
                let message = serde_json::from_slice(&message).expect("the browser writes JSON");
                if sender.send(message).is_err() {
                    break;
                }
            }
        });
        let mut browser = Self {
            input: child.stdin.take(),
            child,
            output,
            n_calls: 0,
            session: String::new(),
            complaints: Vec::new(),
            _folder: folder,
        };
        let target = browser.call("Target.createTarget", &json!({"url": "about:blank"}));
        let attached = browser.call(
            "Target.attachToTarget",
            &json!({"targetId": target["targetId"], "flatten": true}),
        );
        attached["sessionId"]
            .as_str()
            .expect("text")
            .clone_into(&mut browser.session);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), &json!({}));
        }
        browser.resize(width, height);
        browser
    }

    /// Makes the page so large.
    pub fn resize(&mut self, width: u32, height: u32) {
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", &size);
    }

    /// Whether the system of the browser is dark or light.
    pub fn prefer(&mut self, scheme: &str) {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", &features);
    }

    /// Opens a file, with what follows the `#` of its address, anew.
    ///
    /// # Panics
    /// When it cannot be opened.
    pub fn open(&mut self, file: &Path, fragment: &str) {
        // Another document in between: the same with another fragment would not be loaded again.
        let page = format!("file://{}", file.display());
        for (url, fragment) in [("about:blank", ""), (page.as_str(), fragment)] {
            let opened = self.call("Page.navigate", &json!({"url": format!("{url}{fragment}")}));
            assert!(opened.get("errorText").is_none(), "{url}: {opened}");
            let start = Instant::now();
            // A page may give itself another fragment at once.
            while self.evaluate("location.href.split('#')[0] + document.readyState")
                != json!(format!("{url}complete"))
            {
                assert!(start.elapsed() < PATIENCE, "{url} is not loaded");
                thread::sleep(Duration::from_millis(2));
            }
        }
        self.drawn();
    }

    /// What an expression gives in the page; of a promise what it promises.
    ///
    /// # Panics
    /// With what it throws.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let parameters =
            json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let result = self.call("Runtime.evaluate", &parameters);
        let thrown = result.get("exceptionDetails");
        assert!(
            thrown.is_none(),
            "{expression}: {}",
            result["exceptionDetails"]
        );
        result["result"]["value"].clone()
    }

    /// Waits until what has changed is drawn.
    pub fn drawn(&mut self) {
        self.evaluate(
            "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))",
        );
    }

    /// Moves the mouse.
    pub fn point(&mut self, x: f64, y: f64) {
        let moved = json!({"type": "mouseMoved", "x": x, "y": y});
        self.call("Input.dispatchMouseEvent", &moved);
        self.drawn();
    }

    /// Clicks with the left button.
    pub fn click(&mut self, x: f64, y: f64) {
        self.point(x, y);
        for kind in ["mousePressed", "mouseReleased"] {
            let event = json!({"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1});
            self.call("Input.dispatchMouseEvent", &event);
        }
        self.drawn();
    }

    /// Presses a key by its name, such as `Enter` or `c`.
    pub fn press(&mut self, key: &str) {
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({"type": kind, "key": key});
            if kind == "keyDown" && key.chars().count() == 1 {
                event["text"] = json!(key);
            }
            self.call("Input.dispatchKeyEvent", &event);
        }
        self.drawn();
    }

    /// The page as a PNG.
    ///
    /// # Panics
    /// When there is none.
    pub fn picture(&mut self) -> Vec<u8> {
        let picture = self.call("Page.captureScreenshot", &json!({"format": "png"}));
        let text = picture["data"].as_str().expect("text");
        STANDARD.decode(text).expect("base 64")
    }

    /// What the page has complained of, and each address that it asked for which is no file.
    #[must_use]
    pub fn complaints(&self) -> &[String] {
        &self.complaints
    }

    /// Calls a method of the protocol.
    ///
    /// # Panics
    /// With its error.
    pub fn call(&mut self, method: &str, parameters: &Value) -> Value {
        self.n_calls += 1;
        let mut message = json!({"id": self.n_calls, "method": method, "params": parameters});
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        let input = self.input.as_mut().expect("it is open");
        input.write_all(&bytes).expect("the browser listens");
        loop {
            let answer = self.output.recv_timeout(PATIENCE);
            let mut answer = answer.unwrap_or_else(|_| panic!("no answer to {method}"));
            if answer["id"] == self.n_calls {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].take();
            }
            self.note(&answer);
        }
    }

    fn note(&mut self, event: &Value) {
        let parameters = &event["params"];
        let is_bad = match event["method"].as_str() {
            Some(
                "Runtime.exceptionThrown"
                | "Runtime.consoleAPICalled"
                | "Log.entryAdded"
                | "Network.loadingFailed",
            ) => true,
            Some("Network.requestWillBeSent") => {
                let url = parameters["request"]["url"].as_str().unwrap_or_default();
                !url.starts_with("file:///") && url != "about:blank"
            }
            _ => false,
        };
        if is_bad {
            self.complaints.push(event.to_string());
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It ends when nobody speaks to it any more.
        self.input = None;
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
