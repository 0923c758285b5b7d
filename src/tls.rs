//! Trust: from settings to a connector that makes TLS connections by them.

use std::error::Error as _;
use std::io;
use std::sync::Arc;

use native_tls::Protocol;
use openssl::error::ErrorStack;
use tokio::sync::OnceCell;
use tokio_native_tls::TlsConnector;

use crate::settings::{MinTls, TrustSettings, Verify};

/// OpenSSL's SSL_R_CERTIFICATE_VERIFY_FAILED.
const CERTIFICATE_VERIFY_FAILED: i32 = 134;
/// OpenSSL's SSL_R_UNEXPECTED_EOF_WHILE_READING (3.0 and later): a peer that closed without close_notify.
const UNEXPECTED_EOF: i32 = 294;
/// OpenSSL's reasons for an answer that is no TLS record: SSL_R_WRONG_VERSION_NUMBER,
/// SSL_R_HTTP_REQUEST, SSL_R_HTTPS_PROXY_REQUEST, SSL_R_PACKET_LENGTH_TOO_LONG,
/// SSL_R_UNEXPECTED_MESSAGE, SSL_R_UNEXPECTED_RECORD, SSL_R_RECORD_LAYER_FAILURE.
const NO_TLS: [i32; 7] = [267, 156, 155, 198, 244, 245, 313];

/// Makes TLS connections by one set of settings. It is built when first needed, or by
/// [`Connector::prepare`]: reading the system's certificates takes longer than a start may.
#[derive(Debug)]
pub struct Connector {
    trust: TrustSettings,
    built: OnceCell<TlsConnector>,
}

impl Connector {
    pub fn new(trust: TrustSettings) -> Arc<Connector> {
        Arc::new(Connector {
            trust,
            built: OnceCell::new(),
        })
    }

    pub fn trust(&self) -> &TrustSettings {
        &self.trust
    }

    /// Builds the connector on another thread, unless it exists.
    ///
    /// # Errors
    /// When OpenSSL cannot be set up.
    pub async fn prepare(&self) -> io::Result<&TlsConnector> {
        let build = || async {
            let trust = self.trust.clone();
            let built = tokio::task::spawn_blocking(move || build(&trust)).await;
            built.map_err(io::Error::other)?.map_err(io::Error::other)
        };
        self.built.get_or_try_init(build).await
    }
}

fn build(trust: &TrustSettings) -> native_tls::Result<TlsConnector> {
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
    builder.build().map(TlsConnector::from)
}

/// Spares the launcher reading the system's certificates where nothing is verified: native-tls reads
/// them (30 ms of CPU, 2 MiB) even when told to do without. COMMAND's environment is not affected.
///
/// # Safety
/// No other thread may run yet: this changes the process's environment.
pub unsafe fn forget_system_roots() {
    // SAFETY: by this function's own contract.
    unsafe { std::env::set_var("SSL_CERT_FILE", "/dev/null") };
}

/// Why a handshake failed.
#[derive(Debug)]
pub enum HandshakeError {
    /// The connection broke: nothing about TLS is wrong.
    Broken(io::Error),
    /// The peer's answer is no TLS.
    NoTls,
    /// The certificate does not hold, for OpenSSL's reason.
    Certificate(String),
    /// The two sides do not agree otherwise, for OpenSSL's reason.
    Refused(String),
}

impl HandshakeError {
    pub fn classify(error: &native_tls::Error) -> HandshakeError {
        let Some(source) = error.source() else {
            return HandshakeError::Broken(io::ErrorKind::UnexpectedEof.into());
        };
        if let Some(broken) = source.downcast_ref::<io::Error>() {
            return HandshakeError::Broken(io::Error::new(broken.kind(), broken.to_string()));
        }
        let Some(reason) = last_reason(source) else {
            return HandshakeError::Refused(error.to_string());
        };
        match reason.code {
            UNEXPECTED_EOF => HandshakeError::Broken(io::ErrorKind::UnexpectedEof.into()),
            code if NO_TLS.contains(&code) => HandshakeError::NoTls,
            // OpenSSL's verdict about the chain stands in brackets behind the stack of errors.
            CERTIFICATE_VERIFY_FAILED => {
                let text = error.to_string();
                let verdict = text
                    .rsplit_once('(')
                    .map(|(_, rest)| rest.trim_end_matches(')'));
                HandshakeError::Certificate(verdict.unwrap_or(&reason.text).to_owned())
            }
            _ => HandshakeError::Refused(reason.text),
        }
    }
}

/// Whether `error`, met while reading, only says that the peer closed without close_notify, as Redis
/// does: an ordinary end of stream here, since RESP says by itself where a reply ends.
pub fn is_unannounced_close(error: &io::Error) -> bool {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<openssl::ssl::Error>());
    let stack = inner.and_then(|inner| inner.ssl_error());
    stack.is_some_and(|stack| {
        stack
            .errors()
            .iter()
            .any(|error| error.reason_code() == UNEXPECTED_EOF)
    })
}

struct Reason {
    code: i32,
    text: String,
}

/// The innermost reason of OpenSSL's stack of errors.
fn last_reason(source: &(dyn std::error::Error + 'static)) -> Option<Reason> {
    let error = source.downcast_ref::<ErrorStack>()?.errors().last()?;
    Some(Reason {
        code: error.reason_code(),
        text: error.reason().unwrap_or("unknown reason").to_owned(),
    })
}
