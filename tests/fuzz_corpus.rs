//! Runs the fuzz targets (fuzz/src/lib.rs) over the committed corpus. It contains all inputs that
//! ever caused a crash.

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
fn urls_of_the_corpus_follow_the_rules() {
    replay("url", targets::url);
}

#[test]
fn settings_of_the_corpus_follow_the_rules() {
    replay("settings", targets::settings);
}

#[test]
fn pem_texts_and_pins_of_the_corpus_cause_no_panic() {
    replay("pem", targets::pem);
}

#[test]
fn status_page_answers_the_whole_corpus_in_http() {
    replay("http", targets::http);
}

#[test]
fn relay_loses_no_byte_in_any_order_of_the_corpus() {
    replay("relay", targets::relay);
}

#[test]
fn unsafe_connections_of_the_corpus_are_not_reused() {
    replay("ledger", targets::ledger);
}
