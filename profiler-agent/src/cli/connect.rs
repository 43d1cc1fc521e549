//! Which agent a command asks, and what it is shown: the flags.

use std::path::PathBuf;

use clap::Args;

use crate::config::DEFAULT_ADDRESS;
use crate::serve::client::{AgentAddress, ClientConfigFiles, ConnectError};

/// Which agent, and what it is shown.
#[derive(Debug, Args, Clone)]
pub struct ConnectArgs {
    /// The agent: host:port, https://host:port or unix:/path
    #[arg(value_name = "ADDR", env = "PYAGENT_ADDR", default_value = DEFAULT_ADDRESS)]
    pub address: String,
    /// What it is shown.
    #[command(flatten)]
    pub shown: ShownArgs,
}

/// What an agent is shown.
#[derive(Debug, Args, Clone)]
pub struct ShownArgs {
    /// Authorities that sign agents' certificates, as PEM (default: this system's)
    #[arg(
        long,
        value_name = "FILE",
        env = "PYAGENT_CLIENT_TLS_CA",
        hide_short_help = true
    )]
    pub tls_ca: Option<PathBuf>,
    /// This client's certificate, as PEM
    #[arg(
        long,
        value_name = "FILE",
        env = "PYAGENT_CLIENT_TLS_CERT",
        requires = "tls_key",
        hide_short_help = true
    )]
    pub tls_cert: Option<PathBuf>,
    /// Its private key, as PEM
    #[arg(
        long,
        value_name = "FILE",
        env = "PYAGENT_CLIENT_TLS_KEY",
        requires = "tls_cert",
        hide_short_help = true
    )]
    pub tls_key: Option<PathBuf>,
    /// The name that the agent's certificate is for, when it is not the address's
    #[arg(
        long,
        value_name = "NAME",
        env = "PYAGENT_CLIENT_TLS_SERVER_NAME",
        hide_short_help = true
    )]
    pub tls_server_name: Option<String>,
    /// File whose first word is the token for the agent
    #[arg(
        long,
        value_name = "FILE",
        env = "PYAGENT_CLIENT_TOKEN_FILE",
        hide_short_help = true
    )]
    pub token_file: Option<PathBuf>,
}

impl ConnectArgs {
    /// The way to the agent; the files are read.
    pub fn agent(&self) -> Result<AgentAddress, ConnectError> {
        self.shown.agent(&self.address)
    }
}

impl ShownArgs {
    /// The way to the agent at an address; the files are read.
    pub fn agent(&self, address: &str) -> Result<AgentAddress, ConnectError> {
        self.show(address.parse()?)
    }

    /// An agent with what it is shown; the files are read.
    pub fn show(&self, address: AgentAddress) -> Result<AgentAddress, ConnectError> {
        address.with(&ClientConfigFiles {
            ca: self.tls_ca.clone(),
            identity: self.tls_cert.clone().zip(self.tls_key.clone()),
            server_name: self.tls_server_name.clone(),
            token_file: self.token_file.clone(),
        })
    }

    /// Whether anything is said of TLS.
    pub(super) fn is_about_tls(&self) -> bool {
        self.tls_ca.is_some() || self.tls_cert.is_some() || self.tls_server_name.is_some()
    }
}
