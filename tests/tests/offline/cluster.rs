//! `--k8s`: a cluster's agents are found, asked at the same time and put together; what one of them does wrong is its own.

use std::collections::BTreeMap;
use std::process::Output;
use std::time::{Duration, Instant};

use profiler_agent::format::read::read;
use profiler_agent::profile::model::Profile;
use pyagent_tests::fake_agents::Behaviour;
use pyagent_tests::fake_cluster::{FakeCluster, Seen, answers, profile};

fn web(number: u32, pid: u32, n_samples: i64) -> Seen {
    Seen {
        app: "web",
        number,
        pid,
        function: "render",
        n_samples,
    }
}

/// Three nodes: two with pods of `web`, one with a pod of `db`.
fn shop() -> FakeCluster {
    let cluster = FakeCluster::new();
    cluster.node("n1", answers(&profile("n1", &[web(1, 7, 30)])));
    cluster.node("n2", answers(&profile("n2", &[web(2, 7, 12)])));
    cluster.node("n3", Behaviour::Nothing);
    cluster.pod("web", 1, "n1");
    cluster.pod("web", 2, "n2");
    cluster.pod("db", 1, "n3");
    cluster
}

const PULL: [&str; 7] = ["pull", "--k8s", "-n", "shop", "--last", "10m", "-o"];

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn pulled(output: &Output, code: i32) -> Profile {
    assert_eq!(output.status.code(), Some(code), "{}", said(output));
    read(&output.stdout).unwrap()
}

/// Samples by a label.
fn by<'a>(profile: &'a Profile, name: &str) -> BTreeMap<&'a str, i64> {
    let mut sums = BTreeMap::new();
    for sample in &profile.samples {
        let value = profile.label(sample.labels, name).unwrap_or_default();
        *sums.entry(value).or_default() += sample.values[0];
    }
    sums
}

#[test]
fn a_workload_is_one_profile_of_the_nodes_where_it_runs() {
    let cluster = shop();
    let output = cluster.run(&[&PULL[..], &["-", "deploy/web"]].concat());
    let profile = pulled(&output, 0);
    assert_eq!(
        by(&profile, "k8s_node_name"),
        BTreeMap::from([("n1", 30), ("n2", 12)])
    );
    assert_eq!(
        by(&profile, "k8s_pod_name"),
        BTreeMap::from([("web-7f-1", 30), ("web-7f-2", 12)])
    );
    assert_eq!(profile.stacks.len(), 1);
    assert!(
        profile
            .comments
            .contains(&"lost_full: 4 (Samples lost)".to_owned())
    );
    // The third node was not asked, and the others for what is meant.
    let asked = cluster.agents.asked.lock().unwrap();
    assert_eq!(asked.pulls.len(), 2);
    for (_, pull) in &asked.pulls {
        let selector = pull.selector.as_ref().unwrap();
        assert_eq!(selector.k8s_namespace, ["shop"]);
        assert_eq!(
            (&*pull.labels[0].name, &*pull.labels[0].pattern),
            ("k8s_deployment_name", "^(web)$")
        );
        assert_eq!(pull.last.as_ref().unwrap().seconds, 600);
    }
    // In the clear nobody is shown the kubeconfig's token.
    assert_eq!(asked.bearers, [None, None]);
    assert_eq!(cluster.api.n_forwarded(), 2);
}

#[test]
fn agents_can_be_asked_without_the_api_servers_streams() {
    let cluster = shop();
    let output = cluster.run(&[&PULL[..], &["-", "deploy/web", "--k8s-direct"]].concat());
    assert_eq!(pulled(&output, 0).n_samples(), 42);
    assert_eq!(cluster.api.n_forwarded(), 0);
    let address = cluster
        .agents
        .start(answers(&profile("n9", &[web(9, 1, 5)])));
    let service = format!("http://127.0.0.1:{}", address.port());
    let output =
        cluster.run(&[&PULL[..], &["-", "deploy/web", "--k8s-service", &service]].concat());
    assert_eq!(
        by(&pulled(&output, 0), "k8s_node_name"),
        BTreeMap::from([("n9", 5)])
    );
}

