//! The way to an agent: addresses as they are typed, TLS, tokens, and what is wrong when it cannot be reached.

use std::error::Error;
use std::fmt;
use std::future::{Ready, ready};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::Service;

use super::DEFAULT_ADDRESS;
use super::tls;
use crate::format::escape;
use crate::generated::pyagent::v1::profile_service_client::ProfileServiceClient;
use crate::secrets::{self, FileError, Secrecy};

/// Longest time for a connection, with TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The same through something that is no address.
const THROUGH_TIMEOUT: Duration = Duration::from_secs(15);

/// The client of the service, which shows its token with each call.
pub(super) type Client = ProfileServiceClient<InterceptedService<Channel, Bearer>>;

/// Where an agent listens, and what it is shown.
#[derive(Debug, Clone)]
pub struct AgentAddress {
    target: Target,
    tls: Option<Arc<ClientConfig>>,
    server_name: Option<ServerName<'static>>,
    /// The name is the address's, none that was given.
    is_named_by_host: bool,
    bearer: Bearer,
}

#[derive(Debug, Clone)]
enum Target {
    Tcp {
        /// `host:port`.
        authority: String,
        scheme: Scheme,
    },
    Unix(PathBuf),
    Through {
        /// As it is shown.
        name: String,
        /// The name that its certificate is for.
        host: String,
        dial: Arc<dyn Dial>,
        scheme: Scheme,
    },
}

/// A way to an agent that is no address: through another server, or to one of several.
pub trait Dial: fmt::Debug + Send + Sync {
    /// Opens a stream to it.
    fn dial(&self) -> Dialling<'_>;
}

/// A stream that is being opened.
pub type Dialling<'a> = Pin<Box<dyn Future<Output = io::Result<Box<dyn Connection>>> + Send + 'a>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    /// Plaintext, unless a flag is about TLS.
    Unsaid,
    Http,
    Https,
}

/// How an agent is spoken to, besides its address.
#[derive(Debug, Clone, Default)]
pub struct ClientConfigFiles {
    /// Authorities that sign agents' certificates; those of this system when absent.
    pub ca: Option<PathBuf>,
    /// This client's certificate and key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name that the agent's certificate is for, when it is not that of the address.
    pub server_name: Option<String>,
    /// A file whose first line begins with a token.
    pub token_file: Option<PathBuf>,
}

/// Why an agent cannot be reached. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not an address.
    #[error(
        "`{address}` is not an address of an agent: give host:port, https://host:port or unix:/path, such as \
         {DEFAULT_ADDRESS}"
    )]
    BadAddress {
        /// What was given, escaped.
        address: String,
    },
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// Not a name that a certificate can be for.
    #[error("`{0}` is no name of a server: give the host name or address in its certificate")]
    BadServerName(String),
    /// A token would be shown to everybody.
    #[error(
        "the token would go to {0} in the clear: use https://{0}, or write http://{0} to send it all the same"
    )]
    ClearToken(String),
    /// The same where no address can be written in another way.
    #[error(
        "the token would go to {0} in the clear: its agent speaks no TLS (the chart's tls.existingSecret)"
    )]
    ClearTokenThrough(String),
    /// Flags for TLS with an address that has none.
    #[error("{0} is reached without TLS: leave the --tls flags out, or write https://HOST:PORT")]
    NoTls(String),
    /// There are no authorities.
    #[error("this system has no list of certificate authorities: give one with --tls-ca FILE")]
    NoAuthorities,
    /// Nobody listens.
    #[error("no agent answers at {0}; start one with: sudo pyagent --all-python")]
    NoAgent(String),
    /// There is no such socket.
    #[error(
        "there is no socket {0}; start the agent with: sudo pyagent --all-python --listen unix:{0}"
    )]
    NoSocket(String),
    /// A socket that its agent has left.
    #[error(
        "no agent listens on {0} any more; start it with: sudo pyagent --all-python --listen unix:{0}"
    )]
    StaleSocket(String),
    /// Not for this user.
    #[error(
        "this user may not open {0}: use sudo, or let root add you to the group of the socket (ls -l {0})"
    )]
    SocketDenied(String),
    /// It takes too long.
    #[error("{address} did not answer within {} s", limit.as_secs())]
    Timeout {
        /// The agent.
        address: String,
        /// How long was waited.
        limit: Duration,
    },
    /// Its certificate cannot be trusted.
    #[error("the certificate of {address} {reason}")]
    Certificate {
        /// The agent.
        address: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// No TLS at its end.
    #[error("{0} does not speak TLS: write http://{0}")]
    SpeaksNoTls(String),
    /// Anything else.
    #[error("cannot reach the agent at {address}: {reason}")]
    Other {
        /// The agent.
        address: String,
        /// In the words of the system or of TLS, escaped.
        reason: String,
    },
}

