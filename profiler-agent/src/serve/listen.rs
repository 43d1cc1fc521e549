//! Where the server listens: addresses as they are typed, and the sockets that they become.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixSocket, UnixStream};

use crate::format::escape;
use crate::secrets::FileError;

/// Connections that wait to be taken, as far as the system allows (net.core.somaxconn).
const BACKLOG: u32 = 1024;

/// Who may open a local socket: its owner and its group.
const SOCKET_MODE: u32 = 0o660;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// Nowhere.
    None,
    /// TCP.
    Tcp {
        /// Address and port.
        address: SocketAddr,
        /// Whether TLS is spoken. `None`: elsewhere than on loopback, if there is a certificate.
        tls: Option<bool>,
    },
    /// A local socket; its path is absolute.
    Unix(PathBuf),
}

/// Not an address to listen on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no address to listen on: write IP:PORT, https://IP:PORT, unix:/PATH or none, such as 127.0.0.1:7099"
)]
pub struct BadListenAddress(String);

impl FromStr for ListenAddress {
    type Err = BadListenAddress;

    fn from_str(text: &str) -> Result<Self, BadListenAddress> {
        let bad = || BadListenAddress(escape(text).into_owned());
        if text == "none" {
            return Ok(Self::None);
        }
        if let Some(path) = text.strip_prefix("unix:") {
            let path = Path::new(path.strip_prefix("//").unwrap_or(path));
            let is_usable = path.is_absolute() && path.file_name().is_some();
            return is_usable
                .then(|| Self::Unix(path.to_owned()))
                .ok_or_else(bad);
        }
        let (tls, address) = match text.split_once("://") {
            None => (None, text),
            Some(("http", address)) => (Some(false), address),
            Some(("https", address)) => (Some(true), address),
            Some(_) => return Err(bad()),
        };
        let address = match address.strip_prefix("localhost:") {
            Some(port) => SocketAddr::new([127, 0, 0, 1].into(), port.parse().map_err(|_| bad())?),
            None => address.parse().map_err(|_| bad())?,
        };
        Ok(Self::Tcp { address, tls })
    }
}

impl ListenAddress {
    /// Whether TLS is spoken there, when there is a certificate or not.
    pub(super) fn speaks_tls(&self, has_certificate: bool) -> bool {
        match self {
            Self::None | Self::Unix(_) => false,
            Self::Tcp { address, tls } => {
                tls.unwrap_or_else(|| has_certificate && !is_loopback(address))
            }
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Tcp { address, tls } => match tls {
                Some(true) => write!(f, "https://{address}"),
                Some(false) | None => write!(f, "{address}"),
            },
            Self::Unix(path) => write!(f, "unix:{}", escape(&path.to_string_lossy())),
        }
    }
}

/// Whether an address can be reached from this host alone.
pub(super) fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// Why the server cannot listen. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Something listens there.
    #[error(
        "{address} is in use, perhaps by another pyagent: choose another one with --listen ADDR"
    )]
    InUse {
        /// The address.
        address: ListenAddress,
    },
    /// Other hosts could connect.
    #[error(
        "{address} can be reached from other hosts, and whoever reaches it could read profiles: give --tls-cert FILE \
         --tls-key FILE and --tls-client-ca FILE or --token-file FILE, use a loopback address or unix:/PATH, or accept it \
         with --insecure"
    )]
    NotLoopback {
        /// The address.
        address: ListenAddress,
    },
    /// TLS without a certificate.
    #[error("{address} needs a certificate and its key: --tls-cert FILE --tls-key FILE")]
    NoCertificate {
        /// The address.
        address: ListenAddress,
    },
    /// Flags that would do nothing, although somebody relies on them.
    #[error("{flag} has no effect: {reason}")]
    Unused {
        /// The flag.
        flag: &'static str,
        /// Why, and what to do.
        reason: &'static str,
    },
    /// Something that is no socket is in its place.
    #[error("{} is there and is no socket: remove it, or choose another path with --listen", escape(&.path.to_string_lossy()))]
    NoSocket {
        /// Its path.
        path: PathBuf,
    },
    /// There is no such group.
    #[error("there is no group `{0}` for the socket")]
    UnknownGroup(String),
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// Anything else.
    #[error("cannot listen on {address}: {error}; choose another address with --listen ADDR")]
    Other {
        /// The address.
        address: ListenAddress,
        /// What the system says.
        error: io::Error,
    },
}

/// A socket that listens.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpListener),
    Unix {
        listener: UnixListener,
        /// Removed with it.
        _file: SocketFile,
    },
}

/// A connection, and the address at its other end.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream, IpAddr),
    /// With the user, if the system says who it is.
    Unix(UnixStream, Option<u32>),
}

impl Stream {
    /// The address at the other end; `None` over a local socket.
    pub(super) const fn peer(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(_, address) => Some(*address),
            Self::Unix(..) => None,
        }
    }
}

