//! Trust: from settings to a connector that makes TLS connections by them.

mod certificate;
mod context;
mod handshake;
mod late_files;
pub mod pem;
mod pin;
pub mod roots;
mod session;
mod trust;

use std::io;
use std::sync::Arc;

use native_tls::Protocol;
use openssl::ssl::{SslContextBuilder, SslMethod, SslVersion};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OnceCell;
use tokio_native_tls::{TlsConnector, TlsStream};

pub use certificate::Certificate;
pub use handshake::{
    ConnectError, Flaw, HandshakeError, LateRefusal, is_own_failure, is_unannounced_close,
};
pub use late_files::late_files;
pub use pin::Pin;
pub use session::Sessions;
pub use trust::{MinTls, Trust, Verify};

use handshake::SessionVerdict;

use crate::threads;

/// Name and version of the OpenSSL that is in use, without its date: `OpenSSL 3.5.5`.
pub fn openssl_version() -> String {
    let words: Vec<_> = openssl::version::version().split(' ').take(2).collect();
    words.join(" ")
}

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
            let (trust, resumes) = (self.trust.clone(), self.resumes());
            threads::run(move || build(&trust, resumes)).await?.map_err(io::Error::other)
        };
        self.built.get_or_try_init(build).await
    }

    /// Makes a connection to `host` a TLS connection that holds by the settings, pins included. One
    /// of `sessions`, which are for this connector and this server alone, is resumed if the server
    /// agrees.
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
        self.shake_hands(host, stream, sessions).await.map(|(stream, _)| stream)
    }

    /// Like `connect`; says whether a session was resumed as well.
    ///
    /// # Errors
    /// As `connect`.
    pub async fn shake_hands<S>(
        &self,
        host: &str,
        stream: S,
        sessions: &Arc<Sessions>,
    ) -> Result<(TlsStream<S>, bool), ConnectError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let connector = self.prepare().await.map_err(HandshakeError::Internal)?;
        let handshake = connector.connect(self.server_name(host), stream);
        let (offer, watch) = sessions.offer();
        let (shaken, resumed) = session::offering(offer, handshake).await;
        let stream = match shaken {
            Ok(stream) => {
                watch.clear();
                stream
            }
            Err(error) => {
                let error = HandshakeError::classify(&error);
                return Err(match error.verdict_on_session() {
                    SessionVerdict::Suspected if watch.suspects() => ConnectError::OfSession(error),
                    SessionVerdict::Suspected | SessionVerdict::Doubtful => error.into(),
                    SessionVerdict::Cleared => {
                        watch.clear();
                        error.into()
                    }
                });
            }
        };
        if !self.trust.pins.is_empty() {
            let pin = certificate_of(&stream)?.pin;
            if !self.trust.pin_holds(&pin) {
                // TLS 1.2 gives sessions in the handshake, before the key has been looked at.
                sessions.forget();
                return Err(HandshakeError::Pin(pin).into());
            }
        }
        Ok((stream, resumed))
    }
}

/// The certificate of the server at the other end of `stream`.
///
/// # Errors
/// When it has none, or none that can be read.
pub fn certificate_of<S>(stream: &TlsStream<S>) -> Result<Certificate, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let certificate = der_of(stream).and_then(|der| Certificate::from_der(&der).ok());
    certificate.ok_or_else(|| {
        HandshakeError::Refused("the server's certificate cannot be read".to_owned())
    })
}

/// Of the certificate of the server at the other end of `stream`: the names in one line, and when
/// it ends, in seconds since 1970.
pub fn names_and_end_of<S>(stream: &TlsStream<S>) -> Option<(String, i64)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    Certificate::names_and_end(&der_of(stream)?)
}

fn der_of<S>(stream: &TlsStream<S>) -> Option<Vec<u8>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.get_ref().peer_certificate().ok()??.to_der().ok()
}

/// Whether OpenSSL can be told to speak nothing older than `version`.
pub fn speaks(version: MinTls) -> bool {
    let version = match version {
        MinTls::V1_2 => SslVersion::TLS1_2,
        MinTls::V1_3 => SslVersion::TLS1_3,
    };
    let context = SslContextBuilder::new(SslMethod::tls());
    context.is_ok_and(|mut context| context.set_min_proto_version(Some(version)).is_ok())
}

fn build(trust: &Trust, resumes: bool) -> native_tls::Result<TlsConnector> {
    let mut builder = native_tls::TlsConnector::builder();
    builder.min_protocol_version(Some(match trust.min_tls {
        MinTls::V1_2 => Protocol::Tlsv12,
        MinTls::V1_3 => Protocol::Tlsv13,
    }));
    match trust.verify {
        Verify::None => builder
            .danger_accept_invalid_certs(true)
            .danger_accept_invalid_hostnames(true)
            .disable_built_in_roots(true),
        Verify::Ca => builder.danger_accept_invalid_hostnames(true),
        Verify::Full => &mut builder,
    };
    let roots = match (&trust.ca, trust.verify) {
        (Some(authorities), _) => {
            builder.disable_built_in_roots(true);
            authorities.certificates()
        }
        (None, Verify::None) => &[],
        (None, _) => {
            if roots::own_directories().is_some() {
                builder.disable_built_in_roots(true);
            }
            roots::loaded()
        }
    };
    for root in roots {
        builder.add_root_certificate(root.clone());
    }
    if let Some(identity) = &trust.identity {
        builder.identity(identity.loaded().clone());
    }
    context::set_up(resumes, || builder.build()).map(TlsConnector::from)
}
