//! Whether whoever runs a pod lets it be profiled: an annotation says so, which they can change while it runs.

use crate::process::facts::Facts;

/// Whose word counts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Consent {
    /// The annotation: `true`, as people write that, or else no. `None`: nobody is asked.
    pub annotation: Option<String>,
    /// Only what says `true` is profiled; nothing beyond pods can say it.
    pub is_needed: bool,
}

impl Consent {
    /// Whether a process may be profiled, as far as its pod is known.
    #[must_use]
    pub fn allows(&self, process: &Facts) -> bool {
        let Some(annotation) = &self.annotation else {
            return true;
        };
        let pod = process.pod.as_ref();
        let text = pod.and_then(|pod| pod.annotations.get(annotation));
        text.map_or(!self.is_needed, |text| is_yes(text))
    }
}

/// Whether a text says yes. Who wrote something else did not.
fn is_yes(text: &str) -> bool {
    let text = text.trim();
    let mut words = ["true", "yes", "on", "1"].into_iter();
    words.any(|yes| text.eq_ignore_ascii_case(yes))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ids::Pid;
    use crate::process::pod::Pod;

    #[test]
    fn a_pod_says_whether_it_may_be_profiled() {
        let mut process = Facts::read(Pid(std::process::id())).unwrap();
        let asks = |is_needed| Consent {
            annotation: Some("pyagent.io/profile".into()),
            is_needed,
        };
        let allowed = |process: &Facts| {
            [Consent::default(), asks(false), asks(true)].map(|it| it.allows(process))
        };
        assert_eq!(allowed(&process), [true, true, false]);
        for (text, expected) in [
            ("true", [true, true, true]),
            ("false", [true, false, false]),
            (" True\n", [true, true, true]),
            ("yes", [true, true, true]),
            ("False", [true, false, false]),
            ("no", [true, false, false]),
            ("", [true, false, false]),
        ] {
            let annotation = ("pyagent.io/profile".to_owned(), text.to_owned());
            process.pod = Some(Arc::new(Pod {
                annotations: [annotation].into(),
                ..Pod::default()
            }));
            assert_eq!(allowed(&process), expected, "{text}");
        }
    }
}
