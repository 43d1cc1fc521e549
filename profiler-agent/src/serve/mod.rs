//! The server: gRPC and HTTP on each address, and the client of its gRPC half.
//!
//! It knows nothing of how profiles are made: it asks the agent ([`query`]). This host only, unless the user
//! says otherwise; then by TLS, and to whom shows a certificate or a token. Everything that a client can make grow has a
//! bound here: connections, streams, the time to send a request, sizes, pulls at a time.

mod auth;
mod certificate;
pub mod client;
pub mod connect;
mod connection;
mod discovery;
mod grpc;
mod guard;
mod health;
mod heap;
mod http;
mod inspect;
pub mod listen;
mod metrics;
mod places;
mod process_watch;
mod pull;
pub mod query;
pub mod scope;
#[cfg(test)]
mod tests;
pub mod tls;
mod watching;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware;
use rustls::ServerConfig;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use self::auth::Gate;
use self::connection::{Patience, Served};
use self::guard::Names;
use self::listen::{BindError, ListenAddress, Socket, is_loopback};
use self::places::Places;
pub use self::pull::{DURATIONS, MAX_CONCURRENT_PULLS};
use self::query::{Asker, Query};
use self::tls::TlsFiles;
use crate::generated::FILE_DESCRIPTOR_SET;
use crate::generated::pyagent::v1::profile_service_server::{ProfileServiceServer, SERVICE_NAME};
use crate::kubernetes::review::Reviewer;

/// Where an agent serves, and where a client looks for it, unless told otherwise.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:7099";

/// Most bytes of a gRPC request.
const MAX_REQUEST_BYTES: usize = 256 << 10;

/// Most clients that watch processes: they are looked at for each.
const MAX_PROCESS_WATCHERS: usize = 16;

/// What requests in flight get at the end to send their answers.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(500);

/// Where to serve, and to whom.
#[derive(Debug, Clone, Default)]
pub struct ServeConfig {
    /// Where.
    pub listen: Vec<ListenAddress>,
    /// Group of local sockets, by name or number.
    pub socket_group: Option<String>,
    /// For TLS.
    pub tls: Option<TlsFiles>,
    /// What clients with a certificate may; everything when absent.
    pub client_scopes: Option<PathBuf>,
    /// Bearer tokens.
    pub token_file: Option<PathBuf>,
    /// Says whose other bearer tokens are, and what those may see.
    pub reviewer: Option<Reviewer>,
    /// Other hosts may ask without TLS, or without showing who they are.
    pub insecure: bool,
    /// Whoever may everything, and users of this host of their own processes, may ask for local variables.
    pub allow_locals: bool,
}

impl ServeConfig {
    /// Whether a bearer token says who asks.
    const fn takes_tokens(&self) -> bool {
        self.token_file.is_some() || self.reviewer.is_some()
    }
}

/// A server that has its addresses.
pub struct Server {
    listeners: Vec<Listener>,
    patience: Patience,
    allows_locals: bool,
}

/// An address, and who is let in there.
struct Listener {
    socket: Socket,
    address: ListenAddress,
    tls: Option<watch::Receiver<Arc<ServerConfig>>>,
    gate: Gate,
    /// By which names it may be asked for; `None`: web pages cannot reach it.
    names: Option<Names>,
}

impl Server {
    /// Reads the files, takes the addresses.
    pub fn bind(config: &ServeConfig) -> Result<Self, BindError> {
        check(config)?;
        let has_tokens = config.takes_tokens();
        let tls = config.tls.as_ref();
        let has_authorities = tls.is_some_and(|tls| tls.client_ca.is_some());
        let tls = tls
            .map(|files| tls::follow(files, has_tokens))
            .transpose()?;
        let token_file = config.token_file.clone();
        let tokens = token_file.map(auth::tokens).transpose()?;
        let scopes = config.client_scopes.clone();
        let scopes = scopes.map(auth::certificate_scopes).transpose()?;
        let mut listeners = Vec::new();
        for address in &config.listen {
            let listener = match address {
                ListenAddress::None => continue,
                ListenAddress::Unix(path) => Listener {
                    socket: Socket::unix(path, config.socket_group.as_deref())?,
                    address: address.clone(),
                    tls: None,
                    gate: Gate {
                        by_user: true,
                        ..Gate::default()
                    },
                    names: None,
                },
                ListenAddress::Tcp {
                    address: wanted, ..
                } => {
                    let tls = tls
                        .clone()
                        .filter(|_| address.speaks_tls(config.tls.is_some()));
                    let (socket, bound) = Socket::tcp(*wanted)?;
                    let is_plain = tls.is_none();
                    Listener {
                        socket,
                        address: ListenAddress::Tcp {
                            address: bound,
                            tls: Some(!is_plain),
                        },
                        gate: Gate {
                            by_user: false,
                            tokens: tokens.clone(),
                            reviewer: config.reviewer.clone(),
                            certificates: !is_plain && has_authorities,
                            scopes: scopes.clone().filter(|_| !is_plain),
                        },
                        tls,
                        names: Some(if is_loopback(wanted) && is_plain {
                            Names::Loopback
                        } else {
                            Names::Any
                        }),
                    }
                }
            };
            listeners.push(listener);
        }
        Ok(Self {
            listeners,
            patience: Patience::default(),
            allows_locals: config.allow_locals,
        })
    }

