//! Tests of `bin/release-check` and `bin/check-workflows`, which stop a bad release before anything
//! is built.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use support::launcher::Outcome;
use support::{copy_executable, release_setting, write_executable};
use tempfile::TempDir;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// The files that `bin/release-check` reads.
const FILES: [&str; 6] = [
    "bin/release-check",
    "release.conf",
    "Cargo.toml",
    "Cargo.lock",
    "CHANGELOG.md",
    "buildpack/buildpack.toml",
];

/// A copy of the project's files, prepared for the release of version 1.2.3.
struct Checkout {
    folder: TempDir,
    rust: String,
    today: String,
    /// True if the environment has the variables of a GitHub workflow.
    workflow: bool,
}

impl Checkout {
    fn new() -> Checkout {
        let checkout = Checkout {
            folder: tempfile::tempdir().unwrap(),
            rust: release_setting("RUST"),
            today: release_setting("OPENSSL_SUPPORT_ENDS"),
            workflow: false,
        };
        for name in FILES {
            let file = checkout.folder.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            copy_executable(&Path::new(ROOT).join(name), &file);
        }
        let version = format!("version = \"{}\"", env!("CARGO_PKG_VERSION"));
        for name in ["Cargo.toml", "buildpack/buildpack.toml"] {
            checkout.replace(name, &version, "version = \"1.2.3\"");
        }
        let setting = format!("\nREPOSITORY={}\n", release_setting("REPOSITORY"));
        checkout.replace("release.conf", &setting, "\nREPOSITORY=https://example.com/it\n");
        let repository = "[package]\nrepository = \"https://example.com/it\"\n";
        checkout.replace("Cargo.toml", "[package]\n", repository);
        checkout.replace(
            "CHANGELOG.md",
            "## Unreleased",
            "## Unreleased\n\n## 1.2.3 (2026-11-26)\n\n- What is new.\n\n## 1.2.2\n\n- What was.\n",
        );
        checkout.git(&["init", "--quiet"]);
        checkout.commit();
        checkout
    }

    fn replace(&self, name: &str, old: &str, new: &str) {
        let file = self.folder.path().join(name);
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains(old), "{name}: {old}");
        fs::write(&file, text.replacen(old, new, 1)).unwrap();
    }

    fn git(&self, words: &[&str]) {
        let mut git = Command::new("git");
        git.args(["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]);
        assert!(git.args(words).current_dir(self.folder.path()).status().unwrap().success());
    }

    fn commit(&self) {
        self.git(&["add", "."]);
        self.git(&["commit", "--quiet", "--allow-empty", "--message", "x"]);
    }

    /// Runs `bin/release-check` with a `rustc` that prints the version `rust`.
    fn check(&self, words: &[&str]) -> Outcome {
        let rustc = format!("#!/bin/sh\necho rustc {} '(x)'\n", self.rust);
        let programs = tempfile::tempdir().unwrap();
        write_executable(&programs.path().join("rustc"), rustc);
        let path = format!("{}:{}", programs.path().display(), std::env::var("PATH").unwrap());
        let mut check = Command::new(self.folder.path().join("bin/release-check"));
        // If the variable GITHUB_ACTIONS is set, `bin/release-check` refuses the variable TODAY.
        check
            .env_remove("GITHUB_ACTIONS")
            .envs(self.workflow.then_some(("GITHUB_ACTIONS", "true")));
        Outcome::of(check.args(words).env("PATH", path).env("TODAY", &self.today))
    }

    #[track_caller]
    fn refuses(&self, word: &str) {
        let said = self.check(&["v1.2.3"]);
        assert!(said.code() == 1 && said.stderr.contains(word), "{said:?}");
        assert_eq!(said.stderr.lines().count(), 1, "{said:?}");
    }
}

#[test]
fn release_check_passes_until_openssl_support_ends() {
    let mut checkout = Checkout::new();
    checkout.check(&["v1.2.3"]).ok();
    checkout.today.push('x'); // `bin/release-check` compares dates as texts.
    checkout.refuses("has had no security fixes since");
}

#[test]
fn release_check_names_each_mistake() {
    type Break = fn(&mut Checkout);
    let cases: [(Break, &str); 8] = [
        (|it| it.replace("release.conf", "https://example.com/it", ""), "has no REPOSITORY"),
        (|it| it.replace("Cargo.toml", "example.com/it", "example.com/other"), "the repository in"),
        (|it| it.replace("Cargo.toml", "1.2.3", "1.2.4"), "Cargo.toml has another version"),
        (
            |it| it.replace("buildpack/buildpack.toml", "1.2.3", "1.2.4"),
            "buildpack.toml has another version",
        ),
        (|it| it.replace("CHANGELOG.md", "- What is new.", ""), "has no text under"),
        (
            |it| it.replace("release.conf", "OPENSSL_BRANCH=3.", "OPENSSL_BRANCH=9."),
            "does not belong to the branch 9.",
        ),
        (|it| "1.0.0".clone_into(&mut it.rust), "rustc is 1.0.0"),
        (|it| it.workflow = true, "TODAY is set"),
    ];
    for (break_it, word) in cases {
        let mut checkout = Checkout::new();
        break_it(&mut checkout);
        checkout.commit();
        checkout.refuses(word);
    }
    let checkout = Checkout::new();
    checkout.replace("CHANGELOG.md", "- What is new.", "- What is newer.");
    checkout.refuses("files differ from the commit");
    fs::rename(checkout.folder.path().join(".git"), checkout.folder.path().join("no")).unwrap();
    checkout.refuses("git cannot compare");
}

#[test]
fn release_notes_come_from_the_changelog() {
    let notes = Checkout::new().check(&["--notes", "v1.2.3"]).ok();
    assert!(notes.contains("- What is new.") && !notes.contains("What was"), "{notes}");
    assert!(notes.contains(&format!("rustc {}", release_setting("RUST"))), "{notes}");
    assert!(notes.contains(&format!("OpenSSL {}.", release_setting("OPENSSL_BRANCH"))), "{notes}");
}

#[test]
fn check_workflows_refuses_broken_and_unsafe_workflows() {
    let folder = tempfile::tempdir().unwrap();
    let check = |name: &str, old: &str, new: &str| {
        let workflow = Path::new(ROOT).join(".github/workflows").join(name);
        let text = fs::read_to_string(workflow).unwrap();
        assert!(text.contains(old), "{old}");
        let file = folder.path().join(name);
        fs::write(&file, text.replacen(old, new, 1)).unwrap();
        let check = Path::new(ROOT).join("bin/check-workflows");
        let said = Outcome::of(Command::new(check).arg(file));
        (said.status.success(), said.stdout + &said.stderr)
    };
    let (taken, said) = check("release.yml", "needs: [test,", "needs: [test,");
    assert!(taken, "{said}");
    let cases = [
        ("release.yml", "needs: [test,", "needs: [tset,", "tset"),
        (
            "release.yml",
            "permissions:\n      contents: read",
            "permissions: write-all",
            "excessive-permissions",
        ),
        ("test.yml", "@3d3c42e5aac5ba805825da76410c181273ba90b1", "@v7", "unpinned-uses"),
    ];
    for (name, old, new, word) in cases {
        let (taken, said) = check(name, old, new);
        assert!(!taken && said.contains(word), "{new}: {said}");
    }
}
