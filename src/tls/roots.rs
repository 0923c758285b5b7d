//! The system's CA certificates (roots). The launcher reads the roots once, and only if a tunnel
//! verifies its server with the roots.
//!
//! native-tls would read the roots for every connector, even for connectors that verify nothing.
//! Each reading costs 30 ms of CPU time and 2 MiB of memory. So the launcher hides the bundle,
//! which is the file with the roots, from native-tls.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use openssl::x509::X509;

use super::pem;
use super::trust::{Trust, Verify};
use crate::names;
use crate::sandbox::directory_of;
use crate::secret::shown;
use crate::system::process::set_variable;

/// The environment variables with the paths of the file and of the directories that contain CA
/// certificates (openssl-env(7)).
const CERT_FILE: &str = "SSL_CERT_FILE";
const CERT_DIR: &str = "SSL_CERT_DIR";

/// The environment variables with the paths of OpenSSL's configuration and providers
/// (openssl-env(7)).
const OPENSSL_PATHS: [&str; 2] = ["OPENSSL_CONF", "OPENSSL_MODULES"];

/// The path of the file with the system's CA certificates, which the launcher hides from
/// native-tls.
static BUNDLE: OnceLock<PathBuf> = OnceLock::new();
static ROOTS: OnceLock<Vec<X509>> = OnceLock::new();

/// The reason why the launcher cannot use the system's CA certificates.
#[derive(Debug)]
pub struct RootsProblem {
    /// The environment variable whose path cannot be read. `None` if the system has no CA
    /// certificate.
    pub variable: Option<&'static str>,
    /// The part of the error message after the name of the setting or variable.
    pub problem: String,
}

/// Hides the file with the system's CA certificates from native-tls, by changing this process's
/// environment. The caller must first copy the environment for COMMAND, and must not have started a
/// thread.
///
/// native-tls still finds the system's directories of CA certificates. OpenSSL searches these
/// directories only for issuers that are missing in the system's bundle.
pub fn keep_from_native_tls() {
    if let Some(bundle) = openssl_probe::probe().cert_file {
        BUNDLE.get_or_init(|| bundle);
        set_variable(CERT_FILE, "/dev/null");
    }
}

/// Returns the CA certificates in the system's bundle and in the directories of SSL_CERT_DIR.
/// Unreadable certificates are skipped, because a user cannot repair the system's bundle.
pub fn loaded() -> &'static [X509] {
    let load = || {
        let bundle = BUNDLE.get().into_iter().cloned();
        let directories = own_directories().unwrap_or_default();
        let files = bundle.chain(directories.iter().flat_map(|directory| hashed(directory)));
        let pems = files.filter_map(|file| pem::read_file(&file).ok());
        pems.flat_map(|pem| certificates_in(&pem).collect::<Vec<_>>()).collect()
    };
    ROOTS.get_or_init(load)
}

/// Returns the directories in SSL_CERT_DIR, which replace the system's directories of CA
/// certificates. Returns `None` if the variable SSL_CERT_DIR is unset or empty.
pub fn own_directories() -> Option<Vec<PathBuf>> {
    let list = setting(CERT_DIR)?;
    Some(env::split_paths(&list).filter(|directory| !directory.as_os_str().is_empty()).collect())
}

/// Checks that there are system roots, that the file in SSL_CERT_FILE is readable, and that at
/// least one directory in SSL_CERT_DIR is readable. OpenSSL would ignore an unreadable path without
/// an error.
///
/// # Errors
/// The error is the first problem that the function finds.
pub fn check() -> Result<(), RootsProblem> {
    if let Some(file) = setting(CERT_FILE) {
        check_file(Path::new(&file))?;
    }
    let own_directories = own_directories();
    let can_read = |directory: &PathBuf| fs::read_dir(directory).is_ok();
    if own_directories.as_ref().is_some_and(|directories| !directories.iter().any(can_read)) {
        let problem = format!(
            "is {list}, which lists no readable directory; set the variable to a list of \
             directories separated by colons, or unset the variable to use the system's \
             directories",
            list = shown(&setting(CERT_DIR).unwrap_or_default().to_string_lossy())
        );
        return Err(RootsProblem { variable: Some(CERT_DIR), problem });
    }
    let found = openssl_probe::probe();
    let bundle = found.cert_file.and_then(|bundle| pem::read_file(&bundle).ok());
    let directories = own_directories.unwrap_or(found.cert_dir);
    let has_some = bundle.is_some_and(|pem| certificates_in(&pem).next().is_some())
        || directories.iter().any(|directory| hashed(directory).next().is_some());
    if has_some {
        return Ok(());
    }
    let problem = format!(
        "needs CA certificates, but this system has none: install the package ca-certificates, or \
         set {ca_file} or {ca_pem}",
        ca_file = names::CA_FILE,
        ca_pem = names::CA_PEM
    );
    Err(RootsProblem { variable: None, problem })
}

