//! Describes why a TLS handshake failed, in terms that users know.

use std::error::Error as _;
use std::io;
use std::net::IpAddr;

use openssl::error::ErrorStack;
use openssl::x509::X509VerifyResult;
use openssl_sys as ffi;

use super::bounds;
use super::certificate::Certificate;
use super::pin::Pin;
use super::stream::Facts;

/// OpenSSL's reason code SSL_R_UNEXPECTED_EOF_WHILE_READING (3.0 and later): the peer closed the
/// connection without close_notify.
const UNEXPECTED_EOF: i32 = 294;
/// The maximum number of characters of a CA's name that an error shows. The limit leaves space for
/// the hint in the error that the app gets.
const LONGEST_NAME: usize = 60;

/// True if `reason` is an internal error of OpenSSL (ERR_R_FATAL), such as a lack of memory.
/// OpenSSL 3 marks internal errors with ERR_RFLAG_FATAL and ERR_RFLAG_COMMON. In OpenSSL 1.1.1,
/// internal errors have the numbers from 64 to 99.
fn is_internal(reason: i32) -> bool {
    const FATAL: i32 = 3 << 18;
    reason & FATAL == FATAL || (64..100).contains(&reason)
}

/// The reason why a TLS handshake failed.
#[derive(Debug)]
pub enum HandshakeError {
    /// The connection was closed or reset during the handshake.
    Broken(io::Error),
    /// One side could not decrypt or verify a message, because data was damaged on the way, or
    /// because client and server have different keys for a resumed session.
    Damaged(io::Error),
    /// An operation inside OpenSSL failed, mostly for lack of memory.
    Internal(io::Error),
    /// The launcher and the server have incompatible settings.
    Misconfigured(Misconfiguration),
}

/// The reason why all handshakes fail until a setting of the launcher or of the server is changed.
#[derive(Debug, Clone)]
pub enum Misconfiguration {
    /// The server's answer is not TLS.
    NoTls,
    /// The server's certificate failed its check.
    Certificate(Box<Rejected>),
    /// The server's key matches no pin. The value is the pin of the server's key.
    Pin(Pin),
    /// The server requires a client certificate.
    ClientCertificateWanted,
    /// The server refuses the launcher's client certificate. The text is OpenSSL's reason.
    ClientCertificateRefused(String),
    /// The server has no certificate for the name that the launcher sent in SNI, or the server
    /// requires a name in SNI.
    UnknownName,
    /// The launcher and the server have no TLS version in common.
    NoCommonVersion,
    /// Another reason, described in OpenSSL's words.
    Other(String),
}

/// A certificate that failed its check.
#[derive(Debug, Clone)]
pub struct Rejected {
    pub flaw: Flaw,
    /// The reason why the certificate failed its check, in plain words.
    pub reason: String,
    /// The certificate that failed its check. `None` if the certificate is unreadable.
    pub certificate: Option<Certificate>,
}

impl Misconfiguration {
    pub fn unreadable_certificate() -> Misconfiguration {
        Misconfiguration::Other("the server's certificate cannot be read".to_owned())
    }

    /// Finds out from a read error whether the server requires a client certificate, or refuses the
    /// client's certificate. Returns `None` if the error has another cause. TLS 1.3 servers report
    /// these two problems after the handshake (RFC 8446 section 4.4.2.4).
    pub fn after_handshake(error: &io::Error) -> Option<Misconfiguration> {
        use Misconfiguration::{ClientCertificateRefused, ClientCertificateWanted};
        match HandshakeError::from_stack(stack_of(error)?, &Facts::default(), "") {
            HandshakeError::Misconfigured(
                known @ (ClientCertificateWanted | ClientCertificateRefused(_)),
            ) => Some(known),
            _ => None,
        }
    }
}

/// Why a certificate was rejected. Each reason has its own hint for the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// The certificate is for another name.
    Name,
    Expired,
    NotYetValid,
    /// The certificate's key exceeds the limits of [`bounds`].
    Key,
    /// No trusted CA has signed the chain.
    Chain,
    /// A certificate of the chain has another flaw: its key is too short, or it is not for TLS
    /// servers, for example. OpenSSL may not have verified the chain's signatures yet.
    Unsuitable,
}

