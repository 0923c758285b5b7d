//! Finds the end of each reply, in RESP2 and RESP3.
//!
//! This module does not accept pushes, because a push belongs to no request, and may come even
//! inside a reply. It does not accept streamed values (`$?`, `*?`), because no server sends them.

use super::{Opaque, with_digit};

/// Finds the replies in the bytes of one connection. The bytes may arrive in pieces of any size.
/// The framer allocates no memory.
#[derive(Debug, Default)]
pub struct ReplyFramer {
    part: Part,
    /// The first byte of the current value, which is its type.
    mark: u8,
    /// The first byte of the current reply.
    first: u8,
    /// The number that the framer is reading.
    number: Option<u32>,
    /// The number of bytes that the current string lacks, without its line end.
    left: u32,
    /// The number of open aggregates.
    depth: u8,
    /// The number of values that each open aggregate lacks. The outermost aggregate comes first.
    missing: [u32; DEPTH],
    /// The beginning of the latest error reply, without its `-`.
    error: [u8; ERROR],
    error_length: u8,
}

/// The number of bytes of an error that are stored: the longest code that the pool looks for, and a
/// space.
const ERROR: usize = 12;

/// The deepest nesting to follow. COMMAND DOCS of Redis 8 has about 10 levels.
pub const DEPTH: usize = 16;

/// The part of a reply that the next byte belongs to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// A new value.
    #[default]
    Mark,
    /// A value of one line, without its LF.
    Line,
    /// The length or count of a value, and its line end.
    Length,
    LengthEnd,
    /// A string, without its line end.
    Body,
    /// These bytes, which complete a value.
    End(&'static [u8]),
    Opaque,
}

impl ReplyFramer {
    /// Removes the next reply from the beginning of `bytes`, and returns the reply's first byte
    /// (`|` for a reply with attributes). If the reply is not complete yet, removes all bytes and
    /// returns `None`.
    ///
    /// # Errors
    ///
    /// If a push begins, or the end of the reply cannot be found. Every later call returns the same
    /// error.
    pub fn next(&mut self, bytes: &mut &[u8]) -> Result<Option<u8>, Opaque> {
        let result = self.advance(bytes);
        if result.is_err() {
            self.part = Part::Opaque;
        }
        result
    }

    fn advance(&mut self, bytes: &mut &[u8]) -> Result<Option<u8>, Opaque> {
        while !bytes.is_empty() {
            match self.part {
                Part::Body => self.skip_body(bytes),
                Part::Line => self.skip_line(bytes)?,
                _ => {
                    if self.take_byte(bytes)? && self.completes_reply() {
                        return Ok(Some(self.first));
                    }
                }
            }
        }
        Ok(None)
    }

    fn skip_body(&mut self, bytes: &mut &[u8]) {
        let taken = bytes.len().min(self.left as usize);
        *bytes = &bytes[taken..];
        self.left -= taken as u32;
        if self.left == 0 {
            self.part = Part::End(b"\r\n");
        }
    }

    /// Skips a line up to its CR.
    fn skip_line(&mut self, bytes: &mut &[u8]) -> Result<(), Opaque> {
        self.note_error(bytes);
        let is_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
        let Some(length) = bytes.iter().position(is_end) else {
            *bytes = &[];
            return Ok(());
        };
        // A line must not end with LF alone.
        if bytes[length] == b'\n' {
            return Err(Opaque);
        }
        *bytes = &bytes[length + 1..];
        self.part = Part::End(b"\n");
        Ok(())
    }

    /// Removes one byte that is not part of a line or string. Returns whether the byte completes a
    /// value.
    fn take_byte(&mut self, bytes: &mut &[u8]) -> Result<bool, Opaque> {
        let Some((&byte, rest)) = bytes.split_first() else { return Ok(false) };
        *bytes = rest;
        let mut is_value = false;
        self.part = match (self.part, byte) {
            (Part::Mark, mark) => self.begin_value(mark)?,
            // A null: the length is -1.
            (Part::Length, b'-') if self.number.is_none() && b"$*".contains(&self.mark) => {
                Part::End(b"1\r\n")
            }
            (Part::Length, b'\r') if self.number.is_some() => Part::LengthEnd,
            (Part::Length, digit) => {
                self.number = with_digit(self.number, digit)?;
                Part::Length
            }
            (Part::LengthEnd, b'\n') => {
                let number = self.number.take().ok_or(Opaque)?;
                match self.mark {
                    b'$' | b'!' | b'=' => {
                        self.left = number;
                        Part::Body
                    }
                    _ => {
                        is_value = self.open_aggregate(number)?;
                        Part::Mark
                    }
                }
            }
            (Part::End([expected, rest @ ..]), byte) if byte == *expected => {
                is_value = rest.is_empty();
                if is_value { Part::Mark } else { Part::End(rest) }
            }
            _ => return Err(Opaque),
        };
        Ok(is_value)
    }

