//! The system's certificates, read once and only when something is verified against them.
//!
//! native-tls reads them for every connector, even for one that is told to do without: 30 ms of CPU and
//! 2 MiB each time. So they are kept from it, and read here.

#![allow(unsafe_code)]

use std::env;
use std::path::PathBuf;
use std::sync::OnceLock;

use native_tls::Certificate;

/// The variable by which OpenSSL is told where the bundle is (openssl-env(7)).
const CERT_FILE: &str = "SSL_CERT_FILE";

/// The bundle that native-tls would have read.
static BUNDLE: OnceLock<PathBuf> = OnceLock::new();
static ROOTS: OnceLock<Vec<Certificate>> = OnceLock::new();

/// Keeps native-tls from reading the system's bundle. COMMAND's environment is not affected, if it was
/// copied before.
///
/// Folders of certificates (SSL_CERT_DIR) are left to it: OpenSSL looks into them only when it must.
///
/// # Safety
/// No other thread may run yet: this changes the process's environment.
pub unsafe fn keep_from_native_tls() {
    if let Some(bundle) = openssl_probe::probe().cert_file {
        BUNDLE.get_or_init(|| bundle);
        // SAFETY: by this function's own contract.
        unsafe { env::set_var(CERT_FILE, "/dev/null") };
    }
}

/// The certificates of the bundle. One that cannot be read holds none, and nothing is trusted then.
pub fn of_bundle() -> &'static [Certificate] {
    let read = || {
        let pem = BUNDLE.get().and_then(|bundle| std::fs::read(bundle).ok()).unwrap_or_default();
        Certificate::stack_from_pem(&pem).unwrap_or_default()
    };
    ROOTS.get_or_init(read)
}