impl Default for AgentAddress {
    fn default() -> Self {
        Self::at(Target::Tcp {
            authority: DEFAULT_ADDRESS.to_owned(),
            scheme: Scheme::Unsaid,
        })
    }
}

impl FromStr for AgentAddress {
    type Err = ConnectError;

    fn from_str(address: &str) -> Result<Self, ConnectError> {
        let bad = || ConnectError::BadAddress {
            address: escape(address).into_owned(),
        };
        if let Some(path) = address.strip_prefix("unix:") {
            let path = Path::new(path.strip_prefix("//").unwrap_or(path));
            let is_usable = path.is_absolute() && path.file_name().is_some();
            return is_usable
                .then(|| Self::at(Target::Unix(path.to_owned())))
                .ok_or_else(bad);
        }
        let (scheme, authority) = match address.split_once("://") {
            None => (Scheme::Unsaid, address),
            Some(("http", authority)) => (Scheme::Http, authority),
            Some(("https", authority)) => (Scheme::Https, authority),
            Some(_) => return Err(bad()),
        };
        let authority = match scheme {
            Scheme::Unsaid => authority,
            Scheme::Http | Scheme::Https => authority.strip_suffix('/').unwrap_or(authority),
        };
        let (host, port) = authority.rsplit_once(':').ok_or_else(bad)?;
        let is_host = |char: char| char.is_ascii_alphanumeric() || "-._[]:%".contains(char);
        let is_bracketed = host.starts_with('[') && host.ends_with(']');
        if host.is_empty()
            || !host.chars().all(is_host)
            || (host.contains(':') && !is_bracketed)
            || port.parse::<u16>().is_err()
        {
            return Err(bad());
        }
        Ok(Self::at(Target::Tcp {
            authority: authority.to_owned(),
            scheme,
        }))
    }
}

impl fmt::Display for AgentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Tcp { authority, scheme } => match scheme {
                Scheme::Unsaid => f.write_str(authority),
                Scheme::Http => write!(f, "http://{authority}"),
                Scheme::Https => write!(f, "https://{authority}"),
            },
            Target::Unix(path) => write!(f, "unix:{}", escape(&path.to_string_lossy())),
            Target::Through { name, .. } => f.write_str(name),
        }
    }
}

/// Without the brackets of an IPv6 address.
fn host_of(authority: &str) -> &str {
    let host = authority
        .rsplit_once(':')
        .map_or(authority, |(host, _)| host);
    let inner = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    inner.unwrap_or(host)
}

