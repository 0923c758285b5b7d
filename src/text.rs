//! Prepares text that people read in a terminal.

use textwrap::{Options, WordSeparator, WordSplitter, WrapAlgorithm};

/// Replaces each character that could control a terminal or change the direction of text by `?`.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if is_unprintable(c) { '?' } else { c }).collect()
}

/// Returns true if `c` is a control character, or changes the direction of text (UAX #9).
pub fn is_unprintable(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Formats a number of things, for example `1 connection` or `2 connections`.
pub fn counted(number: u64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

/// Wraps `text` at spaces into lines of `columns` characters. The first line begins with `head`,
/// and the text of every line begins at the column `indent`. Words are never broken, because users
/// may copy the words. If a word does not fit into a line that begins at `indent`, the whole text
/// begins further left.
pub fn wrapped(columns: usize, indent: usize, head: &str, text: &str) -> String {
    const LEFT: usize = 4;
    let is_too_long = |word: &str| indent + word.chars().count() > columns;
    if indent > LEFT && text.split(' ').any(is_too_long) {
        return format!("{}\n{}", head.trim_end(), wrapped(columns, LEFT, "", text));
    }
    let spaces = " ".repeat(indent);
    let options = Options::new(columns)
        .initial_indent(&spaces)
        .subsequent_indent(&spaces)
        .break_words(false)
        .word_separator(WordSeparator::AsciiSpace)
        .word_splitter(WordSplitter::NoHyphenation)
        .wrap_algorithm(WrapAlgorithm::FirstFit);
    let lines = textwrap::fill(text, options);
    let lines = format!("{head:indent$}{}", lines.get(indent..).unwrap_or_default());
    lines.trim_end().to_owned() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_reverse_text_are_replaced() {
        assert_eq!(printable("a\u{1b}b\n\u{202e}c\u{2066}d\u{2069}é"), "a?b??c?d?é");
    }

    #[test]
    fn text_is_wrapped_but_a_word_is_never_broken() {
        let spaces = " ".repeat(72);
        assert_eq!(
            wrapped(80, 72, "", "one two three"),
            format!("{spaces}one two\n{spaces}three\n")
        );
        assert_eq!(wrapped(80, 36, "  AUTH  ok", ""), "  AUTH  ok\n");
        let (pin, other) = ("x".repeat(80), "y".repeat(40));
        assert_eq!(
            wrapped(80, 36, "  AUTH  ok", &format!("{pin} is {other} it")),
            format!("  AUTH  ok\n    {pin}\n    is {other} it\n")
        );
    }
}
