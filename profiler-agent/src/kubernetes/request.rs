//! Questions to the API server, and what can go wrong with them.

use std::error::Error;
use std::time::Duration;

use http::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER};
use http::{Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::lines::Lines;
use crate::format::escape;

/// Most bytes of one answer, or of one event of a watch. An object has at most 1.5 MiB.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// Most bytes of an answer to a question about somebody.
const MAX_REVIEW_BYTES: usize = 256 << 10;

/// Most bytes of an answer that says what is wrong.
const MAX_STATUS_BYTES: usize = 64 << 10;

/// Most characters of a reason that are told.
const MAX_REASON_CHARS: usize = 200;

/// How long the server may take to begin an answer, and to go on with it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Metadata of several objects.
pub(super) const METADATA_LIST: &str =
    "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

/// Metadata of one object, or of each in a watch.
pub(super) const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";

/// An object as it is.
const JSON: &str = "application/json";

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ApiError {
    #[error("{0}")]
    Unreachable(String),
    #[error("nothing came for {} s", .0.as_secs())]
    Silent(Duration),
    /// It says no.
    #[error("{message} ({status})")]
    Refused {
        status: StatusCode,
        message: String,
        /// Not to be asked again before.
        retry_after: Option<Duration>,
    },
    /// The version that was asked for is too old to go on from.
    #[error("what changed meanwhile is not known any more")]
    Expired,
    #[error("an answer is longer than {} MiB", .0 >> 20)]
    TooLong(usize),
    #[error("an answer is not understood: {0}")]
    Garbled(String),
}

impl ApiError {
    /// A connection that could not be made, or broke.
    pub(super) fn broken(error: &(dyn Error + 'static)) -> Self {
        let mut texts: Vec<String> = Vec::new();
        // What kube puts around it is for who writes programs.
        let mut next = match error.downcast_ref::<kube::Error>() {
            Some(kube::Error::Api(status)) => {
                return Self::of_status(status.code, &status.message, None);
            }
            Some(kube::Error::Service(cause)) => Some(&**cause as &(dyn Error + 'static)),
            Some(_) | None => Some(error),
        };
        while let Some(error) = next {
            let text = error.to_string();
            // Many say what their cause says.
            if !texts.iter().any(|known| known.contains(&text)) {
                texts.push(text);
            }
            next = error.source();
        }
        Self::Unreachable(shown(&texts.join(": ")))
    }

    fn garbled(error: &serde_json::Error) -> Self {
        Self::Garbled(shown(&error.to_string()))
    }

    /// What the server says in a `Status`.
    pub(super) fn of_status(code: u16, message: &str, retry_after: Option<Duration>) -> Self {
        let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if status == StatusCode::GONE {
            return Self::Expired;
        }
        let message = match message {
            "" => "refused".to_owned(),
            message => shown(message),
        };
        Self::Refused {
            status,
            message,
            retry_after,
        }
    }

    /// Whether it may be the version that was asked for that is refused: the server was restored from an older state, say. One
    /// that is away, busy or does not let anybody in says nothing of it.
    pub(super) fn is_about_the_question(&self) -> bool {
        let Self::Refused { status, .. } = self else {
            return false;
        };
        !matches!(
            *status,
            StatusCode::UNAUTHORIZED
                | StatusCode::FORBIDDEN
                | StatusCode::TOO_MANY_REQUESTS
                | StatusCode::SERVICE_UNAVAILABLE
        )
    }

    /// Whether the right to ask is missing.
    pub(super) fn is_forbidden(&self) -> bool {
        matches!(self, Self::Refused { status, .. }
            if matches!(*status, StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED))
    }

    /// Whether it does not know who asks.
    pub(super) fn is_about_the_user(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == StatusCode::UNAUTHORIZED)
    }

    /// Whether there is no such object.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == StatusCode::NOT_FOUND)
    }
}

/// A text of the server's for a line of the log: of one line, without control characters, and short.
pub(super) fn shown(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut chars = words.chars();
    let cut: String = chars.by_ref().take(MAX_REASON_CHARS).collect();
    let dots = if chars.next().is_some() { "…" } else { "" };
    format!("{}{dots}", escape(&cut))
}

/// `Status` of the API, as far as it is looked at.
#[derive(Debug, Deserialize)]
struct Refusal {
    #[serde(default)]
    message: String,
}

/// Asks for one answer.
pub(super) async fn get<T: DeserializeOwned>(
    client: &Client,
    path: &str,
    accept: &str,
) -> Result<T, ApiError> {
    let body = Lines::new(send(client, path, accept).await?, MAX_ANSWER_BYTES);
    let bytes = body.all(ANSWER_TIMEOUT).await?;
    serde_json::from_slice(&bytes).map_err(|error| ApiError::garbled(&error))
}

/// Asks for an answer that comes line by line.
pub(super) async fn watch(client: &Client, path: &str) -> Result<Lines<Body>, ApiError> {
    let body = send(client, path, METADATA).await?;
    Ok(Lines::new(body, MAX_ANSWER_BYTES))
}

/// Asks something that is told in a body: reviews, which create nothing.
pub(super) async fn post<T: DeserializeOwned>(
    client: &Client,
    path: &str,
    question: &Value,
) -> Result<T, ApiError> {
    let request = Request::post(path)
        .header(ACCEPT, JSON)
        .header(CONTENT_TYPE, JSON)
        .body(Body::from(question.to_string().into_bytes()));
    let answer = answer_to(client, request).await?;
    let bytes = Lines::new(answer, MAX_REVIEW_BYTES)
        .all(ANSWER_TIMEOUT)
        .await?;
    serde_json::from_slice(&bytes).map_err(|error| ApiError::garbled(&error))
}

/// A line of such an answer.
pub(super) fn parse<T: DeserializeOwned>(line: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(line).map_err(|error| ApiError::garbled(&error))
}

async fn send(client: &Client, path: &str, accept: &str) -> Result<Body, ApiError> {
    let request = Request::get(path).header(ACCEPT, accept);
    answer_to(client, request.body(Body::empty())).await
}

/// The body of the answer.
async fn answer_to(
    client: &Client,
    request: http::Result<Request<Body>>,
) -> Result<Body, ApiError> {
    let request = request.map_err(|error| ApiError::Garbled(shown(&error.to_string())))?;
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, client.send(request)).await;
    let answer = answer.map_err(|_| ApiError::Silent(ANSWER_TIMEOUT))?;
    let answer = answer.map_err(|error| ApiError::broken(&error))?;
    if matches!(answer.status(), StatusCode::OK | StatusCode::CREATED) {
        return Ok(answer.into_body());
    }
    Err(refusal(answer).await)
}

async fn refusal(answer: Response<Body>) -> ApiError {
    let code = answer.status().as_u16();
    let retry_after = answer.headers().get(RETRY_AFTER);
    let retry_after = retry_after.and_then(|seconds| seconds.to_str().ok()?.parse().ok());
    let body = Lines::new(answer.into_body(), MAX_STATUS_BYTES);
    let bytes = body.all(ANSWER_TIMEOUT).await.unwrap_or_default();
    let message = serde_json::from_slice(&bytes)
        .map_or_else(|_| String::new(), |Refusal { message }| message);
    ApiError::of_status(code, &message, retry_after.map(Duration::from_secs))
}

/// A text as a part of a query.
pub(super) fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.extend(format!("%{byte:02X}").chars()),
        }
    }
    encoded
}
