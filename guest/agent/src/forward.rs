//! Connections of the host's to services that listen on the pod's loopback (`kubectl port-forward`).

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use sealpod_agent_protocol::{ByteStream, Failure, FailureKind, WORKLOAD_API_PORT};
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;

use crate::failure::{failure, internal};

/// How long a service may take to accept. On loopback, more is a full backlog.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connects to a service of the pod's, whatever policy allows: never to what answers the pod's own containers only, for
/// the host would be taken for one of them.
pub(crate) async fn connect(port: u16) -> Result<TcpStream, Failure> {
    if port == WORKLOAD_API_PORT {
        let message = format!("port {port} is the guest's own, for the pod's containers alone");
        return Err(failure(FailureKind::DeniedByPolicy, message));
    }
    let addresses: [SocketAddr; 2] = [(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()];
    let connected = tokio::time::timeout(PATIENCE, TcpStream::connect(&addresses[..])).await;
    match connected {
        Ok(Ok(service)) => Ok(service),
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
            Err(failure(FailureKind::NotFound, format!("nothing in the pod listens on port {port}")))
        }
        Ok(Err(error)) => Err(internal("connect to the pod's service", &error)),
        Err(_) => Err(failure(FailureKind::Exhausted, format!("the service on port {port} accepts nothing"))),
    }
}

/// Carries bytes both ways until both ends are done, or one breaks.
pub(crate) async fn carry(mut service: TcpStream, mut host: ByteStream) {
    // Either end may hang up at any time.
    let _ = copy_bidirectional(&mut service, &mut host).await;
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_service_is_reached_by_either_loopback_address() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            connect(port).await.unwrap();
            drop(listener);
            assert_eq!(connect(port).await.unwrap_err().kind, FailureKind::NotFound);
        }
    }

    #[tokio::test]
    async fn the_guests_own_service_is_nobodys_from_outside() {
        // Nobody listens here either, but that is not why.
        assert_eq!(connect(WORKLOAD_API_PORT).await.unwrap_err().kind, FailureKind::DeniedByPolicy);
    }
}
