//! A stream to a port of a pod, through the API server and the kubelet, as `kubectl port-forward` makes it: what listens on the
//! pod's loopback address is reached too, and the pod's network need not be.

use std::io;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use tokio::io::DuplexStream;

use super::connect::ApiServer;
use super::request::ApiError;

/// How long the API server may take to begin with it.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Pauses before it is asked again when it has too much to do.
const PAUSES: [Duration; 3] = [
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
];

/// Opens a stream to a port of a pod. It ends when it is dropped. An error of the pod's end shows as the end of the stream.
pub async fn forward(
    server: &ApiServer,
    namespace: &str,
    pod: &str,
    port: u16,
) -> io::Result<DuplexStream> {
    let pods: Api<Pod> = Api::namespaced(server.client.clone(), namespace);
    let mut pauses = PAUSES.into_iter();
    let mut forwarded = loop {
        let forwarded = tokio::time::timeout(BEGIN_TIMEOUT, pods.portforward(pod, &[port])).await;
        let forwarded = forwarded.map_err(|_| {
            let limit = BEGIN_TIMEOUT.as_secs();
            let message = format!("the API server began no port-forward within {limit} s");
            io::Error::new(io::ErrorKind::TimedOut, message)
        })?;
        match forwarded {
            Ok(forwarded) => break forwarded,
            Err(error) => match pauses.next().filter(|_| is_busy(&error)) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(io::Error::other(refusal(&error))),
            },
        }
    };
    let stream = forwarded.take_stream(port);
    stream.ok_or_else(|| io::ErrorKind::NotConnected.into())
}

/// Whether it says that there is too much to do.
fn is_busy(error: &kube::Error) -> bool {
    let text = error.to_string();
    ["429", "503"].iter().any(|code| text.contains(code))
}

/// In words that say what to do.
fn refusal(error: &kube::Error) -> String {
    let (text, is_refused) = match error {
        kube::Error::UpgradeConnection(upgrade) => {
            let text = upgrade.to_string();
            let is_refused = ["401", "403"].iter().any(|code| text.contains(code));
            (text, is_refused)
        }
        error => {
            let error = ApiError::broken(error);
            (error.to_string(), error.is_forbidden())
        }
    };
    if is_refused {
        format!(
            "port-forward is refused ({text}): it needs the rights to get and create pods/portforward"
        )
    } else {
        format!("port-forward is not possible: {text}")
    }
}
