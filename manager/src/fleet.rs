//! The Envoys' side of the xDS server: who may connect, and what they say.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fairlead_core::fleet::EnvoyId;
use fairlead_process::identity::Identity;
use fairlead_process::tls::Peer;
use fairlead_xds::{Event, Observer};
use http::Extensions;
use tokio::sync::mpsc;
use tonic::Status;
use tracing::warn;

/// What an Envoy did.
#[derive(Debug)]
pub(crate) enum Said {
    Connected(EnvoyId, u64),
    Disconnected(EnvoyId, u64),
    Answered(EnvoyId, u64, Vec<Event>),
}

/// Passes on what Envoys say. The queue is unbounded, and yet bounded by the protocol: an Envoy has
/// at most one response of each type to answer.
#[derive(Debug)]
pub(crate) struct Fleet {
    to: mpsc::UnboundedSender<Said>,
    streams: AtomicU64,
}

impl Fleet {
    pub(crate) fn new(to: mpsc::UnboundedSender<Said>) -> Self {
        Self { to, streams: AtomicU64::new(0) }
    }
}

/// One stream of one Envoy.
#[derive(Debug)]
pub(crate) struct Stream {
    envoy: EnvoyId,
    number: u64,
    to: mpsc::UnboundedSender<Said>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        // At shutdown nobody listens any more.
        let _ = self.to.send(Said::Disconnected(self.envoy.clone(), self.number));
    }
}

/// The Envoy at the other end, by its certificate and the node id that it gives itself.
#[allow(clippy::result_large_err)] // tonic's own error type
pub(crate) fn admitted(transport: &Extensions, node_id: &str) -> Result<EnvoyId, Status> {
    let peer = transport.get::<Peer>();
    let Some(Peer { identity: Some(Identity::Envoy { pod }), .. }) = peer else {
        warn!(?peer, "xDS refused: no Envoy's certificate");
        return Err(Status::permission_denied("only Envoys of the fleet are served here"));
    };
    if node_id != &**pod {
        let node_id: String = node_id.chars().take(100).collect();
        warn!(%pod, node_id, "xDS refused: the node id is not the certificate's");
        return Err(Status::permission_denied("the node id must be the certificate's pod"));
    }
    Ok(Arc::from(node_id))
}

impl Observer for Fleet {
    type Client = Stream;

    fn admit(&self, transport: &Extensions, node_id: &str) -> Result<Stream, Status> {
        let envoy = admitted(transport, node_id)?;
        let number = self.streams.fetch_add(1, Ordering::Relaxed);
        let _ = self.to.send(Said::Connected(envoy.clone(), number));
        Ok(Stream { envoy, number, to: self.to.clone() })
    }

    fn observe(&self, stream: &Stream, events: Vec<Event>) {
        for event in &events {
            if let fairlead_xds::Outcome::Rejected(_, error) = &event.outcome {
                warn!(envoy = &*stream.envoy, resource = %event.key, %error, "Envoy refused");
            }
        }
        let _ = self.to.send(Said::Answered(stream.envoy.clone(), stream.number, events));
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;

    fn said_by(identity: Option<Identity>, node_id: &str) -> Result<EnvoyId, Status> {
        let mut transport = Extensions::new();
        let (address, end) = ("127.0.0.1:1".parse().unwrap(), CancellationToken::new());
        transport.insert(Peer { address, identity, refusal: None, end });
        admitted(&transport, node_id)
    }

    #[test]
    fn an_envoy_is_the_pod_that_its_certificate_names() {
        let envoy = || Some(Identity::Envoy { pod: "envoy-1".into() });
        assert_eq!(&*said_by(envoy(), "envoy-1").unwrap(), "envoy-1");
        let agent = Identity::Agent {
            tenant: "blue".parse().unwrap(),
            agent: "abcdefghij".parse().unwrap(),
        };
        for (identity, node_id) in
            [(envoy(), "envoy-2"), (envoy(), ""), (Some(agent), "envoy-1"), (None, "envoy-1")]
        {
            let said = said_by(identity, node_id).unwrap_err();
            assert_eq!(said.code(), tonic::Code::PermissionDenied, "{node_id}");
        }
    }
}
