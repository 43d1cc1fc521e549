//! OTLP profiles: every request is right by the rules of its dictionary, holds what the profiles hold, and reaches the real
//! OpenTelemetry Collector and a server with OpenTelemetry's own generated code, whatever happens to them on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use profiler_agent::profile::model::{Profile, ProfileType};
use profiler_agent::profile::window::ClosedWindow;
use profiler_agent::push::{
    Counts, CredentialOptions, Host, MAX_REQUEST_BYTES, MemoryOutbox, OtlpWindow, Pace, PushConfig,
    Pusher, Window,
};
use prost::Message as _;
use pyagent_tests::otlp;
use pyagent_tests::push::{
    Collector, CollectorSetup, Peer, SMALL, Size, Sums, add, int, prepared, profile,
    resource_attributes, sums, wait_for, write_secret,
};
use serde_json::Value;

/// Everything is local: what takes long has failed.
const PACE: Pace = Pace {
    deadline: Duration::from_secs(2),
    first_wait: Duration::from_millis(50),
    last_wait: Duration::from_millis(400),
};

/// Time for the rest once no more comes.
const GRACE: Duration = Duration::from_secs(30);

type Profiles = Vec<(ProfileType, Profile)>;

/// The profiles of window `n`.
fn window(n: u64, size: Size) -> Profiles {
    let types = [ProfileType::Cpu, ProfileType::Faults, ProfileType::Alloc];
    let profiles = types.map(|it| (it, profile(it, n, size)));
    profiles.into()
}

fn closed(profiles: Profiles) -> Arc<ClosedWindow> {
    Arc::new(ClosedWindow {
        start_ns: 0,
        end_ns: 1,
        profiles,
    })
}

fn sums_of(profiles: &[(ProfileType, Profile)]) -> Sums {
    let mut all = Sums::new();
    for (_, profile) in profiles {
        add(&mut all, sums(profile));
    }
    all
}

struct Push {
    pusher: Pusher<MemoryOutbox>,
    outbox: Arc<MemoryOutbox>,
}

impl Push {
    fn start(targets: &[String], credentials: CredentialOptions) -> Self {
        let targets: Vec<profiler_agent::push::Target> =
            targets.iter().map(|it| it.parse().unwrap()).collect();
        let names = targets.iter().map(ToString::to_string);
        let outbox = Arc::new(MemoryOutbox::new(names, 1000, usize::MAX));
        let config = PushConfig {
            targets,
            credentials,
            labels: Vec::new(),
            attributes: Vec::new(),
            pace: PACE,
        };
        let pusher = Pusher::start(&config, Arc::clone(&outbox)).unwrap();
        Self { pusher, outbox }
    }

    /// Pushes windows with these numbers; what they hold together.
    fn push(&self, numbers: impl Iterator<Item = u64>, size: Size) -> Sums {
        let mut all = Sums::new();
        for n in numbers {
            let profiles = window(n, size);
            add(&mut all, sums_of(&profiles));
            self.outbox.push(closed(profiles));
        }
        all
    }

    fn counts(&self) -> Counts {
        self.pusher.counts()[0].counts
    }

