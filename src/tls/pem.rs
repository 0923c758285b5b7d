//! PEM as users hand it over: certificates and keys, checked before anything starts.

use native_tls::Identity;
use openssl::pkey::PKey;
use openssl::x509::X509;
use x509_parser::pem::Pem;

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

/// Checks that `pem` holds certificates, at least one, and that each can be read. Quick enough for the
/// hundreds of a whole bundle before COMMAND starts: OpenSSL, which takes ten times as long, reads them
/// again beside it.
///
/// # Errors
/// What is wrong, as a predicate of the setting that holds it.
pub fn check_certificates(pem: &str) -> Result<(), String> {
    let unreadable = |number: usize| {
        format!(
            "holds a certificate that cannot be read (the {}); copy the PEM again, whole, with its line \
             ends",
            ordinal(number)
        )
    };
    let mut certificates = 0;
    for block in Pem::iter_from_buffer(pem.as_bytes()) {
        match block {
            Ok(block) if block.label != "CERTIFICATE" => {}
            Ok(block) if block.parse_x509().is_ok() => certificates += 1,
            _ => return Err(unreadable(certificates + 1)),
        }
    }
    match certificates {
        0 => {
            Err("holds no certificate; expected PEM with -----BEGIN CERTIFICATE----- in it"
                .to_owned())
        }
        _ => Ok(()),
    }
}

fn ordinal(number: usize) -> String {
    match number {
        1 => "first".to_owned(),
        _ => format!("one at place {number}"),
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
        check_certificates(certificate).map_err(IdentityProblem::Certificate)?;
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
        let leaf = X509::from_pem(certificate.as_bytes()).and_then(|leaf| leaf.public_key());
        if !leaf.is_ok_and(|public| public.public_eq(&parsed)) {
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
        let none = check_certificates("hello").unwrap_err();
        assert!(none.starts_with("holds no certificate"), "{none}");
        for content in ["AAAA", "MIIB", "not base64!"] {
            let broken =
                format!("-----BEGIN CERTIFICATE-----\n{content}\n-----END CERTIFICATE-----\n");
            let broken = check_certificates(&broken).unwrap_err();
            assert!(broken.starts_with("holds a certificate that cannot be read"), "{broken}");
        }
        let cut = check_certificates("-----BEGIN CERTIFICATE-----\nAAAA\n").unwrap_err();
        assert!(cut.starts_with("holds a certificate that cannot be read"), "{cut}");
    }
}
