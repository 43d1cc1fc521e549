//! The server: gRPC and HTTP on one port, and the client of its gRPC half.
//!
//! It knows nothing of how profiles are made: it asks the agent ([`query`]). Loopback only, unless the user
//! says otherwise. Everything that a client can make grow has a bound here: connections, streams, the time to
//! send a request, sizes, pulls at a time.

pub mod client;
mod grpc;
mod guard;
mod http;
mod metrics;
mod pull;
pub mod query;
#[cfg(test)]
mod tests;
mod watch;

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::middleware;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::ServiceExt as _;

pub use self::pull::{DURATIONS, MAX_CONCURRENT_PULLS};
use self::query::{Asker, Query};
use crate::generated::FILE_DESCRIPTOR_SET;
use crate::generated::pyagent::v1::profile_service_server::{ProfileServiceServer, SERVICE_NAME};

/// Where an agent serves, and where a client looks for it, unless told otherwise.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:7099";

/// Most connections at a time; others wait.
const MAX_CONNECTIONS: usize = 256;

/// Most requests at a time on one HTTP/2 connection.
const MAX_STREAMS: u32 = 64;

/// Longest time from the connection to its first request, and for the head of each request of HTTP/1.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a silent HTTP/2 client is asked whether it is there, and how long it may take to say so.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Most bytes of a request's head.
const MAX_HEADER_BYTES: usize = 16 << 10;

/// Most bytes of a gRPC request.
const MAX_REQUEST_BYTES: usize = 256 << 10;

/// What requests in flight get at the end to send their answers.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(500);

/// Who may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposure {
    /// Only this host: other addresses are refused.
    Loopback,
    /// Whoever reaches the address, without a check of who it is: `--insecure`.
    Insecure,
}

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Something listens there.
    #[error(
        "{address} is in use, perhaps by another pyagent: choose another one with --listen ADDR"
    )]
    InUse {
        /// The address.
        address: SocketAddr,
    },
    /// Other hosts could connect.
    #[error(
        "{address} can be reached from other hosts, and whoever reaches it can read profiles: use a loopback \
         address with --listen, or accept it with --insecure"
    )]
    NotLoopback {
        /// The address.
        address: SocketAddr,
    },
    /// Anything else.
    #[error("cannot listen on {address}: {error}; choose another address with --listen ADDR")]
    Other {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        error: io::Error,
    },
}

/// A server that has its port.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    exposure: Exposure,
    header_timeout: Duration,
}

impl Server {
    /// Takes the port.
    pub async fn bind(address: SocketAddr, exposure: Exposure) -> Result<Self, BindError> {
        let is_loopback = address.ip().to_canonical().is_loopback();
        if exposure == Exposure::Loopback && !is_loopback {
            return Err(BindError::NotLoopback { address });
        }
        let other = |error: io::Error| match error.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse { address },
            _ => BindError::Other { address, error },
        };
        let listener = TcpListener::bind(address).await.map_err(other)?;
        let address = listener.local_addr().map_err(other)?;
        Ok(Self {
            listener,
            address,
            exposure,
            header_timeout: HEADER_TIMEOUT,
        })
    }

    /// The address, with the port that was chosen when port 0 was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`, then a moment longer for requests in flight. Questions go to `queries`.
    pub async fn run(self, queries: mpsc::Sender<Query>, shutdown: impl Future<Output = ()>) {
        let (health, router) = router(queries, self.exposure).await;
        let graceful = GracefulShutdown::new();
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut shutdown = pin!(shutdown);
        loop {
            let (stream, place) = tokio::select! {
                accepted = accept(&self.listener, &places) => accepted,
                () = &mut shutdown => break,
            };
            let router = router.clone();
            let watcher = graceful.watcher();
            tokio::spawn(async move {
                let _place = place;
                serve_connection(stream, router, watcher, self.header_timeout).await;
            });
        }
        health
            .set_service_status("", ServingStatus::NotServing)
            .await;
        health
            .set_service_status(SERVICE_NAME, ServingStatus::NotServing)
            .await;
        // Who is not done then is cut off when the runtime ends.
        let _ = tokio::time::timeout(SHUTDOWN_GRACE, graceful.shutdown()).await;
    }
}

/// The next connection, when there is a place for it.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, OwnedSemaphorePermit) {
    let place = Arc::clone(places).acquire_owned().await;
    let place = place.expect("nobody closes the semaphore");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, place),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                // No file descriptor is free, most likely: trying again at once would take a whole CPU.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Serves one connection. What is wrong with it (garbage, a client that leaves) concerns nobody else.
async fn serve_connection(
    stream: TcpStream,
    router: Router,
    watcher: Watcher,
    header_timeout: Duration,
) {
    // A request is one small write; waiting for more costs 40 ms.
    let _ = stream.set_nodelay(true);
    let first_request = Arc::new(Notify::new());
    let seen = Arc::clone(&first_request);
    let service = router.map_request(move |request: Request<_>| {
        seen.notify_one();
        request.map(Body::new)
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(MAX_HEADER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(MAX_HEADER_BYTES as u32)
        .max_concurrent_streams(MAX_STREAMS)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    let connection =
        builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    let mut connection = pin!(watcher.watch(connection));
    tokio::select! {
        _ = &mut connection => return,
        () = first_request.notified() => {}
        () = tokio::time::sleep(header_timeout) => return,
    }
    let _ = connection.await;
}

/// Why the descriptors for reflection can be read.
const GENERATED: &str = "the descriptors are generated with the code";

/// Everything that is served.
async fn router(queries: mpsc::Sender<Query>, exposure: Exposure) -> (HealthReporter, Router) {
    let asker = Asker::new(queries);
    let puller = pull::Puller::new(asker.clone());
    let service = ProfileServiceServer::new(grpc::Service {
        asker: asker.clone(),
        puller: puller.clone(),
    })
    .max_decoding_message_size(MAX_REQUEST_BYTES);
    let (health, health_service) = tonic_health::server::health_reporter();
    health
        .set_service_status(SERVICE_NAME, ServingStatus::Serving)
        .await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let grpc = Routes::new(service)
        .add_service(health_service)
        .add_service(reflection().build_v1().expect(GENERATED))
        .add_service(reflection().build_v1alpha().expect(GENERATED))
        .into_axum_router();
    let http = http::routes(http::Shared { asker, puller });
    let router = grpc.merge(http).fallback(http::not_found);
    let router = match exposure {
        Exposure::Loopback => router.layer(middleware::from_fn(guard::refuse_web_pages)),
        // Other hosts ask for this one by its name.
        Exposure::Insecure => router,
    };
    (health, router)
}
