//! The JSON serialisations (RFC 7516 section 7.2).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::agreement::{PartyInfo, Point};
use super::algorithm::Algorithm;
use super::jwk::{Base64Url, EphemeralKey};
use super::{JweError, MAX_LENGTH, MAX_RECIPIENTS, NONCE_LEN, TAG_LENGTH};

const CONTENT_ENCRYPTION: &str = "A256GCM";

/// A JWE: one content, and its key for each recipient. A recipient whose header is not understood is
/// `None`: the others may still be served.
pub(super) struct Message {
    pub(super) content: Content,
    pub(super) recipients: Vec<Option<RecipientKey>>,
}

/// The encrypted content.
pub(super) struct Content {
    /// Base64url as it came, for that text is what is authenticated.
    pub(super) protected: String,
    pub(super) aad: Option<String>,
    pub(super) iv: [u8; NONCE_LEN],
    pub(super) ciphertext: Vec<u8>,
    pub(super) tag: [u8; TAG_LENGTH],
}

/// The content key for one recipient.
pub(super) struct RecipientKey {
    pub(super) algorithm: Algorithm,
    pub(super) kid: Option<String>,
    pub(super) ephemeral: Option<Point>,
    pub(super) info: PartyInfo,
    pub(super) encrypted_key: Vec<u8>,
}

