//! Finds the end and the command of each request.
//!
//! Each server accepts other requests that violate the protocol. For example, Redis ignores the two
//! bytes after a bulk string, and accepts any byte after a CR. So this module accepts only requests
//! that end at the same byte for every server: arrays of bulk strings with canonical numbers and
//! CRLF. It accepts no arrays without a reply (`*0`, `*-1`), and no inline requests (a line of
//! words), which no client library sends.

use super::{Opaque, with_digit};

/// Finds the requests in the bytes of one connection. The bytes may arrive in pieces of any size.
/// The framer allocates no memory, and stores only a request's first two words, if they are short.
#[derive(Default)]
pub struct RequestFramer {
    part: Part,
    /// The number that the framer is reading.
    number: Option<u32>,
    /// The number of bulk strings that are not complete yet.
    missing: u32,
    /// The number of bytes that the current bulk string lacks, without its line end.
    left: u32,
    /// The number of the request's words so far.
    count: u32,
    words: [Word; 2],
}

/// A complete request.
pub struct Request<'a> {
    /// The command's name as sent; `None` if it is longer than [`WORD`].
    pub command: Option<&'a [u8]>,
    /// The first argument, empty if there is none; `None` if it is longer than [`WORD`].
    pub argument: Option<&'a [u8]>,
}

/// The longest word to store, in bytes. In Redis 8, the longest name of a command has 20 bytes, and
/// the longest name of a subcommand has 21.
pub const WORD: usize = 24;

/// The part of a request that the next byte belongs to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// A new request.
    #[default]
    Start,
    /// The number after `*`, and its line end.
    Count,
    CountEnd,
    /// The `$` of a bulk string, the number after it, and its line end.
    Mark,
    Length,
    LengthEnd,
    /// A bulk string, and its line end.
    Body,
    BodyEnd,
    BodyEndLf,
    Opaque,
}

/// A word of a request, if it is short.
#[derive(Clone, Copy, Default)]
struct Word {
    /// In bytes. `WORD` + 1 stands for every longer word.
    length: u8,
    bytes: [u8; WORD],
}

