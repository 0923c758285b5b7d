//! The archives in `dist/`, which `bin/package` builds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

pub const ROOT: &str = env!("CARGO_MANIFEST_DIR");
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The path of a file in `dist/`. The file must exist.
pub fn packaged(name: &str) -> PathBuf {
    let file = Path::new(ROOT).join("dist").join(name);
    assert!(file.exists(), "{} is missing: run bin/package first", file.display());
    file
}

/// The path of the buildpack's archive.
pub fn buildpack_archive() -> PathBuf {
    packaged(&format!("start-stunnel-buildpack-{VERSION}.tgz"))
}

/// The name of the archive for a target such as `x86_64-gnu`, without the suffix `.tar.gz`. The
/// folder in the archive has the same name.
pub fn archive_name(target: &str) -> String {
    let (architecture, libc) = target.split_once('-').expect("ARCHITECTURE-LIBC");
    format!("start-stunnel-{VERSION}-{architecture}-linux-{libc}")
}

/// Unpacks the archive for a target into `folder`. Returns the path of the unpacked folder.
pub fn unpack_binary(target: &str, folder: &Path) -> PathBuf {
    let name = archive_name(target);
    unpack(&packaged(&format!("{name}.tar.gz")), folder);
    folder.join(name)
}

/// Unpacks an archive into `folder`.
pub fn unpack(archive: &Path, folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let done = Command::new("tar").arg("xzf").arg(archive).arg("-C").arg(folder).status().unwrap();
    assert!(done.success(), "{}", archive.display());
}