fn is_this_host(host: &str) -> bool {
    let address = host.parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

impl AgentAddress {
    const fn at(target: Target) -> Self {
        Self {
            target,
            tls: None,
            server_name: None,
            is_named_by_host: true,
            bearer: Bearer(None),
        }
    }

    /// One that is reached by a way of its own. `name` is shown, `host` is what its certificate is for. Without TLS it never gets
    /// a token.
    #[must_use]
    pub fn through(name: String, host: String, dial: Arc<dyn Dial>, has_tls: bool) -> Self {
        let scheme = if has_tls {
            Scheme::Https
        } else {
            Scheme::Unsaid
        };
        Self::at(Target::Through {
            name,
            host,
            dial,
            scheme,
        })
    }

    /// Another one of the same kind, which is shown and believed the same.
    pub fn sibling(
        &self,
        name: String,
        host: String,
        dial: Arc<dyn Dial>,
    ) -> Result<Self, ConnectError> {
        let mut sibling = self.clone();
        if let Target::Through {
            name: old_name,
            host: old_host,
            dial: old_dial,
            scheme: _,
        } = &mut sibling.target
        {
            if self.tls.is_some() && *old_host != host && self.is_named_by_host {
                let bad_name = |_| ConnectError::BadServerName(escape(&host).into_owned());
                sibling.server_name = Some(ServerName::try_from(host.clone()).map_err(bad_name)?);
            }
            (*old_name, *old_host, *old_dial) = (name, host, dial);
        }
        Ok(sibling)
    }

    /// Shows this, unless it is shown something else already; never without TLS.
    #[must_use]
    pub fn with_bearer(mut self, bearer: &http::HeaderValue) -> Self {
        if self.tls.is_some() && self.bearer.0.is_none() {
            let value = bearer.to_str().ok().and_then(|text| text.parse().ok());
            self.bearer.0 = value.map(|mut value: MetadataValue<Ascii>| {
                value.set_sensitive(true);
                value
            });
        }
        self
    }

    /// Whether it is spoken to by TLS.
    #[must_use]
    pub fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// With what is shown to the agent, and believed of it: the files are read.
    pub fn with(mut self, files: &ClientConfigFiles) -> Result<Self, ConnectError> {
        let is_about_tls =
            files.ca.is_some() || files.identity.is_some() || files.server_name.is_some();
        let has_tls = match &self.target {
            Target::Unix(_) => false,
            Target::Tcp { scheme, .. } | Target::Through { scheme, .. } => match scheme {
                Scheme::Unsaid => is_about_tls,
                Scheme::Http => false,
                Scheme::Https => true,
            },
        };
        if is_about_tls && !has_tls {
            return Err(ConnectError::NoTls(self.to_string()));
        }
        if has_tls {
            self.set_tls(files)?;
        }
        if let Some(path) = &files.token_file {
            self.bearer = Bearer::read(path)?;
            if let Target::Through { name, .. } = &self.target
                && !has_tls
            {
                return Err(ConnectError::ClearTokenThrough(name.clone()));
            }
            if let Target::Tcp { authority, scheme } = &self.target
                && *scheme == Scheme::Unsaid
                && !has_tls
                && !is_this_host(host_of(authority))
            {
                return Err(ConnectError::ClearToken(authority.clone()));
            }
        }
        Ok(self)
    }

    fn set_tls(&mut self, files: &ClientConfigFiles) -> Result<(), ConnectError> {
        let name = match (&files.server_name, &self.target) {
            (Some(name), _) => name.clone(),
            (None, Target::Tcp { authority, .. }) => host_of(authority).to_owned(),
            (None, Target::Through { host, .. }) => host.clone(),
            (None, Target::Unix(_)) => return Ok(()),
        };
        let bad_name = |_| ConnectError::BadServerName(escape(&name).into_owned());
        self.server_name = Some(ServerName::try_from(name.clone()).map_err(bad_name)?);
        self.is_named_by_host = files.server_name.is_none();
        if let Target::Tcp { scheme, .. } | Target::Through { scheme, .. } = &mut self.target {
            *scheme = Scheme::Https;
        }
        let roots = match &files.ca {
            Some(path) => tls::roots(path)?,
            None => system_roots()?,
        };
        let other = |error: rustls::Error| ConnectError::Other {
            address: self.to_string(),
            reason: escape(&error.to_string()).into_owned(),
        };
        let builder = ClientConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(other)?
            .with_root_certificates(roots);
        let mut config = match &files.identity {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = tls::certificates(cert)?;
                let private = tls::private_key(key)?;
                builder
                    .with_client_auth_cert(chain, private)
                    .map_err(|error| FileError::unusable(key, error))?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        self.tls = Some(Arc::new(config));
        Ok(())
    }

    /// A connection; it is not made again when it breaks.
    pub(super) async fn connect(&self) -> Result<Client, ConnectError> {
        // Never without TLS what is written with it.
        let with_defaults;
        let this = match &self.target {
            Target::Tcp { scheme, .. } | Target::Through { scheme, .. }
                if *scheme == Scheme::Https && self.tls.is_none() =>
            {
                with_defaults = self.clone().with(&ClientConfigFiles::default())?;
                &with_defaults
            }
            Target::Tcp { .. } | Target::Unix(_) | Target::Through { .. } => self,
        };
        this.connect_as_set_up().await
    }

    async fn connect_as_set_up(&self) -> Result<Client, ConnectError> {
        let other = |error: tonic::transport::Error| ConnectError::Other {
            address: self.to_string(),
            reason: escape(&last_source(&error)).into_owned(),
        };
        let limit = match &self.target {
            Target::Tcp { .. } | Target::Unix(_) => CONNECT_TIMEOUT,
            Target::Through { .. } => THROUGH_TIMEOUT,
        };
        let dialled = tokio::time::timeout(limit, self.dial());
        let stream = dialled.await.map_err(|_| ConnectError::Timeout {
            address: self.to_string(),
            limit,
        })??;
        let authority = match &self.target {
            Target::Tcp { authority, .. } => authority,
            Target::Through { host, .. } if self.tls.is_some() => host,
            // Ports are forwarded to an agent's loopback address, which takes requests for that alone.
            Target::Unix(_) | Target::Through { .. } => "localhost",
        };
        let bad = |_| ConnectError::BadAddress {
            address: self.to_string(),
        };
        let endpoint = Endpoint::from_shared(format!("http://{authority}"));
        let mut endpoint = endpoint.map_err(other)?;
        if self.tls.is_some() {
            let origin = format!("https://{authority}").parse().map_err(bad)?;
            endpoint = endpoint.origin(origin);
        }
        let channel = endpoint.connect_with_connector(Dialled(Some(stream))).await;
        Ok(ProfileServiceClient::with_interceptor(
            channel.map_err(other)?,
            self.bearer.clone(),
        ))
    }

    async fn dial(&self) -> Result<Box<dyn Connection>, ConnectError> {
        let other = |error: io::Error| ConnectError::Other {
            address: self.to_string(),
            reason: escape(&error.to_string()).into_owned(),
        };
        let authority = match &self.target {
            Target::Unix(path) => {
                let shown = || escape(&path.to_string_lossy()).into_owned();
                let stream = UnixStream::connect(path).await;
                let stream = stream.map_err(|error| match error.kind() {
                    io::ErrorKind::NotFound => ConnectError::NoSocket(shown()),
                    io::ErrorKind::ConnectionRefused => ConnectError::StaleSocket(shown()),
                    io::ErrorKind::PermissionDenied => ConnectError::SocketDenied(shown()),
                    _ => other(error),
                })?;
                return Ok(Box::new(stream));
            }
            Target::Through { dial, .. } => {
                let stream = dial.dial().await.map_err(other)?;
                return self.encrypted(stream).await;
            }
            Target::Tcp { authority, .. } => authority,
        };
        let stream = TcpStream::connect(authority).await;
        let stream = stream.map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => ConnectError::NoAgent(self.to_string()),
            _ => other(error),
        })?;
        // A request is one small write; waiting for more costs 40 ms.
        let _ = stream.set_nodelay(true);
        self.encrypted(stream).await
    }

    /// A stream with TLS over it, where that is spoken.
    async fn encrypted(
        &self,
        stream: impl Connection + 'static,
    ) -> Result<Box<dyn Connection>, ConnectError> {
        let (Some(config), Some(name)) = (&self.tls, &self.server_name) else {
            return Ok(Box::new(stream));
        };
        let connected = TlsConnector::from(config.clone()).connect(name.clone(), stream);
        let stream = connected.await.map_err(|error| {
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
            match inner {
                Some(error) => self.tls_error(error),
                None => ConnectError::Other {
                    address: self.to_string(),
                    reason: escape(&error.to_string()).into_owned(),
                },
            }
        })?;
        Ok(Box::new(stream))
    }

    /// In words that say what to do.
    fn tls_error(&self, error: &rustls::Error) -> ConnectError {
        let address = self.to_string();
        let authority = match &self.target {
            Target::Tcp { authority, .. } => authority.clone(),
            Target::Unix(_) | Target::Through { .. } => address.clone(),
        };
        let reason = match error {
            rustls::Error::InvalidMessage(_) => return ConnectError::SpeaksNoTls(authority),
            rustls::Error::InvalidCertificate(error) => match error {
                CertificateError::UnknownIssuer => {
                    "is signed by no authority that is trusted here: give the right one with --tls-ca FILE".to_owned()
                }
                CertificateError::BadSignature => {
                    "has a signature that is not of the authority that is trusted here: --tls-ca has another one".to_owned()
                }
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    "has expired: give the agent a new one (it reads it without a restart)".to_owned()
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    "is not valid yet: look at the clocks of both hosts".to_owned()
                }
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => {
                    let name = self.server_name.as_ref().map(ServerName::to_str);
                    format!(
                        "is not for {}: give a name that it is for with --tls-server-name NAME",
                        escape(&name.unwrap_or_default())
                    )
                }
                error => format!("cannot be trusted: {}", escape(&error.to_string())),
            },
            error @ rustls::Error::AlertReceived(_) => {
                return self.certificate_refused(&error.to_string());
            }
            error => {
                return ConnectError::Other {
                    address,
                    reason: escape(&error.to_string()).into_owned(),
                };
            }
        };
        ConnectError::Certificate { address, reason }
    }

    /// Why a connection broke that had been made.
    pub(super) fn broken(&self, error: &(dyn Error + 'static)) -> ConnectError {
        let reason = last_source(error);
        match &self.target {
            // After the handshake: with TLS 1.3 a client's certificate is looked at when the client is done with it. HTTP/2
            // has made text of the error by then.
            Target::Tcp { .. } | Target::Through { .. }
                if self.tls.is_some() && reason.contains("fatal alert") =>
            {
                self.certificate_refused(&reason)
            }
            Target::Tcp { authority, .. } if self.tls.is_none() => ConnectError::Other {
                address: self.to_string(),
                reason: format!(
                    "the connection broke ({}); if it speaks TLS, write https://{authority}",
                    escape(&reason)
                ),
            },
            Target::Tcp { .. } | Target::Unix(_) | Target::Through { .. } => ConnectError::Other {
                address: self.to_string(),
                reason: format!("the connection broke ({})", escape(&reason)),
            },
        }
    }

    fn certificate_refused(&self, reason: &str) -> ConnectError {
        ConnectError::Other {
            address: self.to_string(),
            reason: format!(
                "it refuses this client's certificate, or its absence ({}): give one that it trusts with --tls-cert FILE \
                 --tls-key FILE",
                escape(reason)
            ),
        }
    }
}

