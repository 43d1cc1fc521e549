//! The network between the agent and the Collector is cut: each of them is in a network namespace of its own, and a pair of
//! virtual interfaces joins them. Nothing of the host's network is touched.

use std::path::PathBuf;
use std::process::Command;

use super::Account;
use super::scene::Scene;
use crate::push::{Collector, CollectorSetup, Place};
use crate::pyagent::binary;

/// Addresses of the two ends, out of those that are kept for examples (RFC 5737).
const AGENT: &str = "192.0.2.1";
const COLLECTOR: &str = "192.0.2.2";

/// Name of the interface at either end.
const INTERFACE: &str = "veth0";

/// How the network is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The link is down: nothing gets through, and the kernel may say so.
    Link,
    /// What the agent sends arrives, and no answer comes back.
    Answers,
}

/// Two namespaces and what joins them; gone with it.
#[derive(Debug)]
struct Network {
    agent: String,
    collector: String,
}

impl Network {
    /// `None`, said, where there is no `ip`.
    fn new() -> Option<Self> {
        if Command::new("ip").arg("-V").output().is_err() {
            let is_promised = std::env::var("CI").is_ok_and(|ci| ci == "true");
            assert!(!is_promised, "CI has iproute2");
            println!("skipped: no `ip` on this machine; the package is iproute2");
            return None;
        }
        let name = |end: &str| format!("pyagent-{end}-{}", std::process::id());
        let network = Self {
            agent: name("agent"),
            collector: name("collector"),
        };
        for (namespace, _) in network.ends() {
            ip(&["netns", "add", namespace]);
            ip(&["-n", namespace, "link", "set", "lo", "up"]);
        }
        let pair = [
            "link", "add", INTERFACE, "type", "veth", "peer", "name", INTERFACE,
        ];
        let from_to = (["-n", &network.agent], ["netns", &network.collector]);
        ip(&[&from_to.0[..], &pair, &from_to.1].concat());
        for (namespace, address) in network.ends() {
            let address = format!("{address}/30");
            ip(&[
                "-n", namespace, "address", "add", &address, "dev", INTERFACE,
            ]);
            ip(&["-n", namespace, "link", "set", INTERFACE, "up"]);
        }
        Some(network)
    }

    fn ends(&self) -> [(&str, &str); 2] {
        [(&self.agent, AGENT), (&self.collector, COLLECTOR)]
    }

    fn cut(&self, cut: Cut) {
        match cut {
            Cut::Link => ip(&["-n", &self.collector, "link", "set", INTERFACE, "down"]),
            Cut::Answers => ip(&["-n", &self.collector, "route", "add", "blackhole", AGENT]),
        }
    }

    fn mend(&self, cut: Cut) {
        match cut {
            Cut::Link => ip(&["-n", &self.collector, "link", "set", INTERFACE, "up"]),
            Cut::Answers => ip(&["-n", &self.collector, "route", "del", "blackhole", AGENT]),
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for (namespace, _) in self.ends() {
            let _ = Command::new("ip")
                .args(["netns", "del", namespace])
                .status();
        }
    }
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output();
    let output = output.expect("ip is there");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments:?}: {errors}");
}

/// The network is cut for as long as the agent takes for so many windows. `None`, said: there is no Collector.
///
/// # Panics
/// When the agent fails.
#[must_use]
pub fn is_cut(cut: Cut, n_windows: usize) -> Option<Account> {
    let network = Network::new()?;
    let scene = Scene::new();
    let place = |namespace: &str| PathBuf::from("/run/netns").join(namespace);
    let setup = CollectorSetup {
        place: Some(Place {
            namespace: place(&network.collector),
            address: COLLECTOR.to_owned(),
        }),
        ..CollectorSetup::default()
    };
    let collector = Collector::start(scene.folder.path(), &setup)?;
    // Not by `ip netns exec`: that hides the kernel's file systems below /sys.
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", place(&network.agent).display()))
        .arg(binary());
    let push = format!("otlp=http://{COLLECTOR}:{}", collector.port);
    let agent = scene.agent_by(&mut command, &push, &[]);
    scene.wait_windows(3);
    network.cut(cut);
    let before = scene.arrivals(&collector).len();
    scene.wait_windows(n_windows);
    let during = scene.arrivals(&collector).len() - before;
    network.mend(cut);
    // What was under way, and what arrived while no answer came back.
    assert!(during <= 3, "{during} windows got through");
    Some(scene.finish(agent, &collector, 1))
}
