//! Files that OpenSSL reads after COMMAND has started, whatever the app's directory is.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::PathBuf;

use super::{Trust, Verify, roots};
use crate::sandbox::directory_of;

/// The variables by which OpenSSL finds its configuration and its providers (openssl-env(7)).
const VARIABLES: [&str; 2] = ["OPENSSL_CONF", "OPENSSL_MODULES"];

/// Files and directories that connections of these settings may read.
pub fn late_files<'a>(mut trusts: impl Iterator<Item = &'a Trust>) -> Vec<PathBuf> {
    let mut files: BTreeSet<PathBuf> =
        VARIABLES.iter().filter_map(env::var_os).map(PathBuf::from).collect();
    files.extend(own_directory());
    if trusts.any(|trust| trust.ca.is_none() && trust.verify != Verify::None) {
        files.extend(roots::bundle().map(PathBuf::from));
        let own = roots::own_directories();
        for folder in own.unwrap_or_else(|| openssl_probe::probe().cert_dir) {
            // A certificate's hashed name is a link, often to another directory.
            let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
            files.extend(entries.filter_map(|entry| directory_of(&entry.path())));
            files.insert(folder);
        }
    }
    files.into_iter().collect()
}

/// The directory of OpenSSL's own configuration, which was set when OpenSSL was built:
/// `OPENSSLDIR: "/usr/lib/ssl"`.
fn own_directory() -> Option<PathBuf> {
    openssl::version::dir().split('"').nth(1).map(PathBuf::from)
}