/// The system's authorities, as OpenSSL and most others find them (`$SSL_CERT_FILE`, `$SSL_CERT_DIR`).
fn system_roots() -> Result<RootCertStore, ConnectError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(ConnectError::NoAuthorities);
    }
    Ok(roots)
}

/// The innermost cause, which says most.
fn last_source(error: &(dyn Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// A connection that was made, for who wants to make one. A type with a name: those of closures are in symbols of several
/// KiB.
struct Dialled(Option<Box<dyn Connection>>);

impl Service<Uri> for Dialled {
    type Response = TokioIo<Box<dyn Connection>>;
    type Error = io::Error;
    type Future = Ready<io::Result<TokioIo<Box<dyn Connection>>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let stream = self.0.take().map(TokioIo::new);
        ready(stream.ok_or_else(|| io::ErrorKind::NotConnected.into()))
    }
}

/// Something to speak HTTP/2 over.
pub trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

/// A token, shown with each call.
#[derive(Debug, Clone)]
pub(super) struct Bearer(Option<MetadataValue<Ascii>>);

impl Bearer {
    /// The first word of a file, which may be one of the agent's.
    fn read(path: &Path) -> Result<Self, FileError> {
        let bytes = secrets::read(path, Secrecy::Public)?;
        let text = std::str::from_utf8(&bytes).unwrap_or_default();
        let lines = text.lines().map(str::trim_ascii_start);
        let mut lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let token = lines
            .next()
            .and_then(|line| line.split_ascii_whitespace().next())
            .ok_or_else(|| FileError::unusable(path, "no token is in it"))?;
        let value = MetadataValue::try_from(format!("Bearer {token}"));
        let mut value = value
            .map_err(|_| FileError::unusable(path, "the token has characters that none has"))?;
        value.set_sensitive(true);
        Ok(Self(Some(value)))
    }
}

impl Interceptor for Bearer {
    fn call(
        &mut self,
        mut request: tonic::Request<()>,
    ) -> Result<tonic::Request<()>, tonic::Status> {
        if let Some(value) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", value.clone());
        }
        Ok(request)
    }
}
