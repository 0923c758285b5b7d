//! The archives in `dist/`, which `bin/package` makes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A file of `dist/`.
pub fn packaged(name: &str) -> PathBuf {
    let file = Path::new(ROOT).join("dist").join(name);
    assert!(file.exists(), "{} is missing: run bin/package first", file.display());
    file
}

pub fn buildpack_archive() -> PathBuf {
    packaged(&format!("start-stunnel-buildpack-{VERSION}.tgz"))
}

pub fn binary_archive() -> PathBuf {
    packaged(&format!("start-stunnel-{VERSION}-x86_64-linux-gnu.tar.gz"))
}

pub fn unpack(archive: &Path, folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let done = Command::new("tar").arg("xzf").arg(archive).arg("-C").arg(folder).status().unwrap();
    assert!(done.success(), "{}", archive.display());
}
