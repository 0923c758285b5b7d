//! What is known of Redis's protocol:
//! <https://redis.io/docs/latest/develop/reference/protocol-spec/>.
//!
//! [`requests`] and [`replies`] find where each request and each reply ends, and take only what
//! every server must read alike: whether a connection may be used again hangs on it. [`Requests`]
//! counts whatever a server may answer, and is good for errors of ours alone.

pub mod replies;
pub mod requests;

/// These bytes are not framed: they break the protocol's rules, or are of a form that servers read
/// differently. Nothing is known from here on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opaque;

/// The next digit of a number that may be written in one way only: no sign, no leading zero, at
/// most `u32::MAX`, far more than anybody follows a connection for.
fn with_digit(number: Option<u32>, digit: u8) -> Result<Option<u32>, Opaque> {
    let digit = match digit {
        b'0'..=b'9' => u32::from(digit - b'0'),
        _ => return Err(Opaque),
    };
    let number = match number {
        None => Some(digit),
        Some(0) => None,
        Some(number) => number.checked_mul(10).and_then(|tens| tens.checked_add(digit)),
    };
    number.map(Some).ok_or(Opaque)
}

/// The longest error, in bytes, so that it stays one readable line.
const LONGEST: usize = 300;

/// A request: an array of bulk strings.
pub fn request(words: &[&str]) -> Vec<u8> {
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request += &format!("${}\r\n{word}\r\n", word.len());
    }
    request.into_bytes()
}

/// The RESP error that says `text`: one line, of printable characters only.
pub fn error(text: &str) -> String {
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    let line: String = format!("-ERR start-stunnel: {text}").chars().map(printable).collect();
    let ends = line.char_indices().map(|(at, _)| at).chain([line.len()]);
    let end = ends.take_while(|end| *end <= LONGEST - 2).last().unwrap_or(0);
    format!("{}\r\n", &line[..end])
}

/// Counts the requests in a stream of bytes: arrays of bulk strings, or lines
/// (<https://redis.io/docs/latest/develop/reference/protocol-spec/>).
#[derive(Debug, Default)]
pub struct Requests {
    /// The line that has begun, as far as it matters.
    line: Vec<u8>,
    /// Bulk strings that the current array still lacks.
    missing: u64,
    /// Bytes of the current bulk string that are still to come, with its line end.
    skip: u64,
}

impl Requests {
    /// Of a line, a mark and a number at most.
    const LINE: usize = 24;

    /// How many requests are complete with these bytes.
    pub fn count(&mut self, bytes: &[u8]) -> usize {
        let mut complete = 0;
        let mut rest = bytes;
        while let Some((&byte, after)) = rest.split_first() {
            if self.skip > 0 {
                let skipped = self.skip.min(rest.len() as u64);
                self.skip -= skipped;
                rest = &rest[skipped as usize..];
                if self.skip == 0 {
                    complete += self.argument();
                }
                continue;
            }
            rest = after;
            if byte == b'\n' {
                complete += self.end_of_line();
            } else if self.line.len() < Requests::LINE {
                self.line.push(byte);
            }
        }
        complete
    }

    fn end_of_line(&mut self) -> usize {
        let line = std::mem::take(&mut self.line);
        let line = line.strip_suffix(b"\r").unwrap_or(&line);
        let number = || std::str::from_utf8(line.get(1..)?).ok()?.parse::<u64>().ok();
        match (line.first(), self.missing) {
            (Some(b'*'), 0) => {
                self.missing = number().unwrap_or(0);
                0
            }
            (Some(b'$'), 1..) => {
                self.skip = number().unwrap_or(0).saturating_add(2);
                0
            }
            // An empty line between requests is none.
            (None, 0) => 0,
            // A request in one line; or none of the protocol's, which is answered as well.
            _ => {
                self.missing = 0;
                1
            }
        }
    }

    fn argument(&mut self) -> usize {
        self.missing -= 1;
        usize::from(self.missing == 0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_request_is_counted_once_however_it_is_cut() {
        let stream = b"*2\r\n$4\r\nAUTH\r\n$6\r\na\r\n*1\n\r\nPING\r\n\r\n*1\r\n$0\r\n\r\n\
            quit\n*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\n\r\n\r\n";
        assert_eq!(Requests::default().count(stream), 5);
        assert_eq!(Requests::default().count(&request(&["SET", "k", "v"])), 1);
        for cut in 0..stream.len() {
            let (first, second) = stream.split_at(cut);
            let mut requests = Requests::default();
            assert_eq!(requests.count(first) + requests.count(second), 5, "{cut}");
        }
        let mut requests = Requests::default();
        assert_eq!(requests.count(b"*2\r\n$18446744073709551615\r\nx"), 0, "no overflow");
        assert_eq!(Requests::default().count(b"*9\r\nGET / HTTP/1.1\r\n"), 1, "no RESP");
    }

    proptest! {
        #[test]
        fn any_bytes_are_counted_alike_however_cut_without_a_panic(
            bytes in prop::collection::vec(prop::sample::select(&b"*$0123\r\nPING"[..]), 0..60),
            cut in 0..60_usize,
        ) {
            let whole = Requests::default().count(&bytes);
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            let mut requests = Requests::default();
            prop_assert_eq!(requests.count(first) + requests.count(second), whole);
        }
    }

    #[test]
    fn an_error_is_one_line_of_at_most_300_bytes() {
        assert_eq!(error("a\r\nb"), "-ERR start-stunnel: a  b\r\n");
        for (letter, length) in [("a", 300), ("ä", 300), ("€", 298), ("🦀", 298)] {
            let long = error(&letter.repeat(400));
            assert_eq!(long.len(), length, "{letter}");
            assert!(long.ends_with(&format!("{letter}\r\n")), "{letter}");
        }
        assert!((0..4).all(|n| error(&("x".repeat(n) + &"\u{1f512}".repeat(99))).len() <= LONGEST));
    }
}
