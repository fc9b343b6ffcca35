//! Ports of the pod's loopback: who connects to one on this machine, as container engines do for `kubectl port-forward`,
//! is led to the same port in the guest, if the pod's policy allows it.

use std::sync::Arc;
use std::time::Duration;

use sealpod_agent_protocol::{Client, ForwardPort, Request};
use sealpod_sandbox::Loopback;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// How many connections there are at a time; others wait.
const CONNECTIONS: usize = 64;
/// How long to wait when this machine has no descriptors left.
const PAUSE: Duration = Duration::from_secs(1);

/// Leads connections into the guest until it is dropped.
pub(crate) async fn serve(loopback: Loopback, agent: Client) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // Nobody closes it.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match loopback.accept().await {
            Ok((connection, port)) => {
                let agent = agent.clone();
                tokio::spawn(async move {
                    forward(&agent, connection, port).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the pod's loopback");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn forward(agent: &Client, mut connection: TcpStream, port: u16) {
    match agent.open(Request::ForwardPort(ForwardPort { port })).await {
        // Either end may hang up at any time.
        Ok(mut stream) => drop(copy_bidirectional(&mut connection, &mut stream).await),
        Err(error) => {
            tracing::warn!(port, %error, "a connection to the pod's loopback is refused");
            // A reset rather than an end: nothing was there.
            let _ = connection.set_zero_linger();
        }
    }
}