#[test]
fn pods_are_chosen_by_labels_in_what_was_recorded_too() {
    let cluster = shop();
    let output = cluster.run(&[&PULL[..], &["-", "-l", "app=web"]].concat());
    let profile = pulled(&output, 0);
    assert_eq!(profile.n_samples(), 42);
    assert!(
        said(&output).contains("pods that have gone are left out"),
        "{}",
        said(&output)
    );
    let asked = cluster.agents.asked.lock().unwrap();
    for (_, pull) in &asked.pulls {
        assert_eq!(
            pull.selector.as_ref().unwrap().k8s_labels,
            Vec::<String>::new()
        );
        assert_eq!(pull.labels[0].name, "k8s_pod_uid");
    }
}

#[test]
fn nodes_count_where_pods_ran_that_have_gone() {
    let cluster = shop();
    cluster.node("n4", answers(&profile("n4", &[web(0, 9, 8)])));
    cluster.api.tell_scheduled("shop", "web-6e-9", "n4");
    let arguments = [&PULL[..], &["-", "deploy/web"]].concat();
    assert_eq!(pulled(&cluster.run(&arguments), 0).n_samples(), 50);
    // Where that may not be known, all are asked.
    let n_pulls = cluster.agents.n_pulls();
    cluster.api.be_strict();
    let direct = [&arguments[..], &["--k8s-direct"]].concat();
    assert_eq!(pulled(&cluster.run(&direct), 0).n_samples(), 50);
    assert_eq!(cluster.agents.n_pulls(), n_pulls + 4);
}

#[test]
fn what_one_agent_does_wrong_is_its_own() {
    let cluster = FakeCluster::new();
    cluster.node("n1", answers(&profile("n1", &[web(1, 7, 30)])));
    let good = profile("n2", &[web(2, 7, 12)]);
    let Behaviour::Profile(bytes, n_samples) = answers(&good) else {
        unreachable!();
    };
    let mut negative = good.clone();
    negative.samples[0].values = [-12, 5].into();
    let mut huge = good.clone();
    huge.samples[0].values = [12, i64::MAX].into();
    let wrong = [
        (Behaviour::Silent, "did not answer|does not answer"),
        (Behaviour::Deaf, "answer|broke"),
        (Behaviour::Refuses, "no"),
        (Behaviour::Garbage, "no profile"),
        (Behaviour::Endless, "not complete|not sent"),
        (Behaviour::Short, "not complete"),
        (Behaviour::Drips, "not sent within"),
        (Behaviour::Claims(u64::MAX), "larger than 32 MiB"),
        (Behaviour::Claims(1000), "not complete"),
        (
            Behaviour::Profile(bytes, n_samples + 1),
            "13 samples, and sent 12",
        ),
        (answers(&negative), "below zero"),
        (answers(&huge), "more CPU time"),
        (Behaviour::Profile(bomb().into(), 0), "larger than"),
        (Behaviour::Profile(many_samples().into(), 0), "more than"),
    ];
    for (idx, (behaviour, _)) in wrong.iter().enumerate() {
        cluster.node(&format!("wrong-{idx}"), behaviour.clone());
    }
    cluster.pod("web", 1, "n1");
    cluster.pod("web", 2, "n2");
    for idx in 0..wrong.len() {
        cluster.pod("web", 10 + idx as u32, &format!("wrong-{idx}"));
    }
    let begun = Instant::now();
    let output = cluster.run(&[&PULL[..], &["-", "deploy/web", "--k8s-timeout", "2s"]].concat());
    let profile = pulled(&output, 1);
    assert!(
        begun.elapsed() < Duration::from_secs(60),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(by(&profile, "k8s_node_name"), BTreeMap::from([("n1", 30)]));
    let said = said(&output);
    for (idx, (_, why)) in wrong.iter().enumerate() {
        let node = format!("wrong-{idx}: ");
        let line = said.lines().find(|line| line.contains(&node));
        let line = line.unwrap_or_else(|| panic!("{node}: {said}"));
        assert!(
            why.split('|').any(|why| line.contains(why)),
            "{why}: {line}"
        );
        assert!(!line.contains('\u{1b}'), "{line}");
    }
    assert!(
        said.contains("n2: pods that are meant run there, and no agent does"),
        "{said}"
    );
    let missing = profile.comments.iter().find(|it| it.contains("missing"));
    assert!(
        missing.is_some_and(|it| it.starts_with("15 nodes are missing: n2, wrong-0")),
        "{missing:?}"
    );
}

/// A small file that is large.
fn bomb() -> Vec<u8> {
    use std::io::Write as _;
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let zeros = vec![0; 1 << 20];
    for _ in 0..200 {
        packed.write_all(&zeros).unwrap();
    }
    packed.finish().unwrap()
}

/// Functions without anything, in four bytes each: decoded as they are they would take twenty times as much.
fn many_samples() -> Vec<u8> {
    use std::io::Write as _;
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&[0x32, 0]).unwrap();
    packed.write_all(&[0x2a, 2, 8, 1].repeat(4 << 20)).unwrap();
    packed.finish().unwrap()
}

