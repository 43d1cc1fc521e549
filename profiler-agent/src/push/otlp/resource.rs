//! A process as a resource of OpenTelemetry, and labels as attributes: which name is which.

use super::dictionary::Attribute;
use crate::format::escape;
use crate::generated::opentelemetry::proto::common::v1::KeyValue;
use crate::profile::model::{LabelValue, Labels, Process, Profile, label};
use crate::push::host::Host;

/// Labels whose attributes have names of their own: <https://opentelemetry.io/docs/specs/semconv/registry/attributes/>.
/// Those of Kubernetes (`k8s_pod_name`) are found by rule.
const ATTRIBUTES: &[(&str, &str)] = &[
    (label::PID, "process.pid"),
    (label::TID, "thread.id"),
    (label::THREAD_NAME, "thread.name"),
    (label::COMM, "process.executable.name"),
    (label::PYTHON_VERSION, "process.runtime.version"),
    (label::CGROUP, "process.linux.cgroup"),
    (label::CONTAINER_ID, "container.id"),
    (label::CONTAINER_NAME, "container.name"),
    (label::CONTAINER_RUNTIME, "container.runtime.name"),
    (label::SERVICE_NAME, "service.name"),
    (label::SERVICE_NAMESPACE, "service.namespace"),
    (label::SERVICE_VERSION, "service.version"),
    (label::DEPLOYMENT_ENVIRONMENT, "deployment.environment.name"),
];

/// Before the names of attributes of samples that are pyagent's own.
const OWN: &str = "pyagent.";

/// Before the labels that Kubernetes gives.
const KUBERNETES: &str = "k8s_";

/// Name of the attribute of a process that a label is.
pub(super) fn resource_name(label: &str) -> String {
    match known(label) {
        Some(name) => name.to_owned(),
        None if label.starts_with(KUBERNETES) => label.replace('_', "."),
        // One that the user has given.
        None => label.to_owned(),
    }
}

/// Name of the attribute of a sample that a label is.
pub(super) fn sample_name(label: &str) -> String {
    known(label).map_or_else(|| format!("{OWN}{label}"), str::to_owned)
}

fn known(label: &str) -> Option<&'static str> {
    let mut known = ATTRIBUTES.iter();
    known.find(|(name, _)| *name == label).map(|(_, it)| *it)
}

/// What a label says; `None`: nothing.
pub(super) fn attribute(profile: &Profile, value: LabelValue) -> Option<Attribute> {
    match value {
        LabelValue::Num(number) => Some(Attribute::Number(number)),
        LabelValue::Str(text) => {
            let text = escape(profile.str(text));
            (!text.is_empty()).then(|| Attribute::Text(text.into_owned()))
        }
    }
}

/// What makes two processes of different profiles the same one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Resource {
    pid: u32,
    started_ns: u64,
    attributes: Vec<(String, Attribute)>,
}

impl Resource {
    /// `names`: labels whose attributes are called otherwise.
    pub(super) fn new(
        profile: &Profile,
        process: &Process,
        host: &Host,
        names: &[(String, String)],
    ) -> Self {
        let mut attributes = Vec::new();
        add_labels(&mut attributes, profile, &process.labels, names);
        let has = |attributes: &[(String, Attribute)], name: &str| {
            attributes.iter().any(|(other, _)| other == name)
        };
        let text = |text: &str| Attribute::Text(escape(text).into_owned());
        let mut more = vec![("process.runtime.name", text("cpython"))];
        let cmdline = profile.str(process.cmdline);
        if !cmdline.is_empty() {
            more.push(("process.command_line", text(cmdline)));
        }
        if process.started_ns > 0
            && let Some(time) = host.time_text(process.started_ns)
        {
            more.push(("process.creation.time", text(&time)));
        }
        more.extend([
            ("host.name", text(&host.name)),
            ("host.arch", text(host.architecture)),
            ("os.type", text("linux")),
            ("os.version", text(&host.kernel_release)),
            ("process.pid", Attribute::Number(i64::from(process.pid))),
            // What OpenTelemetry wants where nothing better is known.
            ("service.name", text("unknown_service:python")),
        ]);
        for (name, value) in more {
            // A user's own label of this name wins.
            if !has(&attributes, name) {
                attributes.push((name.to_owned(), value));
            }
        }
        Self {
            pid: process.pid,
            started_ns: process.started_ns,
            attributes,
        }
    }

    /// Its attributes, as a request has them.
    pub(super) fn key_values(&self) -> Vec<KeyValue> {
        let attributes = self.attributes.iter();
        attributes
            .map(|(key, value)| KeyValue {
                key: key.clone(),
                value: Some(value.clone().into()),
                key_strindex: 0,
            })
            .collect()
    }

    /// The process, for ids of its profiles.
    pub(super) fn process(&self) -> (u32, u64) {
        (self.pid, self.started_ns)
    }
}

fn add_labels(
    attributes: &mut Vec<(String, Attribute)>,
    profile: &Profile,
    labels: &Labels,
    names: &[(String, String)],
) {
    for (name, value) in labels {
        let label = profile.str(*name);
        let own = names.iter().find(|(other, _)| other == label);
        let name = own.map_or_else(|| resource_name(label), |(_, name)| name.clone());
        let is_new = attributes.iter().all(|(other, _)| *other != name);
        if let Some(value) = attribute(profile, *value)
            && is_new
        {
            attributes.push((name, value));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::profile::aggregate::{Aggregator, ProcessLabels, ResolvedSample, ThreadLabels};
    use crate::profile::model::ValueType;

    #[test]
    fn labels_of_pods_are_called_by_the_keys_that_they_have_there() {
        let labels = ProcessLabels {
            more: [("team", "shop"), ("k8s_job_name", "report-28")]
                .map(|(name, text)| (name.into(), text.into()))
                .into(),
            ..ProcessLabels::of_pid(7)
        };
        let labels = Arc::new(ThreadLabels {
            process: Arc::new(labels),
            tid: 7,
            started_ns: 0,
            thread_name: "MainThread".into(),
        });
        let mut aggregator = Aggregator::new(SystemTime::UNIX_EPOCH, &ValueType::CPU_SAMPLES, 1);
        aggregator.add(&ResolvedSample {
            frames: Vec::new(),
            labels,
            instruction: None,
            values: [1, 1].into(),
        });
        let profile = aggregator.finish(Duration::from_secs(1), Vec::new());
        let host = Host::of_this_machine();
        let key = "k8s.pod.label.example.com/team".to_owned();
        let names = [("team".to_owned(), key.clone())];
        let resource = Resource::new(&profile, &profile.processes[0], &host, &names);
        let text = |name: &str| {
            let mut attributes = resource.attributes.iter();
            let found = attributes.find(|(other, _)| other == name);
            found.map(|(_, value)| value.clone())
        };
        let is = |text: &str| Some(Attribute::Text(text.to_owned()));
        assert_eq!(text(&key), is("shop"));
        assert_eq!(text("team"), None);
        assert_eq!(text("k8s.job.name"), is("report-28"));
    }

    #[test]
    fn labels_have_the_names_of_opentelemetry() {
        assert_eq!(resource_name("k8s_pod_uid"), "k8s.pod.uid");
        assert_eq!(resource_name("container_id"), "container.id");
        assert_eq!(resource_name("team"), "team");
        assert_eq!(sample_name("tid"), "thread.id");
        assert_eq!(sample_name("thread_state"), "pyagent.thread_state");
    }
}
