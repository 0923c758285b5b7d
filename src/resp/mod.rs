//! Reads and writes RESP, the protocol of Redis:
//! <https://redis.io/docs/latest/develop/reference/protocol-spec/>.
//!
//! [`RequestFramer`] and [`ReplyFramer`] find the end of each request and reply. Both accept only
//! bytes that every server must read in the same way, because the pool must find the same ends as
//! the server.

mod framer;

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _};

pub use framer::{ReplyFramer, RequestFramer};

use crate::text::printable;

/// The error for bytes that violate the protocol, or that servers read in different ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opaque;

/// The most bytes in an error that the launcher sends to an app. An error and its hint fit, even
/// with the long host names of AWS and with long names of variables.
const LONGEST: usize = 1000;

/// Returns a RESP request, which is an array of bulk strings.
pub fn request(words: &[&str]) -> Vec<u8> {
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request += &format!("${}\r\n{word}\r\n", word.len());
    }
    request.into_bytes()
}

/// Returns a RESP error with this text, as one line of printable characters. Cuts a long text off.
pub fn error(text: &str) -> String {
    let line = printable(&format!("-ERR start-stunnel: {text}"));
    let mut end = line.len().min(LONGEST - 2);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}\r\n", &line[..end])
}

/// The most bytes in a line that [`read_line`] reads.
const LONGEST_LINE: usize = 1024;

/// Reads exactly one line, and returns the line without its CRLF.
///
/// # Errors
/// If reading fails, or the line is longer than [`LONGEST_LINE`].
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
    fn a_long_error_is_cut_between_two_characters() {
        assert_eq!(error("a\r\nb"), "-ERR start-stunnel: a??b\r\n");
        for (letter, length) in [("a", 1000), ("ä", 1000), ("€", 1000), ("🦀", 998)] {
            let long = error(&letter.repeat(1000));
            assert_eq!(long.len(), length, "{letter}");
            assert!(long.ends_with(&format!("{letter}\r\n")), "{letter}");
        }
        assert!(
            (0..4).all(|n| error(&("x".repeat(n) + &"\u{1f512}".repeat(300))).len() <= LONGEST)
        );
    }
}
