//! HTTP to the key broker: certificates, limits, retries while it cannot be reached.

use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, COOKIE, SET_COOKIE};
use reqwest::{Certificate, Client, Method, RequestBuilder, Response, StatusCode};
use serde::Deserialize;

use super::KbsConfig;
use crate::Error;

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const REQUEST_LIMIT: Duration = Duration::from_secs(60);
/// A broker that cannot be reached is asked again after these pauses.
const RETRY_PAUSES: [Duration; 3] =
    [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3)];
/// No answer is longer.
const MAX_ANSWER: usize = 16 << 20;
const SESSION_COOKIE: &str = "kbs-session-id=";

/// A client of one broker.
pub(super) struct Http {
    client: Client,
    base: String,
}

/// What the broker said.
pub(super) enum Answer {
    /// 2xx.
    Done {
        body: Vec<u8>,
        /// `kbs-session-id=…`, where one was set.
        cookie: Option<String>,
    },
    /// 401.
    NotAuthenticated { denial: Option<String> },
    /// 403 and whatever else is no success.
    Denied { denial: Option<String> },
    /// 404.
    NotFound,
}

/// The part of an error body that a guest may act on.
#[derive(Default, Deserialize)]
struct ErrorBody {
    denial: Option<String>,
}

impl Http {
    pub(super) fn new(config: &KbsConfig) -> Result<Self, Error> {
        let unusable = |error: reqwest::Error| Error::Configuration(error.to_string());
        if !config.url.starts_with("http://") && !config.url.starts_with("https://") {
            return Err(Error::Configuration(format!(
                "{:?} begins with neither http:// nor https://",
                config.url
            )));
        }
        let mut roots = Vec::new();
        for pem in &config.certificates {
            let certificates = Certificate::from_pem_bundle(pem.as_bytes()).map_err(unusable)?;
            if certificates.is_empty() {
                return Err(Error::Configuration("the certificate is no PEM certificate".into()));
            }
            roots.extend(certificates);
        }
        if roots.is_empty() && config.url.starts_with("https://") {
            return Err(Error::Configuration("there is no certificate to trust over https://".into()));
        }
        let client = Client::builder()
            .connect_timeout(CONNECT_LIMIT)
            .timeout(REQUEST_LIMIT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            // A guest has no folder of certificates that others could be looked for in.
            .tls_certs_only(roots)
            .build()
            .map_err(unusable)?;
        Ok(Self { client, base: config.url.trim_end_matches('/').to_owned() })
    }

    /// Sends JSON.
    pub(super) async fn post(
        &self,
        route: &str,
        body: Vec<u8>,
        cookie: Option<&str>,
    ) -> Result<Answer, Error> {
        let mut request =
            self.request(Method::POST, route).header(CONTENT_TYPE, "application/json").body(body);
        if let Some(cookie) = cookie {
            request = request.header(COOKIE, cookie);
        }
        self.send(request).await
    }

    pub(super) async fn get(&self, route: &str, cookie: &str) -> Result<Answer, Error> {
        self.send(self.request(Method::GET, route).header(COOKIE, cookie)).await
    }

    fn request(&self, method: Method, route: &str) -> RequestBuilder {
        self.client.request(method, format!("{}/kbs/v0/{route}", self.base))
    }

    async fn send(&self, request: RequestBuilder) -> Result<Answer, Error> {
        let mut pauses = RETRY_PAUSES.into_iter();
        loop {
            // The body is in memory, so a request can always be cloned.
            let attempt =
                request.try_clone().ok_or_else(|| Error::Protocol("a request cannot be repeated".into()))?;
            let unreachable = |source| Error::Unreachable { url: self.base.clone(), source };
            match attempt.send().await {
                Ok(response) => return answer(response).await.map_err(unreachable)?,
                // Only what never got there may be sent again: a challenge is answered once.
                Err(error) if error.is_connect() => match pauses.next() {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => return Err(unreachable(error)),
                },
                Err(error) => return Err(unreachable(error)),
            }
        }
    }
}

async fn answer(mut response: Response) -> Result<Result<Answer, Error>, reqwest::Error> {
    let status = response.status();
    let cookie = response
        .headers()
        .get_all(SET_COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .find(|value| value.starts_with(SESSION_COOKIE))
        .and_then(|value| value.split(';').next())
        .map(str::to_owned);
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Ok(Err(Error::Protocol(format!("the answer has more than {MAX_ANSWER} bytes"))));
        }
        body.extend_from_slice(&chunk);
    }
    let denial = || serde_json::from_slice::<ErrorBody>(&body).unwrap_or_default().denial;
    Ok(Ok(match status {
        status if status.is_success() => Answer::Done { body, cookie },
        StatusCode::UNAUTHORIZED => Answer::NotAuthenticated { denial: denial() },
        StatusCode::NOT_FOUND => Answer::NotFound,
        _ => Answer::Denied { denial: denial() },
    }))
}
