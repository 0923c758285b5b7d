//! Runs the fuzz targets (fuzz/src/lib.rs) over the committed corpus. The corpus contains all
//! inputs that ever caused a crash.

#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::fs;
use std::path::Path;

#[track_caller]
fn replay(name: &str, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut count = 0;
    for entry in fs::read_dir(&folder).expect("a corpus") {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        target(&fs::read(path).unwrap());
        count += 1;
    }
    assert!(count >= 10, "{count} inputs");
}

#[test]
fn corpus_urls_cause_no_panic_and_show_no_password() {
    replay("url", targets::url);
}

#[test]
fn corpus_settings_cause_no_panic_and_show_no_password() {
    replay("settings", targets::settings);
}

#[test]
fn corpus_certificates_and_pins_cause_no_panic() {
    replay("pem", targets::pem);
}

#[test]
fn status_page_answers_corpus_requests_with_http_or_nothing() {
    replay("http", targets::http);
}

#[test]
fn relay_loses_no_byte_in_any_corpus_script() {
    replay("relay", targets::relay);
}

#[test]
fn unsafe_corpus_connections_are_not_reused() {
    replay("ledger", targets::ledger);
}