    async fn wait_for(&self, what: &str, is_so: impl Fn(Counts) -> bool) {
        for _ in 0..3000 {
            if is_so(self.counts()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("waited in vain for {what}: {:?}", self.counts());
    }

    async fn finish(self) -> Counts {
        self.outbox.close();
        let counters = self.pusher.watch();
        let is_done = self.pusher.finish(GRACE).await;
        let end = counters().swap_remove(0);
        println!("{end:?}");
        assert!(is_done, "not all was delivered");
        assert_eq!(self.outbox.n_windows(), 0);
        end.counts
    }
}

/// What a Collector has written: sums by process, type and function, and the attributes of each process.
fn written(collector: &Collector) -> (Sums, BTreeMap<i64, BTreeMap<String, String>>) {
    let mut all = Sums::new();
    let mut resources = BTreeMap::new();
    for data in collector.written() {
        let table = |name: &str| {
            data["dictionary"][name]
                .as_array()
                .cloned()
                .unwrap_or_default()
        };
        let strings = table("stringTable");
        let (stacks, locations) = (table("stackTable"), table("locationTable"));
        let functions = table("functionTable");
        let string = |idx: &Value| strings[int(idx) as usize].as_str().unwrap_or_default();
        for of_resource in data["resourceProfiles"].as_array().unwrap() {
            let attributes = resource_attributes(&data, of_resource);
            let pid: i64 = attributes["process.pid"].parse().unwrap();
            resources.insert(pid, attributes);
            for scope in of_resource["scopeProfiles"].as_array().unwrap() {
                for profile in scope["profiles"].as_array().unwrap() {
                    let kind = &profile["sampleType"];
                    let kind = format!(
                        "{}/{}",
                        string(&kind["typeStrindex"]),
                        string(&kind["unitStrindex"])
                    );
                    for sample in profile["samples"].as_array().unwrap() {
                        let stack = &stacks[int(&sample["stackIndex"]) as usize];
                        let leaf = stack["locationIndices"].as_array().map_or("", |stack| {
                            let line = &locations[int(&stack[0]) as usize]["lines"][0];
                            let function = &functions[int(&line["functionIndex"]) as usize];
                            string(&function["nameStrindex"])
                        });
                        let values = sample["values"].as_array().unwrap();
                        let sum: i64 = values.iter().map(int).sum();
                        let key = (pid, kind.clone(), leaf.to_owned());
                        *all.entry(key).or_default() += sum;
                    }
                }
            }
        }
    }
    (all, resources)
}

/// When the first profile of a request begins.
fn first_time(data: &Value) -> i64 {
    int(&data["resourceProfiles"][0]["scopeProfiles"][0]["profiles"][0]["timeUnixNano"])
}

/// Waits until a Collector has written exactly this; more would be as wrong as less.
fn wait_for_sums(collector: &Collector, expected: &Sums) {
    let n_expected: i64 = expected.values().sum();
    wait_for("what was pushed", || {
        let (sums, _) = written(collector);
        (sums.values().sum::<i64>() >= n_expected).then_some(())
    });
    assert_eq!(&written(collector).0, expected);
}

fn otlp_target(port: u16) -> String {
    format!("otlp=http://127.0.0.1:{port}")
}

#[test]
fn every_request_is_right_and_together_they_hold_what_the_profiles_hold() {
    let host = Host::of_this_machine();
    let window = Window {
        seq: 7,
        content: closed(window(1, SMALL)),
    };
    let parcel = OtlpWindow::new(&window, &host);
    let n_samples = parcel.n_samples();
    assert_eq!(n_samples, 3 * 3 * 2 * 4);
    let whole = parcel.request(0..n_samples).encode_to_vec();
    for cut in [n_samples, 1, 7, 50] {
        let mut all = Sums::new();
        for start in (0..n_samples).step_by(cut) {
            let request = parcel.request(start..n_samples.min(start + cut));
            assert_eq!(otlp::violations(&request.encode_to_vec()), [""; 0]);
            add(&mut all, request_sums(&request));
        }
        assert_eq!(all, sums_of(window.profiles()), "cut after {cut}");
    }
    assert_eq!(
        parcel.request(0..n_samples).encode_to_vec(),
        whole,
        "made again"
    );
}

fn request_sums(
    request: &profiler_agent::generated::opentelemetry::proto::collector::profiles::v1development::ExportProfilesServiceRequest,
) -> Sums {
    use profiler_agent::generated::opentelemetry::proto::common::v1::any_value::Value;
    let tables = request.dictionary.as_ref().unwrap();
    let string = |idx: i32| tables.string_table[idx as usize].clone();
    let mut sums = Sums::new();
    for of_resource in &request.resource_profiles {
        let attributes = &of_resource.resource.as_ref().unwrap().attributes;
        let pid = attributes.iter().find(|it| it.key == "process.pid");
        let Some(Value::IntValue(pid)) = pid.unwrap().value.clone().unwrap().value else {
            panic!("it is a number")
        };
        for profile in of_resource
            .scope_profiles
            .iter()
            .flat_map(|it| &it.profiles)
        {
            let kind = profile.sample_type.unwrap();
            let kind = format!(
                "{}/{}",
                string(kind.type_strindex),
                string(kind.unit_strindex)
            );
            for sample in &profile.samples {
                let stack = &tables.stack_table[sample.stack_index as usize];
                let leaf = stack
                    .location_indices
                    .first()
                    .map_or(String::new(), |leaf| {
                        let line = tables.location_table[*leaf as usize].lines[0];
                        string(tables.function_table[line.function_index as usize].name_strindex)
                    });
                *sums.entry((pid, kind.clone(), leaf)).or_default() += sample.values[0];
            }
        }
    }
    sums
}

#[tokio::test(flavor = "multi_thread")]
async fn the_collector_gets_everything_also_through_another_one() {
    let folder = tempfile::tempdir().unwrap();
    let Some(last) = Collector::start(folder.path(), &CollectorSetup::default()) else {
        return;
    };
    let setup = CollectorSetup {
        next: Some(last.port),
        ..CollectorSetup::default()
    };
    let first = Collector::start(folder.path(), &setup).unwrap();
    let push = Push::start(&[otlp_target(first.port)], CredentialOptions::default());
    let expected = push.push(1..=5, SMALL);
    let counts = push.finish().await;
    assert_eq!((counts.sent, counts.retried, counts.rejected), (5, 0, 0));
    wait_for_sums(&last, &expected);
    let (_, resources) = written(&last);
    assert_eq!(resources.len(), 3);
    let of_process = &resources[&2];
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    for (name, value) in [
        ("process.pid", "2"),
        ("service.name", "service-1"),
        ("container.name", "shop"),
        ("k8s.pod.uid", "0b1c"),
        ("process.linux.cgroup", "/shop/2"),
        ("process.executable.name", "python3"),
        ("process.runtime.name", "cpython"),
        ("process.runtime.version", "3.12.1"),
        ("process.command_line", "python3 app.py"),
        ("host.name", hostname.trim()),
        ("os.type", "linux"),
    ] {
        assert_eq!(
            of_process.get(name).map(String::as_str),
            Some(value),
            "{name}"
        );
    }
    assert!(
        of_process.contains_key("process.creation.time"),
        "{of_process:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_killed_and_comes_back_misses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut collector) = Collector::start(folder.path(), &CollectorSetup::default()) else {
        return;
    };
    let push = Push::start(&[otlp_target(collector.port)], CredentialOptions::default());
    let mut expected = push.push(1..=3, SMALL);
    push.wait_for("the first windows", |it| it.sent == 3).await;
    wait_for_sums(&collector, &expected);
    collector.kill();
    add(&mut expected, push.push(4..=8, SMALL));
    push.wait_for("attempts", |it| it.retried > 3).await;
    assert_eq!(push.counts().sent, 3);
    collector.restart();
    add(&mut expected, push.push(9..=10, SMALL));
    let counts = push.finish().await;
    assert_eq!((counts.sent, counts.rejected, counts.dropped), (10, 0, 0));
    wait_for_sums(&collector, &expected);
    let times: Vec<i64> = collector.written().iter().map(first_time).collect();
    assert_eq!(times.len(), 10);
    assert!(times.is_sorted(), "out of order: {times:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_holds_nobody_else_back() {
    let folder = tempfile::tempdir().unwrap();
    let Some(hung) = Collector::start(folder.path(), &CollectorSetup::default()) else {
        return;
    };
    let other = Collector::start(folder.path(), &CollectorSetup::default()).unwrap();
    let targets = [otlp_target(hung.port), otlp_target(other.port)];
    let push = Push::start(&targets, CredentialOptions::default());
    let pid = Pid::from_raw(hung.pid());
    let mut expected = push.push(1..=1, SMALL);
    push.wait_for("the first window", |it| it.sent == 1).await;
    kill(pid, Signal::SIGSTOP).unwrap();
    add(&mut expected, push.push(2..=4, SMALL));
    wait_for_sums(&other, &expected);
    // Beyond the deadline: what was not answered is sent again.
    push.wait_for("an attempt", |it| it.retried >= 1).await;
    assert_eq!(push.counts().sent, 1);
    kill(pid, Signal::SIGCONT).unwrap();
    push.finish().await;
    // What it was sent while it hung it may have taken too: at least once, and nothing else.
    wait_for("the rest", || {
        let (sums, _) = written(&hung);
        expected
            .iter()
            .all(|(key, sum)| sums.get(key).is_some_and(|it| it >= sum))
            .then_some(())
    });
    let keys = |sums: &Sums| sums.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(keys(&written(&hung).0), keys(&expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_for_good_is_dropped_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let setup = CollectorSetup {
        has_no_profiles: true,
        ..CollectorSetup::default()
    };
    let Some(collector) = Collector::start(folder.path(), &setup) else {
        return;
    };
    let push = Push::start(&[otlp_target(collector.port)], CredentialOptions::default());
    push.push(1..=4, SMALL);
    let counts = push.finish().await;
    assert_eq!((counts.sent, counts.retried, counts.rejected), (0, 0, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_cut() {
    const LARGE: Size = Size {
        n_processes: 2,
        n_threads: 1,
        n_stacks: 2500,
        depth: 250,
    };
    let folder = tempfile::tempdir().unwrap();
    let setup = CollectorSetup {
        receiver: "        max_recv_msg_size_mib: 1\n".to_owned(),
        ..CollectorSetup::default()
    };
    let Some(collector) = Collector::start(folder.path(), &setup) else {
        return;
    };
    let whole = Window {
        seq: 1,
        content: closed(window(1, LARGE)),
    };
    let host = Host::of_this_machine();
    let parcel = OtlpWindow::new(&whole, &host);
    let n_bytes = parcel.request(0..8_000).encoded_len();
    assert!(
        n_bytes > 1 << 20,
        "{n_bytes} bytes: it must be too large to begin with"
    );
    let push = Push::start(&[otlp_target(collector.port)], CredentialOptions::default());
    push.outbox.push(Arc::clone(&whole.content));
    let counts = push.finish().await;
    assert_eq!((counts.rejected, counts.dropped), (0, 0));
    // Two requests by the number of samples, more by their size.
    assert!(counts.sent > 2, "{counts:?}");
    let expected = sums_of(whole.profiles());
    wait_for_sums(&collector, &expected);
}

/// Makes keys and certificates with `openssl`: an authority, a server for 127.0.0.1, a client.
fn certificates(folder: &Path) {
    let script = "\
set -e
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=authority \
    -keyout ca.key -out ca.pem -addext basicConstraints=critical,CA:TRUE
for name in server client; do
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=$name -keyout $name.key -out $name.csr
    printf 'subjectAltName=IP:127.0.0.1\\nbasicConstraints=CA:FALSE\\nextendedKeyUsage=serverAuth,clientAuth\\n' > ext
    openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out $name.pem
done";
    let made = Command::new("sh")
        .args(["-c", script])
        .current_dir(folder)
        .output();
    let made = made.expect("a shell");
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_wants_a_certificate_gets_one() {
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let path = |name: &str| folder.path().join(name).display().to_string();
    let setup = CollectorSetup {
        receiver: format!(
            "        tls:\n          cert_file: {}\n          key_file: {}\n          client_ca_file: {}\n",
            path("server.pem"),
            path("server.key"),
            path("ca.pem")
        ),
        ..CollectorSetup::default()
    };
    let Some(collector) = Collector::start(folder.path(), &setup) else {
        return;
    };
    let target = [format!("otlp=https://127.0.0.1:{}", collector.port)];
    let scoped = |name: &str| vec![path(name).parse().unwrap()];
    let ca_alone = CredentialOptions {
        ca: scoped("ca.pem"),
        ..CredentialOptions::default()
    };
    let whole = CredentialOptions {
        certificate: scoped("client.pem"),
        key: scoped("client.key"),
        ..ca_alone.clone()
    };
    // Without the client's certificate, and with the system's authorities alone, nothing goes through.
    for credentials in [ca_alone, CredentialOptions::default()] {
        let push = Push::start(&target, credentials);
        push.push(1..=1, SMALL);
        push.wait_for("attempts", |it| it.retried > 2).await;
        assert_eq!(push.counts().sent, 0);
    }
    let push = Push::start(&target, whole);
    let expected = push.push(1..=2, SMALL);
    assert_eq!(push.finish().await.sent, 2);
    wait_for_sums(&collector, &expected);
}

/// A server with OpenTelemetry's generated code for Python; see tests/peers/otlp_server.py.
fn server(folder: &Path, answers: &[&str]) -> Option<Peer> {
    let packages = prepared("PYAGENT_OTLP_PACKAGES")?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/otlp_server.py");
    let mut python = Command::new("python3");
    python.arg(script).arg(folder).args(answers);
    Some(Peer::start(python.env("PYTHONPATH", packages)))
}

/// What the server has read, of requests that it took.
fn read_sums(requests: &[Value]) -> Sums {
    let mut sums = Sums::new();
    for request in requests {
        if !matches!(request["answer"].as_str(), Some("ok" | "partial")) {
            continue;
        }
        for of_resource in request["resources"].as_array().unwrap() {
            let pid = int(&of_resource["attributes"]["process.pid"]);
            for profile in of_resource["profiles"].as_array().unwrap() {
                let kind = profile["type"].as_str().unwrap();
                for (leaf, sum) in profile["functions"].as_object().unwrap() {
                    let key = (pid, kind.to_owned(), leaf.clone());
                    *sums.entry(key).or_default() += int(sum);
                }
            }
        }
    }
    sums
}

#[tokio::test(flavor = "multi_thread")]
async fn others_generated_code_reads_the_bytes_that_leave_and_answers_are_heeded() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    write_secret(&token, "first");
    let answers = [
        "ok",
        "unavailable",
        "later:1",
        "ok",
        "invalid_argument",
        "partial",
        "aborted",
        "ok",
    ];
    let Some(mut server) = server(folder.path(), &answers) else {
        return;
    };
    let credentials = CredentialOptions {
        token: vec![token.to_str().unwrap().parse().unwrap()],
        headers: vec!["otlp=X-Scope-OrgID=team".parse().unwrap()],
        ..CredentialOptions::default()
    };
    let push = Push::start(&[format!("otlp=http://{}", server.greeting)], credentials);
    let mut expected = push.push(1..=1, SMALL);
    let mut requests = vec![server.next_line()];
    write_secret(&token, "second one");
    add(&mut expected, push.push(2..=2, SMALL));
    // The third one is what is refused.
    push.push(3..=3, SMALL);
    add(&mut expected, push.push(4..=5, SMALL));
    let counts = push.finish().await;
    requests.extend(server.finish());
    assert_eq!(requests.len(), answers.len());
    // One request refused, and two profiles out of another one.
    assert_eq!((counts.sent, counts.retried, counts.rejected), (4, 3, 3));
    assert_eq!(read_sums(&requests), expected);
    let number = |idx: usize, name: &str| requests[idx][name].as_f64().unwrap();
    assert!(
        number(3, "time") - number(2, "time") >= 1.0,
        "it came back too early"
    );
    for (idx, request) in requests.iter().enumerate() {
        let headers = &request["headers"];
        let token = if idx == 0 { "first" } else { "second one" };
        assert_eq!(headers["authorization"], format!("Bearer {token}"), "{idx}");
        assert_eq!(headers["x-scope-orgid"], "team");
        let bytes = std::fs::read(folder.path().join(format!("{idx}.bin"))).unwrap();
        assert!(bytes.len() <= MAX_REQUEST_BYTES);
        assert_eq!(otlp::violations(&bytes), [""; 0], "request {idx}");
        for profile in request["resources"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|it| it["profiles"].as_array().unwrap())
        {
            assert_eq!(
                profile["labels"],
                serde_json::json!(["thread.id", "thread.name"])
            );
        }
    }
    // What is sent again is the same, so that it can be known.
    let ids = |idx: usize| requests[idx]["resources"].to_string();
    assert_eq!(ids(1), ids(2));
    assert_eq!(ids(2), ids(3));
}