impl Flaw {
    /// Classifies OpenSSL's verification result (X509_verify_cert_error_string(3)).
    fn of(verified: X509VerifyResult) -> Flaw {
        match verified.as_raw() {
            ffi::X509_V_ERR_HOSTNAME_MISMATCH | ffi::X509_V_ERR_IP_ADDRESS_MISMATCH => Flaw::Name,
            ffi::X509_V_ERR_CERT_HAS_EXPIRED => Flaw::Expired,
            ffi::X509_V_ERR_CERT_NOT_YET_VALID => Flaw::NotYetValid,
            ffi::X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT
            | ffi::X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY
            | ffi::X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE
            | ffi::X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT
            | ffi::X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN
            | ffi::X509_V_ERR_CERT_SIGNATURE_FAILURE
            | ffi::X509_V_ERR_CERT_UNTRUSTED => Flaw::Chain,
            _ if verified == bounds::KEY_TOO_LONG => Flaw::Key,
            _ => Flaw::Unsuitable,
        }
    }
}

impl Rejected {
    /// Describes why the certificate in `facts` was rejected. The certificate should be valid for
    /// `name`.
    fn new(facts: &Facts, name: &str) -> Rejected {
        let (flaw, certificate) = (Flaw::of(facts.verified()), facts.certificate());
        let verdict = match flaw {
            Flaw::Key => "the certificate's RSA key or exponent is too long",
            _ => facts.verified().error_string(),
        };
        let reason = certificate.as_ref().zip(facts.at_fault()).and_then(|(own, at_fault)| {
            let shown = |name: &str| name.chars().take(LONGEST_NAME).collect::<String>();
            let which = match at_fault == *own {
                true => "the certificate".to_owned(),
                false => format!("the CA certificate {}", shown(&at_fault.subject)),
            };
            match flaw {
                Flaw::Name => Some(format!(
                    "the certificate is for {names}, not for {kind}{name}",
                    names = own.names_in_short(),
                    kind = if name.parse::<IpAddr>().is_ok() { "the IP address " } else { "" }
                )),
                Flaw::NotYetValid => {
                    Some(format!("{which} is not valid before {}", at_fault.valid_from))
                }
                Flaw::Expired => Some(format!("{which} expired on {}", at_fault.expires)),
                // The issuer of a self-signed certificate tells the user nothing new.
                Flaw::Chain if at_fault.issuer == own.subject => None,
                Flaw::Chain => Some(format!("{verdict}: {}", shown(&at_fault.issuer))),
                Flaw::Unsuitable => Some(format!("{verdict}: {}", shown(&at_fault.subject))),
                Flaw::Key => None,
            }
        });
        Rejected { flaw, reason: reason.unwrap_or_else(|| verdict.to_owned()), certificate }
    }
}

impl HandshakeError {
    /// Classifies the error of a failed handshake. `facts` are the facts that OpenSSL reported
    /// about the connection. `name` is the name that the server's certificate should have.
    pub fn classify(error: native_tls::Error, facts: &Facts, name: &str) -> HandshakeError {
        let Some(source) = error.source() else {
            return HandshakeError::Broken(io::ErrorKind::UnexpectedEof.into());
        };
        if let Some(broken) = source.downcast_ref::<io::Error>() {
            return HandshakeError::Broken(io::Error::new(broken.kind(), broken.to_string()));
        }
        match source.downcast_ref::<ErrorStack>() {
            Some(stack) => HandshakeError::from_stack(stack, facts, name),
            None => HandshakeError::Misconfigured(Misconfiguration::Other(error.to_string())),
        }
    }

    /// True if the handshake may have failed because of the session that the launcher offered, so
    /// that a second handshake without a session may succeed. False if the server only closed the
    /// connection: the server may be overloaded, and a second handshake would add to the load.
    pub fn may_be_due_to_session(&self) -> bool {
        use Misconfiguration::{NoCommonVersion, NoTls, Other};
        matches!(
            self,
            HandshakeError::Damaged(_)
                | HandshakeError::Misconfigured(NoTls | NoCommonVersion | Other(_))
        )
    }