#[test]
fn a_token_goes_to_nobody_but_an_agent_that_shows_the_right_certificate() {
    let cluster = FakeCluster::new();
    let name = "pyagent.pyagent.svc".to_owned();
    let certified = rcgen::generate_simple_self_signed([name]).unwrap();
    let (certificate, key) = (certified.cert.pem(), certified.signing_key.serialize_pem());
    let ca = cluster.file("ca.crt", &certificate);
    cluster.secure_node(
        "n1",
        answers(&profile("n1", &[web(1, 7, 30)])),
        (certificate, key),
    );
    let other = rcgen::generate_simple_self_signed(["pyagent.pyagent.svc".to_owned()]).unwrap();
    let other = (other.cert.pem(), other.signing_key.serialize_pem());
    cluster.secure_node("n2", answers(&profile("n2", &[web(2, 7, 12)])), other);
    cluster.pod("web", 1, "n1");
    cluster.pod("web", 2, "n2");
    let arguments = [&PULL[..], &["-", "deploy/web", "--tls-ca", &ca]].concat();
    let output = cluster.run(&arguments);
    assert_eq!(
        by(&pulled(&output, 1), "k8s_node_name"),
        BTreeMap::from([("n1", 30)])
    );
    assert!(
        said(&output).contains("n2: the certificate of n2"),
        "{}",
        said(&output)
    );
    let bearer = |idx: usize| cluster.agents.asked.lock().unwrap().bearers[idx].clone();
    // The kubeconfig's, when no other is given.
    assert_eq!(bearer(0).as_deref(), Some("Bearer abc"));
    let token = cluster.file("token", "0123456789abcdef0123456789abcdef\n");
    let with_token = [&arguments[..], &["--token-file", &token]].concat();
    assert_eq!(cluster.run(&with_token).status.code(), Some(1));
    assert_eq!(
        bearer(1).as_deref(),
        Some("Bearer 0123456789abcdef0123456789abcdef")
    );
    assert_eq!(cluster.agents.n_pulls(), 2);
}

