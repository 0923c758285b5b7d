//! Reads commands and configurations from the manual, so that tests use exactly the text on the
//! manual's pages.

use std::fs;
use std::path::Path;

use super::files;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The text of a file in this repository.
pub fn page(name: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(name)).unwrap()
}

/// The indented block after the comment `<!-- walkthrough: MARKER -->`. Exactly one page must
/// contain this comment.
pub fn snippet(marker: &str) -> String {
    let comment = format!("<!-- walkthrough: {marker} -->\n");
    let names = [files("docs", "md"), vec!["README.md".to_owned()]].concat();
    let pages: Vec<String> = names.iter().map(|name| page(name)).collect();
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

/// The value in the only line of `table` that begins with `name=`. Users copy this line.
pub fn printed<'a>(table: &'a str, name: &str) -> &'a str {
    let setting = format!("{name}=");
    let values = table.lines().filter_map(|line| line.trim().strip_prefix(&setting));
    let values: Vec<_> = values.collect();
    let [value] = values[..] else { panic!("{name} on {} lines:\n{table}", values.len()) };
    value
}
