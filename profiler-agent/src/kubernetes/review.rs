//! Who asks, and in which namespaces they may see profiles: whose a bearer token is (`TokenReview`) and what that user may
//! (`SubjectAccessReview`), as the API server says.
//!
//! The right is `get` of `pods/profile`, which is no resource that the server has: a name for a right, that roles give as they give
//! any other. Who has it in all namespaces may everything.
//! <https://kubernetes.io/docs/reference/access-authn-authz/authorization/#checking-api-access>
//!
//! Answers are kept for a minute, by a hash of the token: neither the token nor who has it is ever logged or told.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::connect::ApiServer;
use super::namespaces::Namespaces;
use super::request::{self, ApiError};

/// Where tokens are reviewed.
const TOKEN_REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

/// Where access is.
const ACCESS_REVIEWS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";

/// How long an answer holds: a right that is taken away is gone after this time.
const KEEP_KNOWN: Duration = Duration::from_mins(1);

/// The same of a token that the server does not know.
const KEEP_UNKNOWN: Duration = Duration::from_secs(10);

/// Tokens whose answers are kept.
const MAX_KNOWN: usize = 256;

/// Tokens that are asked about at a time.
const MAX_AT_A_TIME: usize = 16;

/// Namespaces of one user that are asked about at a time.
const NAMESPACES_AT_A_TIME: usize = 8;

/// All questions about one request together take no longer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Most bytes of a token: it comes in a header.
const MAX_TOKEN_BYTES: usize = 12 << 10;

/// Most bytes of what the server says of a user.
const MAX_USER_BYTES: usize = 32 << 10;

/// Why there is no answer is logged this often.
const LOG_INTERVAL: Duration = Duration::from_mins(1);

/// What somebody may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// Profiles of all namespaces, and of what is in no pod.
    Everything,
    /// Profiles of pods in these namespaces, in their order; perhaps none.
    Namespaces(Vec<String>),
}

impl Access {
    /// Whether this allows all that the other one does.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Everything, _) => true,
            (Self::Namespaces(_), Self::Everything) => false,
            (Self::Namespaces(own), Self::Namespaces(others)) => {
                others.iter().all(|name| own.contains(name))
            }
        }
    }
}

/// Why nobody knows what somebody may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.words())]
pub enum ReviewError {
    /// It is the token of nobody.
    UnknownToken,
    /// The server cannot be asked.
    Unavailable,
    /// The agent may not ask.
    NotAllowed,
}

impl ReviewError {
    /// For who asks: it says nothing of the cluster.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::UnknownToken => {
                "refused: the Kubernetes API server does not know this token, or not any more"
            }
            Self::Unavailable => {
                "refused for now: the Kubernetes API server does not say who asks: try again later"
            }
            Self::NotAllowed => {
                "refused for now: the agent may not ask the Kubernetes API server who asks: give its service account the right \
                 to create tokenreviews and subjectaccessreviews"
            }
        }
    }
}

/// Asks the API server who somebody is and what they may see.
#[derive(Clone)]
pub struct Reviewer(Arc<Shared>);

struct Shared {
    server: ApiServer,
    /// Namespaces of pods of this node, those of the last time too.
    namespaces: watch::Receiver<Namespaces>,
    /// Namespaces of what was recorded before.
    recorded: OnceLock<Vec<String>>,
    known: Mutex<HashMap<[u8; 32], Known>>,
    places: Semaphore,
    logged: Mutex<Option<Instant>>,
}

impl fmt::Debug for Reviewer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reviewer")
    }
}

/// What is known of a token.
#[derive(Debug, Clone)]
struct Known {
    until: Instant,
    /// `None`: it is nobody's.
    user: Option<Arc<User>>,
}

/// Somebody, and what they may.
#[derive(Debug)]
struct User {
    /// As a `SubjectAccessReview` has it.
    subject: Map<String, Value>,
    /// They may see all namespaces.
    is_everywhere: bool,
    /// Whether they may see these.
    by_namespace: Mutex<BTreeMap<String, bool>>,
}

