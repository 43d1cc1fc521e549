//! The ways to an agent in a cluster: through the API server, as `kubectl port-forward` goes, or to its address.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;

use crate::kubernetes::agents::AgentPod;
use crate::kubernetes::connect::ApiServer;
use crate::kubernetes::forward::forward;
use crate::serve::client::{Connection, Dial, Dialling};

/// Through the API server and the kubelet of the node.
pub(super) struct Forwarded {
    pub(super) server: Arc<ApiServer>,
    pub(super) pod: AgentPod,
}

impl fmt::Debug for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Forwarded").field(&self.pod).finish()
    }
}

impl Dial for Forwarded {
    fn dial(&self) -> Dialling<'_> {
        Box::pin(async {
            let Self { server, pod } = self;
            let stream = forward(server, &pod.namespace, &pod.name, pod.port).await?;
            let stream: Box<dyn Connection> = Box::new(stream);
            Ok(stream)
        })
    }
}

/// To an address.
#[derive(Debug)]
pub(super) struct Direct(pub(super) SocketAddr);

impl Dial for Direct {
    fn dial(&self) -> Dialling<'_> {
        Box::pin(async {
            let stream = TcpStream::connect(self.0).await;
            let stream = stream
                .map_err(|error| io::Error::new(error.kind(), format!("{error} ({})", self.0)))?;
            // A request is one small write; waiting for more costs 40 ms.
            let _ = stream.set_nodelay(true);
            let stream: Box<dyn Connection> = Box::new(stream);
            Ok(stream)
        })
    }
}