    /// Begins a value. `mark` is its first byte. Returns the part that follows.
    fn begin_value(&mut self, mark: u8) -> Result<Part, Opaque> {
        self.mark = mark;
        if self.depth == 0 {
            (self.first, self.error_length) = (mark, 0);
        }
        match mark {
            b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => Ok(Part::Line),
            b'$' | b'!' | b'=' | b'*' | b'~' | b'%' | b'|' => Ok(Part::Length),
            // Among others, `>` begins a push.
            _ => Err(Opaque),
        }
    }

    /// Begins an aggregate. Returns whether the aggregate is empty, and therefore complete.
    fn open_aggregate(&mut self, length: u32) -> Result<bool, Opaque> {
        let values = match self.mark {
            b'%' => length.checked_mul(2).ok_or(Opaque)?,
            // The attributes, and one value that the attributes describe.
            b'|' => length.checked_mul(2).ok_or(Opaque)? + 1,
            _ => length,
        };
        if values == 0 {
            return Ok(true);
        }
        *self.missing.get_mut(usize::from(self.depth)).ok_or(Opaque)? = values;
        self.depth += 1;
        Ok(false)
    }

    /// The code of the latest reply if it is an error, for example `READONLY`.
    pub fn error_code(&self) -> &[u8] {
        let error = &self.error[..usize::from(self.error_length)];
        error.split(|byte| matches!(byte, b' ' | b'\r' | b'\n')).next().unwrap_or_default()
    }

    fn note_error(&mut self, line: &[u8]) {
        if self.depth == 0 && self.mark == b'-' {
            let known = usize::from(self.error_length);
            let more = line.len().min(ERROR - known);
            self.error[known..known + more].copy_from_slice(&line[..more]);
            self.error_length = (known + more) as u8;
        }
    }