#[derive(Debug, Deserialize)]
struct TokenReview {
    status: TokenStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TokenStatus {
    authenticated: bool,
    user: UserInfo,
}

/// Somebody, as the server says it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct UserInfo {
    username: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct AccessReview {
    status: AccessStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AccessStatus {
    allowed: bool,
    denied: bool,
}

impl Reviewer {
    pub(super) fn new(server: ApiServer, namespaces: watch::Receiver<Namespaces>) -> Self {
        Self(Arc::new(Shared {
            server,
            namespaces,
            recorded: OnceLock::new(),
            known: Mutex::default(),
            places: Semaphore::new(MAX_AT_A_TIME),
            logged: Mutex::default(),
        }))
    }

    /// Says which namespaces there are profiles of beside those whose pods are told of. It counts once.
    pub fn set_recorded(&self, namespaces: Vec<String>) {
        // A second time changes nothing.
        let _ = self.0.recorded.set(namespaces);
    }

    /// What whoever has this token may see. It takes 5 s at most.
    ///
    /// # Errors
    /// When it is nobody's, or nobody can say whose it is.
    pub async fn access(&self, token: &[u8]) -> Result<Access, ReviewError> {
        let token = std::str::from_utf8(token).ok();
        let token = token.filter(|it| it.len() <= MAX_TOKEN_BYTES && !it.is_empty());
        let token = token.ok_or(ReviewError::UnknownToken)?;
        let asked = tokio::time::timeout(TIMEOUT, self.0.access(token)).await;
        match asked {
            Ok(Ok(access)) => access.ok_or(ReviewError::UnknownToken),
            Ok(Err(error)) => {
                self.0.log(&error);
                Err(if error.is_forbidden() {
                    ReviewError::NotAllowed
                } else {
                    ReviewError::Unavailable
                })
            }
            Err(_) => {
                self.0.log(&ApiError::Silent(TIMEOUT));
                Err(ReviewError::Unavailable)
            }
        }
    }
}

impl Shared {
    /// `None`: the token is nobody's.
    async fn access(&self, token: &str) -> Result<Option<Access>, ApiError> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        let known = match self.known(&digest) {
            Some(known) => known,
            None => {
                let _place = self.place().await?;
                // Another request with it may have asked meanwhile.
                match self.known(&digest) {
                    Some(known) => known,
                    None => self.ask(digest, token).await?,
                }
            }
        };
        let Some(user) = known.user else {
            return Ok(None);
        };
        if user.is_everywhere {
            return Ok(Some(Access::Everything));
        }
        let names = self.names();
        let unknown: Vec<String> = {
            let known = lock(&user.by_namespace);
            let unknown = names.iter().filter(|name| !known.contains_key(*name));
            unknown.cloned().collect()
        };
        for names in unknown.chunks(NAMESPACES_AT_A_TIME) {
            let _place = self.place().await?;
            self.ask_for(&user, names).await?;
        }
        let known = lock(&user.by_namespace);
        let mut allowed: Vec<String> = names
            .into_iter()
            .filter(|name| known.get(name) == Some(&true))
            .collect();
        allowed.sort_unstable();
        Ok(Some(Access::Namespaces(allowed)))
    }

    async fn place(&self) -> Result<tokio::sync::SemaphorePermit<'_>, ApiError> {
        let place = self.places.acquire().await;
        place.map_err(|_| ApiError::Garbled("no question is asked any more".to_owned()))
    }

