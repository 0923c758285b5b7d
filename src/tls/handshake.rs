//! The reasons for a failed handshake, in terms that users know.

use std::error::Error as _;
use std::io;

use openssl::error::ErrorStack;
use openssl::x509::X509VerifyResult;
use openssl_sys as ffi;

use super::bounds;
use super::certificate::Certificate;
use super::pin::Pin;
use super::stream::Facts;

/// OpenSSL's SSL_R_CERTIFICATE_VERIFY_FAILED.
const CERTIFICATE_VERIFY_FAILED: i32 = 134;
/// OpenSSL's SSL_R_UNEXPECTED_EOF_WHILE_READING (3.0 and later): the peer closed without
/// close_notify.
const UNEXPECTED_EOF: i32 = 294;
/// OpenSSL's reasons if the peer's answer is not a TLS record: SSL_R_WRONG_VERSION_NUMBER,
/// SSL_R_HTTP_REQUEST, SSL_R_HTTPS_PROXY_REQUEST, SSL_R_PACKET_LENGTH_TOO_LONG,
/// SSL_R_UNEXPECTED_MESSAGE, SSL_R_UNEXPECTED_RECORD, SSL_R_RECORD_LAYER_FAILURE.
const NO_TLS: [i32; 7] = [267, 156, 155, 198, 244, 245, 313];
/// One side received damaged data: SSL_R_DECRYPTION_FAILED_OR_BAD_RECORD_MAC,
/// SSL_R_DIGEST_CHECK_FAILED, SSL_R_BAD_SIGNATURE, and the alerts bad_record_mac, decryption_failed
/// and decrypt_error.
const DAMAGED: [i32; 6] = [281, 149, 123, 1020, 1021, 1051];
/// SSL_R_UNSUPPORTED_PROTOCOL, SSL_R_NO_PROTOCOLS_AVAILABLE, SSL_R_TLSV1_ALERT_PROTOCOL_VERSION.
const NO_COMMON_VERSION: [i32; 3] = [258, 191, 1070];
/// OpenSSL's SSL_R_EXCESSIVE_MESSAGE_SIZE.
const EXCESSIVE_MESSAGE_SIZE: i32 = 152;
/// SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED.
const CERTIFICATE_REQUIRED: i32 = 1116;
/// SSL_R_SSLV3_ALERT_HANDSHAKE_FAILURE. TLS 1.2 servers also send it if the client has no
/// certificate.
const HANDSHAKE_FAILURE: i32 = 1040;
/// SSL_R_TLSV1_UNRECOGNIZED_NAME.
const UNRECOGNIZED_NAME: i32 = 1112;
/// Alerts about the client certificate: bad, unsupported, revoked, expired, unknown, unknown CA.
const CLIENT_CERTIFICATE_REFUSED: [i32; 6] = [1042, 1043, 1044, 1045, 1046, 1048];

/// The most characters of an issuer's name that an error shows. The error for the app must also
/// have space for the hint.
const LONGEST_ISSUER: usize = 60;

/// True if a reason is an internal error of OpenSSL (ERR_R_FATAL), such as a lack of memory.
/// OpenSSL 3 marks these reasons with ERR_RFLAG_FATAL and ERR_RFLAG_COMMON; in 1.1.1 they are the
/// numbers from 64 to 99.
fn is_internal(reason: i32) -> bool {
    const FATAL: i32 = 3 << 18;
    reason & FATAL == FATAL || (64..100).contains(&reason)
}

/// The reason why a handshake failed.
#[derive(Debug)]
pub enum HandshakeError {
    /// The connection broke. TLS is not the cause.
    Broken(io::Error),
    /// One side received damaged data, or the keys of a resumed session differ.
    Damaged(io::Error),
    /// OpenSSL failed internally, mostly for lack of memory.
    Internal(io::Error),
    /// The peer's answer is not TLS.
    NoTls,
    /// The certificate check failed. The text is OpenSSL's reason, or a plainer text.
    Certificate(Flaw, String),
    /// The server's key is not pinned. This is its pin.
    Pin(Pin),
    /// The server requires a client certificate.
    ClientCertificateWanted,
    /// The server refuses the client certificate. The text is OpenSSL's reason.
    ClientCertificateRefused(String),
    /// The server has no certificate for the name that the client sent (SNI), or requires a name.
    UnknownName,
    /// Client and server have no TLS version in common.
    NoCommonVersion,
    /// Any other failure, with OpenSSL's reason.
    Refused(String),
}