    /// Counts a complete value. Returns whether it completes the reply.
    fn completes_reply(&mut self) -> bool {
        while let Some(inner) = self.depth.checked_sub(1) {
            let missing = &mut self.missing[usize::from(inner)];
            *missing -= 1;
            if *missing > 0 {
                return false;
            }
            self.depth = inner;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shows the bytes to one framer in one piece, and to another framer byte by byte. Both must
    /// find the same replies. Returns the first byte of each reply, and then " opaque" after an
    /// error.
    #[track_caller]
    fn frame(bytes: &[u8]) -> String {
        let frames = [bytes.len().max(1), 1].map(|size| {
            let (mut framer, mut found) = (ReplyFramer::default(), String::new());
            let mut ended = false;
            for mut piece in bytes.chunks(size) {
                while !ended && !piece.is_empty() {
                    let before = piece.len();
                    match framer.next(&mut piece) {
                        Ok(Some(first)) => {
                            assert!(piece.len() < before, "a reply has at least one byte");
                            found.push(char::from(first));
                        }
                        Ok(None) => assert!(piece.is_empty()),
                        Err(Opaque) => {
                            found += " opaque";
                            ended = true;
                            let again = framer.next(&mut &b"+OK\r\n"[..]);
                            assert_eq!(again, Err(Opaque), "for good");
                        }
                    }
                }
            }
            found
        });
        assert_eq!(frames[0], frames[1], "the size of pieces does not matter");
        frames[0].clone()
    }

    #[test]
    fn replies_of_every_type_are_framed() {
        for reply in [
            "+OK\r\n",
            "+\r\n",
            "-ERR no\r\n",
            ":-12\r\n",
            "_\r\n",
            "#t\r\n",
            ",inf\r\n",
            "(123456789012345678901234567890\r\n",
            "$0\r\n\r\n",
            "$5\r\na\r\n+b\r\n",
            "$-1\r\n",
            "!5\r\nERR x\r\n",
            "=8\r\ntxt:text\r\n",
            "*0\r\n",
            "*-1\r\n",
            "*2\r\n:1\r\n$1\r\nx\r\n",
            "*1\r\n*0\r\n",
            "*2\r\n*1\r\n*2\r\n*0\r\n:1\r\n*-1\r\n",
            "~0\r\n",
            "~1\r\n+a\r\n",
            "%0\r\n",
            "%2\r\n+a\r\n:1\r\n+b\r\n*2\r\n:1\r\n%0\r\n",
            "|0\r\n+OK\r\n",
            "|1\r\n+a\r\n*1\r\n:1\r\n*1\r\n:2\r\n",
            "*2\r\n|1\r\n+ttl\r\n:3600\r\n+a\r\n+b\r\n",
            "*2\r\n|1\r\n+a\r\n|1\r\n+b\r\n+c\r\n+d\r\n+value\r\n+b\r\n",
        ] {
            let first = &reply[..1];
            assert_eq!(frame(reply.as_bytes()), first, "{reply:?}");
            for end in 0..reply.len() {
                assert_eq!(frame(&reply.as_bytes()[..end]), "", "{:?}", &reply[..end]);
            }
            assert_eq!(frame(reply.repeat(3).as_bytes()), first.repeat(3), "{reply:?}");
        }
    }

    #[test]
    fn bytes_that_no_server_sends_are_not_framed() {
        for bytes in [
            "OK\r\n",
            "\r\n",
            "\n",
            " ",
            "?",
            ".",
            ";",
            "+a\n",
            "+a\rb",
            "+a\r\r",
            "_\n",
            "$?",
            "*?",
            "%?",
            "~?",
            "$\r",
            "*\r",
            "$-2",
            "$-0",
            "$--1",
            "$1-",
            "*-2",
            "$-1\n",
            "$-11",
            "$-1\r\r",
            "~-1",
            "%-1",
            "|-1",
            "=-1",
            "!-1",
            "$01",
            "*01",
            "$00",
            "$+1",
            "$ 1",
            "$1 ",
            "$1\n",
            "$1\rx",
            "$1\r\nab",
            "$1\r\na\n",
            "$1\r\na\rb",
            "$0\r\n\n",
            "$4294967296",
            "*4294967296",
            "%2147483648\r\n",
            "|2147483648\r\n",
            "*1\r\n\r",
            "*1\r\nx",
            "%1\r\n+a\r\n?",
        ] {
            assert_eq!(frame(bytes.as_bytes()), " opaque", "{bytes:?}");
        }
        for bytes in ["$4294967295\r\n", "*4294967295\r\n", "%2147483647\r\n", "|2147483647\r\n"] {
            assert_eq!(frame(bytes.as_bytes()), "", "{bytes:?}");
        }
    }

    #[test]
    fn a_push_is_not_framed_wherever_it_begins() {
        for (bytes, expected) in [
            (">", " opaque"),
            ("+OK\r\n>1\r\n+a\r\n", "+ opaque"),
            ("*2\r\n+OK\r\n>2\r\n+a\r\n+b\r\n+OK\r\n", " opaque"),
            ("|1\r\n>1\r\n", " opaque"),
            ("%1\r\n+a\r\n>1\r\n", " opaque"),
            ("$3\r\n>1\r\r\n", "$"),
            ("+>1\r\n", "+"),
        ] {
            assert_eq!(frame(bytes.as_bytes()), expected, "{bytes:?}");
        }
    }

    #[test]
    fn nesting_beyond_the_limit_is_not_framed() {
        for mark in ["*1\r\n", "~1\r\n", "%1\r\n+a\r\n", "|0\r\n"] {
            let nested = |depth| format!("{}:1\r\n", mark.repeat(depth));
            assert_eq!(frame(nested(DEPTH).repeat(2).as_bytes()), mark[..1].repeat(2));
            assert_eq!(frame(nested(DEPTH + 1).as_bytes()), " opaque");
        }
        let empty = format!("{}*0\r\n", "*1\r\n".repeat(DEPTH));
        assert_eq!(frame(empty.as_bytes()), "*", "an empty aggregate is not a level");
    }
}
