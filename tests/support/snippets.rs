//! Reads commands and configurations from the manual, so that tests use exactly the text on its
//! pages.

use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The text of a file in this repository.
pub fn page(name: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(name)).unwrap()
}

/// The paths of README and of every page of the manual.
fn pages() -> Vec<PathBuf> {
    let docs = fs::read_dir(Path::new(ROOT).join("docs")).unwrap();
    let docs = docs.map(|entry| entry.unwrap().path());
    let docs = docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    docs.chain([Path::new(ROOT).join("README.md")]).collect()
}

/// The indented block after the comment `<!-- walkthrough: MARKER -->`. Exactly one page must
/// contain this comment.
pub fn snippet(marker: &str) -> String {
    let comment = format!("<!-- walkthrough: {marker} -->\n");
    let pages: Vec<String> = pages().iter().map(|page| fs::read_to_string(page).unwrap()).collect();
    let mut blocks = pages.iter().filter_map(|page| Some(page.split_once(&comment)?.1));
    let block = blocks.next().unwrap_or_else(|| panic!("no page has {comment}"));
    assert!(blocks.next().is_none(), "{comment} is on two pages");
    let lines = block.trim_start_matches('\n').lines();
    let lines = lines.map_while(|line| line.strip_prefix("    ").or(line.is_empty().then_some("")));
    let text = lines.collect::<Vec<_>>().join("\n").trim_end().to_owned() + "\n";
    assert!(text.trim() != "", "{marker}: no block");
    text
}

/// Replaces the examples in `text` with values of this test. The text must contain each example.
pub fn with_ours(text: &str, ours: &[(&str, &str)]) -> String {
    ours.iter().fold(text.to_owned(), |text, (example, ours)| {
        assert!(text.contains(example), "{example} in\n{text}");
        text.replace(example, ours)
    })
}

/// The value of the setting `name`, which `--check` prints on a separate line.
pub fn printed(table: &str, name: &str) -> String {
    let setting = format!("{name}=");
    let mut values = table.lines().filter_map(|line| line.trim().strip_prefix(&setting));
    values.next().unwrap_or_else(|| panic!("{name} in\n{table}")).to_owned()
}