    /// Namespaces that there can be profiles of, each once.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.namespaces.borrow().iter().map(str::to_owned).collect();
        names.extend(self.recorded.get().into_iter().flatten().cloned());
        names.sort_unstable();
        names.dedup();
        names
    }

    /// What is known of a token; `None`: nothing, or not any more.
    fn known(&self, digest: &[u8; 32]) -> Option<Known> {
        let known = lock(&self.known);
        let known = known.get(digest).cloned();
        known.filter(|it| it.until > Instant::now())
    }

    /// Asks whose a token is, and whether they may see everything.
    async fn ask(&self, digest: [u8; 32], token: &str) -> Result<Known, ApiError> {
        let asked = Instant::now();
        let question = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token},
        });
        let answer: TokenReview =
            request::post(&self.server.client, TOKEN_REVIEWS, &question).await?;
        let TokenStatus {
            authenticated,
            user,
        } = answer.status;
        if !authenticated {
            let until = asked + KEEP_UNKNOWN;
            return Ok(self.keep(digest, Known { until, user: None }));
        }
        let subject = user.subject()?;
        let is_everywhere = self.may_see(&subject, "").await?;
        let user = Arc::new(User {
            subject,
            is_everywhere,
            by_namespace: Mutex::default(),
        });
        let known = Known {
            until: asked + KEEP_KNOWN,
            user: Some(user),
        };
        Ok(self.keep(digest, known))
    }

    /// Keeps what is known, and gives it back.
    fn keep(&self, digest: [u8; 32], answer: Known) -> Known {
        let mut known = lock(&self.known);
        if known.len() >= MAX_KNOWN && !known.contains_key(&digest) {
            let now = Instant::now();
            known.retain(|_, it| it.until > now);
            // What is nobody's goes first: it holds for a shorter time.
            let next = known.iter().min_by_key(|(_, it)| it.until);
            let next = next.map(|(digest, _)| *digest);
            if let Some(next) = next.filter(|_| known.len() >= MAX_KNOWN) {
                known.remove(&next);
            }
        }
        known.insert(digest, answer.clone());
        answer
    }

    /// Asks whether somebody may see these namespaces.
    async fn ask_for(&self, user: &Arc<User>, names: &[String]) -> Result<(), ApiError> {
        let mut asked = JoinSet::new();
        for name in names {
            let (server, name) = (self.server.clone(), name.clone());
            let subject = user.subject.clone();
            asked.spawn(async move {
                let may = may_see(&server, &subject, &name).await;
                may.map(|may| (name, may))
            });
        }
        while let Some(answer) = asked.join_next().await {
            let answer = answer.map_err(|error| ApiError::broken(&error))?;
            let (name, may) = answer?;
            lock(&user.by_namespace).insert(name, may);
        }
        Ok(())
    }

    async fn may_see(
        &self,
        subject: &Map<String, Value>,
        namespace: &str,
    ) -> Result<bool, ApiError> {
        may_see(&self.server, subject, namespace).await
    }

    /// Logs why nobody can say who asks, now and then.
    fn log(&self, error: &ApiError) {
        let mut logged = lock(&self.logged);
        if logged.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            *logged = Some(Instant::now());
            let address = &self.server.address;
            tracing::warn!(
                "callers are refused, since nobody says who they are: {address}: {error}"
            );
        }
    }
}

/// Whether somebody may see the profiles of a namespace; of all when it is empty.
async fn may_see(
    server: &ApiServer,
    subject: &Map<String, Value>,
    namespace: &str,
) -> Result<bool, ApiError> {
    let mut spec = subject.clone();
    let wanted = json!({
        "namespace": namespace, "verb": "get", "group": "", "resource": "pods", "subresource": "profile",
    });
    spec.insert("resourceAttributes".to_owned(), wanted);
    let question = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec,
    });
    let answer: AccessReview = request::post(&server.client, ACCESS_REVIEWS, &question).await?;
    Ok(answer.status.allowed && !answer.status.denied)
}

impl UserInfo {
    /// As a `SubjectAccessReview` has it.
    fn subject(self) -> Result<Map<String, Value>, ApiError> {
        // Who has no name could be anybody.
        if self.username.is_empty() {
            return Err(ApiError::Garbled("a user without a name".to_owned()));
        }
        let named = |(name, texts): (&String, &Vec<String>)| {
            name.len() + texts.iter().map(|text| text.len() + 8).sum::<usize>()
        };
        let n_bytes = self.username.len()
            + self.uid.len()
            + self.groups.iter().map(|text| text.len() + 8).sum::<usize>()
            + self.extra.iter().map(named).sum::<usize>();
        if n_bytes > MAX_USER_BYTES {
            return Err(ApiError::TooLong(MAX_USER_BYTES));
        }
        let mut subject = Map::new();
        subject.insert("user".to_owned(), self.username.into());
        subject.insert("uid".to_owned(), self.uid.into());
        subject.insert("groups".to_owned(), self.groups.into());
        subject.insert("extra".to_owned(), json!(self.extra));
        Ok(subject)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
