//! PEM as users hand it over: certificates and keys, read and judged by OpenSSL before anything
//! starts, so that nothing which OpenSSL refuses is met only by the first connection.

use openssl::error::ErrorStack;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{Ssl, SslContextBuilder, SslMethod};
use openssl::x509::{X509, X509Ref};

/// What every block of PEM begins with (RFC 7468 section 2).
const BEGIN: &str = "-----BEGIN ";

/// Whether `text` is PEM rather than the name of a file.
pub fn is_pem(text: &str) -> bool {
    text.contains(BEGIN)
}

/// PEM with its line ends: places that hold one line only carry them as `\n`.
pub fn with_line_ends(text: &str) -> String {
    if text.contains('\n') { text.to_owned() } else { text.replace("\\n", "\n") }
}

/// The certificates in `pem`, each as OpenSSL reads it. Keys and other things between them are
/// skipped.
pub fn each_certificate(pem: &str) -> impl Iterator<Item = Result<X509, ErrorStack>> {
    let blocks = pem.split(BEGIN).skip(1);
    let is_certificate = |block: &&str| {
        block.lines().next().is_some_and(|label| label.trim_end().ends_with("CERTIFICATE-----"))
    };
    blocks.filter(is_certificate).map(|block| X509::from_pem(format!("{BEGIN}{block}").as_bytes()))
}

/// All certificates in `pem`.
///
/// # Errors
/// What is wrong, as a predicate of the setting that holds it: there is none, or one cannot be
/// read.
pub fn certificates(pem: &str) -> Result<Vec<X509>, String> {
    let mut all = Vec::new();
    for certificate in each_certificate(pem) {
        all.push(certificate.map_err(|_| {
            let place = match all.len() {
                0 => "the first".to_owned(),
                earlier => format!("the one at place {}", earlier + 1),
            };
            format!(
                "holds a certificate that cannot be read ({place}); copy the PEM again, whole, \
                 with its line ends"
            )
        })?);
    }
    if all.is_empty() {
        return Err(
            "holds no certificate; expected PEM with -----BEGIN CERTIFICATE----- in it".to_owned()
        );
    }
    Ok(all)
}

/// A client's certificate with its chain, and its key.
#[derive(Clone)]
pub struct ClientIdentity {
    leaf: X509,
    issuers: Vec<X509>,
    key: PKey<Private>,
}

/// What is wrong with a [`ClientIdentity`], as a predicate of the setting that holds it.
#[derive(Debug, PartialEq, Eq)]
pub enum IdentityProblem {
    /// With the certificate.
    Certificate(String),
    /// With the key.
    Key(String),
}

impl ClientIdentity {
    /// Reads both, and has OpenSSL judge them as it does for a connection: whether they belong
    /// together, and whether they are strong enough for its security level.
    ///
    /// # Errors
    /// Which of the two is wrong, and how.
    pub fn new(certificate: &str, key: &str) -> Result<ClientIdentity, IdentityProblem> {
        let mut chain = certificates(certificate).map_err(IdentityProblem::Certificate)?;
        let issuers = chain.split_off(1);
        let leaf = chain.remove(0);
        let key = private_key(key).map_err(IdentityProblem::Key)?;
        if !leaf.public_key().is_ok_and(|public| public.public_eq(&key)) {
            return Err(IdentityProblem::Key(
                "holds a key that does not belong to the first certificate of the client \
                 certificate"
                    .to_owned(),
            ));
        }
        let identity = ClientIdentity { leaf, issuers, key };
        identity.judge().map_err(IdentityProblem::Certificate)?;
        Ok(identity)
    }

    /// Shows this identity to servers that ask for a client certificate.
    ///
    /// # Errors
    /// When OpenSSL has no memory.
    pub fn set_in(&self, context: &mut SslContextBuilder) -> Result<(), ErrorStack> {
        context.set_certificate(&self.leaf)?;
        context.set_private_key(&self.key)?;
        self.issuers.iter().try_for_each(|issuer| context.add_extra_chain_cert(issuer.clone()))
    }

    /// Has OpenSSL take the certificates as it does for a connection: it looks at the issuers only
    /// then.
    fn judge(&self) -> Result<(), String> {
        let failed = |error| format!("cannot be judged, as OpenSSL fails: {}", reason(&error));
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

/// Two with the same certificate have the same key.
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

/// Reads a private key. OpenSSL would ask the terminal for the password of an encrypted one.
fn private_key(pem: &str) -> Result<PKey<Private>, String> {
    let problem = if pem.contains("ENCRYPTED") {
        "holds an encrypted key; decrypt it: openssl pkcs8 -topk8 -nocrypt -in KEY.pem -out NEW.pem"
    } else if !pem.contains(" PRIVATE KEY-----") {
        "holds no private key; expected PEM with -----BEGIN PRIVATE KEY----- in it"
    } else if let Ok(key) = PKey::private_key_from_pem(pem.as_bytes()) {
        return Ok(key);
    } else {
        "holds a key that cannot be read; copy the PEM again, whole, with its line ends"
    };
    Err(problem.to_owned())
}

/// OpenSSL's innermost reason.
fn reason(error: &ErrorStack) -> String {
    let reason = error.errors().last().and_then(|error| error.reason());
    reason.unwrap_or("unknown reason").to_owned()
}

/// Why OpenSSL refused a certificate with `error` at a security level, which sets how strong keys
/// and signatures have to be (SSL_CTX_set_security_level(3)). `which`: the certificate that is
/// meant, if not the first.
fn objection(certificate: &X509Ref, level: u32, which: &str, error: &ErrorStack) -> String {
    let bits = certificate.public_key().map_or(0, |key| key.bits());
    let signature: Nid = certificate.signature_algorithm().object().nid();
    format!(
        "holds a certificate{which} that OpenSSL's security level {level} refuses: {} (its key has \
         {bits} bits; it is signed by {})",
        reason(error),
        signature.long_name().unwrap_or("an unknown algorithm")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_that_were_lost_on_the_way_are_put_back() {
        assert_eq!(with_line_ends("a\\nb\\n"), "a\nb\n");
        assert_eq!(with_line_ends("a\nb\\n"), "a\nb\\n");
    }

    #[test]
    fn broken_pem_is_told_apart_from_none() {
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