impl Socket {
    /// Takes the place. Returns the address too, with the port that was chosen when 0 was asked for.
    pub(super) fn tcp(address: SocketAddr) -> Result<(Self, SocketAddr), BindError> {
        let other = |error: io::Error| {
            let address = ListenAddress::Tcp { address, tls: None };
            match error.kind() {
                io::ErrorKind::AddrInUse => BindError::InUse { address },
                _ => BindError::Other { address, error },
            }
        };
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        };
        let socket = socket.map_err(other)?;
        // A port whose last connections are not forgotten yet can be taken.
        socket.set_reuseaddr(true).map_err(other)?;
        socket.bind(address).map_err(other)?;
        let listener = socket.listen(BACKLOG).map_err(other)?;
        let address = listener.local_addr().map_err(other)?;
        Ok((Self::Tcp(listener), address))
    }

    /// The same for a local socket. One that nobody listens on any more is replaced.
    pub(super) fn unix(path: &Path, group: Option<&str>) -> Result<Self, BindError> {
        let address = || ListenAddress::Unix(path.to_owned());
        let other = |error| BindError::Other {
            address: address(),
            error,
        };
        make_folder(path).map_err(other)?;
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(other(error)),
            Ok(facts) if !facts.file_type().is_socket() => {
                return Err(BindError::NoSocket {
                    path: path.to_owned(),
                });
            }
            Ok(_) => match StdUnixStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path).map_err(other)?;
                }
                // It has gone meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    return Err(other(error));
                }
                Ok(_) | Err(_) => return Err(BindError::InUse { address: address() }),
            },
        }
        let bound = |error: io::Error| match error.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse { address: address() },
            _ => other(error),
        };
        let socket = UnixSocket::new_stream().map_err(other)?;
        socket.bind(path).map_err(bound)?;
        // Nobody can connect before it listens, so no mode is too wide for a moment.
        if let Some(group) = group {
            let id =
                group_id(group).ok_or_else(|| BindError::UnknownGroup(escape(group).into()))?;
            std::os::unix::fs::lchown(path, None, Some(id)).map_err(other)?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE)).map_err(other)?;
        let facts = fs::symlink_metadata(path).map_err(other)?;
        let listener = socket.listen(BACKLOG).map_err(other)?;
        let file = SocketFile {
            path: path.to_owned(),
            device: facts.dev(),
            inode: facts.ino(),
        };
        Ok(Self::Unix {
            listener,
            _file: file,
        })
    }

    /// The next connection.
    pub(super) async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok(Stream::Tcp(stream, peer.ip().to_canonical()))
            }
            Self::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                let user = stream.peer_cred().ok().map(|peer| peer.uid());
                Ok(Stream::Unix(stream, user))
            }
        }
    }
}

/// Makes the folder of a socket, but not what that lies in: /run/pyagent, say.
fn make_folder(path: &Path) -> io::Result<()> {
    let Some(folder) = path.parent() else {
        return Ok(());
    };
    match fs::create_dir(folder) {
        Ok(()) => fs::set_permissions(folder, fs::Permissions::from_mode(0o755)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// A group by name or number.
fn group_id(group: &str) -> Option<u32> {
    match group.parse() {
        Ok(id) => Some(id),
        Err(_) => {
            let group = nix::unistd::Group::from_name(group).ok()??;
            Some(group.gid.as_raw())
        }
    }
}

/// The file of a local socket; removed when it is dropped, if it is still the same.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_own = fs::symlink_metadata(&self.path)
            .is_ok_and(|facts| (facts.dev(), facts.ino()) == (self.device, self.inode));
        if is_own && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, "the socket {} is left behind", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_or_refused_with_examples() {
        let tcp = |text: &str, tls| ListenAddress::Tcp {
            address: text.parse().unwrap(),
            tls,
        };
        for (text, address) in [
            ("none", ListenAddress::None),
            ("127.0.0.1:7099", tcp("127.0.0.1:7099", None)),
            ("localhost:1", tcp("127.0.0.1:1", None)),
            ("[::]:1", tcp("[::]:1", None)),
            ("https://0.0.0.0:1", tcp("0.0.0.0:1", Some(true))),
            ("http://0.0.0.0:1", tcp("0.0.0.0:1", Some(false))),
            (
                "unix:/run/pyagent/pyagent.sock",
                ListenAddress::Unix("/run/pyagent/pyagent.sock".into()),
            ),
            ("unix:///run/x", ListenAddress::Unix("/run/x".into())),
        ] {
            assert_eq!(text.parse(), Ok(address), "{text}");
        }
        for text in [
            "",
            "7099",
            "host:1",
            "unix:",
            "unix:x",
            "unix:/",
            "ftp://1.2.3.4:1",
            "unix:///",
        ] {
            let error = text.parse::<ListenAddress>().unwrap_err().to_string();
            assert!(error.contains("127.0.0.1:7099"), "{text}: {error}");
        }
    }
}
