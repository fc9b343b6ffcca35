//! OCI image encryption: the layer cipher, and the wrapping of layer keys for recipients.
//!
//! An encrypted layer is a blob under [`layer`]'s cipher, and annotations on its descriptor
//! ([`annotations`]): public options that anybody may read, and private options (the key, the nonce,
//! the digest of the plaintext) wrapped once for each recipient. Two ways of wrapping are known,
//! [`jwe`] for whoever holds a private key, and [`keyprovider`] for whoever may fetch a symmetric key
//! from a key broker.
//!
//! [`wrap`] makes the annotations, [`Unwrapper`] opens them, and neither does any I/O of its own: a
//! [`KeyResolver`] brings the keys that live elsewhere.

pub mod annotations;
mod encoding;
pub mod jwe;
pub mod keyprovider;
pub mod layer;
mod recipient;
mod secret;
mod unwrap;

pub use recipient::{Recipient, RecipientError, WrapError, wrap};
pub use secret::Secret;
pub use unwrap::{Attempt, AttemptError, KeyError, KeyResolver, UnwrapError, Unwrapper};
