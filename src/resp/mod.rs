//! Redis's protocol, RESP:
//! <https://redis.io/docs/latest/develop/reference/protocol-spec/>.
//!
//! [`RequestFramer`] and [`ReplyFramer`] find the end of each request and reply. Both accept only
//! bytes that every server must read in the same way, because the pool relies on the ends.

mod framer;

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _};

pub use framer::{ReplyFramer, RequestFramer};

use crate::text::printable;

/// The bytes violate the protocol, or servers read them in different ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opaque;

/// The longest error, in bytes, so that it stays readable.
const LONGEST: usize = 300;

/// A request: an array of bulk strings.
pub fn request(words: &[&str]) -> Vec<u8> {
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request += &format!("${}\r\n{word}\r\n", word.len());
    }
    request.into_bytes()
}

/// A RESP error with this text: one line of printable characters.
pub fn error(text: &str) -> String {
    let line = printable(&format!("-ERR start-stunnel: {text}"));
    let mut end = line.len().min(LONGEST - 2);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}\r\n", &line[..end])
}

/// The longest line that [`read_line`] reads, in bytes.
const LONGEST_LINE: usize = 512;

/// Reads exactly one line. Returns it without CRLF.
///
/// # Errors
/// If reading fails, or the line is longer than 512 bytes.
pub async fn read_line(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        if line.len() == LONGEST_LINE {
            return Err(io::ErrorKind::InvalidData.into());
        }
        line.push(stream.read_u8().await?);
    }
    line.truncate(line.len() - 2);
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_of_at_most_300_bytes() {
        assert_eq!(error("a\r\nb"), "-ERR start-stunnel: a??b\r\n");
        for (letter, length) in [("a", 300), ("ä", 300), ("€", 298), ("🦀", 298)] {
            let long = error(&letter.repeat(400));
            assert_eq!(long.len(), length, "{letter}");
            assert!(long.ends_with(&format!("{letter}\r\n")), "{letter}");
        }
        assert!((0..4).all(|n| error(&("x".repeat(n) + &"\u{1f512}".repeat(99))).len() <= LONGEST));
    }
}