    /// The addresses, with the ports that were chosen where port 0 was asked for.
    pub fn addresses(&self) -> impl Iterator<Item = &ListenAddress> {
        self.listeners.iter().map(|listener| &listener.address)
    }

    /// The addresses that other hosts can reach, and where nobody has to show who asks.
    pub fn open_to_all(&self) -> impl Iterator<Item = &ListenAddress> {
        let is_open = |listener: &&Listener| match &listener.address {
            ListenAddress::Tcp { address, .. } => {
                let gate = &listener.gate;
                !is_loopback(address) && !gate.takes_tokens() && !gate.certificates
            }
            ListenAddress::Unix(_) | ListenAddress::None => false,
        };
        let open = self.listeners.iter().filter(is_open);
        open.map(|listener| &listener.address)
    }

    /// The addresses where nobody has to show who asks, and everything may be asked for.
    pub fn anonymous(&self) -> impl Iterator<Item = &ListenAddress> {
        let is_anonymous = |listener: &&Listener| {
            let gate = &listener.gate;
            !gate.by_user && !gate.takes_tokens() && !gate.certificates
        };
        let anonymous = self.listeners.iter().filter(is_anonymous);
        anonymous.map(|listener| &listener.address)
    }

    /// Serves until `shutdown`, then a moment longer for requests in flight. Questions go to `queries`.
    pub async fn run(self, queries: mpsc::Sender<Query>, shutdown: impl Future<Output = ()>) {
        let asker = Asker::new(queries);
        let (health, router) = router(&asker, self.allows_locals).await;
        let reporting = tokio::spawn(health::report(health.clone(), asker));
        let (stop, stopped) = watch::channel(false);
        let (busy, mut idle) = mpsc::channel::<()>(1);
        let mut listeners = JoinSet::new();
        for listener in self.listeners {
            let router = router.clone().layer(middleware::from_fn_with_state(
                listener.gate,
                auth::authorize,
            ));
            // What is added last sees a request first.
            let router = match listener.names {
                Some(names) => router.layer(middleware::from_fn_with_state(
                    names,
                    guard::refuse_web_pages,
                )),
                None => router,
            };
            let served = Served {
                router,
                tls: listener.tls,
                patience: self.patience,
                stop: stopped.clone(),
            };
            listeners.spawn(accept(listener.socket, served, busy.clone()));
        }
        drop(busy);
        shutdown.await;
        reporting.abort();
        for name in ["", SERVICE_NAME] {
            health
                .set_service_status(name, ServingStatus::NotServing)
                .await;
        }
        stop.send_replace(true);
        while listeners.join_next().await.is_some() {}
        // Who is not done then is cut off when the runtime ends.
        let _ = tokio::time::timeout(SHUTDOWN_GRACE, idle.recv()).await;
    }
}

/// Health and metrics on an address of their own, which anybody may reach: it says nothing of any process.
pub struct HealthServer {
    socket: Socket,
    address: SocketAddr,
}

