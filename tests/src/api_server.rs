//! A stand-in for a Kubernetes API server on loopback, over plain HTTP: pods of one node, listed and watched, and what they belong
//! to; pods of many nodes, listed by namespace and labels, and ports of theirs that are forwarded over WebSockets. It says what a
//! test tells it to, and nothing else of the API.

use std::collections::HashMap;
use std::io::{BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::Role;
use tungstenite::{Message, WebSocket};

#[derive(Default)]
struct State {
    version: u64,
    pods: Vec<Value>,
    /// Other objects, by path.
    objects: HashMap<String, Value>,
    /// Whole pods, of any node.
    placed: Vec<Value>,
    /// Events, as they are listed.
    events: Vec<Value>,
    /// Where what is forwarded to pods goes, by their names.
    forwards: HashMap<String, SocketAddr>,
    n_forwarded: u32,
    /// Whether listing events, and forwarding ports, is forbidden.
    is_strict: bool,
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

    /// Another pod, whole, of any node.
    pub fn place(&self, pod: Value) {
        self.state().placed.push(pod);
    }

    /// An event: the scheduler has put a pod, which may have gone, on a node.
    pub fn tell_scheduled(&self, namespace: &str, pod: &str, node: &str) {
        let event = json!({
            "metadata": {"namespace": namespace},
            "involvedObject": {"kind": "Pod", "namespace": namespace, "name": pod, "uid": format!("uid-{pod}")},
            "message": format!("Successfully assigned {namespace}/{pod} to {node}"),
        });
        self.state().events.push(event);
    }

    /// What is forwarded to a port of this pod goes there.
    pub fn forward_to(&self, pod: &str, address: SocketAddr) {
        self.state().forwards.insert(pod.to_owned(), address);
    }

    /// How many streams were forwarded.
    #[must_use]
    pub fn n_forwarded(&self) -> u32 {
        self.state().n_forwarded
    }

    /// Forbids to list events and to forward ports.
    pub fn be_strict(&self) {
        self.state().is_strict = true;
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
    while let Some((target, key)) = request(&mut reader) {
        if let Some((path, query)) = target.split_once("/portforward?") {
            let port = query.rsplit('=').next().and_then(|it| it.parse().ok());
            forward(stream, path, port.unwrap_or(0), &key, state);
            return;
        }
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
        } else if path.ends_with("/events") {
            if state.is_strict {
                answer(stream, 403, &json!({"kind": "Status", "message": "no"}));
                continue;
            }
            let items = of_namespace(&state.events, path);
            answer(stream, 200, &json!({"metadata": {}, "items": items}));
        } else if path.ends_with("/pods") && !state.placed.is_empty() {
            let selector = query
                .split('&')
                .find_map(|part| part.strip_prefix("labelSelector="));
            let selector = selector.unwrap_or_default();
            let selector = selector
                .replace("%3D", "=")
                .replace("%2F", "/")
                .replace("%2C", ",");
            let wanted = selector.split(',').filter_map(|part| part.split_once('='));
            let wanted: Vec<_> = wanted.collect();
            let mut items = of_namespace(&state.placed, path);
            items.retain(|pod| {
                let mut wanted = wanted.iter();
                wanted.all(|(key, value)| pod["metadata"]["labels"][*key] == **value)
            });
            // Two pages, so that there is one to go on to.
            let half = items.len() / 2;
            let (page, next) = if query.contains("continue=") {
                (items.split_off(half), "")
            } else if half > 100 {
                (items.drain(..half).collect(), "half")
            } else {
                (items, "")
            };
            answer(
                stream,
                200,
                &json!({"metadata": {"continue": next}, "items": page}),
            );
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

/// Those of the namespace that a path names; of all when it names none.
fn of_namespace(items: &[Value], path: &str) -> Vec<Value> {
    let namespace = path
        .strip_prefix("/api/v1/namespaces/")
        .and_then(|rest| rest.split('/').next());
    let items = items.iter();
    items
        .filter(|it| namespace.is_none_or(|name| it["metadata"]["namespace"] == name))
        .cloned()
        .collect()
}

/// Forwards a port of a pod over a WebSocket, as the kubelet does: channel 0 is the data, channel 1 errors, and each begins with
/// the port's number.
fn forward(mut stream: &TcpStream, path: &str, port: u16, key: &str, state: &Mutex<State>) {
    let pod = path.rsplit('/').next().unwrap_or_default();
    let address = {
        let mut state = state.lock().expect("nobody panics with it");
        state.n_forwarded += 1;
        (!state.is_strict)
            .then(|| state.forwards.get(pod).copied())
            .flatten()
    };
    let Some(address) = address else {
        answer(stream, 403, &json!({"kind": "Status", "message": "no"}));
        return;
    };
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\nSec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n",
        derive_accept_key(key.as_bytes())
    );
    let _ = stream.write_all(head.as_bytes());
    let copy = || stream.try_clone().expect("a descriptor");
    let mut writing = WebSocket::from_raw_socket(copy(), Role::Server, None);
    let mut reading = WebSocket::from_raw_socket(copy(), Role::Server, None);
    for channel in 0..2 {
        let port = port.to_le_bytes();
        let _ = writing.send(Message::binary(vec![channel, port[0], port[1]]));
    }
    let Ok(mut agent) = TcpStream::connect(address) else {
        let _ = writing.send(Message::binary(b"\x01nobody listens".to_vec()));
        let _ = writing.close(None);
        return;
    };
    let _ = agent.set_nodelay(true);
    let mut answers = agent.try_clone().expect("a descriptor");
    let answering = thread::spawn(move || {
        let mut bytes = [0; 16 << 10];
        while let Ok(n_bytes @ 1..) = answers.read(&mut bytes) {
            let mut message = vec![0];
            message.extend_from_slice(&bytes[..n_bytes]);
            if writing.send(Message::binary(message)).is_err() {
                break;
            }
        }
        let _ = writing.close(None);
    });
    while let Ok(message) = reading.read() {
        if let Message::Binary(bytes) = message
            && agent.write_all(bytes.get(1..).unwrap_or_default()).is_err()
        {
            break;
        }
    }
    let _ = agent.shutdown(Shutdown::Both);
    let _ = answering.join();
    let _ = stream.shutdown(Shutdown::Both);
}

/// The target of the next request, and the key of a WebSocket that it asks for; `None`: the client has left.
fn request(reader: &mut impl std::io::BufRead) -> Option<(String, String)> {
    let mut first = String::new();
    reader.read_line(&mut first).ok()?;
    let target = first.split(' ').nth(1)?.to_owned();
    let (mut header, mut key) = (String::new(), String::new());
    while reader.read_line(&mut header).ok()? > 2 {
        if let Some((name, value)) = header.split_once(": ")
            && name.eq_ignore_ascii_case("sec-websocket-key")
        {
            value.trim().clone_into(&mut key);
        }
        header.clear();
    }
    Some((target, key))
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
