//! What a connection to a target takes: certificates, a token, headers. Files are read again when they have changed, so
//! that who renews a certificate or a token does not have to restart the agent.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::target::{Protocol, Target};
use crate::format::escape;
use crate::secrets::{self, FileError, Secrecy};

/// Longest time for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How often an open connection is asked whether it still is one.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// A value for one kind of target, or for all: `VALUE` or `PROTOCOL=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scoped<T> {
    /// For these alone; `None`: for all.
    pub protocol: Option<Protocol>,
    /// The value.
    pub value: T,
}

impl<T: FromStr> FromStr for Scoped<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        let scope = text.split_once('=').and_then(|(name, rest)| {
            let mut protocols = Protocol::ALL.into_iter();
            Some((protocols.find(|it| it.name() == name)?, rest))
        });
        let (protocol, value) = scope.map_or((None, text), |(it, rest)| (Some(it), rest));
        Ok(Self {
            protocol,
            value: value.parse()?,
        })
    }
}

/// The last one that is for this kind of target; its own before those for all.
fn chosen<T>(values: &[Scoped<T>], protocol: Protocol) -> Option<&T> {
    let find = |scope| values.iter().rev().find(|it| it.protocol == scope);
    find(Some(protocol))
        .or_else(|| find(None))
        .map(|it| &it.value)
}

/// A header, `NAME=VALUE`.
#[derive(Debug, Clone)]
pub struct Header {
    name: MetadataKey<Ascii>,
    value: MetadataValue<Ascii>,
}

impl FromStr for Header {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The value can be a secret: it is not shown.
        let (name, value) = text
            .split_once('=')
            .ok_or("a header is NAME=VALUE, such as X-Scope-OrgID=team")?;
        let bad = |what| format!("the {what} of header `{}` cannot be sent", escape(name));
        let mut value: MetadataValue<Ascii> = value.parse().map_err(|_| bad("value"))?;
        value.set_sensitive(true);
        let name = name.to_ascii_lowercase().parse().map_err(|_| bad("name"))?;
        Ok(Self { name, value })
    }
}

/// What was given for all targets together.
#[derive(Debug, Clone, Default)]
pub struct CredentialOptions {
    /// Certificates of authorities (PEM) in place of the system's.
    pub ca: Vec<Scoped<PathBuf>>,
    /// The client's certificate (PEM).
    pub certificate: Vec<Scoped<PathBuf>>,
    /// Its key (PEM).
    pub key: Vec<Scoped<PathBuf>>,
    /// A token, sent as `authorization: Bearer`.
    pub token: Vec<Scoped<PathBuf>>,
    /// `user:password`, sent as `authorization: Basic`.
    pub basic_auth: Vec<Scoped<PathBuf>>,
    /// Further headers.
    pub headers: Vec<Scoped<Header>>,
}

/// Why a target cannot be reached with what was given. One line each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// A file is not there, or not readable, or others can read what is secret, or it holds something else.
    #[error("{flag}: {reason}")]
    File {
        /// What it was given by.
        flag: &'static str,
        /// Names the file.
        reason: String,
    },
    /// A certificate without its key, or the other way round.
    #[error("--push-cert and --push-key belong together: {0} has one of them")]
    HalfIdentity(String),
    /// Certificates for a target without TLS.
    #[error("{0} is without TLS: certificates need https://")]
    NoTls(String),
    /// Two ways to say who one is.
    #[error("{0} has both a token and a password: give one of them")]
    TwoAuthorizations(String),
    /// What the files hold is not what it should be.
    #[error("{target} cannot be reached: {reason}")]
    Tls {
        /// The target.
        target: String,
        /// What is wrong.
        reason: String,
    },
}

/// What one target takes.
#[derive(Debug)]
pub(super) struct Credentials {
    target: Target,
    ca: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
    authorization: Option<Authorization>,
    headers: Vec<Header>,
    /// Of the files, when they were read.
    stamps: Vec<Option<Stamp>>,
}

#[derive(Debug)]
enum Authorization {
    Bearer(PathBuf),
    Basic(PathBuf),
}

/// What changes when a file does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

/// A connection, which is made when it is first used, and what is sent with each request.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) channel: Channel,
    pub(super) headers: MetadataMap,
}