impl HealthServer {
    /// Takes the address.
    pub fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let (socket, address) = Socket::tcp(address)?;
        Ok(Self { socket, address })
    }

    /// The address, with the port that was chosen when port 0 was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`. It is alive from the begin on, and ready once `queries` are answered.
    pub async fn run(self, queries: mpsc::Sender<Query>, shutdown: impl Future<Output = ()>) {
        let asker = Asker::new(queries);
        let (reporter, service) = tonic_health::server::health_reporter();
        reporter
            .set_service_status("", ServingStatus::NotServing)
            .await;
        let reporting = tokio::spawn(health::report(reporter, asker.clone()));
        let shared = http::Shared {
            puller: pull::Puller::new(asker.clone()),
            asker: asker.clone(),
        };
        let router = Routes::new(service)
            .into_axum_router()
            .merge(health::routes(asker))
            .merge(http::metrics_route(shared))
            .fallback(http::no_probe)
            // Nobody is refused; a connection is one that asks.
            .layer(middleware::from_fn_with_state(
                Gate::default(),
                auth::authorize,
            ));
        let (stop, stopped) = watch::channel(false);
        let served = Served {
            router,
            tls: None,
            patience: Patience::default(),
            stop: stopped,
        };
        let (busy, mut idle) = mpsc::channel::<()>(1);
        let accepting = tokio::spawn(accept(self.socket, served, busy));
        shutdown.await;
        reporting.abort();
        stop.send_replace(true);
        let _ = accepting.await;
        let _ = tokio::time::timeout(SHUTDOWN_GRACE, idle.recv()).await;
    }
}

/// What would serve whom the user did not mean, and what would not serve whom they did.
fn check(config: &ServeConfig) -> Result<(), BindError> {
    let has_certificate = config.tls.is_some();
    let tls = config.tls.as_ref();
    let has_authorities = tls.is_some_and(|tls| tls.client_ca.is_some());
    let shows_who = config.takes_tokens() || has_authorities;
    for listen in &config.listen {
        let ListenAddress::Tcp { address, .. } = listen else {
            continue;
        };
        let speaks_tls = listen.speaks_tls(has_certificate);
        if speaks_tls && !has_certificate {
            return Err(BindError::NoCertificate {
                address: listen.clone(),
            });
        }
        let is_guarded = is_loopback(address) || (speaks_tls && shows_who);
        if !is_guarded && !config.insecure {
            return Err(BindError::NotLoopback {
                address: listen.clone(),
            });
        }
    }
    let unused = |flag, reason| Err(BindError::Unused { flag, reason });
    let speaks_tls = |listen: &ListenAddress| listen.speaks_tls(has_certificate);
    if has_certificate && !config.listen.iter().any(speaks_tls) {
        return unused(
            "--tls-cert",
            "no --listen address speaks TLS: those of loopback do when they are written as https://127.0.0.1:PORT",
        );
    }
    if config.client_scopes.is_some() && !has_authorities {
        return unused(
            "--tls-client-scopes",
            "certificates of clients are not looked at without --tls-client-ca",
        );
    }
    let is_tcp = |listen: &ListenAddress| matches!(listen, ListenAddress::Tcp { .. });
    if config.takes_tokens() && !config.listen.iter().any(is_tcp) {
        let flag = if config.token_file.is_some() {
            "--token-file"
        } else {
            "--auth"
        };
        return unused(
            flag,
            "no --listen address is TCP; over a local socket the user counts who asks",
        );
    }
    Ok(())
}

/// Takes connections until the server stops. Each holds `busy` while it lasts.
async fn accept(socket: Socket, served: Served, busy: mpsc::Sender<()>) {
    let places = Arc::new(Places::default());
    let mut stop = served.stop.clone();
    let mut stop = pin!(stop.wait_for(|stop| *stop));
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            _ = &mut stop => return,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                // No file descriptor is free, most likely: trying again at once would take a whole CPU.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(place) = places.enter(stream.peer()) else {
            continue;
        };
        let (served, busy) = (served.clone(), busy.clone());
        tokio::spawn(async move {
            connection::serve(stream, served, place).await;
            drop(busy);
        });
    }
}

/// Why the descriptors for reflection can be read.
const GENERATED: &str = "the descriptors are generated with the code";

/// Everything that is served, to whom may.
async fn router(asker: &Asker, allows_locals: bool) -> (HealthReporter, Router) {
    let puller = pull::Puller::new(asker.clone());
    let service = ProfileServiceServer::new(grpc::Service {
        asker: asker.clone(),
        puller: puller.clone(),
        inspector: inspect::Inspector::new(asker.clone()),
        process_watchers: Arc::new(Semaphore::new(MAX_PROCESS_WATCHERS)),
        allows_locals,
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
    let shared = http::Shared {
        asker: asker.clone(),
        puller,
    };
    let http = http::routes(shared).merge(health::routes(asker.clone()));
    (health, grpc.merge(http).fallback(http::not_found))
}
