//! Where the API server is, and who is asking: a pod's service account, or a kubeconfig.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt as _};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::{BoxError, Layer as _, ServiceBuilder, ServiceExt as _, service_fn};

use super::agents::{AgentPod, AgentsError, agents};
use super::places::{Choice, Places, When, places};
use super::request::shown;

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
    /// The same, for somebody who asks a cluster.
    #[error(
        "nothing says where the cluster is: give --kubeconfig FILE, set KUBECONFIG, or run it in a pod with a service account"
    )]
    NoCluster,
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
    /// The credentials that the kubeconfig names are not to be had.
    #[error("the credentials of the kubeconfig cannot be used: {0}")]
    Credentials(String),
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
        is_in_pod().then_some(Self::ServiceAccount)
    }

    /// As kubectl finds it: the file that was given, KUBECONFIG, `~/.kube/config`, the pod's service account. `None`: there is
    /// none of them.
    #[must_use]
    pub fn of_user(kubeconfig: Option<&Path>) -> Option<Self> {
        if let Some(path) = kubeconfig {
            return Some(Self::Kubeconfig(vec![path.to_owned()]));
        }
        let named = std::env::var_os(KUBECONFIG).is_some_and(|paths| !paths.is_empty());
        let home = std::env::home_dir().map(|home| home.join(".kube/config"));
        match home.filter(|path| !named && path.is_file()) {
            Some(path) => Some(Self::Kubeconfig(vec![path])),
            None => Self::of_environment(),
        }
    }
}

fn is_in_pod() -> bool {
    std::env::var_os(IN_POD).is_some() && Path::new(TOKEN).is_file()
}

/// An API server that can be asked.
#[derive(Clone)]
pub struct ApiServer {
    pub(super) client: Client,
    /// Its address, as it is shown.
    pub address: String,
    /// The namespace that is meant when none is named.
    pub namespace: String,
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
                let config = kubeconfig(paths, None).await?;
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

    /// As a user asks it, by this context of the kubeconfig; a program that the kubeconfig names for credentials is run. Returns
    /// what the user shows it as a bearer, `Bearer TOKEN`, if that is what shows who they are.
    pub async fn of_user(
        identity: &Identity,
        context: Option<&str>,
    ) -> Result<(Self, Option<HeaderValue>), ConnectError> {
        let (config, wrong): (Config, fn(String) -> ConnectError) = match identity {
            Identity::ServiceAccount => {
                let config = Config::incluster();
                let config =
                    config.map_err(|error| ConnectError::ServiceAccount(error.to_string()))?;
                (config, ConnectError::ServiceAccount)
            }
            Identity::Kubeconfig(paths) => {
                let config = kubeconfig(paths, context).await?;
                if config.proxy_url.is_some() {
                    return Err(ConnectError::Proxy);
                }
                (config, ConnectError::Kubeconfig)
            }
        };
        let server = Self::with(&config).map_err(|error| wrong(shown(&error)))?;
        let bearer = bearer(&config).await;
        let bearer = bearer.map_err(|error| ConnectError::Credentials(shown(&error)))?;
        Ok((server, bearer))
    }

    /// Where the pods of a choice run, or ran.
    pub async fn places(&self, choice: &Choice, when: When) -> Result<Places, AgentsError> {
        let asked = places(&self.client, choice, when).await;
        asked.map_err(|error| match error {
            error if error.is_about_the_user() => AgentsError::Unknown(error.to_string()),
            error if error.is_forbidden() => AgentsError::MayNotList(error.to_string()),
            error => AgentsError::Api(error.to_string()).at(&self.address),
        })
    }

    /// The agents of a namespace, or of all, that have these labels: one a node, by the node's name.
    pub async fn agents(
        &self,
        namespace: Option<&str>,
        labels: &str,
    ) -> Result<BTreeMap<String, AgentPod>, AgentsError> {
        let found = agents(&self.client, namespace, labels).await;
        found.map_err(|error| error.at(&self.address))
    }