/// The verdict on the offered session after a failed handshake: the session may be the cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionVerdict {
    /// The session is not the cause.
    Cleared,
    /// The server closed the connection, which can have any reason. An immediate second handshake
    /// would only add to its load.
    Doubtful,
    /// The server sent an alert, or violated the protocol. A handshake without the session may
    /// succeed.
    Suspected,
}

/// A failed attempt to make a TLS connection.
#[derive(Debug)]
pub enum ConnectError {
    Failed(HandshakeError),
    /// The offered session may be the cause: retry without one.
    OfSession(HandshakeError),
}

impl From<HandshakeError> for ConnectError {
    fn from(error: HandshakeError) -> ConnectError {
        ConnectError::Failed(error)
    }
}

/// A refusal of the client certificate after the handshake, as in TLS 1.3 (RFC 8446 section
/// 4.4.2.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LateRefusal {
    /// The server requires a client certificate.
    Wanted,
    /// The server refuses the client certificate. The text is OpenSSL's reason.
    Refused(String),
}

impl LateRefusal {
    /// Reads the refusal from an error of a read; `None` if the error has another cause.
    pub fn of(error: &io::Error) -> Option<LateRefusal> {
        match HandshakeError::from_stack(stack_of(error)?, X509VerifyResult::OK) {
            HandshakeError::ClientCertificateWanted => Some(LateRefusal::Wanted),
            HandshakeError::ClientCertificateRefused(reason) => Some(LateRefusal::Refused(reason)),
            _ => None,
        }
    }
}

impl From<LateRefusal> for HandshakeError {
    fn from(refusal: LateRefusal) -> HandshakeError {
        match refusal {
            LateRefusal::Wanted => HandshakeError::ClientCertificateWanted,
            LateRefusal::Refused(reason) => HandshakeError::ClientCertificateRefused(reason),
        }
    }
}

/// The reason why a certificate check failed. Each reason has its own hint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// The certificate is for another name.
    Name,
    Expired,
    NotYetValid,
    /// The key exceeds the limits of [`bounds`].
    Key,
    /// No trusted CA has signed the chain.
    Chain,
}

impl Flaw {
    /// From OpenSSL's verification result (X509_verify_cert_error_string(3)).
    fn of(verified: X509VerifyResult) -> Flaw {
        match verified.as_raw() {
            ffi::X509_V_ERR_HOSTNAME_MISMATCH | ffi::X509_V_ERR_IP_ADDRESS_MISMATCH => Flaw::Name,
            ffi::X509_V_ERR_CERT_HAS_EXPIRED => Flaw::Expired,
            ffi::X509_V_ERR_CERT_NOT_YET_VALID => Flaw::NotYetValid,
            _ if verified == bounds::KEY_TOO_LONG => Flaw::Key,
            _ => Flaw::Chain,
        }
    }

    /// OpenSSL's `verdict`, made concrete with the certificate's own fields. `name` is the name
    /// that the certificate should have.
    pub fn in_plain_words(self, verdict: &str, certificate: &Certificate, name: &str) -> String {
        match self {
            Flaw::Name => {
                format!("the certificate is for {}, not for {name}", certificate.names_in_short())
            }
            Flaw::NotYetValid => {
                format!("the certificate is not valid before {}", certificate.valid_from)
            }
            Flaw::Expired if certificate.days_left < 0 => {
                format!("the certificate expired on {}", certificate.expires)
            }
            Flaw::Chain if certificate.chain_issuer != certificate.subject => {
                let issuer: String =
                    certificate.chain_issuer.chars().take(LONGEST_ISSUER).collect();
                format!("{verdict}: {issuer}")
            }
            // Under `Expired`, another certificate of the chain has expired.
            Flaw::Expired | Flaw::Key | Flaw::Chain => verdict.to_owned(),
        }
    }
}

impl HandshakeError {
    pub fn unreadable_certificate() -> HandshakeError {
        HandshakeError::Refused("the server's certificate cannot be read".to_owned())
    }

