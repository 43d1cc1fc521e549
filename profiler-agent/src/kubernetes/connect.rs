//! Where the API server is, and who is asking: a pod's service account, or a kubeconfig.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder, ServiceExt as _};

/// Set in every pod, unless that is turned off.
const IN_POD: &str = "KUBERNETES_SERVICE_HOST";

/// Files with paths of kubeconfigs, as kubectl has them.
const KUBECONFIG: &str = "KUBECONFIG";

/// The token of a pod's service account; not there when it is not mounted (`automountServiceAccountToken: false`).
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection in which nothing comes is tried after this time.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// The service account of the pod that this process is in.
    ServiceAccount,
    /// The current context of these files, the first that says something of it.
    Kubeconfig(Vec<PathBuf>),
}

/// Why the API server cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing says where it is.
    #[error(
        "this is no pod with a service account, and KUBECONFIG is not set: set it to a file, or use --kubernetes off"
    )]
    Nowhere,
    /// The service account cannot be used.
    #[error("the pod's service account cannot be used: {0}")]
    ServiceAccount(String),
    /// The kubeconfig cannot be used.
    #[error("the kubeconfig cannot be used: {0}")]
    Kubeconfig(String),
    /// It would start a program, which the agent gives up the right to.
    #[error(
        "the kubeconfig asks a program for credentials (`exec`), which the agent may not start: use one with a token or a \
         certificate"
    )]
    NeedsProgram,
    /// It is behind a proxy.
    #[error(
        "the API server is behind a proxy, by the kubeconfig or the environment: that is not supported"
    )]
    Proxy,
}

impl Identity {
    /// What the environment says; `None`: nothing. A kubeconfig that was named wins, as with kubectl.
    #[must_use]
    pub fn of_environment() -> Option<Self> {
        let named = std::env::var_os(KUBECONFIG).filter(|paths| !paths.is_empty());
        if let Some(paths) = named {
            return Some(Self::Kubeconfig(std::env::split_paths(&paths).collect()));
        }
        let is_pod = std::env::var_os(IN_POD).is_some() && Path::new(TOKEN).is_file();
        is_pod.then_some(Self::ServiceAccount)
    }
}

/// An API server that can be asked.
#[derive(Clone)]
pub struct ApiServer {
    pub(super) client: Client,
    /// Its address, as it is shown.
    pub address: String,
}

impl fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What else is in it are credentials.
        f.debug_tuple("ApiServer").field(&self.address).finish()
    }
}

impl ApiServer {
    /// Reads what is needed to ask it; nothing is asked yet. Needs a runtime of tokio.
    pub async fn of(identity: &Identity) -> Result<Self, ConnectError> {
        match identity {
            Identity::ServiceAccount => {
                let config = Config::incluster();
                let config =
                    config.map_err(|error| ConnectError::ServiceAccount(error.to_string()))?;
                Self::with(&config).map_err(ConnectError::ServiceAccount)
            }
            Identity::Kubeconfig(paths) => {
                let config = kubeconfig(paths).await?;
                if config.auth_info.exec.is_some() || config.auth_info.auth_provider.is_some() {
                    return Err(ConnectError::NeedsProgram);
                }
                if config.proxy_url.is_some() {
                    return Err(ConnectError::Proxy);
                }
                Self::with(&config).map_err(ConnectError::Kubeconfig)
            }
        }
    }

    pub(super) fn with(config: &Config) -> Result<Self, String> {
        let client = client(config).map_err(|error| error.to_string())?;
        let address = config.cluster_url.to_string();
        Ok(Self {
            client,
            address: address.trim_end_matches('/').to_owned(),
        })
    }
}

/// Asks once, and logs nothing: the watch does its own waiting and telling.
fn client(config: &Config) -> kube::Result<Client> {
    let mut connector = HttpConnector::new();
    // What comes over it says whether it is TLS.
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_keepalive(Some(KEEPALIVE));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let connections = legacy::Client::builder(TokioExecutor::new()).build(connector);
    // Layers over a type that has no name of its own: the names of functions would have ten thousand letters.
    let connections = connections.map_err(BoxError::from).boxed_clone();
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .service(connections);
    Ok(Client::new(service, config.default_namespace.clone()))
}

/// The current context of files that are merged, as kubectl does it.
async fn kubeconfig(paths: &[PathBuf]) -> Result<Config, ConnectError> {
    let unusable =
        |error: kube::config::KubeconfigError| ConnectError::Kubeconfig(error.to_string());
    let mut merged = Kubeconfig::default();
    let there = paths.iter().filter(|path| path.exists());
    let mut n_read = 0;
    for path in there {
        let read = Kubeconfig::read_from(path).map_err(unusable)?;
        merged = merged.merge(read).map_err(unusable)?;
        n_read += 1;
    }
    if n_read == 0 {
        let paths: Vec<String> = paths
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        return Err(ConnectError::Kubeconfig(format!(
            "there is no {}",
            paths.join(", ")
        )));
    }
    Config::from_custom_kubeconfig(merged, &KubeConfigOptions::default())
        .await
        .map_err(unusable)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn of(text: &str) -> Result<ApiServer, ConnectError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        std::fs::write(&path, text).unwrap();
        let missing = folder.path().join("missing");
        ApiServer::of(&Identity::Kubeconfig(vec![missing, path])).await
    }

    fn config(user: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: here\n\
             clusters:\n- name: c\n  cluster: {{server: \"https://127.0.0.1:6443\"}}\n\
             contexts:\n- name: here\n  context: {{cluster: c, user: u}}\n\
             users:\n- name: u\n  user: {user}\n"
        )
    }

    #[tokio::test]
    async fn a_kubeconfig_says_where_and_who() {
        let server = of(&config("{token: abc}")).await;
        assert_eq!(server.ok().unwrap().address, "https://127.0.0.1:6443");
    }

    #[tokio::test]
    async fn what_cannot_be_used_is_told_in_a_line() {
        let exec = "{exec: {apiVersion: client.authentication.k8s.io/v1, command: /bin/true, interactiveMode: Never}}";
        let error = of(&config(exec)).await.err().unwrap();
        assert!(matches!(error, ConnectError::NeedsProgram), "{error}");
        for text in ["", "current-context: none", "[", "{}"] {
            let error = of(text).await.err().unwrap().to_string();
            assert!(
                error.starts_with("the kubeconfig cannot be used"),
                "{error}"
            );
        }
        let nowhere = Identity::Kubeconfig(vec![PathBuf::from("/nowhere/config")]);
        let error = ApiServer::of(&nowhere).await.err().unwrap().to_string();
        assert!(error.contains("/nowhere/config"), "{error}");
    }
}