    pub(super) fn with(config: &Config) -> Result<Self, String> {
        let client = client(config).map_err(|error| error.to_string())?;
        let address = config.cluster_url.to_string();
        Ok(Self {
            client,
            address: address.trim_end_matches('/').to_owned(),
            namespace: config.default_namespace.clone(),
        })
    }
}

/// An answer that has the request's headers.
async fn echo(request: Request<Body>) -> Result<Response<Body>, BoxError> {
    let mut response = Response::new(Body::empty());
    *response.headers_mut() = request.headers().clone();
    Ok(response)
}

/// What requests have as `Authorization` where that is a token: whoever makes it, a file or a program, the layer that puts it on
/// requests does so on one that goes nowhere.
async fn bearer(config: &Config) -> Result<Option<HeaderValue>, String> {
    let layer = config.auth_layer().map_err(|error| error.to_string())?;
    let Some(layer) = layer else {
        return Ok(None);
    };
    let shown = layer.layer(service_fn(echo));
    let shown = shown.oneshot(Request::new(Body::empty())).await;
    let shown = shown.map_err(|error| error.to_string())?;
    let shown = shown.headers().get(AUTHORIZATION).cloned();
    Ok(shown.filter(|value| value.as_bytes().starts_with(b"Bearer ")))
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

/// A context of files that are merged, as kubectl does it: the current one unless another is named.
async fn kubeconfig(paths: &[PathBuf], context: Option<&str>) -> Result<Config, ConnectError> {
    let unusable =
        |error: kube::config::KubeconfigError| ConnectError::Kubeconfig(shown(&error.to_string()));
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
    let options = KubeConfigOptions {
        context: context.map(str::to_owned),
        ..KubeConfigOptions::default()
    };
    Config::from_custom_kubeconfig(merged, &options)
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

    async fn of_user(
        text: &str,
        context: Option<&str>,
    ) -> Result<(ApiServer, Option<String>), ConnectError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        std::fs::write(&path, text).unwrap();
        let identity = Identity::of_user(Some(&path)).unwrap();
        let (server, bearer) = ApiServer::of_user(&identity, context).await?;
        let bearer = bearer.map(|value| value.to_str().unwrap().to_owned());
        Ok((server, bearer))
    }

    #[tokio::test]
    async fn a_users_token_is_what_the_kubeconfig_says_or_its_program() {
        let bearer = async |user: &str| of_user(&config(user), None).await.ok().unwrap().1;
        assert_eq!(bearer("{token: abc}").await.as_deref(), Some("Bearer abc"));
        assert_eq!(bearer("{}").await, None);
        assert_eq!(bearer("{username: ann, password: secret}").await, None);
        let status = r#"{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"made"}}"#;
        let exec = format!(
            "{{exec: {{apiVersion: client.authentication.k8s.io/v1, command: echo, args: ['{status}'], interactiveMode: Never}}}}"
        );
        assert_eq!(bearer(&exec).await.as_deref(), Some("Bearer made"));
        let fails = "{exec: {apiVersion: client.authentication.k8s.io/v1, command: /nowhere/x, interactiveMode: Never}}";
        let error = of_user(&config(fails), None)
            .await
            .err()
            .unwrap()
            .to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
    }

    #[tokio::test]
    async fn a_context_says_whom_to_ask_and_in_which_namespace() {
        let text = config("{token: abc}").replace(
            "users:",
            "- name: there\n  context: {cluster: c, user: u, namespace: shop}\nusers:",
        );
        let namespace = async |context: Option<&str>| {
            of_user(&text, context)
                .await
                .map(|(server, _)| server.namespace)
        };
        assert_eq!(namespace(None).await.unwrap(), "default");
        assert_eq!(namespace(Some("there")).await.unwrap(), "shop");
        assert!(namespace(Some("nowhere")).await.is_err());
    }
}
