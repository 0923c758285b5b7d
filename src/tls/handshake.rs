//! Why a handshake failed, in a user's terms.

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
/// OpenSSL's SSL_R_UNEXPECTED_EOF_WHILE_READING (3.0 and later): a peer that closed without
/// close_notify.
const UNEXPECTED_EOF: i32 = 294;
/// OpenSSL's reasons for an answer that is no TLS record: SSL_R_WRONG_VERSION_NUMBER,
/// SSL_R_HTTP_REQUEST, SSL_R_HTTPS_PROXY_REQUEST, SSL_R_PACKET_LENGTH_TOO_LONG,
/// SSL_R_UNEXPECTED_MESSAGE, SSL_R_UNEXPECTED_RECORD, SSL_R_RECORD_LAYER_FAILURE.
const NO_TLS: [i32; 7] = [267, 156, 155, 198, 244, 245, 313];
/// What was sent arrived changed, as either side found: SSL_R_DECRYPTION_FAILED_OR_BAD_RECORD_MAC,
/// SSL_R_DIGEST_CHECK_FAILED, SSL_R_BAD_SIGNATURE, and the alerts bad_record_mac, decryption_failed
/// and decrypt_error.
const DAMAGED: [i32; 6] = [281, 149, 123, 1020, 1021, 1051];
/// SSL_R_UNSUPPORTED_PROTOCOL, SSL_R_NO_PROTOCOLS_AVAILABLE, SSL_R_TLSV1_ALERT_PROTOCOL_VERSION.
const NO_COMMON_VERSION: [i32; 3] = [258, 191, 1070];
/// OpenSSL's SSL_R_EXCESSIVE_MESSAGE_SIZE.
const EXCESSIVE_MESSAGE_SIZE: i32 = 152;
/// SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED.
const CERTIFICATE_REQUIRED: i32 = 1116;
/// SSL_R_SSLV3_ALERT_HANDSHAKE_FAILURE, by which a TLS 1.2 server misses a client certificate, too.
const HANDSHAKE_FAILURE: i32 = 1040;
/// SSL_R_TLSV1_UNRECOGNIZED_NAME.
const UNRECOGNIZED_NAME: i32 = 1112;
/// Alerts about the client's certificate: bad, unsupported, revoked, expired, unknown, unknown CA.
const CLIENT_CERTIFICATE_REFUSED: [i32; 6] = [1042, 1043, 1044, 1045, 1046, 1048];

/// How much of an issuer's name is shown: the app's error has to hold the remedy as well.
const LONGEST_ISSUER: usize = 60;

/// Whether a reason is one of ERR_R_FATAL: memory is short, or OpenSSL at a loss, whatever the peer
/// said. The flags of OpenSSL 3 (ERR_RFLAG_FATAL and ERR_RFLAG_COMMON), or the numbers below every
/// other of 1.1.1.
fn is_internal(reason: i32) -> bool {
    const FATAL: i32 = 3 << 18;
    reason & FATAL == FATAL || (64..100).contains(&reason)
}

/// Why a handshake failed.
#[derive(Debug)]
pub enum HandshakeError {
    /// The connection broke: nothing about TLS is wrong.
    Broken(io::Error),
    /// What was sent arrived changed, or a session's keys differ: nothing else about TLS is wrong.
    Damaged(io::Error),
    /// OpenSSL could not do its part: above all, memory is short.
    Internal(io::Error),
    /// The peer's answer is no TLS.
    NoTls,
    /// The certificate does not hold, for this reason: OpenSSL's verdict, or the same in plainer
    /// words.
    Certificate(Flaw, String),
    /// The certificate's key, of which this is the pin, is none of the pinned.
    Pin(Pin),
    /// The server wants a client certificate.
    ClientCertificateWanted,
    /// The server refuses the client certificate, for this reason.
    ClientCertificateRefused(String),
    /// The server has no certificate for the name that it was asked for, or demands one (SNI).
    UnknownName,
    /// No TLS version suits both.
    NoCommonVersion,
    /// The two sides do not agree otherwise, for OpenSSL's reason.
    Refused(String),
}

