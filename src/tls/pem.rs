//! Reads certificates and keys from PEM. OpenSSL checks the certificates and keys before COMMAND
//! starts, so that users see an error at the start, and not only with the first connection.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use openssl::error::ErrorStack;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{SslContextBuilder, SslMethod};
use openssl::x509::X509;

/// The beginning of every PEM block (RFC 7468 section 2).
const BEGIN: &str = "-----BEGIN ";
/// The maximum size of a PEM file in bytes. A bundle with all public CAs is many times smaller.
const LONGEST: u64 = 16 << 20;

/// Reads the text of a PEM file. Replaces bytes that are not UTF-8, because the text outside PEM
/// blocks may have any encoding (RFC 7468 section 2).
///
/// # Errors
/// If the file cannot be read, or has more than 16 MiB.
pub fn read_file(file: &Path) -> io::Result<String> {
    let mut pem = Vec::new();
    if File::open(file)?.take(LONGEST + 1).read_to_end(&mut pem)? as u64 > LONGEST {
        let problem = format!("more than {LONGEST} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, problem));
    }
    Ok(String::from_utf8_lossy(&pem).into_owned())
}

/// True if `text` is PEM text, and not the path of a PEM file.
pub fn is_pem(text: &str) -> bool {
    text.contains(BEGIN)
}

/// Replaces each `\n` (a backslash and the letter n) by a line end, and removes each `\r`. Users
/// write PEM text with `\n` where a setting's value must be a single line. PEM blocks contain no
/// other backslash.
pub fn with_line_ends(text: &str) -> String {
    text.replace("\\r", "").replace("\\n", "\n")
}

/// The PEM labels of certificates. The list excludes the label TRUSTED CERTIFICATE, because a block
/// with this label also contains trust settings of OpenSSL.
const LABELS: [&str; 2] = ["CERTIFICATE-----", "X509 CERTIFICATE-----"];

/// Reads each certificate in `pem`, and skips keys and other text.
pub fn each_certificate(pem: &str) -> impl Iterator<Item = Result<X509, ErrorStack>> {
    let blocks = pem.split(BEGIN).skip(1);
    let is_certificate =
        |block: &&str| block.lines().next().is_some_and(|label| LABELS.contains(&label.trim_end()));
    blocks.filter(is_certificate).map(|block| X509::from_pem(format!("{BEGIN}{block}").as_bytes()))
}

/// Reads all certificates in `pem`.
///
/// # Errors
/// If there is no certificate, or if a certificate cannot be read. The caller must put the
/// setting's name in front of the message.
pub fn certificates(pem: &str) -> Result<Vec<X509>, String> {
    let mut all = Vec::new();
    for certificate in each_certificate(pem) {
        let place = all.len() + 1;
        all.push(certificate.map_err(|_| {
            format!(
                "holds a certificate that cannot be read (certificate number {place}); copy the \
                 complete PEM text again, including its line breaks"
            )
        })?);
    }
    if all.is_empty() {
        return Err("holds no certificate; expected PEM text that contains -----BEGIN \
                    CERTIFICATE-----"
            .to_owned());
    }
    Ok(all)
}

/// A client certificate with its chain and key.
#[derive(Clone)]
pub struct ClientIdentity {
    /// The client certificate and the rest of its chain. The client certificate comes first.
    chain: Vec<X509>,
    key: PKey<Private>,
}

/// Reads a client certificate and its chain. Checks that OpenSSL's security level allows each
/// certificate (SSL_CTX_set_security_level(3)).
///
/// # Errors
/// If a certificate is invalid. The caller must put the setting's name in front of the message.
pub fn client_chain(pem: &str) -> Result<Vec<X509>, String> {
    let chain = certificates(pem)?;
    for (index, certificate) in chain.iter().enumerate() {
        SslContextBuilder::new(SslMethod::tls())
            .and_then(|mut context| context.set_certificate(certificate))
            .map_err(|error| {
                let innermost = error.errors().last().and_then(|error| error.reason());
                format!(
                    "holds a certificate that OpenSSL's security level refuses (certificate \
                     number {place}): {reason}",
                    place = index + 1,
                    reason = innermost.unwrap_or("unknown reason")
                )
            })?;
    }
    Ok(chain)
}

/// True if `pem` contains an encrypted key in PKCS#8 (RFC 7468 section 11) or in an older format
/// (RFC 1421 section 4.6.1.1).
fn is_encrypted(pem: &str) -> bool {
    pem.lines().any(|line| match line.strip_prefix("Proc-Type:") {
        Some(kind) => kind.trim() == "4,ENCRYPTED",
        None => line.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"),
    })
}

impl ClientIdentity {
    /// Adds the private key in `pem` to a chain from [`client_chain`].
    ///
    /// # Errors
    /// If the key is invalid or belongs to another certificate. The caller must put the setting's
    /// name in front of the message. An encrypted key is invalid, because the launcher has no
    /// password.
    ///
    /// # Panics
    /// If `chain` is empty.
    pub fn new(chain: Vec<X509>, pem: &str) -> Result<ClientIdentity, String> {
        let problem = if is_encrypted(pem) {
            "holds an encrypted key; decrypt it: openssl pkcs8 -topk8 -nocrypt -in KEY.pem -out \
             NEW.pem"
        } else if !pem.contains(" PRIVATE KEY-----") {
            "holds no private key; expected PEM with -----BEGIN PRIVATE KEY----- in it"
        } else if let Ok(key) = PKey::private_key_from_pem_passphrase(pem.as_bytes(), b"") {
            // The empty password keeps OpenSSL from asking for a password on the terminal.
            if chain[0].public_key().is_ok_and(|public| public.public_eq(&key)) {
                return Ok(ClientIdentity { chain, key });
            }
            "holds a key that does not match the first certificate in the client certificate's PEM"
        } else {
            "holds a key that cannot be read; copy the complete PEM text again, including its line \
             breaks"
        };
        Err(problem.to_owned())
    }

    /// Makes the TLS connections of `context` send this certificate to each server that requests a
    /// client certificate.
    ///
    /// # Errors
    /// If OpenSSL has no memory.
    pub fn set_in(&self, context: &mut SslContextBuilder) -> Result<(), ErrorStack> {
        context.set_certificate(&self.chain[0])?;
        context.set_private_key(&self.key)?;
        self.chain[1..].iter().try_for_each(|issuer| context.add_extra_chain_cert(issuer.clone()))
    }
}

/// Compares the certificates only, because equal certificates have equal keys.
impl PartialEq for ClientIdentity {
    fn eq(&self, other: &ClientIdentity) -> bool {
        self.chain == other.chain
    }
}

impl Eq for ClientIdentity {}

impl std::fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientIdentity")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_line_ends_are_replaced() {
        for text in ["a\\nb\\n", "a\\nb\n", "a\\nb\\n\n", "a\\r\\nb\\r\\n", "a\nb\\n"] {
            assert_eq!(with_line_ends(text).trim_end(), "a\nb", "{text:?}");
        }
    }

    #[test]
    fn pem_blocks_with_other_labels_are_skipped() {
        let pem = ["TRUSTED CERTIFICATE", "PRIVATE KEY", "CERTIFICATE REQUEST"]
            .map(|label| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n"));
        assert_eq!(each_certificate(&pem.concat()).count(), 0);
    }

    #[test]
    fn broken_pem_and_missing_pem_have_different_errors() {
        let none = certificates("hello").unwrap_err();
        assert!(none.starts_with("holds no certificate"), "{none}");
        for content in [
            "AAAA\n-----END CERTIFICATE-----\n",
            "MIIB\n-----END CERTIFICATE-----\n",
            "not base64!\n-----END CERTIFICATE-----\n",
            "AAAA\n",
        ] {
            let pem = format!("-----BEGIN CERTIFICATE-----\n{content}");
            let broken = certificates(&pem).unwrap_err();
            assert!(broken.starts_with("holds a certificate that cannot be read"), "{broken}");
        }
    }
}
