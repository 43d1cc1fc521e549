//! HTTP beside gRPC on the same port: what `go tool pprof`, Parca, Alloy, Prometheus and `curl` ask for.

use std::time::Duration;

use axum::Extension;
use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::pull::{BadRequest, Pulled, Puller, Selector, Times, Wanted, label_filters};
use super::query::{Asker, PullError};
use super::scope::Scope;
use super::{discovery, heap, metrics};
use crate::format::{Format, escape};
use crate::profile::model::ProfileType;
use crate::profile::query::ProcessFilter;
use crate::profile::time::{parse_span, parse_time};

/// Duration of a profile that says none: Go's.
const DEFAULT_SECONDS: Duration = Duration::from_secs(30);

/// What the routes share.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    pub(super) asker: Asker,
    pub(super) puller: Puller,
}

/// The routes.
pub(super) fn routes(shared: Shared) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/healthz", get(health))
        .route("/debug/pprof/profile", get(profile))
        .route("/debug/pprof/heap", get(heap::heap))
        .route("/debug/pprof/allocs", get(heap::allocs))
        .route("/sd", get(targets))
        .with_state(shared.clone())
        .merge(metrics_route(shared))
}

/// The one for Prometheus.
pub(super) fn metrics_route(shared: Shared) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .with_state(shared)
}

/// The answer for paths that there are not: in gRPC's terms when gRPC asks.
pub(super) async fn not_found(request: Request) -> Response {
    nothing(&request, "not found; / lists what there is")
}

/// The same where only probes and metrics are served.
pub(super) async fn no_probe(request: Request) -> Response {
    nothing(
        &request,
        "not found; there are /livez, /readyz and /metrics",
    )
}

fn nothing(request: &Request, text: &str) -> Response {
    if is_grpc(request.headers()) {
        return tonic::Status::unimplemented("there is no such service").into_http();
    }
    plain(StatusCode::NOT_FOUND, text)
}

/// Whether a client of gRPC asks: it reads errors in the trailers only.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE);
    content_type.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

async fn index() -> Response {
    plain(
        StatusCode::OK,
        concat!(
            "pyagent ",
            env!("CARGO_PKG_VERSION"),
            ": profiles of the CPython processes of this host\n\n",
            "/debug/pprof/profile?seconds=N&pid=P   a profile of N seconds (1 to 3600, 30 when absent), for\n",
            "                                       go tool pprof; also comm=RE, cmdline=RE, container=NAME,\n",
            "                                       cgroup=PATH, label=NAME=RE, type=cpu|faults, format=NAME;\n",
            "                                       repeat one for one or the other\n",
            "/debug/pprof/profile?last=10m          of what was recorded; also from=TIME&to=TIME (RFC 3339)\n",
            "/debug/pprof/heap                      what is in use now, and what was allocated, since the agent\n",
            "                                       came (it samples alloc, else pools); processes as above, and\n",
            "                                       type=alloc|pools|mmap; seconds=N: of that time\n",
            "/debug/pprof/allocs                    the same, what was allocated first\n",
            "/sd                                    the processes as targets, for http_sd_configs of Prometheus\n",
            "/metrics                               the agent's own counters, for Prometheus\n",
            "/healthz, /livez, /readyz              200 while the agent answers, is alive, takes samples\n\n",
            "The same port speaks gRPC: pyagent.v1.ProfileService, with reflection and health.",
        ),
    )
}

async fn health(State(shared): State<Shared>) -> Response {
    match shared.asker.status().await {
        Some(_) => plain(StatusCode::OK, "ok"),
        None => refusal(&PullError::Stopping),
    }
}

async fn metrics(State(shared): State<Shared>, scope: Extension<Scope>) -> Response {
    match shared.asker.status_for(&scope).await {
        Some(status) => {
            let headers = [(header::CONTENT_TYPE, metrics::CONTENT_TYPE)];
            (headers, metrics::render(&status)).into_response()
        }
        None => refusal(&PullError::Stopping),
    }
}