/// What a failed handshake says about the session that it offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionVerdict {
    /// It cannot be the cause.
    Cleared,
    /// The server went away, as it may for any reason: another handshake at once would only add to
    /// its load.
    Doubtful,
    /// An alert, or an answer against the protocol: without the session it may be another.
    Suspected,
}

/// Why there is no TLS connection.
#[derive(Debug)]
pub enum ConnectError {
    Failed(HandshakeError),
    /// The session that was offered may be the cause: without one it may work.
    OfSession(HandshakeError),
}

impl From<HandshakeError> for ConnectError {
    fn from(error: HandshakeError) -> ConnectError {
        ConnectError::Failed(error)
    }
}

/// What a server has against the client certificate, as TLS 1.3 has it only after the handshake
/// (RFC 8446 section 4.4.2.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LateRefusal {
    /// It wants one.
    Wanted,
    /// It refuses ours, for this reason.
    Refused(String),
}

impl LateRefusal {
    /// From an error of reading; `None` when that is no alert of this kind.
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

/// What is wrong with a certificate: each kind has a remedy of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// It is for another name.
    Name,
    Expired,
    NotYetValid,
    /// Its key takes too long to verify a signature with.
    Key,
    /// Nobody who is trusted vouches for it.
    Chain,
}

impl Flaw {
    /// Translates OpenSSL's verdict (X509_verify_cert_error_string(3)).
    fn of(verified: X509VerifyResult) -> Flaw {
        match verified.as_raw() {
            ffi::X509_V_ERR_HOSTNAME_MISMATCH | ffi::X509_V_ERR_IP_ADDRESS_MISMATCH => Flaw::Name,
            ffi::X509_V_ERR_CERT_HAS_EXPIRED => Flaw::Expired,
            ffi::X509_V_ERR_CERT_NOT_YET_VALID => Flaw::NotYetValid,
            _ if verified == bounds::KEY_TOO_LONG => Flaw::Key,
            _ => Flaw::Chain,
        }
    }

    /// OpenSSL's `verdict` on a certificate, with what the certificate says about it. `name`: the
    /// name that it should be for.
    pub fn in_plain_words(self, verdict: &str, certificate: &Certificate, name: &str) -> String {
        match self {
            Flaw::Name => format!("it is for {}, not for {name}", certificate.names_in_short()),
            Flaw::NotYetValid => format!("it is not valid before {}", certificate.valid_from),
            Flaw::Expired if certificate.days_left < 0 => {
                format!("it expired on {}", certificate.expires)
            }
            Flaw::Chain if certificate.chain_issuer != certificate.subject => {
                let issuer: String =
                    certificate.chain_issuer.chars().take(LONGEST_ISSUER).collect();
                format!("{verdict}: {issuer}")
            }
            // Another certificate of the chain has expired.
            Flaw::Expired | Flaw::Key | Flaw::Chain => verdict.to_owned(),
        }
    }
}

impl HandshakeError {
    pub fn unreadable_certificate() -> HandshakeError {
        HandshakeError::Refused("the server's certificate cannot be read".to_owned())
    }

    /// Classifies the error of a handshake about which OpenSSL has reported `facts`.
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

    /// What it says about the session that the handshake offered.
    pub fn verdict_on_session(&self) -> SessionVerdict {
        match self {
            // A handshake that is resumed shows no certificate, and asks for none.
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
                    Flaw::Key => "its RSA key or exponent is too long",
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
                "handshake failure (it may want a client certificate, or share no cipher)"
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

/// Whether `error`, met while reading, only says that the peer closed without close_notify, as
/// Redis does: an ordinary end of stream here, since RESP says by itself where a reply ends.
pub fn is_unannounced_close(error: &io::Error) -> bool {
    stack_of(error).is_some_and(|stack| {
        stack.errors().iter().any(|error| error.reason_code() == UNEXPECTED_EOF)
    })
}

/// Whether OpenSSL could not do its part when it read or wrote: above all, memory is short.
pub fn is_own_failure(error: &io::Error) -> bool {
    stack_of(error)
        .is_some_and(|stack| stack.errors().iter().any(|error| is_internal(error.reason_code())))
}

/// OpenSSL's stack of errors in an error of reading or writing.
fn stack_of(error: &io::Error) -> Option<&ErrorStack> {
    error.get_ref()?.downcast_ref::<openssl::ssl::Error>()?.ssl_error()
}
