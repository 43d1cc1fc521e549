//! Who asks, and what for: the one place where a request is let through or refused.
//!
//! Over TCP a request shows a bearer token, or came over a connection with a client's certificate; over a local socket the
//! kernel says which user asks. A token that is in no file can be shown to the Kubernetes API server, which says who asks and
//! what they may see; that is looked at again while a request lasts. What comes out is a [`Scope`], which the request carries on as an extension. A refusal
//! says what is missing, never what there is.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http_body::{Frame, SizeHint};
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};
use tokio::sync::watch;
use tokio::time::{Sleep, sleep};

use super::connection::Patience;
use super::http;
use super::places::{Asking, Place};
use super::scope::Scope;
use crate::format::escape;
use crate::kubernetes::review::{Access, ReviewError, Reviewer};
use crate::profile::query::Viewer;
use crate::secrets::{self, FileError, Secrecy};

/// Fewest bytes of a token: what is shorter can be guessed.
const MIN_TOKEN_BYTES: usize = 16;

/// Most bytes of one: it comes in a header.
const MAX_TOKEN_BYTES: usize = 4096;

/// Most lines with a token or a name.
const MAX_LINES: usize = 10_000;

/// Bearer tokens and their scopes.
///
/// One a line: `TOKEN [SCOPE]`; a scope that is missing is `all`. Empty lines and those that begin with `#` say nothing.
pub(super) struct Tokens {
    /// Of the tokens only these: they are compared in a time that says nothing of them.
    digests: Vec<([u8; 32], Scope)>,
}

impl Tokens {
    pub(super) fn read(path: &Path) -> Result<Self, FileError> {
        let bytes = secrets::read(path, Secrecy::Owner)?;
        Self::parse(&bytes).map_err(|reason| FileError::unusable(path, reason))
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut digests: Vec<([u8; 32], Scope)> = Vec::new();
        for (number, token, scope) in lines(bytes)? {
            // What is wrong with it is not shown: it is a secret all the same.
            if !(MIN_TOKEN_BYTES..=MAX_TOKEN_BYTES).contains(&token.len()) {
                return Err(format!(
                    "line {number}: the token has {} characters, give {MIN_TOKEN_BYTES} or more: openssl rand -hex 32",
                    token.len()
                ));
            }
            if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(format!(
                    "line {number}: a token is made of printable ASCII characters: openssl rand -hex 32"
                ));
            }
            let digest = Sha256::digest(token).into();
            if digests.iter().any(|(known, _)| *known == digest) {
                return Err(format!(
                    "line {number}: this token stands on a line before: give each client one of its own"
                ));
            }
            digests.push((digest, scope.unwrap_or(Scope::ALL)));
        }
        if digests.is_empty() {
            return Err("no token in it: printf '%s all\\n' $(openssl rand -hex 32)".to_owned());
        }
        Ok(Self { digests })
    }

    /// The scope of a token; every one is compared, whether or not an earlier one is it.
    fn scope(&self, token: &[u8]) -> Option<&Scope> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        let mut found = u32::MAX;
        for (idx, (known, _)) in self.digests.iter().enumerate() {
            let is_it: Choice = known.ct_eq(&digest);
            found.conditional_assign(&(idx as u32), is_it);
        }
        self.digests.get(found as usize).map(|(_, scope)| scope)
    }
}

/// What clients with a certificate may, by the names in it.
///
/// One a line: `NAME SCOPE`; the first line with a name of the certificate counts, and `*` is any name.
#[derive(Debug)]
pub(super) struct CertificateScopes {
    by_name: Vec<(String, Scope)>,
}

impl CertificateScopes {
    pub(super) fn read(path: &Path) -> Result<Self, FileError> {
        let bytes = secrets::read(path, Secrecy::Public)?;
        Self::parse(&bytes).map_err(|reason| FileError::unusable(path, reason))
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut by_name: Vec<(String, Scope)> = Vec::new();
        for (number, name, scope) in lines(bytes)? {
            let scope = scope.ok_or_else(|| {
                format!(
                    "line {number}: write a scope behind the name: all, namespaces=NAME,NAME or read-status"
                )
            })?;
            if by_name.iter().any(|(known, _)| known == name) {
                return Err(format!(
                    "line {number}: `{}` stands on a line before, which counts: drop one of them",
                    escape(name)
                ));
            }
            by_name.push((name.to_owned(), scope));
        }
        Ok(Self { by_name })
    }