impl Credentials {
    /// Those for this target. Nothing is read yet.
    pub(super) fn new(
        target: &Target,
        options: &CredentialOptions,
    ) -> Result<Self, CredentialError> {
        let of = |values| chosen::<PathBuf>(values, target.protocol).cloned();
        let name = || target.to_string();
        let identity = match (of(&options.certificate), of(&options.key)) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(CredentialError::HalfIdentity(name())),
        };
        let ca = of(&options.ca);
        // What was given for all is for those that have TLS.
        let mut given = [&options.ca, &options.certificate].into_iter().flatten();
        if !target.has_tls && given.any(|it| it.protocol == Some(target.protocol)) {
            return Err(CredentialError::NoTls(name()));
        }
        let authorization = match (of(&options.token), of(&options.basic_auth)) {
            (Some(_), Some(_)) => return Err(CredentialError::TwoAuthorizations(name())),
            (Some(path), None) => Some(Authorization::Bearer(path)),
            (None, Some(path)) => Some(Authorization::Basic(path)),
            (None, None) => None,
        };
        let headers = options.headers.iter();
        let headers = headers.filter(|it| it.protocol.is_none_or(|it| it == target.protocol));
        Ok(Self {
            target: target.clone(),
            ca: ca.filter(|_| target.has_tls),
            identity: identity.filter(|_| target.has_tls),
            authorization,
            headers: headers.map(|it| it.value.clone()).collect(),
            stamps: Vec::new(),
        })
    }

    /// Whether secrets would go over the network for everybody to read.
    pub(super) fn are_exposed(&self) -> bool {
        self.authorization.is_some() && !self.target.has_tls && !self.target.is_local()
    }

    /// Whether a file is another one than was read.
    pub(super) fn have_changed(&self) -> bool {
        self.stamps != self.look()
    }

    /// Reads the files, and makes a connection of them.
    pub(super) fn link(&mut self) -> Result<Link, CredentialError> {
        // First: what changes meanwhile is read again.
        self.stamps = self.look();
        let headers = self.metadata()?;
        let tls_error = |reason: String| CredentialError::Tls {
            target: self.target.to_string(),
            reason,
        };
        let endpoint = Endpoint::from_shared(self.target.url());
        let mut endpoint = endpoint
            .map_err(|error| tls_error(error_text(&error)))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .user_agent(concat!("pyagent/", env!("CARGO_PKG_VERSION")))
            .map_err(|error| tls_error(error_text(&error)))?;
        if self.target.has_tls {
            let mut tls = ClientTlsConfig::new();
            tls = match &self.ca {
                Some(path) => {
                    let pem = read("--push-ca", path, Secrecy::Public)?;
                    if !pem.contains("-----BEGIN CERTIFICATE-----") {
                        return Err(file_error(
                            "--push-ca",
                            path,
                            "it holds no certificate in PEM",
                        ));
                    }
                    tls.ca_certificate(Certificate::from_pem(pem))
                }
                None => tls.with_native_roots(),
            };
            if let Some((certificate, key)) = &self.identity {
                let certificate = read("--push-cert", certificate, Secrecy::Public)?;
                let key = read("--push-key", key, Secrecy::Group)?;
                tls = tls.identity(Identity::from_pem(certificate, key));
            }
            endpoint = endpoint
                .tls_config(tls)
                .map_err(|error| tls_error(error_text(&error)))?;
        }
        Ok(Link {
            channel: endpoint.connect_lazy(),
            headers,
        })
    }

    fn metadata(&self) -> Result<MetadataMap, CredentialError> {
        let mut metadata = MetadataMap::new();
        for Header { name, value } in &self.headers {
            metadata.insert(name.clone(), value.clone());
        }
        let (flag, path, text) = match &self.authorization {
            None => return Ok(metadata),
            Some(Authorization::Bearer(path)) => {
                let token = read("--push-token-file", path, Secrecy::Owner)?;
                (
                    "--push-token-file",
                    path,
                    format!("Bearer {}", token.trim()),
                )
            }
            Some(Authorization::Basic(path)) => {
                let pair = read("--push-basic-auth-file", path, Secrecy::Owner)?;
                let pair = pair.trim_end_matches(['\r', '\n']);
                if !pair.contains(':') {
                    let reason = "it does not hold user:password";
                    return Err(file_error("--push-basic-auth-file", path, reason));
                }
                let pair = STANDARD.encode(pair);
                ("--push-basic-auth-file", path, format!("Basic {pair}"))
            }
        };
        let mut value: MetadataValue<Ascii> = text
            .parse()
            .map_err(|_| file_error(flag, path, "it holds what cannot be sent in a header"))?;
        value.set_sensitive(true);
        metadata.insert("authorization", value);
        Ok(metadata)
    }

    fn look(&self) -> Vec<Option<Stamp>> {
        let identity = self.identity.iter().flat_map(|(it, key)| [it, key]);
        let authorization = self.authorization.iter().map(|it| match it {
            Authorization::Bearer(path) | Authorization::Basic(path) => path,
        });
        let paths = self.ca.iter().chain(identity).chain(authorization);
        paths.map(|path| Stamp::of(path)).collect()
    }
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let metadata = path.metadata().ok()?;
        Some(Self {
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

fn read(flag: &'static str, path: &Path, secrecy: Secrecy) -> Result<String, CredentialError> {
    let bytes = secrets::read(path, secrecy).map_err(|error| CredentialError::File {
        flag,
        reason: error.to_string(),
    })?;
    if bytes.is_empty() {
        return Err(file_error(flag, path, "it is empty"));
    }
    String::from_utf8(bytes).map_err(|_| file_error(flag, path, "it is no text"))
}

fn file_error(flag: &'static str, path: &Path, reason: &str) -> CredentialError {
    CredentialError::File {
        flag,
        reason: FileError::unusable(path, reason).to_string(),
    }
}

/// An error with its causes, in one line.
pub(super) fn error_text(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    escape(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn target(text: &str) -> Target {
        text.parse().unwrap()
    }

    fn scoped(text: &str) -> Scoped<PathBuf> {
        text.parse().unwrap()
    }

    #[test]
    fn a_value_is_for_all_targets_or_for_one_kind() {
        let values = ["all", "parca=own", "later"].map(scoped);
        assert_eq!(chosen(&values, Protocol::Parca), Some(&"own".into()));
        assert_eq!(chosen(&values, Protocol::Otlp), Some(&"later".into()));
        assert_eq!(scoped("/a=b").value, PathBuf::from("/a=b"));
    }

    #[test]
    fn headers_are_sent_in_lower_case_and_their_values_are_not_told() {
        let header: Scoped<Header> = "X-Scope-OrgID=team".parse().unwrap();
        assert_eq!(header.value.name.as_str(), "x-scope-orgid");
        for bad in ["secret", "bad name=secret", "name=secret\n"] {
            let error = bad.parse::<Header>().unwrap_err();
            assert!(
                !error.contains("secret") && !error.contains('\n'),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn files_are_read_again_when_they_have_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "one\n").unwrap();
        let allow = |mode| std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        allow(0o600);
        let options = CredentialOptions {
            token: vec![scoped(path.to_str().unwrap())],
            ..CredentialOptions::default()
        };
        let mut credentials = Credentials::new(&target("otlp=http://a"), &options).unwrap();
        assert!(credentials.are_exposed());
        let header = |link: Link| link.headers.get("authorization").unwrap().clone();
        assert_eq!(header(credentials.link().unwrap()), "Bearer one");
        assert!(!credentials.have_changed());
        std::fs::write(&path, "another\n").unwrap();
        assert!(credentials.have_changed());
        assert_eq!(header(credentials.link().unwrap()), "Bearer another");
        // One that others can read is no secret any more.
        allow(0o640);
        assert!(credentials.have_changed());
        let error = credentials.link().unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
        std::fs::remove_file(&path).unwrap();
        assert!(credentials.have_changed());
        let error = credentials.link().unwrap_err().to_string();
        assert!(error.starts_with("--push-token-file: "), "{error}");
    }

    #[tokio::test]
    async fn a_password_is_sent_as_rfc_7617_says() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        std::fs::write(&path, "Aladdin:open sesame\n").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let options = CredentialOptions {
            basic_auth: vec![scoped(path.to_str().unwrap())],
            ..CredentialOptions::default()
        };
        let target = target("otlp=http://127.0.0.1");
        let mut credentials = Credentials::new(&target, &options).unwrap();
        assert!(!credentials.are_exposed());
        let headers = credentials.link().unwrap().headers;
        let expected = "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==";
        assert_eq!(headers.get("authorization").unwrap(), expected);
    }

    #[test]
    fn what_does_not_fit_together_is_refused_in_one_line() {
        let path = || vec![scoped("/nowhere")];
        let own = || vec![scoped("otlp=/nowhere")];
        let none = CredentialOptions::default;
        for (options, target_text, part) in [
            (
                CredentialOptions {
                    key: path(),
                    ..none()
                },
                "otlp=https://a",
                "belong together",
            ),
            (
                CredentialOptions {
                    ca: own(),
                    ..none()
                },
                "otlp=http://a",
                "without TLS",
            ),
            (
                CredentialOptions {
                    ca: path(),
                    ..none()
                },
                "otlp=https://a",
                "--push-ca: cannot read /nowhere",
            ),
            (
                CredentialOptions {
                    token: path(),
                    basic_auth: path(),
                    ..none()
                },
                "otlp=http://a",
                "both a token and a password",
            ),
        ] {
            let target = target(target_text);
            let error = Credentials::new(&target, &options).and_then(|mut it| it.link());
            let error = error.unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains('\n'), "{error}");
        }
    }
}
