//! Reads certificates and keys from PEM. OpenSSL checks the certificates and keys before COMMAND
//! starts, because otherwise their errors would show up only with the first connection.

use openssl::error::ErrorStack;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{Ssl, SslContextBuilder, SslMethod};
use openssl::x509::{X509, X509Ref};

/// The beginning of every PEM block (RFC 7468 section 2).
const BEGIN: &str = "-----BEGIN ";

/// True if `text` is PEM, and not the name of a file.
pub fn is_pem(text: &str) -> bool {
    text.contains(BEGIN)
}

/// Replaces each `\n` in one-line PEM by a line end. Users write `\n` where a value must be a
/// single line.
pub fn with_line_ends(text: &str) -> String {
    if text.contains('\n') { text.to_owned() } else { text.replace("\\n", "\n") }
}

/// The PEM labels of certificates. The label TRUSTED CERTIFICATE is missing, because such a block
/// also contains trust settings of OpenSSL.
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
        all.push(certificate.map_err(|_| {
            let place = match all.len() {
                0 => "the first certificate".to_owned(),
                earlier => format!("certificate number {}", earlier + 1),
            };
            format!(
                "holds a certificate that cannot be read ({place}); copy the whole PEM again, \
                 with its line ends"
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
    leaf: X509,
    issuers: Vec<X509>,
    key: PKey<Private>,
}

/// The reason why a [`ClientIdentity`] is invalid. The caller must put the setting's name in front
/// of the message.
#[derive(Debug, PartialEq, Eq)]
pub enum IdentityProblem {
    /// The certificate or its chain is invalid.
    Certificate(String),
    /// The key is invalid.
    Key(String),
}

impl ClientIdentity {
    /// Reads a certificate and its key. Checks that the key matches the certificate, and that
    /// OpenSSL's security level allows both.
    ///
    /// # Errors
    /// If the certificate or the key is invalid.
    pub fn new(certificate: &str, key: &str) -> Result<ClientIdentity, IdentityProblem> {
        let mut chain = certificates(certificate).map_err(IdentityProblem::Certificate)?;
        let issuers = chain.split_off(1);
        let leaf = chain.remove(0);
        let key = private_key(key).map_err(IdentityProblem::Key)?;
        if !leaf.public_key().is_ok_and(|public| public.public_eq(&key)) {
            return Err(IdentityProblem::Key(
                "holds a key that does not match the first certificate in the client certificate's \
                 PEM"
                    .to_owned(),
            ));
        }
        let identity = ClientIdentity { leaf, issuers, key };
        identity.check_strength().map_err(IdentityProblem::Certificate)?;
        Ok(identity)
    }

    /// Makes the connections of a context send this certificate to servers that request a client
    /// certificate.
    ///
    /// # Errors
    /// If OpenSSL has no memory.
    pub fn set_in(&self, context: &mut SslContextBuilder) -> Result<(), ErrorStack> {
        context.set_certificate(&self.leaf)?;
        context.set_private_key(&self.key)?;
        self.issuers.iter().try_for_each(|issuer| context.add_extra_chain_cert(issuer.clone()))
    }

    /// Checks that OpenSSL accepts the certificates. The issuers' certificates are added to a
    /// connection, because OpenSSL does not check such certificates when a context gets them.
    fn check_strength(&self) -> Result<(), String> {
        let failed =
            |error| format!("cannot be checked, because OpenSSL fails: {}", reason(&error));
        let mut context = SslContextBuilder::new(SslMethod::tls()).map_err(failed)?;
        let refused = context.set_certificate(&self.leaf).err();
        let context = context.build();
        let level = context.security_level();
        if let Some(error) = refused {
            return Err(objection(&self.leaf, level, "", &error));
        }
        let mut connection = Ssl::new(&context).map_err(failed)?;
        for (index, issuer) in self.issuers.iter().enumerate() {
            connection.add_chain_cert(issuer.clone()).map_err(|error| {
                objection(issuer, level, &format!(" at place {} of its chain", index + 2), &error)
            })?;
        }
        Ok(())
    }
}

/// Compares the certificates only, because equal certificates have equal keys.
impl PartialEq for ClientIdentity {
    fn eq(&self, other: &ClientIdentity) -> bool {
        (&self.leaf, &self.issuers) == (&other.leaf, &other.issuers)
    }
}

impl Eq for ClientIdentity {}

impl std::fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientIdentity")
    }
}

/// Reads a private key. An encrypted key is an error, because OpenSSL would ask for the key's
/// password on the terminal.
fn private_key(pem: &str) -> Result<PKey<Private>, String> {
    let problem = if pem.contains("ENCRYPTED") {
        "holds an encrypted key; decrypt it: openssl pkcs8 -topk8 -nocrypt -in KEY.pem -out NEW.pem"
    } else if !pem.contains(" PRIVATE KEY-----") {
        "holds no private key; expected PEM with -----BEGIN PRIVATE KEY----- in it"
    } else if let Ok(key) = PKey::private_key_from_pem(pem.as_bytes()) {
        return Ok(key);
    } else {
        "holds a key that cannot be read; copy the whole PEM again, with its line ends"
    };
    Err(problem.to_owned())
}

/// The innermost reason in OpenSSL's error stack.
fn reason(error: &ErrorStack) -> String {
    let reason = error.errors().last().and_then(|error| error.reason());
    reason.unwrap_or("unknown reason").to_owned()
}

/// Describes why OpenSSL refused a certificate. OpenSSL's security level sets the minimum strength
/// of keys and signatures (SSL_CTX_set_security_level(3)). `which` names the certificate's place in
/// the chain; for the first certificate, `which` is empty.
fn objection(certificate: &X509Ref, level: u32, which: &str, error: &ErrorStack) -> String {
    let bits = certificate.public_key().map_or(0, |key| key.bits());
    let signature: Nid = certificate.signature_algorithm().object().nid();
    format!(
        "holds a certificate{which} that OpenSSL's security level {level} refuses: {} (the \
         certificate's key has {bits} bits; its signature algorithm is {})",
        reason(error),
        signature.long_name().unwrap_or("an unknown algorithm")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_line_ends_are_restored() {
        assert_eq!(with_line_ends("a\\nb\\n"), "a\nb\n");
        assert_eq!(with_line_ends("a\nb\\n"), "a\nb\\n");
    }

    #[test]
    fn trusted_certificates_and_keys_are_skipped() {
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
