//! The system's CA certificates, read once and only when something is verified against them: that
//! takes 30 ms of CPU and 2 MiB.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use openssl::error::ErrorStack;
use openssl::ssl::SslFiletype;
use openssl::x509::X509;
use openssl::x509::store::{X509Lookup, X509StoreBuilderRef};

use super::pem;

/// Adds the system's bundle, and its folders of certificates, into which OpenSSL looks only when it
/// must.
///
/// # Errors
/// When OpenSSL has no memory.
pub fn add_to(store: &mut X509StoreBuilderRef) -> Result<(), ErrorStack> {
    for certificate in of_bundle() {
        store.add_cert(certificate.clone())?;
    }
    let folders = store.add_lookup(X509Lookup::hash_dir())?;
    for folder in openssl_probe::probe().cert_dir {
        if let Some(folder) = folder.to_str() {
            folders.add_dir(folder, SslFiletype::PEM)?;
        }
    }
    Ok(())
}

/// The certificates of the bundle. An unreadable one is left out: the system's bundle is not the
/// user's to repair.
fn of_bundle() -> &'static [X509] {
    static ROOTS: OnceLock<Vec<X509>> = OnceLock::new();
    let read = || {
        let bundle = openssl_probe::probe().cert_file;
        let pem = bundle.and_then(|bundle| fs::read(bundle).ok()).unwrap_or_default();
        certificates_in(&pem).collect()
    };
    ROOTS.get_or_init(read)
}

/// Whether the system has any certificate to trust.
pub fn exist() -> bool {
    let found = openssl_probe::probe();
    let bundle = found.cert_file.and_then(|bundle| fs::read(bundle).ok());
    bundle.is_some_and(|pem| certificates_in(&pem).next().is_some())
        || found.cert_dir.iter().any(|folder| holds_hashed_names(folder))
}

fn certificates_in(pem: &[u8]) -> impl Iterator<Item = X509> {
    pem::blocks(pem).filter_map(|block| X509::from_pem(block).ok())
}

/// Whether OpenSSL could find a certificate there: it looks for `HASH.NUMBER` (openssl-rehash(1)).
fn holds_hashed_names(folder: &Path) -> bool {
    let hashed = |name: &str| {
        name.split_once('.').is_some_and(|(hash, number)| {
            hash.len() == 8
                && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
                && !number.is_empty()
                && number.bytes().all(|byte| byte.is_ascii_digit())
        })
    };
    let Ok(entries) = fs::read_dir(folder) else { return false };
    // A link that dangles leads to no certificate.
    entries
        .flatten()
        .any(|entry| entry.file_name().to_str().is_some_and(hashed) && entry.path().exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_counts_when_openssl_would_find_a_certificate_in_it() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["README", "ca.pem", "0123456.0", "01234567.", "01234567.r0", "zzzzzzzz.0"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert!(!holds_hashed_names(folder.path()));
        let dangling = folder.path().join("01234567.0");
        std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
        assert!(!holds_hashed_names(folder.path()));
        fs::write(folder.path().join("01234567.1"), "").unwrap();
        assert!(holds_hashed_names(folder.path()));
        assert!(!holds_hashed_names(&folder.path().join("none")));
    }
}
