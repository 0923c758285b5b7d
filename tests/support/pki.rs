//! Certificates for tests, valid and invalid, with a root CA and an intermediate CA.

use std::path::{Path, PathBuf};

use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::x509::extension::{BasicConstraints, ExtendedKeyUsage, SubjectAlternativeName};
use openssl::x509::{X509, X509Name, X509NameBuilder};

const DAY: i64 = 86_400;

/// A certificate and its key, as files in a folder.
pub struct Certificate {
    pub certificate: X509,
    pub key: PKey<Private>,
    /// Contains the certificate, followed by its chain.
    pub certificate_file: PathBuf,
    pub key_file: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Rsa,
    /// An RSA key with only 1024 bits.
    WeakRsa,
    /// An RSA key with this public exponent, in hexadecimal.
    RsaWithExponent(&'static str),
    Ecdsa,
}

/// The fields of a new certificate.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    pub name: &'a str,
    pub dns: &'a [&'a str],
    pub ip: &'a [&'a str],
    /// The first and last day of validity, in days from now.
    pub valid: (i64, i64),
    pub kind: Kind,
    pub is_ca: bool,
    /// True if the certificate is valid only for clients, and not for servers.
    pub for_clients: bool,
    /// True if the issuer signs with SHA-1 instead of SHA-256.
    pub weakly_signed: bool,
}

impl Default for Request<'_> {
    fn default() -> Self {
        Request {
            name: "localhost",
            dns: &["localhost"],
            ip: &["127.0.0.1"],
            valid: (-1, 2),
            kind: Kind::Rsa,
            is_ca: false,
            for_clients: false,
            weakly_signed: false,
        }
    }
}

impl Certificate {
    /// A self-signed certificate for localhost and 127.0.0.1.
    pub fn self_signed(folder: &Path) -> Certificate {
        Certificate::issue(folder, "self-signed", &Request::default(), None, &[])
    }

    /// Issues a certificate. Without `issuer`, the certificate is self-signed. Writes the
    /// certificate and `chain` to `FILE.pem`, and the key to `FILE.key`.
    pub fn issue(
        folder: &Path,
        file: &str,
        request: &Request<'_>,
        issuer: Option<&Certificate>,
        chain: &[&Certificate],
    ) -> Certificate {
        let key = new_key(request.kind);
        let subject = named(request.name);
        let mut builder = X509::builder().unwrap();
        builder.set_version(2).unwrap();
        let mut serial = BigNum::new().unwrap();
        serial.rand(120, MsbOption::MAYBE_ZERO, false).unwrap();
        builder.set_serial_number(&serial.to_asn1_integer().unwrap()).unwrap();
        builder.set_subject_name(&subject).unwrap();
        builder
            .set_issuer_name(issuer.map_or(&*subject, |ca| ca.certificate.subject_name()))
            .unwrap();
        builder.set_pubkey(&key).unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let day = |days: i64| Asn1Time::from_unix(now.as_secs() as i64 + days * DAY).unwrap();
        builder.set_not_before(&day(request.valid.0)).unwrap();
        builder.set_not_after(&day(request.valid.1)).unwrap();
        if request.is_ca {
            builder
                .append_extension(BasicConstraints::new().critical().ca().build().unwrap())
                .unwrap();
        } else if !(request.dns.is_empty() && request.ip.is_empty()) {
            let mut names = SubjectAlternativeName::new();
            for name in request.dns {
                names.dns(name);
            }
            for address in request.ip {
                names.ip(address);
            }
            let names = names.build(&builder.x509v3_context(None, None)).unwrap();
            builder.append_extension(names).unwrap();
        }
        if request.for_clients {
            let purpose = ExtendedKeyUsage::new().client_auth().build().unwrap();
            builder.append_extension(purpose).unwrap();
        }
        let digest =
            if request.weakly_signed { MessageDigest::sha1() } else { MessageDigest::sha256() };
        builder.sign(issuer.map_or(&key, |ca| &ca.key), digest).unwrap();
        let certificate = builder.build();

        let (certificate_file, key_file) =
            (folder.join(format!("{file}.pem")), folder.join(format!("{file}.key")));
        let mut pem = certificate.to_pem().unwrap();
        chain.iter().for_each(|ca| pem.extend(ca.certificate.to_pem().unwrap()));
        std::fs::write(&certificate_file, pem).unwrap();
        std::fs::write(&key_file, key.private_key_to_pem_pkcs8().unwrap()).unwrap();
        Certificate { certificate, key, certificate_file, key_file }
    }

    /// The path of the file that contains the certificate.
    pub fn path(&self) -> &str {
        self.certificate_file.to_str().unwrap()
    }

    pub fn pem(&self) -> String {
        std::fs::read_to_string(&self.certificate_file).unwrap()
    }

    pub fn key_pem(&self) -> String {
        std::fs::read_to_string(&self.key_file).unwrap()
    }

    /// The pin of the key, computed with `openssl` commands from curl's manual.
    pub fn pin(&self) -> String {
        let script = format!(
            "openssl x509 -in '{}' -pubkey -noout | openssl pkey -pubin -outform der | \
             openssl dgst -sha256 -binary | openssl base64",
            self.certificate_file.display()
        );
        let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        format!("sha256//{}", String::from_utf8(output.stdout).unwrap().trim())
    }
}

fn new_key(kind: Kind) -> PKey<Private> {
    let rsa = |bits| PKey::from_rsa(Rsa::generate(bits).unwrap()).unwrap();
    match kind {
        Kind::Rsa => rsa(2048),
        Kind::WeakRsa => rsa(1024),
        Kind::RsaWithExponent(exponent) => {
            let exponent = BigNum::from_hex_str(exponent).unwrap();
            PKey::from_rsa(Rsa::generate_with_e(2048, &exponent).unwrap()).unwrap()
        }
        Kind::Ecdsa => {
            let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
            PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
        }
    }
}

fn named(common_name: &str) -> X509Name {
    let mut name = X509NameBuilder::new().unwrap();
    name.append_entry_by_nid(Nid::COMMONNAME, common_name).unwrap();
    name.build()
}

/// A root CA and an intermediate CA.
pub struct Authority {
    pub root: Certificate,
    pub intermediate: Certificate,
}

impl Authority {
    pub fn new(folder: &Path) -> Authority {
        Authority::named(folder, "Test")
    }

    pub fn named(folder: &Path, name: &str) -> Authority {
        let [root_name, name] = ["Root", "Intermediate"].map(|kind| format!("{name} {kind}"));
        let ca = Request { is_ca: true, ..Request::default() };
        let root = Request { name: &root_name, ..ca.clone() };
        let root = Certificate::issue(folder, "root", &root, None, &[]);
        let intermediate = Request { name: &name, ..ca };
        let intermediate =
            Certificate::issue(folder, "intermediate", &intermediate, Some(&root), &[]);
        Authority { root, intermediate }
    }

    /// Issues a certificate that the intermediate CA signs.
    pub fn issue(&self, folder: &Path, file: &str, request: &Request<'_>) -> Certificate {
        Certificate::issue(folder, file, request, Some(&self.intermediate), &[&self.intermediate])
    }
}
