//! Where profiles are sent: `PROTOCOL=URL`, as `--push` takes it.

use std::fmt;
use std::str::FromStr;

use tonic::transport::Uri;

use crate::format::escape;

/// What a target understands. All are gRPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// OTLP profiles: the OpenTelemetry Collector and what takes the same.
    Otlp,
    /// Pyroscope's own.
    Pyroscope,
    /// Parca's own.
    Parca,
}

impl Protocol {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Otlp, Self::Pyroscope, Self::Parca];

    /// Name, as `--push` takes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Otlp => "otlp",
            Self::Pyroscope => "pyroscope",
            Self::Parca => "parca",
        }
    }

    /// Where its servers listen, without TLS.
    const fn default_port(self) -> u16 {
        match self {
            Self::Otlp => 4317,
            Self::Pyroscope => 4040,
            Self::Parca => 7070,
        }
    }
}

/// Where profiles are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// What is spoken.
    pub protocol: Protocol,
    /// `host:port`, the host in brackets where it is an address of IPv6.
    authority: String,
    /// Whether the connection is by TLS.
    pub has_tls: bool,
}

/// Why a text is no target. One line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// No protocol that is known.
    #[error(
        "`{0}`: write PROTOCOL=URL, such as otlp=http://127.0.0.1:4317; there are otlp, pyroscope, parca"
    )]
    Protocol(String),
    /// No URL.
    #[error("`{0}` is no address: write http://host:port or https://host:port")]
    Url(String),
    /// A user's name or password in the URL.
    #[error("the URL of a target has no user name: give --push-basic-auth-file FILE")]
    User,
}

impl Target {
    /// Its URL, with a port.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.has_tls { "https" } else { "http" };
        format!("{scheme}://{}", self.authority)
    }

    /// Whether it is on this machine.
    #[must_use]
    pub fn is_local(&self) -> bool {
        let host = self.authority.rsplit_once(':').map_or("", |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let address = host.parse::<std::net::IpAddr>();
        host == "localhost" || address.is_ok_and(|it| it.is_loopback())
    }
}

/// As it is typed.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.protocol.name(), self.url())
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let unknown = || TargetError::Protocol(without_user(text));
        let (name, url) = text.split_once('=').ok_or_else(unknown)?;
        let protocol = Protocol::ALL.into_iter().find(|it| it.name() == name);
        let protocol = protocol.ok_or_else(unknown)?;
        let bad = || TargetError::Url(without_user(url));
        let uri: Uri = url.parse().map_err(|_| bad())?;
        let has_tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(bad()),
        };
        let authority = uri.authority().ok_or_else(bad)?;
        if authority.as_str().contains('@') {
            return Err(TargetError::User);
        }
        let is_bare = uri.path_and_query().is_none_or(|it| it.as_str() == "/");
        if authority.host().is_empty() || !is_bare {
            return Err(bad());
        }
        let port = match (authority.port_u16(), has_tls) {
            (Some(port), _) => port,
            // `host:` and `host:99999`.
            (None, _) if !authority.as_str().ends_with(authority.host()) => return Err(bad()),
            (None, true) => 443,
            (None, false) => protocol.default_port(),
        };
        Ok(Self {
            protocol,
            authority: format!("{}:{port}", authority.host()),
            has_tls,
        })
    }
}

/// What was typed, to be shown: a password can be in front of the `@`.
fn without_user(text: &str) -> String {
    let shown = text.rsplit_once('@').map_or(text, |(_, rest)| rest);
    escape(shown).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<String, TargetError> {
        text.parse().map(|target: Target| target.to_string())
    }

    #[test]
    fn a_target_is_a_protocol_and_a_url() {
        for (text, shown) in [
            ("otlp=http://collector", "otlp=http://collector:4317"),
            ("otlp=https://collector/", "otlp=https://collector:443"),
            ("pyroscope=http://[::1]", "pyroscope=http://[::1]:4040"),
            ("parca=http://10.0.0.1:70", "parca=http://10.0.0.1:70"),
        ] {
            assert_eq!(parse(text).as_deref(), Ok(shown));
            assert_eq!(parse(shown).as_deref(), Ok(shown));
        }
    }

    #[test]
    fn what_is_none_is_refused_with_an_example_and_without_its_password() {
        for text in [
            "",
            "otlp",
            "jaeger=http://a:1",
            "otlp=",
            "otlp=a:4317",
            "otlp=ftp://a:1",
            "otlp=http://",
            "otlp=http://a:99999",
            "otlp=http://a:",
            "otlp=http://a:1/v1",
            "otlp=http://a:1?b",
            "otlp=http://a b:1",
            "otlp=grpc://me:secret@a",
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(
                error.contains("http://") && !error.contains('\n'),
                "{error}"
            );
            assert!(!error.contains("secret"), "{error}");
        }
        let error = parse("otlp=http://me:secret@a:1").unwrap_err();
        assert_eq!(error, TargetError::User);
    }

    #[test]
    fn local_targets_are_known() {
        let is_local = |url: &str| format!("otlp={url}").parse::<Target>().unwrap().is_local();
        assert!(is_local("http://127.0.0.1:1") && is_local("http://[::1]:1"));
        assert!(is_local("http://localhost") && !is_local("http://example.com"));
    }
}
