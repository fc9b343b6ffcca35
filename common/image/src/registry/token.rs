//! Authorisation: passwords, and the tokens that a registry's token server gives for them (RFC 7617, and
//! the distribution project's token specification).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use serde::Deserialize;

use super::{Client, MAX_ANSWER_LENGTH, RegistryError, expect_success, read_bounded};
use crate::reference::Reference;

/// What a registry asks for.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

impl Client {
    /// Gets what the registry asks for.
    pub(super) async fn authorize(
        &self,
        reference: &Reference,
        scope: &str,
        challenges: &[HeaderValue],
    ) -> Result<HeaderValue, RegistryError> {
        let challenges = challenges.iter().filter_map(|value| Challenge::parse(value.to_str().ok()?));
        match challenges.into_iter().next() {
            Some(Challenge::Basic) => self.basic(reference)?.ok_or_else(|| RegistryError::Unauthorized {
                registry: reference.registry().into(),
                what: reference.to_string(),
                detail: "it asks for a name and password, and there are none for it".into(),
            }),
            Some(Challenge::Bearer { realm, service }) => {
                self.token(reference, scope, &realm, service.as_deref()).await
            }
            None => Err(RegistryError::protocol(
                reference,
                "401 without a challenge that is known, expected Basic or Bearer",
            )),
        }
    }

    fn basic(&self, reference: &Reference) -> Result<Option<HeaderValue>, RegistryError> {
        let Some(pair) = self.options.credentials.find(reference) else { return Ok(None) };
        let text = format!("Basic {}", STANDARD.encode(pair.as_bytes()));
        sensitive(&text).map(Some)
    }

    async fn token(
        &self,
        reference: &Reference,
        scope: &str,
        realm: &str,
        service: Option<&str>,
    ) -> Result<HeaderValue, RegistryError> {
        let mut url = Url::parse(realm).map_err(|error| {
            RegistryError::protocol(reference, format!("the token realm {realm:?}: {error}"))
        })?;
        // A registry under TLS must not make us send the password in the clear.
        if url.scheme() != "https" && !self.is_plain(reference.registry()) {
            let detail = format!("the token realm {realm:?}, expected https");
            return Err(RegistryError::protocol(reference, detail));
        }
        if let Some(service) = service {
            url.query_pairs_mut().append_pair("service", service);
        }
        url.query_pairs_mut().append_pair("scope", scope);
        let mut request = self.http.get(url);
        if let Some(basic) = self.basic(reference)? {
            request = request.header(AUTHORIZATION, basic);
        }
        let response = request.send().await.map_err(|error| RegistryError::unreachable(reference, &error))?;
        let response = expect_success(reference, || format!("a token for {scope}"), response).await?;
        let body = read_bounded(reference, response, MAX_ANSWER_LENGTH).await?;
        let answer: TokenAnswer = serde_json::from_slice(&body)
            .map_err(|_| RegistryError::protocol(reference, "something else than a token"))?;
        let token = answer
            .token
            .or(answer.access_token)
            .ok_or_else(|| RegistryError::protocol(reference, "no token"))?;
        sensitive(&format!("Bearer {token}"))
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

fn sensitive(text: &str) -> Result<HeaderValue, RegistryError> {
    let mut value = HeaderValue::try_from(text).map_err(RegistryError::header)?;
    value.set_sensitive(true);
    Ok(value)
}

impl Challenge {
    fn parse(header: &str) -> Option<Self> {
        let (scheme, parameters) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut realm = None;
        let mut service = None;
        let mut rest = parameters;
        while let Some((name, value, more)) = next_parameter(rest) {
            match name.to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value),
                "service" => service = Some(value),
                _ => {}
            }
            rest = more;
        }
        Some(Self::Bearer { realm: realm?, service })
    }
}

/// One `name="value"` or `name=value`, and what follows.
fn next_parameter(text: &str) -> Option<(&str, String, &str)> {
    let (name, rest) = text.trim_start_matches([',', ' ', '\t']).split_once('=')?;
    let Some(quoted) = rest.strip_prefix('"') else {
        let (value, rest) = rest.split_once(',').unwrap_or((rest, ""));
        return Some((name.trim(), value.trim().into(), rest));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return Some((name.trim(), value, quoted.get(index + 1..)?)),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn challenges_are_read() {
        let bearer =
            r#"Bearer realm="https://auth.a.b/token",service="reg\"istry",scope="repository:x:pull,push""#;
        let expected =
            Challenge::Bearer { realm: "https://auth.a.b/token".into(), service: Some("reg\"istry".into()) };
        assert_eq!(Challenge::parse(bearer), Some(expected));
        assert_eq!(Challenge::parse(r#"basic realm="x""#), Some(Challenge::Basic));
        let bare = Challenge::Bearer { realm: "https://x".into(), service: None };
        assert_eq!(Challenge::parse("bearer realm=https://x, error=y"), Some(bare));
        assert_eq!(Challenge::parse("Bearer service=\"x\""), None);
        assert_eq!(Challenge::parse("Digest realm=\"x\""), None);
    }

    proptest! {
        #[test]
        fn no_challenge_makes_the_parser_panic(text in "(Bearer )?.{0,60}") {
            let _ = Challenge::parse(&text);
        }
    }
}