    fn scope(&self, names: &[String]) -> Option<&Scope> {
        let is_meant = |line: &&(String, Scope)| line.0 == "*" || names.contains(&line.0);
        self.by_name.iter().find(is_meant).map(|(_, scope)| scope)
    }
}

/// The number of a line, its word and, perhaps, a scope.
type Line<'a> = (usize, &'a str, Option<Scope>);

/// Lines of a word and, perhaps, a scope.
fn lines(bytes: &[u8]) -> Result<Vec<Line<'_>>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is no text".to_owned())?;
    let mut found = Vec::new();
    for (idx, line) in text.lines().enumerate() {
        let mut words = line.split_ascii_whitespace();
        let Some(word) = words.next().filter(|word| !word.starts_with('#')) else {
            continue;
        };
        let number = idx + 1;
        let scope = words.next().map(str::parse).transpose();
        let scope = scope.map_err(|error| format!("line {number}: {error}"))?;
        if words.next().is_some() {
            return Err(format!(
                "line {number}: more than two words; lists of namespaces have no spaces"
            ));
        }
        if found.len() == MAX_LINES {
            return Err(format!("it has more than {MAX_LINES} lines"));
        }
        found.push((number, word, scope));
    }
    Ok(found)
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Peer {
    /// The user, of a local socket.
    pub(super) user: Option<u32>,
    /// The names in the certificate that it has shown and that was found to be good.
    pub(super) names: Option<Vec<String>>,
}

