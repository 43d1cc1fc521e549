//! Agents that answer what a test tells them to, in good order or not: the real service, over real connections on loopback.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use profiler_agent::generated::pyagent::v1 as proto;
use profiler_agent::generated::pyagent::v1::profile_service_server::{
    ProfileService, ProfileServiceServer,
};
use profiler_agent::generated::pyagent::v1::pull_profile_response::Part;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tonic::codegen::tokio_stream::Stream;
use tonic::codegen::tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

/// What an agent answers when it is asked for a profile.
#[derive(Debug, Clone)]
pub enum Behaviour {
    /// This file of pprof, with so many samples.
    Profile(Arc<Vec<u8>>, i64),
    /// It has nothing of what is meant.
    Nothing,
    /// Nothing ever comes.
    Silent,
    /// It says no.
    Refuses,
    /// Bytes that are no profile.
    Garbage,
    /// Bytes that do not end.
    Endless,
    /// Fewer bytes than it said, and then the end.
    Short,
    /// Metadata with this size, and nothing behind it.
    Claims(u64),
    /// A byte a second.
    Drips,
    /// The connection is taken and never spoken on.
    Deaf,
}

/// What was asked of agents.
#[derive(Debug, Default)]
pub struct Asked {
    /// Ports that were asked, and for what.
    pub pulls: Vec<(u16, proto::PullProfileRequest)>,
    /// What was shown with the calls.
    pub bearers: Vec<Option<String>>,
}

/// A few or many agents. They end with it.
pub struct FakeAgents {
    runtime: Runtime,
    /// What was asked of them.
    pub asked: Arc<Mutex<Asked>>,
}

struct Agent {
    port: u16,
    behaviour: Behaviour,
    asked: Arc<Mutex<Asked>>,
}

impl Default for FakeAgents {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeAgents {
    /// None yet.
    ///
    /// # Panics
    /// When there are no threads.
    #[must_use]
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build();
        Self {
            runtime: runtime.expect("threads"),
            asked: Arc::default(),
        }
    }

    /// One more, on a port of loopback.
    ///
    /// # Panics
    /// When there is no port.
    #[must_use]
    pub fn start(&self, behaviour: Behaviour) -> SocketAddr {
        self.start_with(behaviour, None)
    }

    /// The same that speaks TLS with this certificate and key, as PEM.
    ///
    /// # Panics
    /// When there is no port, or no TLS with them.
    #[must_use]
    pub fn start_with(&self, behaviour: Behaviour, tls: Option<(String, String)>) -> SocketAddr {
        let listener = self.runtime.block_on(TcpListener::bind("127.0.0.1:0"));
        let listener = listener.expect("a port on loopback");
        let address = listener.local_addr().expect("it is bound");
        if matches!(behaviour, Behaviour::Deaf) {
            self.runtime.spawn(async move {
                let mut kept = Vec::new();
                while let Ok((stream, _)) = listener.accept().await {
                    kept.push(stream);
                }
            });
            return address;
        }
        let agent = Agent {
            port: address.port(),
            behaviour,
            asked: Arc::clone(&self.asked),
        };
        let mut server = Server::builder();
        if let Some((certificate, key)) = tls {
            let tls = ServerTlsConfig::new().identity(Identity::from_pem(certificate, key));
            server = server.tls_config(tls).expect("a certificate of the test");
        }
        let serving = server
            .add_service(ProfileServiceServer::new(agent))
            .serve_with_incoming(TcpListenerStream::new(listener));
        self.runtime.spawn(async move {
            // Ends with the runtime.
            let _ = serving.await;
        });
        address
    }

    /// How often they were asked for a profile.
    ///
    /// # Panics
    /// When an agent has panicked.
    #[must_use]
    pub fn n_pulls(&self) -> usize {
        self.asked.lock().expect("no agent panics").pulls.len()
    }
}

type Parts = mpsc::Sender<Result<proto::PullProfileResponse, Status>>;

fn part(part: Part) -> Result<proto::PullProfileResponse, Status> {
    Ok(proto::PullProfileResponse { part: Some(part) })
}

