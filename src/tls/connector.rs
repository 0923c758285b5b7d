//! Makes TLS connections by one set of settings.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OnceCell;
use tokio_native_tls::TlsConnector;

use super::handshake::{ConnectError, HandshakeError, SessionVerdict};
use super::session::{Sessions, Watch};
use super::stream::TlsStream;
use super::trust::{Trust, Verify};
use super::{certificate, context, session};
use crate::threads;

/// Makes TLS connections by one set of settings. It is built when first needed, or by
/// [`Connector::prepare`]: reading the system's certificates takes longer than a start may.
#[derive(Debug)]
pub struct Connector {
    trust: Trust,
    built: OnceCell<TlsConnector>,
}

impl Connector {
    pub fn new(trust: Trust) -> Arc<Connector> {
        Arc::new(Connector { trust, built: OnceCell::new() })
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

    /// Builds the connector on another thread, unless it exists.
    ///
    /// # Errors
    /// When OpenSSL cannot be set up, or no thread is free (EAGAIN).
    pub async fn prepare(&self) -> io::Result<&TlsConnector> {
        let build = || async {
            let trust = self.trust.clone();
            threads::run(move || build(&trust)).await?
        };
        self.built.get_or_try_init(build).await
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
        let connector = self.prepare().await.map_err(HandshakeError::Internal)?;
        let none = Arc::default();
        let sessions = if self.resumes() { sessions } else { &none };
        let (offer, watch) = sessions.offer();
        let facts = offer.facts().clone();
        let handshake = connector.connect(self.server_name(host), stream);
        let stream = match session::offering(offer, handshake).await {
            Ok(stream) => TlsStream::new(stream, facts),
            Err(error) => return Err(blame(HandshakeError::classify(error, &facts), watch)),
        };
        if stream.resumed() {
            watch.resumed()
        } else {
            watch.clear()
        }
        if !self.trust.pins.is_empty() {
            let pin = certificate::certificate_of(&stream)
                .ok_or_else(HandshakeError::unreadable_certificate)?
                .pin;
            if !self.trust.pin_holds(&pin) {
                // TLS 1.2 gives sessions in the handshake, before the key has been looked at.
                sessions.forget();
                return Err(HandshakeError::Pin(pin).into());
            }
        }
        Ok(stream)
    }
}

/// Decides whether the session that a failed handshake offered may be the cause.
fn blame(error: HandshakeError, watch: Watch) -> ConnectError {
    let (verdict, was_offered) = (error.verdict_on_session(), watch.suspects());
    if verdict == SessionVerdict::Cleared {
        watch.clear();
    } else {
        watch.failed();
    }
    match was_offered && verdict == SessionVerdict::Suspected {
        true => ConnectError::OfSession(error),
        false => ConnectError::Failed(error),
    }
}

fn build(trust: &Trust) -> io::Result<TlsConnector> {
    let (connector, mut context) = context::connector(trust)?;
    session::resume_in(&mut context)?;
    Ok(connector.into())
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn handshake_that_cannot_begin_is_no_fault_of_the_server() {
        let connector = Connector::new(Trust::none());
        let (client, _server) = UnixStream::pair().unwrap();
        // SNI holds 255 bytes at most.
        let too_long = "x".repeat(300);
        let error = connector.connect(&too_long, client, &Arc::default()).await.unwrap_err();
        assert!(matches!(error, ConnectError::Failed(HandshakeError::Internal(_))), "{error:?}");
    }
}
