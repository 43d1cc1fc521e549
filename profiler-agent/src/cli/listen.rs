//! Where the agent serves, and to whom: its flags.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use crate::config::DEFAULT_ADDRESS;
use crate::serve::ServeConfig;
use crate::serve::listen::ListenAddress;
use crate::serve::tls::TlsFiles;

/// Who says whose a bearer token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Auth {
    /// The Kubernetes API server.
    Kubernetes,
}

/// Where the agent serves, and to whom.
#[derive(Debug, Args, Clone)]
pub struct ListenArgs {
    /// Where to serve: IP:PORT, unix:/PATH, none
    ///
    /// gRPC and HTTP, on the same port.
    /// A loopback address is served in the clear, to everybody on this host. A local socket can be opened by its owner and
    /// group; root sees all there, other users the processes that are their own. Other addresses need TLS with client
    /// certificates or tokens. https://IP:PORT is TLS on loopback too.
    #[arg(
        long,
        value_name = "ADDR",
        default_value = DEFAULT_ADDRESS,
        env = "PYAGENT_LISTEN",
        value_delimiter = ','
    )]
    pub listen: Vec<ListenAddress>,
    /// Where to answer probes: /livez, /readyz, /metrics and gRPC health, nothing else
    ///
    /// In the clear, and to everybody: it says nothing of any process. /livez is 200 as long as the agent runs; /readyz is
    /// 200 once the programs are attached, and says in its body what is missing.
    #[arg(
        long,
        value_name = "IP:PORT",
        env = "PYAGENT_HEALTH_LISTEN",
        hide_short_help = true
    )]
    pub health_listen: Option<SocketAddr>,
    /// Group that may open local sockets, by name or number (default: the agent's)
    #[arg(
        long,
        value_name = "GROUP",
        env = "PYAGENT_SOCKET_GROUP",
        hide_short_help = true
    )]
    pub socket_group: Option<String>,
    /// Certificate for TLS (1.3), with what leads to its authority, as PEM
    ///
    /// This file, the key, the authorities and the tokens are read again when they change. One that is broken then leaves
    /// what was read before in force, with a warning.
    #[arg(
        long,
        value_name = "FILE",
        env = "PYAGENT_TLS_CERT",
        requires = "tls_key",
        hide_short_help = true
    )]
    pub tls_cert: Option<PathBuf>,
    /// Its private key, as PEM; others must not be able to read it
    #[arg(
        long,
        value_name = "FILE",
        env = "PYAGENT_TLS_KEY",
        requires = "tls_cert",
        hide_short_help = true
    )]
    pub tls_key: Option<PathBuf>,
    /// Authorities whose certificates clients have to show, as PEM; with --token-file either does
    #[arg(
        long,
        value_name = "FILE",
        env = "PYAGENT_TLS_CLIENT_CA",
        requires = "tls_cert",
        hide_short_help = true
    )]
    pub tls_client_ca: Option<PathBuf>,
    /// What clients with a certificate may: lines of NAME SCOPE
    ///
    /// NAME is the common name, or a DNS name, URI or mail address among the alternative names; * is any. The first line
    /// with a name of the certificate counts; who is in none is refused. Without this file a certificate may everything.
    /// SCOPE is all, namespaces=NAME,NAME (processes in these Kubernetes namespaces) or read-status (status, metrics and
    /// health alone).
    #[arg(
        long,
        value_name = "FILE",
        env = "PYAGENT_TLS_CLIENT_SCOPES",
        hide_short_help = true
    )]
    pub tls_client_scopes: Option<PathBuf>,
    /// Bearer tokens that clients have to show: lines of TOKEN [SCOPE]
    ///
    /// Needed then on every address but local sockets. SCOPE as above, all when there is none. The file has to be the
    /// agent's own or root's, and for its owner alone (chmod 600); a secret that is mounted into a container (a read-only
    /// file system in memory) may have any mode.
    #[arg(
        long,
        value_name = "FILE",
        env = "PYAGENT_TOKEN_FILE",
        hide_short_help = true
    )]
    pub token_file: Option<PathBuf>,
    /// Who says whose other bearer tokens are, and what those may see: kubernetes
    ///
    /// The API server is asked (TokenReview, SubjectAccessReview): who may `get` `pods/profile` in a namespace sees the processes of
    /// its pods, who may in all namespaces sees everything. A token is needed then on every address but local sockets. The agent
    /// needs the right to create tokenreviews and subjectaccessreviews. Answers hold for a minute.
    #[arg(
        long,
        value_name = "WHO",
        env = "PYAGENT_AUTH",
        hide_short_help = true,
        hide_possible_values = true
    )]
    pub auth: Option<Auth>,
    /// Serve other hosts without TLS, or without asking who they are
    #[arg(long, hide_short_help = true, env = "PYAGENT_INSECURE", value_parser = clap::builder::BoolishValueParser::new())]
    pub insecure: bool,
    /// Give local variables to who asks for them (`dump --locals`); their values can be secrets
    ///
    /// To who may everything there, and over a local socket to users of this host, of processes that are their own. On a
    /// loopback address without tokens everybody on this host may everything.
    #[arg(long, hide_short_help = true, env = "PYAGENT_ALLOW_LOCALS", value_parser = clap::builder::BoolishValueParser::new())]
    pub allow_locals: bool,
}

impl ListenArgs {
    /// As the server takes it.
    #[must_use]
    pub fn config(&self) -> ServeConfig {
        let tls = self.tls_cert.clone().zip(self.tls_key.clone());
        ServeConfig {
            listen: self.listen.clone(),
            socket_group: self.socket_group.clone(),
            tls: tls.map(|(cert, key)| TlsFiles {
                cert,
                key,
                client_ca: self.tls_client_ca.clone(),
            }),
            client_scopes: self.tls_client_scopes.clone(),
            token_file: self.token_file.clone(),
            reviewer: None,
            insecure: self.insecure,
            allow_locals: self.allow_locals,
        }
    }
}