fn metadata(size_bytes: u64, n_samples: i64) -> Result<proto::PullProfileResponse, Status> {
    part(Part::Metadata(proto::ProfileMetadata {
        format: "pprof".to_owned(),
        size_bytes,
        n_samples,
        ..proto::ProfileMetadata::default()
    }))
}

/// Sends what this behaviour is, until the client has left. `None`: it has left.
async fn send(behaviour: Behaviour, parts: Parts) -> Option<()> {
    let send = async |part| parts.send(part).await.ok();
    match behaviour {
        Behaviour::Profile(bytes, n_samples) => {
            send(metadata(bytes.len() as u64, n_samples)).await?;
            for chunk in bytes.chunks(64 << 10) {
                send(part(Part::Chunk(chunk.to_vec()))).await?;
            }
        }
        Behaviour::Garbage => {
            send(metadata(1000, 1)).await?;
            send(part(Part::Chunk(vec![0xa5; 1000]))).await?;
        }
        Behaviour::Endless => {
            send(metadata(16 << 20, 1)).await?;
            loop {
                send(part(Part::Chunk(vec![0; 64 << 10]))).await?;
            }
        }
        Behaviour::Short => {
            send(metadata(1000, 1)).await?;
            send(part(Part::Chunk(vec![0; 10]))).await?;
        }
        Behaviour::Claims(size_bytes) => send(metadata(size_bytes, 1)).await?,
        Behaviour::Drips => {
            send(metadata(1 << 20, 1)).await?;
            loop {
                send(part(Part::Chunk(vec![0]))).await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        Behaviour::Silent | Behaviour::Deaf => std::future::pending().await,
        Behaviour::Nothing | Behaviour::Refuses => {}
    }
    Some(())
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl ProfileService for Agent {
    type PullProfileStream = Messages<proto::PullProfileResponse>;
    type WatchProfilesStream = Messages<proto::WatchProfilesResponse>;
    type WatchProcessesStream = Messages<proto::WatchProcessesResponse>;
    type DumpStacksStream = Messages<proto::DumpStacksResponse>;
    type HeapCensusStream = Messages<proto::HeapCensusResponse>;

    async fn pull_profile(
        &self,
        request: Request<proto::PullProfileRequest>,
    ) -> Result<Response<Self::PullProfileStream>, Status> {
        let bearer = request.metadata().get("authorization");
        let bearer = bearer.and_then(|it| it.to_str().ok()).map(str::to_owned);
        {
            let mut asked = self.asked.lock().expect("no agent panics");
            asked.bearers.push(bearer);
            asked.pulls.push((self.port, request.into_inner()));
        }
        match &self.behaviour {
            Behaviour::Nothing => return Err(Status::not_found("no process matches")),
            Behaviour::Refuses => return Err(Status::permission_denied("no\u{1b}[31m\nway")),
            _ => {}
        }
        let (sender, messages) = mpsc::channel(4);
        tokio::spawn(send(self.behaviour.clone(), sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }

    async fn list_processes(
        &self,
        _: Request<proto::ListProcessesRequest>,
    ) -> Result<Response<proto::ListProcessesResponse>, Status> {
        Ok(Response::new(proto::ListProcessesResponse::default()))
    }

    async fn watch_profiles(
        &self,
        _: Request<proto::WatchProfilesRequest>,
    ) -> Result<Response<Self::WatchProfilesStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn watch_processes(
        &self,
        _: Request<proto::WatchProcessesRequest>,
    ) -> Result<Response<Self::WatchProcessesStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn dump_stacks(
        &self,
        _: Request<proto::DumpStacksRequest>,
    ) -> Result<Response<Self::DumpStacksStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn heap_census(
        &self,
        _: Request<proto::HeapCensusRequest>,
    ) -> Result<Response<Self::HeapCensusStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_status(
        &self,
        _: Request<proto::GetStatusRequest>,
    ) -> Result<Response<proto::GetStatusResponse>, Status> {
        Ok(Response::new(proto::GetStatusResponse::default()))
    }
}
