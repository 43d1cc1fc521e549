//! A stand-in for an API server, in this process: it answers what a test tells it to, in good order or not.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{Request, Response, StatusCode};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use super::connect::ApiServer;

/// One answer.
pub(crate) enum Answer {
    /// All of it at once.
    Whole {
        status: u16,
        bytes: Bytes,
        retry_after: Option<u64>,
    },
    /// Part by part, as a test sends them; without the sender it ends. It can be given once.
    Stream(Option<mpsc::Receiver<Bytes>>),
    /// Nothing ever comes.
    Silence,
}

impl Answer {
    pub(crate) fn json(status: u16, value: &Value) -> Self {
        Self::text(status, &format!("{value}\n"))
    }

    pub(crate) fn text(status: u16, text: &str) -> Self {
        Self::Whole {
            status,
            bytes: Bytes::copy_from_slice(text.as_bytes()),
            retry_after: None,
        }
    }

    /// A refusal, as the API writes it.
    pub(crate) fn status(code: u16, message: &str) -> Self {
        Self::json(
            code,
            &json!({"kind": "Status", "metadata": {}, "code": code, "message": message}),
        )
    }

    pub(crate) fn stream() -> (mpsc::Sender<Bytes>, Self) {
        let (sender, receiver) = mpsc::channel(16);
        (sender, Self::Stream(Some(receiver)))
    }

    /// The answer to give now.
    fn take(&mut self) -> Response<Body> {
        let response = |status| Response::builder().status(status);
        match self {
            Self::Whole {
                status,
                bytes,
                retry_after,
            } => {
                let mut response = response(*status).header(CONTENT_TYPE, "application/json");
                if let Some(seconds) = retry_after {
                    response = response.header(RETRY_AFTER, *seconds);
                }
                response.body(Body::from(bytes.clone())).unwrap()
            }
            Self::Stream(parts) => match parts.take() {
                Some(parts) => {
                    let parts = ReceiverStream::new(parts).map(Ok::<_, Infallible>);
                    response(200).body(Body::from_stream(parts)).unwrap()
                }
                None => response(503).body(Body::empty()).unwrap(),
            },
            Self::Silence => {
                let nothing = tokio_stream::pending::<Result<Bytes, Infallible>>();
                response(200).body(Body::from_stream(nothing)).unwrap()
            }
        }
    }
}

/// Answers by what is asked in a body.
type Answering = Box<dyn FnMut(&Value) -> Answer + Send>;

#[derive(Default)]
struct State {
    /// By path: what is answered to bodies.
    answering: HashMap<String, Answering>,
    /// By path, with `?watch` behind it for watches: what comes next. The last one stays.
    answers: HashMap<String, VecDeque<Answer>>,
    /// What was asked: paths with their queries, and what is accepted.
    asked: Vec<(String, String)>,
}

/// See the module's documentation.
pub(crate) struct FakeServer {
    address: String,
    state: Arc<Mutex<State>>,
    serving: tokio::task::JoinHandle<()>,
}

impl FakeServer {
    /// One on loopback that knows nothing: every answer is 404.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let router = Router::new().fallback({
            let state = Arc::clone(&state);
            async move |request: Request<Body>| {
                let (head, body) = request.into_parts();
                let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
                respond(&state, &Request::from_parts(head, body))
            }
        });
        let serving = tokio::spawn(async move {
            axum::serve(listener, router).await.unwrap();
        });
        Self {
            address,
            state,
            serving,
        }
    }

    pub(crate) fn server(&self) -> ApiServer {
        ApiServer::with(&Config::new(self.address.parse().unwrap())).unwrap()
    }

    pub(crate) fn client(&self) -> Client {
        self.server().client
    }

    /// From now on this is the answer.
    pub(crate) fn answer(&self, key: &str, answer: Answer) {
        let mut state = self.state.lock().unwrap();
        state
            .answers
            .insert(key.to_owned(), VecDeque::from([answer]));
    }

    /// From now on this answers what comes as a body.
    pub(crate) fn answer_by(
        &self,
        path: &str,
        answering: impl FnMut(&Value) -> Answer + Send + 'static,
    ) {
        let mut state = self.state.lock().unwrap();
        state.answering.insert(path.to_owned(), Box::new(answering));
    }

    /// Bodies are not looked at any more.
    pub(crate) fn stop_answering_by(&self, path: &str) {
        self.state.lock().unwrap().answering.remove(path);
    }

    /// This is the answer after those that are to come.
    pub(crate) fn then(&self, key: &str, answer: Answer) {
        let mut state = self.state.lock().unwrap();
        let answers = state.answers.entry(key.to_owned()).or_default();
        answers.push_back(answer);
    }

    /// Paths that were asked for, in their order.
    pub(crate) fn asked(&self) -> Vec<String> {
        let asked = self.asked_in_full();
        let paths = asked.iter().map(|it| it.split('?').next().unwrap());
        paths.map(str::to_owned).collect()
    }

    /// The same with their queries.
    pub(crate) fn asked_in_full(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        state.asked.iter().map(|(path, _)| path.clone()).collect()
    }

    /// Media types that were asked for.
    pub(crate) fn accepted(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        state.asked.iter().map(|(_, it)| it.clone()).collect()
    }

    /// Waits until so many questions came.
    pub(crate) async fn wait_for(&self, n_asked: usize) {
        while self.state.lock().unwrap().asked.len() < n_asked {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn respond(state: &Mutex<State>, request: &Request<Bytes>) -> Response<Body> {
    let mut state = state.lock().unwrap();
    let accept = request.headers().get(ACCEPT);
    let accept = accept.map_or("", |text| text.to_str().unwrap());
    let (uri, query) = (request.uri(), request.uri().query().unwrap_or_default());
    state.asked.push((uri.to_string(), accept.to_owned()));
    if let Some(answering) = state.answering.get_mut(uri.path()) {
        let question = serde_json::from_slice(request.body()).unwrap();
        return answering(&question).take();
    }
    let is_watch = query.split('&').any(|part| part == "watch=true");
    let key = format!("{}{}", uri.path(), if is_watch { "?watch" } else { "" });
    let Some(answers) = state.answers.get_mut(&key) else {
        let missing = Response::builder().status(StatusCode::NOT_FOUND);
        return missing.body(Body::empty()).unwrap();
    };
    match answers.pop_front() {
        Some(mut answer) => {
            let response = answer.take();
            if answers.is_empty() {
                answers.push_back(answer);
            }
            response
        }
        None => Answer::status(500, "no answer").take(),
    }
}
