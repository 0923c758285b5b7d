//! Makes text from outside safe to print.

/// Replaces characters that could control a terminal or reverse the text around them.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if is_unprintable(c) { '?' } else { c }).collect()
}

/// True if `c` is a control character, or changes the direction of text (UAX #9).
pub fn is_unprintable(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_reverse_text_are_replaced() {
        assert_eq!(printable("a\u{1b}b\n\u{202e}c\u{2066}d\u{2069}é"), "a?b??c?d?é");
    }
}