    /// Classifies a handshake's error with the facts that OpenSSL reported about it.
    pub fn classify(error: native_tls::Error, facts: &Facts) -> HandshakeError {
        if !facts.has_begun() {
            return HandshakeError::Internal(io::Error::other(error));
        }
        let Some(source) = error.source() else {
            return HandshakeError::Broken(io::ErrorKind::UnexpectedEof.into());
        };
        if let Some(broken) = source.downcast_ref::<io::Error>() {
            return HandshakeError::Broken(io::Error::new(broken.kind(), broken.to_string()));
        }
        match source.downcast_ref::<ErrorStack>() {
            Some(stack) => HandshakeError::from_stack(stack, facts.verified()),
            None => HandshakeError::Refused(error.to_string()),
        }
    }

    /// The verdict on the offered session, which may have caused this error.
    pub fn verdict_on_session(&self) -> SessionVerdict {
        match self {
            // In a resumed handshake, neither side sends a certificate.
            HandshakeError::Internal(_)
            | HandshakeError::Certificate(..)
            | HandshakeError::Pin(_)
            | HandshakeError::UnknownName
            | HandshakeError::ClientCertificateWanted
            | HandshakeError::ClientCertificateRefused(_) => SessionVerdict::Cleared,
            HandshakeError::Broken(_) => SessionVerdict::Doubtful,
            HandshakeError::Damaged(_)
            | HandshakeError::NoTls
            | HandshakeError::NoCommonVersion
            | HandshakeError::Refused(_) => SessionVerdict::Suspected,
        }
    }

    fn from_stack(stack: &ErrorStack, verified: X509VerifyResult) -> HandshakeError {
        let Some(innermost) = stack.errors().last() else {
            return HandshakeError::Broken(io::ErrorKind::UnexpectedEof.into());
        };
        let reason = innermost.reason().unwrap_or("unknown reason").to_owned();
        match innermost.reason_code() {
            UNEXPECTED_EOF => HandshakeError::Broken(io::ErrorKind::UnexpectedEof.into()),
            CERTIFICATE_VERIFY_FAILED => {
                let flaw = Flaw::of(verified);
                let verdict = match flaw {
                    Flaw::Key => "the certificate's RSA key or exponent is too long",
                    _ => verified.error_string(),
                };
                HandshakeError::Certificate(flaw, verdict.to_owned())
            }
            EXCESSIVE_MESSAGE_SIZE => HandshakeError::Refused(format!(
                "the server's certificate chain is longer than {} KiB",
                bounds::LONGEST_CHAIN / 1024
            )),
            CERTIFICATE_REQUIRED => HandshakeError::ClientCertificateWanted,
            UNRECOGNIZED_NAME => HandshakeError::UnknownName,
            HANDSHAKE_FAILURE => HandshakeError::Refused(
                "handshake failure (the server may require a client certificate or another cipher)"
                    .to_owned(),
            ),
            code if is_internal(code) => HandshakeError::Internal(io::Error::other(reason)),
            code if DAMAGED.contains(&code) => HandshakeError::Damaged(io::Error::other(reason)),
            code if NO_TLS.contains(&code) => HandshakeError::NoTls,
            code if NO_COMMON_VERSION.contains(&code) => HandshakeError::NoCommonVersion,
            code if CLIENT_CERTIFICATE_REFUSED.contains(&code) => {
                HandshakeError::ClientCertificateRefused(reason)
            }
            _ => HandshakeError::Refused(reason),
        }
    }
}

/// True if a read failed only because the peer closed without close_notify, as Redis does. This is
/// a normal end of stream, since RESP itself marks the end of each reply.
pub fn is_unannounced_close(error: &io::Error) -> bool {
    stack_of(error).is_some_and(|stack| {
        stack.errors().iter().any(|error| error.reason_code() == UNEXPECTED_EOF)
    })
}

/// True if a read or write failed inside OpenSSL, mostly for lack of memory.
pub fn is_own_failure(error: &io::Error) -> bool {
    stack_of(error)
        .is_some_and(|stack| stack.errors().iter().any(|error| is_internal(error.reason_code())))
}

/// OpenSSL's error stack inside the error of a read or write.
fn stack_of(error: &io::Error) -> Option<&ErrorStack> {
    error.get_ref()?.downcast_ref::<openssl::ssl::Error>()?.ssl_error()
}