/// The one protected header that is written here, as base64url.
pub(super) fn protected_header() -> String {
    URL_SAFE_NO_PAD.encode(format!(r#"{{"enc":"{CONTENT_ENCRYPTION}"}}"#))
}

impl Content {
    /// RFC 7516 section 5.1 step 14.
    pub(super) fn additional_data(&self) -> Vec<u8> {
        match &self.aad {
            Some(aad) => format!("{}.{aad}", self.protected).into_bytes(),
            None => self.protected.clone().into_bytes(),
        }
    }
}

impl Message {
    pub(super) fn parse(json: &[u8]) -> Result<Self, JweError> {
        if json.len() > MAX_LENGTH {
            return Err(JweError::TooLong { actual: json.len() });
        }
        let mut wire: MessageWire = serde_json::from_slice(json).map_err(|error| malformed(&error))?;
        let recipients = wire.take_recipients()?;
        let mut shared = parse_protected(wire.protected.as_deref())?;
        merge(&mut shared, wire.unprotected.take().unwrap_or_default())?;
        let recipients = recipients
            .into_iter()
            .map(|recipient| {
                let mut header = shared.clone();
                merge(&mut header, recipient.header.unwrap_or_default())?;
                Ok(RecipientKey::understand(
                    header,
                    recipient.encrypted_key.unwrap_or_default().into_public(),
                ))
            })
            .collect::<Result<_, JweError>>()?;
        let content = Content {
            protected: wire.protected.unwrap_or_default(),
            aad: wire.aad,
            iv: exactly("IV", &wire.iv.0)?,
            ciphertext: wire.ciphertext.into_public(),
            tag: exactly("tag", &wire.tag.0)?,
        };
        Ok(Self { content, recipients })
    }

    pub(super) fn to_json(&self) -> String {
        let wire = MessageWire {
            protected: Some(self.content.protected.clone()),
            unprotected: None,
            header: None,
            encrypted_key: None,
            recipients: Some(self.recipients.iter().flatten().map(RecipientKey::to_wire).collect()),
            aad: self.content.aad.clone(),
            iv: Base64Url::new(self.content.iv.to_vec()),
            ciphertext: Base64Url::new(self.content.ciphertext.clone()),
            tag: Base64Url::new(self.content.tag.to_vec()),
        };
        serde_json::to_string(&wire).expect("strings and maps with string keys always serialise")
    }
}

impl RecipientKey {
    /// `None` for algorithms, extensions and parameters that are not known here.
    fn understand(header: Map<String, Value>, encrypted_key: Vec<u8>) -> Option<Self> {
        // Extensions that must be understood (RFC 7516 section 4.1.13), and compression: neither is used.
        if header.contains_key("crit") || header.contains_key("zip") {
            return None;
        }
        let header: HeaderWire = serde_json::from_value(Value::Object(header)).ok()?;
        if header.enc != CONTENT_ENCRYPTION {
            return None;
        }
        Some(Self {
            algorithm: Algorithm::from_name(&header.alg)?,
            kid: header.kid,
            ephemeral: match header.epk {
                Some(key) => Some(key.to_point()?),
                None => None,
            },
            info: PartyInfo {
                producer: header.apu.unwrap_or_default().into_public(),
                recipient: header.apv.unwrap_or_default().into_public(),
            },
            encrypted_key,
        })
    }

    fn to_wire(&self) -> RecipientWire {
        let mut header = Map::new();
        header.insert("alg".into(), self.algorithm.name().into());
        if let Some(kid) = &self.kid {
            header.insert("kid".into(), kid.as_str().into());
        }
        if let Some(point) = &self.ephemeral {
            header.insert("epk".into(), serde_json::json!(EphemeralKey::of_point(point)));
        }
        RecipientWire {
            header: Some(header),
            encrypted_key: Some(Base64Url::new(self.encrypted_key.clone())),
        }
    }
}

/// General serialisation if `recipients` is there, flattened otherwise. Members that RFC 7516 does not
/// define are passed over, as its section 7.2.1 demands; nothing here depends on one.
#[derive(Deserialize, Serialize)]
struct MessageWire {
    #[serde(skip_serializing_if = "Option::is_none")]
    protected: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unprotected: Option<Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encrypted_key: Option<Base64Url>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recipients: Option<Vec<RecipientWire>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aad: Option<String>,
    iv: Base64Url,
    ciphertext: Base64Url,
    tag: Base64Url,
}

#[derive(Deserialize, Serialize)]
struct RecipientWire {
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encrypted_key: Option<Base64Url>,
}

#[derive(Deserialize)]
struct HeaderWire {
    alg: String,
    enc: String,
    kid: Option<String>,
    epk: Option<EphemeralKey>,
    apu: Option<Base64Url>,
    apv: Option<Base64Url>,
}

impl MessageWire {
    fn take_recipients(&mut self) -> Result<Vec<RecipientWire>, JweError> {
        let flattened =
            RecipientWire { header: self.header.take(), encrypted_key: self.encrypted_key.take() };
        let Some(recipients) = self.recipients.take() else { return Ok(vec![flattened]) };
        if recipients.is_empty() || recipients.len() > MAX_RECIPIENTS {
            return Err(JweError::Recipients { actual: recipients.len() });
        }
        // go-jose, and so skopeo, repeats the first recipient's key outside of the list.
        let repeated = recipients.first().and_then(|first| first.encrypted_key.as_ref());
        if flattened.header.is_some() || flattened.encrypted_key.is_some_and(|key| Some(&key) != repeated) {
            return Err(JweError::Malformed("it has both \"recipients\" and a recipient of its own".into()));
        }
        Ok(recipients)
    }
}

fn parse_protected(protected: Option<&str>) -> Result<Map<String, Value>, JweError> {
    let Some(protected) = protected else { return Ok(Map::new()) };
    let json = URL_SAFE_NO_PAD
        .decode(protected)
        .map_err(|_| JweError::Malformed("the protected header is not base64url".into()))?;
    serde_json::from_slice(&json).map_err(|error| malformed(&error))
}

/// The parts of a header must not share names (RFC 7516 section 7.2.1).
fn merge(header: &mut Map<String, Value>, part: Map<String, Value>) -> Result<(), JweError> {
    for (name, value) in part {
        if header.contains_key(&name) {
            let name = name.chars().take(50).collect::<String>();
            return Err(JweError::Malformed(format!("the header parameter {name:?} stands in two places")));
        }
        header.insert(name, value);
    }
    Ok(())
}

fn exactly<const N: usize>(field: &'static str, bytes: &[u8]) -> Result<[u8; N], JweError> {
    bytes.try_into().map_err(|_| JweError::Length { field, expected: N, actual: bytes.len() })
}

fn malformed(error: &serde_json::Error) -> JweError {
    JweError::Malformed(error.to_string().chars().take(200).collect())
}
