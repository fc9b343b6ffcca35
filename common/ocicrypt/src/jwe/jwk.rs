//! JSON Web Keys (RFC 7517), as key files and as the `epk` of a header.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::agreement::Point;
use super::algorithm::Curve;

/// A key's members that matter here. As RFC 7517 section 4 demands, others are passed over.
#[derive(Deserialize)]
pub(super) struct Jwk {
    pub(super) kty: String,
    pub(super) kid: Option<String>,
    pub(super) alg: Option<String>,
    #[serde(rename = "use")]
    pub(super) intended_use: Option<String>,
    pub(super) crv: Option<String>,
    pub(super) x: Option<Base64Url>,
    pub(super) y: Option<Base64Url>,
    pub(super) n: Option<Base64Url>,
    pub(super) e: Option<Base64Url>,
    /// The private scalar or exponent: whether this is a private key.
    pub(super) d: Option<Base64Url>,
    pub(super) p: Option<Base64Url>,
    pub(super) q: Option<Base64Url>,
    pub(super) dp: Option<Base64Url>,
    pub(super) dq: Option<Base64Url>,
    pub(super) qi: Option<Base64Url>,
}

/// The public key that the sender made for one message.
#[derive(Deserialize, Serialize)]
pub(super) struct EphemeralKey {
    kty: String,
    crv: String,
    x: Base64Url,
    y: Base64Url,
}

impl EphemeralKey {
    pub(super) fn of_point(point: &Point) -> Self {
        let (x, y) = point.coordinates();
        let [x, y] = [x, y].map(|coordinate| Base64Url::new(coordinate.to_vec()));
        Self { kty: "EC".into(), crv: point.curve.name().into(), x, y }
    }

    /// `None` for other kinds of keys and points that are not on the curve.
    pub(super) fn to_point(&self) -> Option<Point> {
        let curve = Curve::from_name(&self.crv)?;
        (self.kty == "EC").then(|| Point::from_coordinates(curve, &self.x.0, &self.y.0))?
    }
}

/// Bytes in base64url without padding; they may be secret.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Base64Url(pub(super) Zeroizing<Vec<u8>>);

impl Base64Url {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes, where they hold no secret.
    pub(super) fn into_public(mut self) -> Vec<u8> {
        std::mem::take(&mut *self.0)
    }
}

impl Serialize for Base64Url {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&URL_SAFE_NO_PAD.encode(&*self.0))
    }
}

impl<'de> Deserialize<'de> for Base64Url {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let bytes = URL_SAFE_NO_PAD.decode(&*text);
        bytes.map(Self::new).map_err(|_| serde::de::Error::custom("a string that is not base64url"))
    }
}
