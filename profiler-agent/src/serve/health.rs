//! What probes of an orchestrator ask: on the server's own addresses, and on one of its own that everybody may reach.
//!
//! `/livez`: the process answers; nothing about sampling can make it be restarted. `/readyz`: the programs are attached; what
//! works in part is ready, and the body says what is missing. gRPC's health has the same under the names ``, `readiness` and
//! `liveness`.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::http::plain;
use super::query::{Asker, Status};

/// How often gRPC's health is renewed.
const INTERVAL: Duration = Duration::from_secs(2);

/// Name of what is always well in gRPC's health.
const LIVENESS: &str = "liveness";

/// Name of readiness there, besides the empty one.
const READINESS: &str = "readiness";

/// Whether profiles can be had.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Readiness {
    /// Everything is attached.
    Ready,
    /// Profiles can be had, but something is missing.
    Degraded(String),
    /// None can be had.
    NotReady(&'static str),
}

impl Readiness {
    async fn ask(asker: &Asker) -> Self {
        match asker.status().await {
            None => Self::NotReady("not ready: the agent is starting, stopping or overwhelmed"),
            Some(status) => Self::of(&status),
        }
    }

    fn of(status: &Status) -> Self {
        let (online, attached) = (status.n_cpus_online, status.n_cpus_attached);
        if attached == 0 {
            return Self::NotReady("not ready: no program is attached to any CPU");
        }
        let mut missing = Vec::new();
        if attached < online {
            missing.push(format!("samples are taken on {attached} of {online} CPUs"));
        }
        if !status.shedding.is_empty() {
            missing.push(status.shedding.clone());
        } else if status.rate_hz < status.rate_asked_hz {
            missing.push(format!(
                "{:.0} samples a second are taken on each CPU in place of {:.0}, since there were too many",
                status.rate_hz, status.rate_asked_hz
            ));
        }
        let of_recorder = status.recorder.as_ref().map(|it| &it.problem);
        let problem = of_recorder.unwrap_or(&status.not_recorded);
        if !problem.is_empty() {
            missing.push(format!("profiles are not recorded: {problem}"));
        }
        if let Some(kubernetes) = &status.kubernetes
            && !kubernetes.problem.is_empty()
        {
            missing.push(kubernetes.problem.clone());
        }
        if missing.is_empty() {
            Self::Ready
        } else {
            Self::Degraded(format!("ready, degraded: {}", missing.join("; ")))
        }
    }

    const fn serving(&self) -> ServingStatus {
        match self {
            Self::Ready | Self::Degraded(_) => ServingStatus::Serving,
            Self::NotReady(_) => ServingStatus::NotServing,
        }
    }
}

/// The pages.
pub(super) fn routes(asker: Asker) -> Router {
    Router::new()
        .route("/livez", get(async || plain(StatusCode::OK, "ok")))
        .route("/readyz", get(readyz))
        .with_state(asker)
}

async fn readyz(State(asker): State<Asker>) -> Response {
    match Readiness::ask(&asker).await {
        Readiness::Ready => plain(StatusCode::OK, "ready"),
        Readiness::Degraded(text) => plain(StatusCode::OK, &text),
        Readiness::NotReady(text) => plain(StatusCode::SERVICE_UNAVAILABLE, text),
    }
}

/// Keeps gRPC's health up to date, for ever.
pub(super) async fn report(reporter: HealthReporter, asker: Asker) {
    reporter
        .set_service_status(LIVENESS, ServingStatus::Serving)
        .await;
    loop {
        let serving = Readiness::ask(&asker).await.serving();
        for name in ["", READINESS] {
            reporter.set_service_status(name, serving).await;
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::super::query::{KubernetesInfo, RecorderInfo};
    use super::super::tests::status;
    use super::*;

    #[test]
    fn what_works_in_part_is_ready_and_says_what_is_missing() {
        let mut status = status();
        (status.n_cpus_online, status.n_cpus_attached) = (4, 4);
        (status.rate_asked_hz, status.rate_hz) = (99.0, 99.0);
        assert_eq!(Readiness::of(&status), Readiness::Ready);
        status.n_cpus_attached = 3;
        status.rate_hz = 50.0;
        let degraded = Readiness::of(&status);
        assert_eq!(degraded.serving(), ServingStatus::Serving);
        let Readiness::Degraded(text) = degraded else {
            panic!("{degraded:?}");
        };
        assert!(
            text.contains("3 of 4 CPUs") && text.contains("50"),
            "{text}"
        );
        status.n_cpus_attached = 4;
        status.shedding = "one of 2 samples is taken".into();
        let text = "ready, degraded: one of 2 samples is taken";
        assert_eq!(Readiness::of(&status), Readiness::Degraded(text.into()));
        status.shedding = String::new();
        status.rate_hz = 99.0;
        status.recorder = Some(RecorderInfo {
            folder: "/var/lib/pyagent".into(),
            problem: "the disk is full".into(),
            n_bytes: 0,
            keep_bytes: 1 << 30,
            oldest: None,
        });
        let degraded = Readiness::of(&status);
        let text = "ready, degraded: profiles are not recorded: the disk is full";
        assert_eq!(degraded, Readiness::Degraded(text.into()));
        status.recorder = None;
        status.kubernetes = Some(KubernetesInfo {
            problem: "Kubernetes is not followed".into(),
            n_pods: 3,
        });
        let degraded = Readiness::of(&status);
        let text = "ready, degraded: Kubernetes is not followed";
        assert_eq!(degraded, Readiness::Degraded(text.into()));
        status.n_cpus_attached = 0;
        assert_eq!(Readiness::of(&status).serving(), ServingStatus::NotServing);
    }
}
