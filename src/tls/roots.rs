//! The system's certificates, read once and only when something is verified against them.
//!
//! native-tls reads them for every connector, even for one that is told to do without: 30 ms of CPU
//! and 2 MiB each time. So we hide the bundle from it, and load it once.

#![allow(unsafe_code)]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use native_tls::Certificate;

use super::pem;

/// The variable by which OpenSSL is told where the bundle is (openssl-env(7)).
const CERT_FILE: &str = "SSL_CERT_FILE";

/// The bundle that native-tls would have read.
static BUNDLE: OnceLock<PathBuf> = OnceLock::new();
static ROOTS: OnceLock<Vec<Certificate>> = OnceLock::new();

/// Keeps native-tls from reading the system's bundle. COMMAND's environment is not affected, if it
/// was copied before.
///
/// Folders of certificates (SSL_CERT_DIR) are left to it: OpenSSL looks into them only when it
/// must.
///
/// # Safety
/// No other thread may run yet: this changes the process's environment.
pub unsafe fn keep_from_native_tls() {
    if let Some(bundle) = openssl_probe::probe().cert_file {
        BUNDLE.get_or_init(|| bundle);
        // SAFETY: as this function demands of its caller.
        unsafe { env::set_var(CERT_FILE, "/dev/null") };
    }
}

/// The certificates of the bundle. One that cannot be read is left out: a bundle of the system's is
/// not the user's to mend.
pub fn of_bundle() -> &'static [Certificate] {
    let read = || {
        let pem = BUNDLE.get().and_then(|bundle| fs::read(bundle).ok()).unwrap_or_default();
        certificates_in(&pem).collect()
    };
    ROOTS.get_or_init(read)
}

/// Where the bundle is.
pub fn bundle() -> Option<&'static Path> {
    BUNDLE.get().map(PathBuf::as_path)
}

/// Whether the system has any certificate to trust.
pub fn exist() -> bool {
    let found = openssl_probe::probe();
    let bundle = found.cert_file.and_then(|bundle| fs::read(bundle).ok());
    bundle.is_some_and(|pem| certificates_in(&pem).next().is_some())
        || found.cert_dir.iter().any(|folder| holds_hashed_names(folder))
}

fn certificates_in(pem: &[u8]) -> impl Iterator<Item = Certificate> {
    pem::blocks(pem).filter_map(|block| Certificate::from_pem(block).ok())
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
