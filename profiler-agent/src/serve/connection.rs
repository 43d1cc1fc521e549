//! One connection: the handshake, the requests, and the bounds that a client meets.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use super::auth::Peer;
use super::certificate;
use super::listen::Stream;
use super::places::Place;

/// Most requests at a time on one HTTP/2 connection.
const MAX_STREAMS: u32 = 64;

/// How often a silent HTTP/2 client is asked whether it is there, and how long it may take to say so.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Most bytes of a request's head.
const MAX_HEADER_BYTES: usize = 16 << 10;

/// Longest time in which a client takes none of what waits for it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Bounds of time, which tests make shorter.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// From the connection to the end of its handshake.
    pub(super) handshake: Duration,
    /// From there to its first request that is let through, for the head of each request of HTTP/1, and for the rest of
    /// each request.
    pub(super) header: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(5),
            header: Duration::from_secs(10),
        }
    }
}

/// What all connections of a listener share.
#[derive(Clone)]
pub(super) struct Served {
    pub(super) router: Router,
    pub(super) tls: Option<watch::Receiver<Arc<ServerConfig>>>,
    pub(super) patience: Patience,
    /// Changes when the server stops.
    pub(super) stop: watch::Receiver<bool>,
}

/// Serves one connection. What is wrong with it (garbage, a client that leaves) concerns nobody else.
pub(super) async fn serve(stream: Stream, served: Served, place: Arc<Place>) {
    let sent_away = place.clone();
    tokio::select! {
        () = handshake(stream, served, place) => {}
        () = sent_away.sent_away() => {}
    }
}

async fn handshake(stream: Stream, mut served: Served, place: Arc<Place>) {
    let (stream, _) = match stream {
        Stream::Unix(stream, user) => {
            let peer = Peer { user, names: None };
            return requests(stream, peer, served, place).await;
        }
        Stream::Tcp(stream, address) => (stream, address),
    };
    // A request is one small write; waiting for more costs 40 ms.
    let _ = stream.set_nodelay(true);
    let Some(tls) = &mut served.tls else {
        return requests(stream, Peer::default(), served, place).await;
    };
    let config = tls.borrow_and_update().clone();
    let accepted = TlsAcceptor::from(config).accept(stream);
    let Ok(Ok(stream)) = timeout(served.patience.handshake, accepted).await else {
        return;
    };
    let chain = stream.get_ref().1.peer_certificates();
    let names = chain.and_then(|chain| chain.first());
    let peer = Peer {
        user: None,
        names: names.map(|certificate| certificate::names(certificate)),
    };
    requests(stream, peer, served, place).await;
}

async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    served: Served,
    place: Arc<Place>,
) {
    let Served {
        router,
        mut tls,
        patience,
        mut stop,
    } = served;
    let of_request = place.clone();
    let service = router.map_request(move |request: Request<_>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer.clone());
        request.extensions_mut().insert(of_request.clone());
        request.extensions_mut().insert(patience);
        request
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.header)
        .max_buf_size(MAX_HEADER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(MAX_HEADER_BYTES as u32)
        .max_concurrent_streams(MAX_STREAMS)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    let stream = TokioIo::new(Impatient::new(stream));
    let connection = builder.serve_connection(stream, TowerToHyperService::new(service));
    let mut connection = pin!(connection);
    tokio::select! {
        _ = &mut connection => return,
        () = place.admitted() => {}
        () = sleep(patience.header) => return,
        _ = stop.wait_for(|stop| *stop) => {}
    }
    // When the authorities may have changed a client has to show its certificate again.
    let has_certificate = tls.is_some();
    let changed = async {
        match &mut tls {
            Some(tls) if has_certificate => drop(tls.changed().await),
            Some(_) | None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = &mut connection => return,
        () = changed => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

/// A stream that breaks when its other end takes nothing for long.
struct Impatient<S> {
    stream: S,
    /// Since something waits to be written.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> Impatient<S> {
    const fn new(stream: S) -> Self {
        Self {
            stream,
            waiting: None,
        }
    }

    /// The answer to an attempt to write; an error when it is one too many.
    fn progress<T>(
        &mut self,
        poll: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.waiting = None;
            return poll;
        }
        let waiting = self
            .waiting
            .get_or_insert_with(|| Box::pin(sleep(WRITE_TIMEOUT)));
        match waiting.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.progress(poll, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(context, buffers);
        self.progress(poll, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_flush(context);
        self.progress(poll, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_shutdown(context);
        self.progress(poll, context)
    }
}