async fn targets(
    State(shared): State<Shared>,
    scope: Extension<Scope>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let Some(authority) = discovery::authority(&uri, &headers) else {
        return plain(StatusCode::BAD_REQUEST, "the request names no host");
    };
    let filter = ProcessFilter {
        viewer: scope.viewer(),
        ..ProcessFilter::default()
    };
    let Some(processes) = shared.asker.processes(filter, false).await else {
        return refusal(&PullError::Stopping);
    };
    let groups = discovery::groups(&processes, &authority);
    match serde_json::to_string(&groups) {
        Ok(json) => ([(header::CONTENT_TYPE, discovery::CONTENT_TYPE)], json).into_response(),
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

async fn profile(
    State(shared): State<Shared>,
    scope: Extension<Scope>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Response {
    let asked = pairs(query).and_then(|pairs| parse(pairs, &scope));
    let wanted = match asked {
        Ok(wanted) => wanted,
        Err(error) => return plain(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    match shared.puller.pull(wanted).await {
        Ok(pulled) => file(pulled),
        Err(error) => refusal(&error),
    }
}

/// What is wrong with the query of a profile.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadQuery {
    #[error("the query cannot be read: {0}")]
    Unreadable(String),
    #[error("seconds={0} is not a number of seconds from 1 to 3600")]
    Seconds(String),
    #[error("{0}")]
    Time(String),
    #[error("label={0} is not NAME=REGEX")]
    Label(String),
    #[error("pid={0} is not a process id")]
    Pid(String),
    #[error("`{0}` is not known; there are {1}")]
    Unknown(String, &'static str),
    #[error(
        "{0}={1} is not known: take gc=1 and debug=0, which say nothing here, and format=folded for text"
    )]
    NotGo(String, String),
    #[error("type={0} is not of allocations: there are alloc, pools and mmap")]
    NotOfAllocations(&'static str),
    #[error("without seconds there is no label {0}: threads are put together; add seconds=N")]
    NoSuchLabel(String),
    #[error(transparent)]
    BadRequest(#[from] BadRequest),
}

/// The parameters of a request.
pub(super) fn pairs(
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Vec<(String, String)>, BadQuery> {
    query
        .map(|Query(pairs)| pairs)
        .map_err(|error| BadQuery::Unreadable(error.body_text()))
}

/// What a query chooses, of whatever profile.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    pub(super) selector: Selector,
    pub(super) labels: Vec<(String, String)>,
    pub(super) profile_type: Option<ProfileType>,
    pub(super) format: Option<&'static Format>,
    pub(super) duration: Option<Duration>,
}

impl Chosen {
    /// Takes a parameter; gives its value back when it chooses nothing. What is not known is to be refused: a mistyped `pid`
    /// must not become a profile of everything.
    pub(super) fn take(&mut self, name: &str, value: String) -> Result<Option<String>, BadQuery> {
        let shown = || escape(&value).into_owned();
        match name {
            "seconds" => {
                let seconds = value
                    .parse()
                    .ok()
                    .filter(|seconds| (1..=3600).contains(seconds));
                let seconds = seconds.ok_or_else(|| BadQuery::Seconds(shown()))?;
                self.duration = Some(Duration::from_secs(seconds));
            }
            "label" => {
                let label = value.split_once('=');
                let (name, pattern) = label.ok_or_else(|| BadQuery::Label(shown()))?;
                self.labels.push((name.to_owned(), pattern.to_owned()));
            }
            "pid" => {
                let pid = value.parse().map_err(|_| BadQuery::Pid(shown()))?;
                self.selector.include.pids.push(pid);
            }
            "comm" => self.selector.include.comm.push(value),
            "cmdline" => self.selector.include.cmdline.push(value),
            "cgroup" => self.selector.include.cgroup.push(value),
            "container" => self.selector.include.container.push(value),
            "namespace" => self.selector.include.namespace.push(value),
            "pod_label" => self.selector.include.pod_labels.push(value),
            "type" => self.profile_type = Some(value.parse().map_err(BadRequest::from)?),
            "format" => self.format = Some(Format::from_name(&value).map_err(BadRequest::from)?),
            _ => return Ok(Some(value)),
        }
        Ok(None)
    }
}

/// The profile that a query asks for.
fn parse(pairs: Vec<(String, String)>, scope: &Scope) -> Result<Wanted, BadQuery> {
    const PARAMETERS: &str = "seconds, last, from, to, pid, comm, cmdline, cgroup, container, namespace, pod_label, label, type, format";
    let mut chosen = Chosen::default();
    let mut times = Times::default();
    for (name, value) in pairs {
        let Some(value) = chosen.take(&name, value)? else {
            continue;
        };
        match &*name {
            "last" => times.last = Some(parse_span(&value).map_err(BadQuery::Time)?),
            "from" => times.from = Some(parse_time(&value).map_err(BadQuery::Time)?),
            "to" => times.to = Some(parse_time(&value).map_err(BadQuery::Time)?),
            _ => return Err(BadQuery::Unknown(escape(&name).into_owned(), PARAMETERS)),
        }
    }
    times.duration = chosen.duration;
    let profile_type = chosen.profile_type.unwrap_or(ProfileType::Cpu);
    let filter = chosen.selector.parse(scope)?;
    Ok(Wanted {
        source: times.source(profile_type, filter, DEFAULT_SECONDS)?,
        labels: label_filters(chosen.labels)?,
        format: chosen.format.unwrap_or_else(Format::default_format),
    })
}

/// A profile as a download: never shown by a browser as a page of this server.
pub(super) fn file(pulled: Pulled) -> Response {
    let extension = pulled
        .format
        .extensions
        .first()
        .copied()
        .unwrap_or_default();
    let disposition = format!("attachment; filename=\"profile{extension}\"");
    let headers: [(HeaderName, String); 3] = [
        (header::CONTENT_TYPE, pulled.format.content_type.to_owned()),
        (header::CONTENT_DISPOSITION, disposition),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
    ];
    (headers, pulled.bytes).into_response()
}

pub(super) fn refusal(error: &PullError) -> Response {
    let status = match error {
        PullError::NoMatch
        | PullError::NotSampled(_)
        | PullError::NoRecorder
        | PullError::NotRecorded(_)
        | PullError::UnknownLabel(_) => StatusCode::NOT_FOUND,
        PullError::Unreadable(_) => StatusCode::INTERNAL_SERVER_ERROR,
        PullError::TooManyPulls => StatusCode::TOO_MANY_REQUESTS,
        PullError::Stopping => StatusCode::SERVICE_UNAVAILABLE,
    };
    plain(status, &error.to_string())
}

pub(super) fn plain(status: StatusCode, text: &str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (status, headers, format!("{text}\n")).into_response()
}