/// What a listener asks for.
#[derive(Clone, Default)]
pub(super) struct Gate {
    /// Over local sockets the user counts and nothing else.
    pub(super) by_user: bool,
    /// Bearer tokens.
    pub(super) tokens: Option<watch::Receiver<Arc<Tokens>>>,
    /// Says whose tokens those are that no file has.
    pub(super) reviewer: Option<Reviewer>,
    /// Whether certificates of clients are looked at.
    pub(super) certificates: bool,
    /// What those may; everything when absent.
    pub(super) scopes: Option<watch::Receiver<Arc<CertificateScopes>>>,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// It does not show who asks.
    Unknown(&'static str),
    /// Who asks may not.
    Forbidden(&'static str),
    /// Nobody can say now who asks.
    Unavailable(&'static str),
}

/// Somebody who was let in, and what has to be looked at again while their request lasts.
struct Admission {
    scope: Scope,
    review: Option<Review>,
}

impl From<Scope> for Admission {
    fn from(scope: Scope) -> Self {
        Self {
            scope,
            review: None,
        }
    }
}

/// What the API server said of a token.
struct Review {
    reviewer: Reviewer,
    token: Vec<u8>,
    access: Access,
}

/// How often that is looked at again.
const REVIEW_INTERVAL: Duration = Duration::from_mins(1);

impl Review {
    /// Waits until whoever asked may see less; or also when it is more, where `is_endless`. A server that does not answer
    /// changes nothing.
    async fn changed(self, is_endless: bool) {
        loop {
            sleep(REVIEW_INTERVAL).await;
            match self.reviewer.access(&self.token).await {
                Ok(access) => {
                    let is_more = !self.access.covers(&access);
                    if !access.covers(&self.access) || is_endless && is_more {
                        return;
                    }
                }
                Err(ReviewError::UnknownToken) => return,
                Err(ReviewError::Unavailable | ReviewError::NotAllowed) => {}
            }
        }
    }
}

/// What is told then.
const CHANGED: &str = "ended: what this token may see has changed; ask again";

impl Gate {
    /// What whoever sends these headers over a connection with this peer may do.
    async fn admit(&self, peer: &Peer, headers: &HeaderMap) -> Result<Admission, Refusal> {
        if self.by_user {
            let user = peer.user.ok_or(Refusal::Unknown(
                "refused: the system does not say which user asks",
            ))?;
            let own = rustix::process::geteuid().as_raw();
            let is_all = user == 0 || user == own;
            let of_user = || Scope::Processes(Viewer::User(user));
            return Ok(if is_all { Scope::ALL } else { of_user() }.into());
        }
        if self.takes_tokens()
            && let Some(header) = headers.get(header::AUTHORIZATION)
        {
            let token = bearer(header).ok_or(Refusal::Unknown(
                "refused: the header has to be Authorization: Bearer TOKEN",
            ))?;
            return self.bearer_of(token).await;
        }
        if self.certificates
            && let Some(names) = &peer.names
        {
            let Some(scopes) = &self.scopes else {
                return Ok(Scope::ALL.into());
            };
            let scopes = scopes.borrow().clone();
            let scope = scopes.scope(names).cloned();
            return scope.map(Admission::from).ok_or(Refusal::Forbidden(
                "refused: no line of --tls-client-scopes is for this certificate",
            ));
        }
        match (self.takes_tokens(), self.certificates) {
            (false, false) => Ok(Scope::ALL.into()),
            (true, false) => Err(Refusal::Unknown(
                "refused: a token is needed: Authorization: Bearer TOKEN (pyagent: --token-file FILE)",
            )),
            (_, true) => Err(Refusal::Unknown(
                "refused: a client certificate or a token is needed (pyagent: --tls-cert and --tls-key, or --token-file)",
            )),
        }
    }

    /// Whether a token says who asks.
    pub(super) const fn takes_tokens(&self) -> bool {
        self.tokens.is_some() || self.reviewer.is_some()
    }

    /// Whose this token is: a file's first, which asks nobody.
    async fn bearer_of(&self, token: &[u8]) -> Result<Admission, Refusal> {
        let tokens = self.tokens.as_ref().map(|tokens| tokens.borrow().clone());
        let scope = tokens.and_then(|tokens| tokens.scope(token).cloned());
        if let Some(scope) = scope {
            return Ok(scope.into());
        }
        let Some(reviewer) = &self.reviewer else {
            return Err(Refusal::Unknown("refused: this token is not known here"));
        };
        match reviewer.access(token).await {
            Ok(access) => Ok(Admission {
                scope: access.clone().into(),
                review: Some(Review {
                    reviewer: reviewer.clone(),
                    token: token.to_owned(),
                    access,
                }),
            }),
            Err(error @ ReviewError::UnknownToken) => Err(Refusal::Unknown(error.words())),
            Err(error @ (ReviewError::Unavailable | ReviewError::NotAllowed)) => {
                Err(Refusal::Unavailable(error.words()))
            }
        }
    }
}

/// The token in `Bearer TOKEN`; the scheme's case does not matter (RFC 9110).
fn bearer(header: &HeaderValue) -> Option<&[u8]> {
    let (scheme, token) = header.as_bytes().split_at_checked(7)?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer ") && !token.is_empty()).then_some(token)
}

/// What reads the agent's state and nothing of a process: gRPC's health and reflection (which describes the service,
/// the same everywhere), the status, the metrics.
fn is_status(path: &str) -> bool {
    let exact = [
        "/",
        "/healthz",
        "/livez",
        "/readyz",
        "/metrics",
        "/pyagent.v1.ProfileService/GetStatus",
    ];
    exact.contains(&path)
        || path.starts_with("/grpc.health.v1.Health/")
        || path.starts_with(REFLECTION)
}

/// Where reflection is: a client asks several questions in one call, when it likes.
const REFLECTION: &str = "/grpc.reflection.";

/// Lets a request through with its [`Scope`], or answers 401 or 403 (gRPC: UNAUTHENTICATED, PERMISSION_DENIED).
pub(super) async fn authorize(
    State(gate): State<Gate>,
    mut request: Request,
    next: Next,
) -> Response {
    let extensions = request.extensions();
    let peer = extensions.get::<Peer>().cloned().unwrap_or_default();
    let place = extensions.get::<Arc<Place>>().cloned();
    let is_grpc = http::is_grpc(request.headers());
    let admission = gate.admit(&peer, request.headers()).await;
    let Admission { scope, review } = match admission {
        Ok(it) if it.scope == Scope::ReadStatus && !is_status(request.uri().path()) => {
            let reason = "refused: the scope read-status is for the status, the metrics and the health alone";
            return refuse(Refusal::Forbidden(reason), is_grpc);
        }
        Ok(admission) => admission,
        Err(refusal) => return refuse(refusal, is_grpc),
    };
    // Who asks is known by what it showed; nobody behind this needs that.
    request.headers_mut().remove(header::AUTHORIZATION);
    request.extensions_mut().insert(scope);
    let asking = place.map(|place| place.ask());
    let path = request.uri().path();
    let is_dialogue = path.starts_with(REFLECTION);
    // What lasts as long as the client likes holds no place against others.
    let is_endless = is_dialogue || path.contains("/Watch");
    if !is_dialogue {
        let limit = request.extensions().get::<Patience>().copied();
        let limit = limit.unwrap_or_default().header;
        request = request.map(|body| {
            Body::new(Bounded {
                body,
                asking: None,
                limit: Some(Box::pin(sleep(limit))),
                changed: None,
            })
        });
    }
    let mut changed = review.map(|review| Changed {
        waiting: Box::pin(review.changed(is_endless)),
        is_grpc,
    });
    let response = match &mut changed {
        None => next.run(request).await,
        Some(changed) => tokio::select! {
            response = next.run(request) => response,
            () = &mut changed.waiting => return refuse(Refusal::Unknown(CHANGED), is_grpc),
        },
    };
    // The request lasts until the last byte of its answer has gone.
    response.map(|body| {
        Body::new(Bounded {
            body,
            asking: asking.filter(|_| !is_endless),
            limit: None,
            changed,
        })
    })
}

/// Waits until an answer has to end, since whoever asked may see something else now.
struct Changed {
    waiting: Pin<Box<dyn Future<Output = ()> + Send>>,
    is_grpc: bool,
}

impl Changed {
    /// The end of the answer.
    fn end(&self) -> Result<Frame<Bytes>, axum::Error> {
        if !self.is_grpc {
            let ended = std::io::Error::new(std::io::ErrorKind::ConnectionAborted, CHANGED);
            return Err(axum::Error::new(ended));
        }
        let mut trailers = HeaderMap::new();
        let status = tonic::Status::unauthenticated(CHANGED);
        status.add_header(&mut trailers).map_err(axum::Error::new)?;
        Ok(Frame::trailers(trailers))
    }
}

/// The body of an answer, which holds the request open until it is sent or given up; or that of a request, which has to
/// come in time.
struct Bounded {
    body: Body,
    asking: Option<Asking>,
    limit: Option<Pin<Box<Sleep>>>,
    changed: Option<Changed>,
}

impl HttpBody for Bounded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Some(changed) = &mut self.changed
            && changed.waiting.as_mut().poll(context).is_ready()
        {
            let end = changed.end();
            (self.changed, self.asking, self.body) = (None, None, Body::empty());
            return Poll::Ready(Some(end));
        }
        let poll = Pin::new(&mut self.body).poll_frame(context);
        if matches!(poll, Poll::Ready(None)) {
            self.asking = None;
        }
        if poll.is_pending()
            && let Some(limit) = &mut self.limit
            && limit.as_mut().poll(context).is_ready()
        {
            let late = std::io::Error::from(std::io::ErrorKind::TimedOut);
            return Poll::Ready(Some(Err(axum::Error::new(late))));
        }
        poll
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn refuse(refusal: Refusal, is_grpc: bool) -> Response {
    match (refusal, is_grpc) {
        (Refusal::Unknown(reason), true) => tonic::Status::unauthenticated(reason).into_http(),
        (Refusal::Forbidden(reason), true) => tonic::Status::permission_denied(reason).into_http(),
        (Refusal::Unavailable(reason), true) => tonic::Status::unavailable(reason).into_http(),
        (Refusal::Unavailable(reason), false) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response()
        }
        (Refusal::Unknown(reason), false) => {
            let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
            let text = format!("{reason}\n");
            (StatusCode::UNAUTHORIZED, challenge, text).into_response()
        }
        (Refusal::Forbidden(reason), false) => {
            (StatusCode::FORBIDDEN, format!("{reason}\n")).into_response()
        }
    }
}

/// Reads the files of a gate, and follows them.
pub(super) fn tokens(path: PathBuf) -> Result<watch::Receiver<Arc<Tokens>>, FileError> {
    secrets::follow(vec![path.clone()], move || Tokens::read(&path))
}

/// The same for the scopes of certificates.
pub(super) fn certificate_scopes(
    path: PathBuf,
) -> Result<watch::Receiver<Arc<CertificateScopes>>, FileError> {
    secrets::follow(vec![path.clone()], move || CertificateScopes::read(&path))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    fn namespace(name: &str) -> Scope {
        Scope::Processes(Viewer::Namespaces(vec![name.to_owned()]))
    }

    #[test]
    fn each_token_has_its_scope() {
        let text = format!(
            "# who\n\n{TOKEN}\nstatus-status-status read-status\nshop-shop-shop-shop namespaces=shop\n"
        );
        let tokens = Tokens::parse(text.as_bytes()).unwrap();
        for (token, scope) in [
            (TOKEN, Some(Scope::ALL)),
            ("status-status-status", Some(Scope::ReadStatus)),
            ("shop-shop-shop-shop", Some(namespace("shop"))),
            ("#", None),
            ("", None),
            (&TOKEN[1..], None),
            ("read-status", None),
        ] {
            assert_eq!(tokens.scope(token.as_bytes()).cloned(), scope, "{token}");
        }
    }

    #[test]
    fn a_file_of_tokens_that_cannot_be_meant_is_refused_without_showing_them() {
        for (text, reason) in [
            ("", "no token"),
            ("# only this\n", "no token"),
            ("short-secret", "line 1: the token has 12"),
            ("0123456789abcdef secrets", "line 1: `secrets` is no scope"),
            (
                "0123456789abcdef namespaces=a, b",
                "line 1: `namespaces=a,` is no scope",
            ),
            ("0123456789abcdef all all", "line 1: more than two"),
            ("\n0123456789abcdé0123", "line 2: a token is made"),
            (
                "0123456789abcdef all\n0123456789abcdef read-status",
                "line 2: this token stands",
            ),
        ] {
            let error = Tokens::parse(text.as_bytes()).err().unwrap();
            assert!(error.contains(reason), "{error}");
            assert!(!error.contains("0123456789abcd"), "{error}");
        }
        assert!(Tokens::parse(b"\xff").is_err());
    }

    #[test]
    fn the_first_line_with_a_name_of_the_certificate_counts() {
        let text = b"# rules\nops all\nspiffe://x/shop namespaces=shop\nshop read-status\n";
        let scopes = CertificateScopes::parse(text).unwrap();
        let of = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            scopes.scope(&names).cloned()
        };
        assert_eq!(of(&["x", "ops"]), Some(Scope::ALL));
        assert_eq!(of(&["shop", "spiffe://x/shop"]), Some(namespace("shop")));
        assert_eq!(of(&["op", "OPS", "*"]), None);
        let any = CertificateScopes::parse(b"a all\n* read-status\n").unwrap();
        assert_eq!(any.scope(&[]), Some(&Scope::ReadStatus));
        assert!(CertificateScopes::parse(b"name\n").is_err());
        let twice = CertificateScopes::parse(b"a all\na read-status\n").unwrap_err();
        assert!(twice.starts_with("line 2: `a` stands"), "{twice}");
    }

    #[test]
    fn the_bearer_is_read_from_its_header() {
        let of = |text: &'static str| bearer(&HeaderValue::from_static(text)).map(<[u8]>::to_vec);
        assert_eq!(of("Bearer abc"), Some(b"abc".to_vec()));
        assert_eq!(of("bEARER  abc "), Some(b"abc".to_vec()));
        for text in ["", "abc", "Bearer", "Bearer ", "Basic YTpi", "Bearerabc d"] {
            assert_eq!(of(text), None, "{text}");
        }
    }
}
