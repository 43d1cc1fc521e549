//! A stand-in for a Kubernetes API server on loopback, over plain HTTP: pods of one node, listed and watched, and what they belong
//! to. It says what a test tells it to, and nothing else of the API.

use std::collections::HashMap;
use std::io::{BufReader, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};

#[derive(Default)]
struct State {
    version: u64,
    pods: Vec<Value>,
    /// Other objects, by path.
    objects: HashMap<String, Value>,
    watchers: Vec<TcpStream>,
    is_away: bool,
    n_lists: u32,
}

/// See the module's documentation. It runs until the test's process ends.
#[derive(Clone)]
pub struct ApiServer {
    address: String,
    state: Arc<Mutex<State>>,
}

impl ApiServer {
    /// One without pods.
    ///
    /// # Panics
    /// When there is no port on loopback.
    #[must_use]
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
        let address = listener.local_addr().expect("it is bound");
        let state = Arc::new(Mutex::new(State {
            version: 1,
            ..State::default()
        }));
        thread::spawn({
            let state = Arc::clone(&state);
            move || {
                for stream in listener.incoming().flatten() {
                    let state = Arc::clone(&state);
                    thread::spawn(move || serve(&stream, &state));
                }
            }
        });
        Self {
            address: format!("http://{address}"),
            state,
        }
    }

    /// Writes a kubeconfig that leads to it.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn write_kubeconfig(&self, path: &Path) {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: it\n\
             clusters: [{{name: c, cluster: {{server: \"{}\"}}}}]\n\
             contexts: [{{name: it, context: {{cluster: c, user: u}}}}]\n\
             users: [{{name: u, user: {{token: abc}}}}]\n",
            self.address
        );
        std::fs::write(path, text).expect("a file of the test");
    }

    /// A pod is new or different: its metadata.
    ///
    /// # Panics
    /// When it has no UID.
    pub fn put(&self, mut metadata: Value) {
        let mut state = self.state();
        state.version += 1;
        metadata["resourceVersion"] = json!(state.version.to_string());
        let uid = metadata["uid"].as_str().expect("a UID").to_owned();
        let pod = json!({"metadata": metadata});
        let known = state
            .pods
            .iter()
            .position(|it| it["metadata"]["uid"] == uid);
        let kind = match known {
            Some(idx) => {
                state.pods[idx] = pod.clone();
                "MODIFIED"
            }
            None => {
                state.pods.push(pod.clone());
                "ADDED"
            }
        };
        tell(&mut state, kind, &pod);
    }

    /// A pod has gone.
    ///
    /// # Panics
    /// When it was not there.
    pub fn remove(&self, uid: &str) {
        let mut state = self.state();
        state.version += 1;
        let known = state
            .pods
            .iter()
            .position(|it| it["metadata"]["uid"] == uid);
        let mut pod = state.pods.remove(known.expect("it is there"));
        pod["metadata"]["resourceVersion"] = json!(state.version.to_string());
        tell(&mut state, "DELETED", &pod);
    }

    /// Another object, at its path: its metadata.
    pub fn put_object(&self, path: &str, metadata: &Value) {
        let object = json!({ "metadata": metadata });
        self.state().objects.insert(path.to_owned(), object);
    }

    /// Refuses everything from now on, and ends what is under way; or not any more.
    pub fn set_away(&self, is_away: bool) {
        let mut state = self.state();
        state.is_away = is_away;
        for watcher in state.watchers.drain(..) {
            // It may have left by itself.
            let _ = watcher.shutdown(Shutdown::Both);
        }
    }

    /// How often pods were listed.
    #[must_use]
    pub fn n_lists(&self) -> u32 {
        self.state().n_lists
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with it")
    }
}

fn serve(stream: &TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream);
    while let Some(target) = request(&mut reader) {
        let mut state = state.lock().expect("nobody panics with it");
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        if state.is_away {
            answer(
                stream,
                503,
                &json!({"kind": "Status", "message": "etcd is away"}),
            );
        } else if path == "/api/v1/pods" && query.contains("watch=true") {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
            let _ = (&*stream).write_all(head.as_bytes());
            let since = query
                .split('&')
                .find_map(|part| part.strip_prefix("resourceVersion="));
            let since: u64 = since.and_then(|it| it.parse().ok()).unwrap_or(0);
            let missed: Vec<Value> = state
                .pods
                .iter()
                .filter(|pod| version(pod) > since)
                .cloned()
                .collect();
            let mut watcher = stream.try_clone().expect("a descriptor");
            for pod in &missed {
                chunk(&mut watcher, "MODIFIED", pod);
            }
            state.watchers.push(watcher);
            return;
        } else if path == "/api/v1/pods" {
            state.n_lists += 1;
            let metadata = json!({"resourceVersion": state.version.to_string()});
            answer(
                stream,
                200,
                &json!({"metadata": metadata, "items": state.pods}),
            );
        } else if let Some(object) = state.objects.get(path) {
            answer(stream, 200, object);
        } else {
            answer(
                stream,
                404,
                &json!({"kind": "Status", "message": "not found"}),
            );
        }
    }
}

fn version(pod: &Value) -> u64 {
    let version = pod["metadata"]["resourceVersion"].as_str();
    version.and_then(|it| it.parse().ok()).unwrap_or(0)
}

/// The target of the next request; `None`: the client has left.
fn request(reader: &mut impl std::io::BufRead) -> Option<String> {
    let mut first = String::new();
    reader.read_line(&mut first).ok()?;
    let target = first.split(' ').nth(1)?.to_owned();
    let mut header = String::new();
    while reader.read_line(&mut header).ok()? > 2 {
        header.clear();
    }
    Some(target)
}

fn answer(mut stream: &TcpStream, status: u16, value: &Value) {
    let body = format!("{value}\n");
    let head = format!(
        "HTTP/1.1 {status} It\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    // It may have left.
    let _ = stream.write_all(format!("{head}{body}").as_bytes());
}

fn tell(state: &mut State, kind: &str, pod: &Value) {
    state
        .watchers
        .retain_mut(|watcher| chunk(watcher, kind, pod));
}

/// A line of a watch, as a chunk of HTTP; false when the client has left.
fn chunk(watcher: &mut TcpStream, kind: &str, pod: &Value) -> bool {
    let line = format!("{}\n", json!({"type": kind, "object": pod}));
    let chunk = format!("{:x}\r\n{line}\r\n", line.len());
    watcher.write_all(chunk.as_bytes()).is_ok()
}
