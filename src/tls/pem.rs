//! PEM as users hand it over: certificates and keys, read and judged by OpenSSL before anything
//! starts, so that nothing which OpenSSL refuses is met only by the first connection.

use native_tls::Identity;
use openssl::error::ErrorStack;
use openssl::nid::Nid;
use openssl::pkey::{Id, PKey, Private};
use openssl::ssl::{Ssl, SslContext, SslContextBuilder, SslMethod};
use openssl::x509::{X509, X509Ref};

use crate::secret::Secret;

const PKCS8: &str = "-----BEGIN PRIVATE KEY-----";
/// What the line that begins a block of PEM with a private key ends with (RFC 7468 section 10).
const KEY: &str = " PRIVATE KEY-----";
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

/// Certificates of CAs, as they were written and as OpenSSL reads them. Two of the same text are
/// the same.
#[derive(Clone)]
pub struct Authorities {
    /// Some bundles hold a key, too.
    pem: Secret,
    certificates: Vec<native_tls::Certificate>,
}

impl Authorities {
    /// Reads every certificate in `pem`.
    ///
    /// # Errors
    /// What is wrong, as a predicate of the setting that holds it: there is none, or one cannot be
    /// read.
    pub fn from_pem(pem: String) -> Result<Authorities, String> {
        let certificates = native_tls::Certificate::stack_from_pem(pem.as_bytes())
            .map_err(|_| unreadable_certificate(&pem))?;
        if certificates.is_empty() {
            return Err(no_certificate());
        }
        Ok(Authorities { pem: Secret::new(pem), certificates })
    }

    /// These, and those of `other` behind them.
    pub fn and(mut self, other: Authorities) -> Authorities {
        self.pem = Secret::new(format!("{}\n{}", self.pem.expose(), other.pem.expose()));
        self.certificates.extend(other.certificates);
        self
    }

    pub fn certificates(&self) -> &[native_tls::Certificate] {
        &self.certificates
    }
}

impl PartialEq for Authorities {
    fn eq(&self, other: &Authorities) -> bool {
        self.pem == other.pem
    }
}

impl Eq for Authorities {}

impl std::fmt::Debug for Authorities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} certificates", self.certificates.len())
    }
}

fn no_certificate() -> String {
    "holds no certificate; expected PEM with -----BEGIN CERTIFICATE----- in it".to_owned()
}

/// The blocks in `pem`, each with what stands behind it up to the next.
pub fn blocks(pem: &[u8]) -> impl Iterator<Item = &[u8]> {
    let begin = BEGIN.as_bytes();
    let next = move |from: usize| {
        let rest = pem.get(from..)?;
        rest.windows(begin.len()).position(|window| window == begin).map(|at| from + at)
    };
    let mut start = next(0);
    std::iter::from_fn(move || {
        let from = start?;
        start = next(from + begin.len());
        Some(&pem[from..start.unwrap_or(pem.len())])
    })
}

/// Says which certificate of `pem` cannot be read.
fn unreadable_certificate(pem: &str) -> String {
    let is_certificate =
        |block: &&[u8]| !block.windows(KEY.len()).any(|window| window == KEY.as_bytes());
    let mut read = blocks(pem.as_bytes()).filter(is_certificate).map(X509::from_pem);
    let place = match read.position(|certificate| certificate.is_err()) {
        Some(0) | None => "the first".to_owned(),
        Some(earlier) => format!("the one at place {}", earlier + 1),
    };
    format!(
        "holds a certificate that cannot be read ({place}); copy the PEM again, whole, with its \
         line ends"
    )
}

/// A client's certificate (its chain behind it) and key, which OpenSSL takes as they are. Two of
/// the same text are the same.
#[derive(Clone)]
pub struct ClientIdentity {
    certificate: Secret,
    key: Secret,
    loaded: Identity,
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
        let chain = X509::stack_from_pem(certificate.as_bytes())
            .map_err(|_| IdentityProblem::Certificate(unreadable_certificate(certificate)))?;
        let Some((leaf, issuers)) = chain.split_first() else {
            return Err(IdentityProblem::Certificate(no_certificate()));
        };
        let wrong = |problem: &str| IdentityProblem::Key(problem.to_owned());
        if key.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----")
            || key.contains("Proc-Type: 4,ENCRYPTED")
        {
            return Err(wrong(
                "holds an encrypted key; decrypt it: openssl pkcs8 -topk8 -nocrypt -in KEY.pem \
                 -out NEW.pem",
            ));
        }
        let Some(start) = key.find(PKCS8) else {
            return Err(wrong(if key.contains(KEY) {
                "holds a key in the traditional form (PKCS#1 or SEC 1) and not in PKCS#8; convert \
                 it: openssl pkcs8 -topk8 -nocrypt -in KEY.pem -out NEW.pem"
            } else {
                "holds no private key; expected PEM with -----BEGIN PRIVATE KEY----- in it"
            }));
        };
        let key = &key[start..];
        let unreadable =
            "holds a key that cannot be read; copy the PEM again, whole, with its line ends";
        let parsed = PKey::private_key_from_pem(key.as_bytes()).map_err(|_| wrong(unreadable))?;
        if !leaf.public_key().is_ok_and(|public| public.public_eq(&parsed)) {
            return Err(wrong(
                "holds a key that does not belong to the first certificate of the client \
                 certificate",
            ));
        }
        judge(leaf, issuers, &parsed)?;
        let loaded = Identity::from_pkcs8(certificate.as_bytes(), key.as_bytes())
            .map_err(|_| wrong(unreadable))?;
        Ok(ClientIdentity { certificate: Secret::new(certificate), key: Secret::new(key), loaded })
    }

    /// The same for native-tls.
    pub fn loaded(&self) -> &Identity {
        &self.loaded
    }
}