#[test]
fn what_cannot_be_is_said_in_a_line_with_its_code() {
    let cluster = shop();
    let token = cluster.file("token", "0123456789abcdef0123456789abcdef\n");
    let refused = |arguments: &[&str], code: i32, part: &str| {
        let output = cluster.run(&[&PULL[..], &["-"], arguments].concat());
        let said = said(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        let last = said.lines().last().unwrap_or_default();
        assert!(last.contains(part), "{arguments:?}: {said}");
    };
    refused(
        &["deploy/nothing"],
        4,
        "there is no pod of deployment/nothing in shop",
    );
    refused(
        &["deploy/db"],
        4,
        "no agent has samples of deployment/db in shop",
    );
    refused(&["node/x"], 2, "no pod or workload");
    refused(&["web1:7099"], 2, "no pod or workload");
    refused(&["deploy/web", "--token-file", &token], 2, "in the clear");
    refused(&["deploy/web", "--context", "none"], 2, "kubeconfig");
    refused(&["deploy/web", "--kubeconfig", "/nowhere"], 2, "/nowhere");
    refused(
        &["deploy/web", "--k8s-agents-namespace", "none"],
        1,
        "no agent runs in the namespace none",
    );
    refused(
        &["deploy/web", "--k8s-agents-selector", "app=x"],
        1,
        "no agent runs",
    );
    refused(
        &["-l", "app=web", "--k8s-service", "http://localhost:1"],
        2,
        "API server",
    );
    cluster.api.be_strict();
    refused(&["deploy/web"], 1, "none of");
    let without = cluster.run(&["pull", "deploy/web", "--context", "x"]);
    assert_eq!(without.status.code(), Some(2));
    let mut nowhere = cluster.command(&["pull", "--k8s", "-o", "-"]);
    let nowhere = nowhere.env_remove("KUBECONFIG").output().unwrap();
    assert_eq!(nowhere.status.code(), Some(2));
    assert!(
        said(&nowhere).contains("--kubeconfig"),
        "{}",
        said(&nowhere)
    );
}

#[test]
fn views_are_of_the_whole_cluster_too() {
    let cluster = shop();
    let printed = |arguments: &[&str]| {
        let output = cluster.run(arguments);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{arguments:?}: {}",
            said(&output)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let recorded = ["--k8s", "-n", "shop", "--last", "10m"];
    let report = |more: &[&str]| printed(&[&["report"], &recorded[..], more].concat());
    assert!(report(&["deploy/web"]).contains("render"));
    let by_node = report(&["deploy/web", "--by", "k8s_node_name"]);
    assert!(
        by_node.contains("n1") && by_node.contains("n2"),
        "{by_node}"
    );
    // Both nodes have a process 7.
    let processes = report(&["deploy/web", "--processes"]);
    assert_eq!(processes.matches("web-7f-").count(), 2, "{processes}");
    // In place of a name: all pods, so that rows can be chosen.
    assert!(report(&["pods", "render"]).contains("render"));

    let file = cluster.path("before.pb.gz").display().to_string();
    let pull = cluster.run(&[
        "pull",
        "--k8s",
        "-n",
        "shop",
        "deploy/web",
        "--last",
        "10m",
        "-o",
        &file,
    ]);
    assert_eq!(pull.status.code(), Some(0), "{}", said(&pull));
    assert!(
        said(&pull).contains("42 samples from 2 nodes"),
        "{}",
        said(&pull)
    );
    let diff = printed(&[&["diff", &file, "deploy/web"], &recorded[..]].concat());
    assert!(!diff.is_empty());

    let top = printed(&[
        "top",
        "--k8s",
        "-n",
        "shop",
        "deploy/web",
        "--json",
        "-d",
        "300ms",
        "--every",
        "150ms",
    ]);
    let top: serde_json::Value = serde_json::from_str(&top).unwrap();
    let processes = top["processes"].as_array().unwrap();
    assert_eq!(processes.len(), 2, "{top}");
}

#[test]
fn a_view_that_goes_on_does_not_wait_for_who_is_silent() {
    let cluster = shop();
    cluster.node("n4", Behaviour::Deaf);
    cluster.pod("web", 4, "n4");
    let begun = Instant::now();
    let output = cluster.run(&[
        "top",
        "--k8s",
        "-n",
        "shop",
        "deploy/web",
        "--json",
        "-d",
        "1s",
        "--every",
        "200ms",
    ]);
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let top: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let remarks = top["remarks"].to_string();
    assert!(remarks.contains("1 node is missing: n4"), "{remarks}");
}
