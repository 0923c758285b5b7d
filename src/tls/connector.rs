//! Makes TLS connections by one set of settings.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use openssl::error::ErrorStack;
use openssl::ssl::{Ssl, SslContext, SslContextRef};
use openssl::x509::verify::X509CheckFlags;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OnceCell;

use super::certificate;
use super::handshake::{ConnectError, HandshakeError, SessionVerdict};
use super::session::{Sessions, Watch};
use super::trust::{Trust, Verify};
use super::{TlsStream, context, session};

/// Makes TLS connections by one set of settings. Its context is built when first needed, or by
/// [`Connector::prepare`]: reading the system's certificates takes longer than a start may.
pub struct Connector {
    trust: Trust,
    context: OnceCell<SslContext>,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("trust", &self.trust).finish_non_exhaustive()
    }
}

impl Connector {
    pub fn new(trust: Trust) -> Arc<Connector> {
        Arc::new(Connector { trust, context: OnceCell::new() })
    }

    /// One that skips verification; used only to fetch a certificate for an error message. It must
    /// not be told any secret.
    pub fn unverified(trust: &Trust) -> Arc<Connector> {
        let (verify, ca, pins) = (Verify::None, None, Vec::new());
        Connector::new(Trust { verify, ca, pins, ..trust.clone() })
    }

    /// The name that a server at `host` must have: without the dot that ends a name's look-up, but
    /// is no part of it in SNI (RFC 6066 section 3) or on a certificate (RFC 5280 section 4.2.1.6).
    pub fn server_name<'a>(&'a self, host: &'a str) -> &'a str {
        let name = self.trust.server_name.as_deref().unwrap_or(host);
        name.strip_suffix('.').unwrap_or(name)
    }

    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Whether sessions are resumed. A server that asks for certificates may refuse sessions in
    /// ways of its own, and wants to see ours.
    pub fn resumes(&self) -> bool {
        self.trust.identity.is_none()
    }

    /// Builds the context on another thread, unless it exists.
    ///
    /// # Errors
    /// When OpenSSL cannot be set up.
    pub async fn prepare(&self) -> io::Result<&SslContext> {
        let build = || async {
            let trust = self.trust.clone();
            let built = tokio::task::spawn_blocking(move || build(&trust)).await;
            built.map_err(io::Error::other)?.map_err(io::Error::other)
        };
        self.context.get_or_try_init(build).await
    }

    /// Makes a connection to `host` a TLS connection that satisfies the settings, pins included.
    /// One of `sessions`, which are for this connector and this server alone, is resumed if the
    /// server agrees.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn connect<S>(
        &self,
        host: &str,
        stream: S,
        sessions: &Arc<Sessions>,
    ) -> Result<TlsStream<S>, ConnectError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let context = self.prepare().await.map_err(HandshakeError::Internal)?;
        let none = Arc::default();
        let sessions = if self.resumes() { sessions } else { &none };
        let (offer, watch) = sessions.offer();
        let ssl = self.ssl(context, host).and_then(|mut ssl| {
            offer.put_into(&mut ssl)?;
            TlsStream::new(ssl, stream)
        });
        let mut stream = ssl.map_err(|error| HandshakeError::Internal(io::Error::other(error)))?;
        if let Err(error) = Pin::new(&mut stream).connect().await {
            return Err(blame(
                HandshakeError::classify(error, stream.ssl().verify_result()),
                watch,
            ));
        }
        if stream.ssl().session_reused() {
            watch.resumed()
        } else {
            watch.clear()
        }
        if !self.trust.pins.is_empty() {
            let pin = certificate::pin_of(&stream);
            let pin = pin.ok_or_else(HandshakeError::unreadable_certificate)?;
            if !self.trust.pin_holds(&pin) {
                // TLS 1.2 gives sessions in the handshake, before the key has been looked at.
                sessions.forget();
                return Err(HandshakeError::Pin(pin).into());
            }
        }
        Ok(stream)
    }

    /// One connection's side of OpenSSL, with the name to send and to verify.
    fn ssl(&self, context: &SslContextRef, host: &str) -> Result<Ssl, ErrorStack> {
        let mut ssl = Ssl::new(context)?;
        let name = self.server_name(host);
        let address = name.parse::<IpAddr>().ok();
        if address.is_none() {
            ssl.set_hostname(name)?;
        }
        if self.trust.verify == Verify::Full {
            let demanded = ssl.param_mut();
            demanded.set_hostflags(X509CheckFlags::NO_PARTIAL_WILDCARDS);
            match address {
                Some(address) => demanded.set_ip(address)?,
                None => demanded.set_host(name)?,
            }
        }
        Ok(ssl)
    }
}

/// Decides whether the session that a failed handshake offered may be the cause.
fn blame(error: HandshakeError, watch: Watch) -> ConnectError {
    match error.verdict_on_session() {
        SessionVerdict::Suspected if watch.suspects() => ConnectError::OfSession(error),
        SessionVerdict::Suspected | SessionVerdict::Doubtful => error.into(),
        SessionVerdict::Cleared => {
            watch.clear();
            error.into()
        }
    }
}

fn build(trust: &Trust) -> Result<SslContext, ErrorStack> {
    let mut context = context::builder(trust)?;
    session::collect_in(&mut context)?;
    Ok(context.build())
}