/// Returns the files and directories that OpenSSL may read after COMMAND's start, if the tunnels
/// have the settings `trusts`. The sandbox must allow access to these files and directories.
pub fn late_files<'a>(mut trusts: impl Iterator<Item = &'a Trust>) -> Vec<PathBuf> {
    let mut files: BTreeSet<PathBuf> =
        OPENSSL_PATHS.iter().filter_map(env::var_os).map(PathBuf::from).collect();
    // Add the directory of OpenSSL's own configuration, from a text such as
    // `OPENSSLDIR: "/usr/lib/ssl"`.
    files.extend(openssl::version::dir().split('"').nth(1).map(PathBuf::from));
    if trusts.any(|trust| trust.ca.is_none() && trust.verify != Verify::None) {
        files.extend(BUNDLE.get().cloned());
        for folder in own_directories().unwrap_or_else(|| openssl_probe::probe().cert_dir) {
            // The entries of the directory are links to certificates, which are often in another
            // directory.
            let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
            files.extend(entries.filter_map(|entry| directory_of(&entry.path())));
            files.insert(folder);
        }
    }
    files.into_iter().collect()
}

/// Returns the value of an environment variable, or `None` if the variable is unset or empty.
fn setting(variable: &str) -> Option<OsString> {
    env::var_os(variable).filter(|value| !value.is_empty())
}

/// Checks that the file in SSL_CERT_FILE can be read and contains a certificate. An empty file is
/// also valid, because users who want to use only the directories set SSL_CERT_FILE to `/dev/null`.
fn check_file(file: &Path) -> Result<(), RootsProblem> {
    let reason = match pem::read_file(file) {
        Ok(pem) if pem.is_empty() || certificates_in(&pem).next().is_some() => return Ok(()),
        Ok(_) => "which holds no certificate".to_owned(),
        Err(error) => format!("which cannot be read ({error})"),
    };
    let problem = format!(
        "is {file}, {reason}; set the variable to a readable PEM bundle, or unset the variable to \
         use the system's bundle",
        file = shown(&file.to_string_lossy())
    );
    Err(RootsProblem { variable: Some(CERT_FILE), problem })
}

fn certificates_in(pem: &str) -> impl Iterator<Item = X509> {
    pem::each_certificate(pem).filter_map(Result::ok)
}

/// Returns the paths of the certificates that OpenSSL finds in `directory`. OpenSSL finds a
/// certificate only if its file name has the form `HASH.NUMBER` (openssl-rehash(1)).
fn hashed(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let is_hashed = |name: &str| {
        name.split_once('.').is_some_and(|(hash, number)| {
            hash.len() == 8
                && u32::from_str_radix(hash, 16).is_ok()
                && number.parse::<u32>().is_ok()
        })
    };
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let named = entries.filter(move |entry| entry.file_name().to_str().is_some_and(is_hashed));
    // Skip symbolic links whose target does not exist.
    named.map(|entry| entry.path()).filter(|path| path.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_named_hash_dot_number_are_certificates() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["README", "ca.pem", "0123456.0", "01234567.", "01234567.r0", "zzzzzzzz.0"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(hashed(folder.path()).next(), None);
        let dangling = folder.path().join("01234567.0");
        std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
        assert_eq!(hashed(folder.path()).next(), None);
        fs::write(folder.path().join("01234567.1"), "").unwrap();
        assert!(hashed(folder.path()).next().is_some());
        assert_eq!(hashed(&folder.path().join("none")).next(), None);
    }
}
