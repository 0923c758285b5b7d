//! PEM as users hand it over: certificates and keys, checked before anything starts.

use native_tls::Identity;
use openssl::pkey::PKey;
use openssl::x509::X509;

use crate::secret::Secret;

const PKCS8: &str = "-----BEGIN PRIVATE KEY-----";

/// Whether `text` is PEM rather than the name of a file.
pub fn is_pem(text: &str) -> bool {
    text.contains("-----BEGIN ")
}

/// PEM with its line ends: places that hold one line only carry them as `\n`.
pub fn with_line_ends(text: &str) -> String {
    if text.contains('\n') { text.to_owned() } else { text.replace("\\n", "\n") }
}

/// The certificates in `pem`, at least one.
///
/// # Errors
/// What is wrong, as a predicate of the setting that holds it.
pub fn certificates(pem: &str) -> Result<Vec<X509>, String> {
    const NONE: &str = "holds no certificate; expected PEM with -----BEGIN CERTIFICATE----- in it";
    match X509::stack_from_pem(pem.as_bytes()) {
        Ok(certificates) if certificates.is_empty() => Err(NONE.to_owned()),
        Ok(certificates) => Ok(certificates),
        Err(_) if !pem.contains("-----BEGIN CERTIFICATE-----") => Err(NONE.to_owned()),
        Err(_) => Err("holds a certificate that cannot be read; copy the PEM again, whole, with its line ends".to_owned()),
    }
}

/// A client's certificate (its chain behind it) and key, both PEM.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientIdentity {
    certificate: Secret,
    key: Secret,
}

/// What is wrong with a [`ClientIdentity`].
#[derive(Debug, PartialEq, Eq)]
pub enum IdentityProblem {
    /// With the certificate.
    Certificate(String),
    /// With the key.
    Key(String),
}

impl ClientIdentity {
    /// Checks that both can be read and belong together.
    ///
    /// # Errors
    /// Which of the two is wrong, and how.
    pub fn new(certificate: &str, key: &str) -> Result<ClientIdentity, IdentityProblem> {
        let leaf = certificates(certificate).map_err(IdentityProblem::Certificate)?.swap_remove(0);
        let wrong = |problem: &str| IdentityProblem::Key(problem.to_owned());
        if key.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----")
            || key.contains("Proc-Type: 4,ENCRYPTED")
        {
            return Err(wrong(
                "holds an encrypted key; decrypt it: openssl pkcs8 -topk8 -nocrypt -in KEY.pem -out NEW.pem",
            ));
        }
        let Some(start) = key.find(PKCS8) else {
            return Err(wrong(if key.contains(" PRIVATE KEY-----") {
                "holds a key in the traditional form (PKCS#1 or SEC 1) and not in PKCS#8; convert it: \
                 openssl pkcs8 -topk8 -nocrypt -in KEY.pem -out NEW.pem"
            } else {
                "holds no private key; expected PEM with -----BEGIN PRIVATE KEY----- in it"
            }));
        };
        let key = &key[start..];
        let parsed = PKey::private_key_from_pem(key.as_bytes()).map_err(|_| {
            wrong("holds a key that cannot be read; copy the PEM again, whole, with its line ends")
        })?;
        if !leaf.public_key().is_ok_and(|public| public.public_eq(&parsed)) {
            return Err(wrong(
                "holds a key that does not belong to the first certificate of the client certificate",
            ));
        }
        Ok(ClientIdentity { certificate: Secret::new(certificate), key: Secret::new(key) })
    }

    /// The same for native-tls.
    ///
    /// # Errors
    /// None, after the checks of [`ClientIdentity::new`].
    pub fn load(&self) -> native_tls::Result<Identity> {
        Identity::from_pkcs8(self.certificate.expose().as_bytes(), self.key.expose().as_bytes())
    }
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
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let broken = certificates(broken).unwrap_err();
        assert!(broken.starts_with("holds a certificate that cannot be read"), "{broken}");
    }
}
