//! The archives in `dist/`, which `bin/package` builds.

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

/// The name of the folder in the archive of a target (such as `x86_64-gnu`), which is also the
/// archive's name without its suffix.
pub fn archive_name(target: &str) -> String {
    let (architecture, libc) = target.split_once('-').expect("ARCHITECTURE-LIBC");
    format!("start-stunnel-{VERSION}-{architecture}-linux-{libc}")
}

/// Unpacks a target's archive, and returns the folder that was in it.
pub fn unpack_binary(target: &str, folder: &Path) -> PathBuf {
    let name = archive_name(target);
    unpack(&packaged(&format!("{name}.tar.gz")), folder);
    folder.join(name)
}

pub fn unpack(archive: &Path, folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let done = Command::new("tar").arg("xzf").arg(archive).arg("-C").arg(folder).status().unwrap();
    assert!(done.success(), "{}", archive.display());
}
