//! `/debug/pprof/heap` and `/debug/pprof/allocs`, as Go's `net/http/pprof` serves them: at once what is in use and what was
//! allocated so far, or with `seconds` what was allocated in that time.

use std::time::Duration;

use axum::Extension;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;

use super::http::{BadQuery, Chosen, Shared, file, pairs, plain, refusal};
use super::pull::{HeapWanted, check_duration, label_filters};
use super::query::PullError;
use super::scope::Scope;
use crate::format::{Format, escape};
use crate::profile::totals::{HeapView, LABELS_WITHOUT};

/// The answer where no allocations are sampled: a scraper counts the target as failed, and shows this.
const NO_ALLOCATIONS: &str = "the agent samples no allocations: start it with --type cpu,faults,alloc, or switch the \
                              scraper's memory profile off";

/// Parameters, for an error.
const PARAMETERS: &str = "seconds, pid, comm, cmdline, cgroup, container, namespace, pod_label, label, type, format, gc, debug";

type Asked = Result<Query<Vec<(String, String)>>, QueryRejection>;

/// `/debug/pprof/heap`.
pub(super) async fn heap(shared: State<Shared>, scope: Extension<Scope>, asked: Asked) -> Response {
    answer(shared, &scope, asked, HeapView::InUse).await
}

/// `/debug/pprof/allocs`: the same with another value shown first.
pub(super) async fn allocs(
    shared: State<Shared>,
    scope: Extension<Scope>,
    asked: Asked,
) -> Response {
    answer(shared, &scope, asked, HeapView::Allocated).await
}

async fn answer(
    State(shared): State<Shared>,
    scope: &Scope,
    asked: Asked,
    view: HeapView,
) -> Response {
    let wanted = pairs(asked).and_then(|pairs| parse(pairs, scope, view));
    let wanted = match wanted {
        Ok(wanted) => wanted,
        Err(error) => return plain(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let is_any_type = wanted.profile_type.is_none();
    match shared.puller.heap(wanted).await {
        Ok(pulled) => file(pulled),
        Err(PullError::NotSampled(_)) if is_any_type => {
            plain(StatusCode::NOT_FOUND, NO_ALLOCATIONS)
        }
        Err(error) => refusal(&error),
    }
}

fn parse(
    pairs: Vec<(String, String)>,
    scope: &Scope,
    view: HeapView,
) -> Result<HeapWanted, BadQuery> {
    let mut chosen = Chosen::default();
    for (name, value) in pairs {
        let Some(value) = chosen.take(&name, value)? else {
            continue;
        };
        match &*name {
            // Collections of garbage are the process's own business.
            "gc" if value.parse::<i64>().is_ok() => {}
            "debug" if value == "0" => {}
            "gc" | "debug" => return Err(BadQuery::NotGo(name, escape(&value).into_owned())),
            _ => return Err(BadQuery::Unknown(escape(&name).into_owned(), PARAMETERS)),
        }
    }
    let profile_type = chosen.profile_type;
    if let Some(other) = profile_type.filter(|it| !it.is_of_allocations()) {
        return Err(BadQuery::NotOfAllocations(other.name()));
    }
    let duration: Option<Duration> = chosen.duration.map(check_duration).transpose()?;
    if duration.is_none() {
        let is_without = |(name, _): &&(String, String)| LABELS_WITHOUT.contains(&&**name);
        if let Some((name, _)) = chosen.labels.iter().find(is_without) {
            return Err(BadQuery::NoSuchLabel(name.clone()));
        }
    }
    Ok(HeapWanted {
        profile_type,
        filter: chosen.selector.parse(scope)?,
        duration,
        labels: label_filters(chosen.labels)?,
        format: chosen.format.unwrap_or_else(Format::default_format),
        view,
    })
}
