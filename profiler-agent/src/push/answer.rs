//! What the answer of a target means: which errors are tried again is decided by OTLP's table
//! (<https://opentelemetry.io/docs/specs/otlp/#failures>), which holds for the others too.
//!
//! With two exceptions, since what is refused is lost. Who is not let in may be let in later: tokens expire, and their files are
//! read again. And what is exhausted without a word of when it recovers is a quota, unless the target speaks of a size.

use std::error::Error as _;
use std::time::Duration;

use prost::Message as _;
use tonic::{Code, Status};

use super::credentials::error_text;
use crate::format::escape;
use crate::generated::google::rpc;

/// Longest time that a target may ask for.
const MAX_RETRY_DELAY: Duration = Duration::from_mins(10);

/// Most characters of a target's words that are shown.
const MAX_REASON_CHARS: usize = 300;

/// What to do after an attempt that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// Try again; not before the target wants it, if it said so.
    Retry {
        /// When.
        after: Option<Duration>,
        /// Why it failed.
        reason: String,
    },
    /// It may be too large: try with less.
    TooLarge {
        /// In the target's words.
        reason: String,
    },
    /// It will never be taken.
    Refused {
        /// In the target's words.
        reason: String,
        /// Whether that is so for everything that is sent, not for this request alone.
        is_for_all: bool,
    },
}

impl Failure {
    /// No answer came in time.
    pub(super) fn timeout(deadline: Duration) -> Self {
        Self::Retry {
            after: None,
            reason: format!("no answer within {} s", deadline.as_secs()),
        }
    }

    pub(super) fn of(status: &Status) -> Self {
        // Made here, not by the target: the connection failed.
        if let Some(source) = status.source() {
            let reason = error_text(source);
            return Self::Retry {
                after: None,
                reason,
            };
        }
        let reason = reason(status);
        let after = retry_delay(status);
        match status.code() {
            Code::ResourceExhausted if after.is_none() && is_of_a_size(status.message()) => {
                Self::TooLarge { reason }
            }
            // An answer that is too large is none of the target's errors, but made here.
            Code::OutOfRange
                if status
                    .message()
                    .contains("decoded message length too large") =>
            {
                Self::Refused {
                    reason,
                    is_for_all: false,
                }
            }
            Code::Cancelled
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
            | Code::Unauthenticated
            | Code::PermissionDenied => Self::Retry { after, reason },
            code => Self::Refused {
                reason,
                is_for_all: code == Code::Unimplemented,
            },
        }
    }
}

/// Whether a message is about the size of a request: `received message larger than max` (Go, and gRPC's core, which Python
/// and C++ have), `message length too large` (tonic), `exceeds maximum size` (Java).
fn is_of_a_size(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    [
        "larger than",
        "too large",
        "too big",
        "exceeds maximum size",
        "message size",
    ]
    .iter()
    .any(|words| message.contains(words))
}

fn reason(status: &Status) -> String {
    let words: String = status.message().chars().take(MAX_REASON_CHARS).collect();
    format!("{} ({:?})", escape(&words), status.code())
}

/// When the target wants it again: `google.rpc.RetryInfo` in the details of the status.
fn retry_delay(status: &Status) -> Option<Duration> {
    let details = rpc::Status::decode(status.details()).ok()?.details;
    let info = details
        .iter()
        .find(|it| it.type_url.ends_with("/google.rpc.RetryInfo"))?;
    let info = rpc::RetryInfo::decode(&*info.value).ok()?;
    let delay = Duration::try_from(info.retry_delay?).ok()?;
    Some(delay.min(MAX_RETRY_DELAY))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_retry_info(code: Code, seconds: i64) -> Status {
        let info = rpc::RetryInfo {
            retry_delay: Some(prost_types::Duration { seconds, nanos: 0 }),
        };
        let details = rpc::Status {
            code: code as i32,
            message: String::new(),
            details: vec![prost_types::Any {
                type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(),
                value: info.encode_to_vec(),
            }],
        };
        Status::with_details(code, "later", details.encode_to_vec().into())
    }

    #[test]
    fn codes_are_tried_again_as_the_specification_says() {
        // <https://opentelemetry.io/docs/specs/otlp/#failures>
        for (code, is_retried) in [
            (Code::Cancelled, true),
            (Code::Unknown, false),
            (Code::InvalidArgument, false),
            (Code::DeadlineExceeded, true),
            (Code::NotFound, false),
            (Code::AlreadyExists, false),
            // Not as it says.
            (Code::PermissionDenied, true),
            (Code::Unauthenticated, true),
            (Code::FailedPrecondition, false),
            (Code::Aborted, true),
            (Code::OutOfRange, true),
            (Code::Unimplemented, false),
            (Code::Internal, false),
            (Code::Unavailable, true),
            (Code::DataLoss, true),
        ] {
            let failure = Failure::of(&Status::new(code, "x"));
            let is_retry = matches!(failure, Failure::Retry { after: None, .. });
            assert_eq!(is_retry, is_retried, "{code:?}: {failure:?}");
        }
    }

    #[test]
    fn what_is_exhausted_recovers_unless_it_is_about_a_size() {
        for words in [
            "grpc: received message larger than max (2 vs. 1)",
            "Error, message length too large: found 2 bytes, the limit is: 1 bytes",
        ] {
            let failure = Failure::of(&Status::resource_exhausted(words));
            assert!(matches!(failure, Failure::TooLarge { .. }), "{words}");
        }
        for words in ["quota exceeded", "", "rate limit of 5 requests"] {
            let failure = Failure::of(&Status::resource_exhausted(words));
            assert!(
                matches!(failure, Failure::Retry { after: None, .. }),
                "{words}"
            );
        }
        let after = |status| match Failure::of(&status) {
            Failure::Retry { after, .. } => after,
            other => panic!("{other:?}"),
        };
        let exhausted = with_retry_info(Code::ResourceExhausted, 7);
        assert_eq!(after(exhausted), Some(Duration::from_secs(7)));
        let unavailable = with_retry_info(Code::Unavailable, 30);
        assert_eq!(after(unavailable), Some(Duration::from_secs(30)));
        let forever = with_retry_info(Code::Unavailable, i64::MAX);
        assert_eq!(after(forever), Some(MAX_RETRY_DELAY));
        let nonsense = with_retry_info(Code::Unavailable, -1);
        assert_eq!(after(nonsense), None);
    }

    #[test]
    fn the_words_of_a_target_are_bounded_and_harmless() {
        let status = Status::internal("\u{1b}[2J".to_owned() + &"x".repeat(10_000));
        let Failure::Refused { reason, .. } = Failure::of(&status) else {
            panic!("it is not tried again")
        };
        assert!(reason.len() < 400 && !reason.contains('\u{1b}'), "{reason}");
    }
}