    fn from_stack(stack: &ErrorStack, facts: &Facts, name: &str) -> HandshakeError {
        let Some(innermost) = stack.errors().last() else {
            return HandshakeError::Broken(io::ErrorKind::UnexpectedEof.into());
        };
        let reason = innermost.reason().unwrap_or("unknown reason").to_owned();
        // The numbers in this list are OpenSSL's reason codes, from <openssl/sslerr.h>.
        HandshakeError::Misconfigured(match innermost.reason_code() {
            UNEXPECTED_EOF => return HandshakeError::Broken(io::ErrorKind::UnexpectedEof.into()),
            code if is_internal(code) => return HandshakeError::Internal(io::Error::other(reason)),
            // One side received damaged data: SSL_R_DECRYPTION_FAILED_OR_BAD_RECORD_MAC,
            // SSL_R_DIGEST_CHECK_FAILED, SSL_R_BAD_SIGNATURE, and the alerts bad_record_mac,
            // decryption_failed and decrypt_error.
            281 | 149 | 123 | 1020 | 1021 | 1051 => {
                return HandshakeError::Damaged(io::Error::other(reason));
            }
            // OpenSSL rejected the server's certificate: SSL_R_CERTIFICATE_VERIFY_FAILED.
            134 => Misconfiguration::Certificate(Box::new(Rejected::new(facts, name))),
            // The server sent a message that is too long: SSL_R_EXCESSIVE_MESSAGE_SIZE.
            152 => Misconfiguration::Other(format!(
                "the server's certificate chain is longer than {longest} KiB",
                longest = bounds::LONGEST_CHAIN / 1024
            )),
            // The server sent the alert certificate_required:
            // SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED.
            1116 => Misconfiguration::ClientCertificateWanted,
            // The server sent the alert unrecognized_name: SSL_R_TLSV1_UNRECOGNIZED_NAME.
            1112 => Misconfiguration::UnknownName,
            // The server sent the alert handshake_failure: SSL_R_SSLV3_ALERT_HANDSHAKE_FAILURE. TLS
            // 1.2 servers also send this alert if the client has no certificate.
            1040 => Misconfiguration::Other(
                "handshake failure (the server may require a client certificate or another cipher)"
                    .to_owned(),
            ),
            // The peer's answer is not a TLS record: SSL_R_WRONG_VERSION_NUMBER,
            // SSL_R_HTTP_REQUEST, SSL_R_HTTPS_PROXY_REQUEST, SSL_R_PACKET_LENGTH_TOO_LONG,
            // SSL_R_UNEXPECTED_MESSAGE, SSL_R_UNEXPECTED_RECORD, SSL_R_RECORD_LAYER_FAILURE.
            267 | 156 | 155 | 198 | 244 | 245 | 313 => Misconfiguration::NoTls,
            // The launcher and the server have no TLS version in common:
            // SSL_R_UNSUPPORTED_PROTOCOL, SSL_R_NO_PROTOCOLS_AVAILABLE,
            // SSL_R_TLSV1_ALERT_PROTOCOL_VERSION.
            258 | 191 | 1070 => Misconfiguration::NoCommonVersion,
            // The server sent an alert about the client certificate: the certificate is bad,
            // unsupported, revoked, expired or unknown, or its CA is unknown.
            1042..=1046 | 1048 => Misconfiguration::ClientCertificateRefused(reason),
            _ => Misconfiguration::Other(reason),
        })
    }
}

/// True if a read failed only because the peer closed the connection without close_notify, as Redis
/// does. Such a close is a normal end of stream, because RESP itself marks the end of each reply.
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

/// Returns OpenSSL's error stack from the error of a read or write.
fn stack_of(error: &io::Error) -> Option<&ErrorStack> {
    error.get_ref()?.downcast_ref::<openssl::ssl::Error>()?.ssl_error()
}