impl PartialEq for ClientIdentity {
    fn eq(&self, other: &ClientIdentity) -> bool {
        (&self.certificate, &self.key) == (&other.certificate, &other.key)
    }
}

impl Eq for ClientIdentity {}

impl std::fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientIdentity")
    }
}

/// Has OpenSSL take a client's certificate, key and chain as it does for a connection.
fn judge(leaf: &X509, issuers: &[X509], key: &PKey<Private>) -> Result<(), IdentityProblem> {
    let unusable = |error: ErrorStack| {
        IdentityProblem::Certificate(format!(
            "cannot be judged, as OpenSSL fails: {}",
            reason(&error)
        ))
    };
    let mut context = SslContextBuilder::new(SslMethod::tls()).map_err(unusable)?;
    let leaf_taken = context.set_certificate(leaf);
    let key_taken = leaf_taken.is_ok().then(|| context.set_private_key(key));
    let context = context.build();
    let level = SecurityLevel::of(&context);
    leaf_taken.map_err(|error| IdentityProblem::Certificate(level.objection(leaf, "", &error)))?;
    if let Some(Err(error)) = key_taken {
        return Err(IdentityProblem::Key(format!(
            "holds a key that OpenSSL refuses: {}",
            reason(&error)
        )));
    }
    let mut connection = Ssl::new(&context).map_err(unusable)?;
    for (index, issuer) in issuers.iter().enumerate() {
        connection.add_chain_cert(issuer.clone()).map_err(|error| {
            let which = format!(" at place {} of its chain", index + 2);
            IdentityProblem::Certificate(level.objection(issuer, &which, &error))
        })?;
    }
    Ok(())
}

/// OpenSSL's innermost reason.
fn reason(error: &ErrorStack) -> String {
    let reason = error.errors().last().and_then(|error| error.reason());
    reason.unwrap_or("unknown reason").to_owned()
}

/// How strong keys and signatures have to be (SSL_CTX_set_security_level(3)).
#[derive(Debug, Clone, Copy)]
struct SecurityLevel(u32);

impl SecurityLevel {
    fn of(context: &SslContext) -> SecurityLevel {
        SecurityLevel(context.security_level())
    }

    /// The fewest bits of keys of this kind, by SSL_CTX_set_security_level(3); `None` for kinds
    /// that have no choice.
    fn least_bits(self, kind: Id) -> Option<u32> {
        let elliptic = kind == Id::EC;
        if !elliptic && ![Id::RSA, Id::RSA_PSS, Id::DSA].contains(&kind) {
            return None;
        }
        Some(match (self.0, elliptic) {
            (0, _) => 0,
            (1, false) => 1024,
            (1, true) => 160,
            (2, false) => 2048,
            (2, true) => 224,
            (3, false) => 3072,
            (3, true) => 256,
            (4, false) => 7680,
            (4, true) => 384,
            (_, false) => 15_360,
            (_, true) => 512,
        })
    }

    /// Why OpenSSL refused a certificate with `error`; `which`: the one that is meant, if not the
    /// first.
    fn objection(self, certificate: &X509Ref, which: &str, error: &ErrorStack) -> String {
        let level = self.0;
        let key = certificate.public_key();
        let short = key.as_ref().ok().and_then(|key| {
            let least = self.least_bits(key.id())?;
            (key.bits() < least).then(|| (key.bits(), least))
        });
        if let Some((bits, least)) = short {
            return format!(
                "holds a certificate{which} that is too weak: the key has {bits} bits; OpenSSL's \
                 security level {level} wants {least}"
            );
        }
        match reason(error).as_str() {
            "ca md too weak" | "ee md too weak" | "md too weak" => format!(
                "holds a certificate{which} that is too weak: it is signed by {}; OpenSSL's \
                 security level {level} wants SHA-256 or stronger",
                signature_name(certificate)
            ),
            reason => format!("holds a certificate{which} that OpenSSL refuses: {reason}"),
        }
    }
}

fn signature_name(certificate: &X509Ref) -> String {
    let algorithm: Nid = certificate.signature_algorithm().object().nid();
    algorithm.long_name().unwrap_or("an unknown algorithm").to_owned()
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
        let problem = |pem: &str| Authorities::from_pem(pem.to_owned()).unwrap_err();
        let none = problem("hello");
        assert!(none.starts_with("holds no certificate"), "{none}");
        for content in ["AAAA", "MIIB", "not base64!"] {
            let broken =
                format!("-----BEGIN CERTIFICATE-----\n{content}\n-----END CERTIFICATE-----\n");
            let broken = problem(&broken);
            assert!(broken.starts_with("holds a certificate that cannot be read"), "{broken}");
        }
        let cut = problem("-----BEGIN CERTIFICATE-----\nAAAA\n");
        assert!(cut.starts_with("holds a certificate that cannot be read"), "{cut}");
    }
}
