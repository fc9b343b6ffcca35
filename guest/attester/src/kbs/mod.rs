//! The guest's side of the key broker's protocol: one attestation serves many requests.

mod http;
mod session;

use std::sync::{Arc, Mutex as StdMutex};
use std::time::Duration;

use sealpod_kbs_protocol::jwe::TeeKeyPair;
use sealpod_kbs_protocol::{ResourcePath, Secret};
use tokio::sync::Mutex;

use crate::{Attester, Error};
use http::{Answer, Http};
use session::Session;

/// Where the key broker is.
#[derive(Clone, Debug)]
pub struct KbsConfig {
    /// Its address, `http://` or `https://`.
    pub url: String,
    /// Certificates (PEM), to one of which its own must chain. The guest trusts no other. Without one, only `http://`
    /// can be spoken.
    pub certificates: Vec<String>,
}

/// An attestation token with the key that it names.
#[derive(Debug)]
pub struct Token {
    /// An EAR, as a JWT.
    pub token: String,
    /// The private key, PKCS#8 PEM.
    pub tee_key_pem: Secret,
}

/// What the parts of a handshake took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// From the request to the challenge.
    pub challenge: Duration,
    /// Making the evidence.
    pub evidence: Duration,
    /// From the evidence to the token.
    pub token: Duration,
}

/// A client of one key broker.
pub struct KbsClient {
    http: Http,
    attester: Arc<StdMutex<Box<dyn Attester>>>,
    init_data: Option<String>,
    /// The session of the last attestation.
    session: StdMutex<Option<Arc<Session>>>,
    /// Whoever needs another makes it while the others wait.
    turn: Mutex<()>,
    timings: StdMutex<Timings>,
}

impl KbsClient {
    /// A client for a broker; nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::Configuration`]: a URL of another scheme, or a certificate that is none; over https there must be one.
    pub fn new(
        config: KbsConfig,
        attester: Box<dyn Attester>,
        init_data: Option<String>,
    ) -> Result<Self, Error> {
        Ok(Self {
            http: Http::new(&config)?,
            attester: Arc::new(StdMutex::new(attester)),
            init_data,
            session: StdMutex::new(None),
            turn: Mutex::new(()),
            timings: StdMutex::new(Timings::default()),
        })
    }

    /// Attests now, also where an attestation is still good.
    ///
    /// # Errors
    /// [`Error`]: no evidence can be made, or the broker is not reached or refuses it.
    pub async fn attest(&self) -> Result<(), Error> {
        let _turn = self.turn.lock().await;
        self.renew().await.map(drop)
    }

    /// The token of the current attestation, or of a new one where that one's ends soon.
    ///
    /// # Errors
    /// [`Error`], as [`KbsClient::attest`]. Where only the broker is not reached, a token that is still good is given.
    pub async fn token(&self) -> Result<Token, Error> {
        let session = match self.session(Session::has_fresh_token).await {
            // One that ends soon is better than none.
            Err(Error::Unreachable { url, source }) => {
                let current = self.current(Session::has_good_token);
                current.ok_or(Error::Unreachable { url, source })?
            }
            renewed => renewed?,
        };
        let tee_key_pem = session.keys.to_pkcs8_pem().map_err(|error| Error::Evidence(error.to_string()))?;
        Ok(Token { token: session.token.clone(), tee_key_pem })
    }

    /// Fetches a resource, attesting first where that is needed.
    ///
    /// # Errors
    /// [`Error`]: as [`KbsClient::attest`], or the broker refuses the resource, has none at this path, or answers what
    /// does not open.
    pub async fn resource(&self, path: &ResourcePath) -> Result<Secret, Error> {
        let session = self.session(|_| true).await?;
        match self.fetch(&session, path).await? {
            Some(secret) => Ok(secret),
            // The broker has forgotten the session: attest once more, unless another did so meanwhile.
            None => {
                let session = self.session(|current| !std::ptr::eq(current, &*session)).await?;
                self.fetch(&session, path).await?.ok_or(Error::Denied { denial: None })
            }
        }
    }

    /// What the last handshake took.
    pub fn timings(&self) -> Timings {
        *self.timings.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The current session if it is good for what it is wanted for, or a new one.
    async fn session(&self, good: impl Fn(&Session) -> bool) -> Result<Arc<Session>, Error> {
        if let Some(session) = self.current(&good) {
            return Ok(session);
        }
        let _turn = self.turn.lock().await;
        // Another may have made one meanwhile.
        match self.current(&good) {
            Some(session) => Ok(session),
            None => self.renew().await,
        }
    }

    fn current(&self, good: impl Fn(&Session) -> bool) -> Option<Arc<Session>> {
        let current = self.session.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        current.as_ref().filter(|session| good(session)).cloned()
    }

    /// A new session, which is current from now on.
    async fn renew(&self) -> Result<Arc<Session>, Error> {
        let session = Arc::new(self.handshake().await?);
        *self.session.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(session.clone());
        Ok(session)
    }

    async fn handshake(&self) -> Result<Session, Error> {
        let keys = TeeKeyPair::generate().map_err(|error| Error::Evidence(error.to_string()))?;
        let (session, timings) =
            session::handshake(&self.http, &self.attester, self.init_data.as_deref(), keys).await?;
        *self.timings.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = timings;
        Ok(session)
    }

    /// Nothing where the broker does not know the session.
    async fn fetch(&self, session: &Session, path: &ResourcePath) -> Result<Option<Secret>, Error> {
        match self.http.get(&format!("resource/{path}"), &session.cookie).await? {
            Answer::Done { body, .. } => {
                let jwe =
                    serde_json::from_slice(&body).map_err(|error| Error::Protocol(error.to_string()))?;
                session.keys.open(&jwe).map(Some).map_err(|error| Error::Protocol(error.to_string()))
            }
            Answer::NotAuthenticated { denial: None } => Ok(None),
            Answer::NotAuthenticated { denial } | Answer::Denied { denial } => Err(Error::Denied { denial }),
            Answer::NotFound => Err(Error::NotFound { path: path.to_string() }),
        }
    }
}
