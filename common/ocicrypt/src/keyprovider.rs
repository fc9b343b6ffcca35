//! The key provider of confidential containers, `attestation-agent`: private options wrapped under a
//! symmetric key that a key broker keeps.

mod packet;
mod parameters;
mod protocol;

pub use packet::{AnnotationPacket, PacketError, PacketVersion, WrapType};
pub use parameters::{ParameterError, Parameters};
pub use protocol::{
    DecryptConfig, EncryptConfig, KeyProviderInput, KeyProviderOutput, ProtocolError, UnwrapParameters,
    WrapParameters,
};

/// The provider's name, in annotations (`…enc.keys.provider.attestation-agent`) and on command lines.
pub const PROVIDER: &str = "attestation-agent";
