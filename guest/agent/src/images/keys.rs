//! The keys of encrypted layers, from the key broker.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use sealpod_agent_protocol::{Failure, FailureKind};
use sealpod_kbs_protocol::{ResourcePath, ResourceUri};
use sealpod_ocicrypt::{KeyError, KeyResolver, Secret};

use crate::attestation::Attestation;

/// Asks the key broker for the key that a layer's annotation names (`kbs:///repository/type/tag`).
pub(super) struct BrokerKeys(pub(super) Arc<Attestation>);

impl KeyResolver for BrokerKeys {
    fn key<'a>(
        &'a self,
        kid: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Secret, KeyError>> + Send + 'a>> {
        Box::pin(async move {
            // Old images name a key by its path alone.
            let path =
                kid.parse::<ResourceUri>().map(|uri| uri.path).or_else(|_| kid.parse::<ResourcePath>());
            let path = path.map_err(|error| KeyError::Unavailable(Box::new(error)))?;
            match self.0.resource(&path).await {
                Ok(key) => Ok(Secret::new(key.as_bytes().to_vec())),
                Err(failure) => Err(key_error(failure)),
            }
        })
    }
}

fn key_error(failure: Failure) -> KeyError {
    match failure.kind {
        FailureKind::NotFound => KeyError::NotFound,
        FailureKind::DeniedByKeyBroker => KeyError::Denied { denial: failure.denial },
        _ => KeyError::Unavailable(Box::new(failure)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denial_keeps_its_id() {
        let failure = Failure {
            kind: FailureKind::DeniedByKeyBroker,
            message: "refused".into(),
            hint: None,
            denial: Some("4711".into()),
        };
        assert!(matches!(key_error(failure), KeyError::Denied { denial: Some(id) } if id == "4711"));
    }
}
