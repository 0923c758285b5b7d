//! Runs what is fuzzed (fuzz/src/lib.rs) over the committed corpus, and over all that ever crashed.

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
fn no_url_of_the_corpus_breaks_the_rules() {
    replay("url", targets::url);
}

#[test]
fn no_settings_of_the_corpus_break_the_rules() {
    replay("settings", targets::settings);
}

#[test]
fn no_pem_or_pin_of_the_corpus_breaks_the_reader() {
    replay("pem", targets::pem);
}

#[test]
fn the_status_page_answers_the_whole_corpus_in_http() {
    replay("http", targets::http);
}

#[test]
fn no_interleaving_of_the_corpus_makes_the_relay_lose_a_byte() {
    replay("relay", targets::relay);
}

#[test]
fn no_connection_of_the_corpus_is_reused_that_may_not_be() {
    replay("ledger", targets::ledger);
}