impl RequestFramer {
    /// Removes the next request from the beginning of `bytes`, and returns the request. If the
    /// request is not complete yet, removes all bytes and returns `None`.
    ///
    /// # Errors
    ///
    /// If the end of the request cannot be found. Every later call returns the same error.
    pub fn next(&mut self, bytes: &mut &[u8]) -> Result<Option<Request<'_>>, Opaque> {
        match self.advance(bytes) {
            Ok(true) => {
                let [command, argument] = &self.words;
                Ok(Some(Request { command: command.get(), argument: argument.get() }))
            }
            Ok(false) => Ok(None),
            Err(Opaque) => {
                self.part = Part::Opaque;
                Err(Opaque)
            }
        }
    }

    /// True if the framer is between two requests.
    pub fn is_at_boundary(&self) -> bool {
        self.part == Part::Start
    }

    /// Removes the bytes of the next request. Returns whether the request is complete.
    fn advance(&mut self, bytes: &mut &[u8]) -> Result<bool, Opaque> {
        while let Some((&byte, rest)) = bytes.split_first() {
            if self.part == Part::Body {
                let (taken, rest) = bytes.split_at(bytes.len().min(self.left as usize));
                self.keep(taken);
                *bytes = rest;
                self.left -= taken.len() as u32;
                if self.left == 0 {
                    self.part = Part::BodyEnd;
                }
                continue;
            }
            *bytes = rest;
            self.part = match (self.part, byte) {
                (Part::Start, b'*') => {
                    self.count = 0;
                    self.words = Default::default();
                    Part::Count
                }
                (Part::Count, b'\r') => {
                    self.missing = self.number.take().filter(|count| *count > 0).ok_or(Opaque)?;
                    Part::CountEnd
                }
                (Part::CountEnd, b'\n') => Part::Mark,
                (Part::Mark, b'$') => Part::Length,
                (Part::Length, b'\r') => {
                    self.left = self.number.take().ok_or(Opaque)?;
                    Part::LengthEnd
                }
                (Part::Count | Part::Length, _) => {
                    self.number = with_digit(self.number, byte)?;
                    self.part
                }
                (Part::LengthEnd, b'\n') => {
                    self.count += 1;
                    Part::Body
                }
                (Part::BodyEnd, b'\r') => Part::BodyEndLf,
                (Part::BodyEndLf, b'\n') => {
                    self.missing -= 1;
                    if self.missing == 0 { Part::Start } else { Part::Mark }
                }
                _ => return Err(Opaque),
            };
            if self.part == Part::Start {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Adds bytes to the current word.
    fn keep(&mut self, bytes: &[u8]) {
        if let Some(word) = self.words.get_mut(self.count as usize - 1) {
            word.push(bytes);
        }
    }
}

impl Word {
    fn push(&mut self, more: &[u8]) {
        let length = usize::from(self.length);
        match self.bytes.get_mut(length..length + more.len()) {
            Some(place) => {
                place.copy_from_slice(more);
                self.length += more.len() as u8;
            }
            None => self.length = WORD as u8 + 1,
        }
    }

    fn get(&self) -> Option<&[u8]> {
        self.bytes.get(..usize::from(self.length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shows the bytes to one framer in one piece, and to another framer byte by byte. Both must
    /// find the same requests. Returns the commands and arguments, with `?` for words that are too
    /// long, and then the framer's state.
    #[track_caller]
    fn frame(bytes: &[u8]) -> String {
        let word = |word: Option<&[u8]>| match word {
            Some(word) => String::from_utf8_lossy(word).into_owned(),
            None => "?".into(),
        };
        let frames = [bytes.len().max(1), 1].map(|size| {
            let (mut framer, mut found) = (RequestFramer::default(), String::new());
            let mut is_opaque = false;
            for mut piece in bytes.chunks(size) {
                loop {
                    let before = piece.len();
                    match framer.next(&mut piece) {
                        Ok(Some(Request { command, argument })) => {
                            assert!(piece.len() < before, "a request has at least one byte");
                            found += &format!("{},{};", word(command), word(argument));
                        }
                        Ok(None) => break,
                        Err(Opaque) => {
                            assert!(!framer.is_at_boundary());
                            is_opaque = true;
                            break;
                        }
                    }
                }
                assert!(is_opaque || piece.is_empty());
            }
            found += match (is_opaque, framer.is_at_boundary()) {
                (true, _) => "opaque",
                (false, true) => "",
                (false, false) => "half",
            };
            found
        });
        assert_eq!(frames[0], frames[1], "the size of pieces does not matter");
        frames[0].clone()
    }

    #[test]
    fn only_requests_that_every_server_reads_alike_are_framed() {
        for (bytes, expected) in [
            ("", ""),
            ("*1\r\n$4\r\nPING\r\n", "PING,;"),
            ("*1\r\n$4\r\nPING\r\n*2\r\n$3\r\nGET\r\n$1\r\nk\r\n", "PING,;GET,k;"),
            ("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\n\r\n\r\n\r\n", "SET,k;"),
            ("*3\r\n$0\r\n\r\n$0\r\n\r\n$0\r\n\r\n", ",;"),
            ("*10\r\n", "half"),
            ("*4294967295\r\n$4294967295\r\nx", "half"),
            ("*4294967296", "opaque"),
            ("*1\r\n$4294967296", "opaque"),
            ("*9999999999", "opaque"),
            ("*0\r\n", "opaque"),
            ("*00", "opaque"),
            ("*01", "opaque"),
            ("*+1", "opaque"),
            ("*-1", "opaque"),
            ("* 1", "opaque"),
            ("*1 ", "opaque"),
            ("*:", "opaque"),
            ("*/", "opaque"),
            ("*\r", "opaque"),
            ("*1\n", "opaque"),
            ("*1\rX", "opaque"),
            ("*1\r\r", "opaque"),
            ("*1\r\n", "half"),
            ("*1\r\n*", "opaque"),
            ("*1\r\n+", "opaque"),
            ("*1\r\n$-1", "opaque"),
            ("*1\r\n$04", "opaque"),
            ("*1\r\n$\r", "opaque"),
            ("*1\r\n$4\n", "opaque"),
            ("*1\r\n$4\rX", "opaque"),
            ("*1\r\n$4\r\nECHOx", "opaque"),
            ("*1\r\n$4\r\nECHO\n", "opaque"),
            ("*1\r\n$4\r\nECHO\rx", "opaque"),
            ("*1\r\n$4\r\nECHO\r\r", "opaque"),
            ("*1\r\n$4\r\nPING\r\n\r\n", "PING,;opaque"),
            ("PING\r\n", "opaque"),
            ("\r\n", "opaque"),
            ("$4\r\nPING\r\n", "opaque"),
            // RESET completes the half request before it.
            ("*1\r\n$4\r\nPI*1\r\n$5\r\nRESET\r\n", "PI*1,;opaque"),
        ] {
            assert_eq!(frame(bytes.as_bytes()), expected, "{bytes:?}");
        }
    }

    #[test]
    fn the_first_two_words_are_stored_if_they_are_short() {
        let [short, long] = [WORD, WORD + 1].map(|length| "x".repeat(length));
        for (words, expected) in [
            ([&short, &short], format!("{short},{short};")),
            ([&long, &short], format!("?,{short};")),
            ([&short, &long], format!("{short},?;")),
            ([&long, &long], "?,?;".into()),
        ] {
            let [name, argument] = words.map(String::as_str);
            let request = crate::resp::request(&[name, argument, "third"]);
            assert_eq!(frame(&request), expected);
            // The framer does not return words of an earlier request.
            let twice = [&request[..], b"*1\r\n$1\r\na\r\n"].concat();
            assert_eq!(frame(&twice), format!("{expected}a,;"));
        }
    }
}
