//! Where each reply of a server ends, in RESP2 and RESP3 alike.
//!
//! A push is reported rather than framed: it is nobody's reply, and may stand even inside one.
//! Streamed values (`$?`, `*?`) are not framed; no server sends them.

use super::{Opaque, with_digit};

/// Finds the replies in the bytes of one connection, in whatever pieces they come. It allocates
/// nothing and keeps nothing of them.
#[derive(Debug, Default)]
pub struct ReplyFramer {
    part: Part,
    /// The first byte of the current value, which says of what type it is.
    mark: u8,
    /// The first byte of the reply that the value belongs to.
    first: u8,
    /// The number that is being read.
    number: Option<u32>,
    /// Bytes that the current string still lacks, without its line end.
    left: u32,
    /// Open aggregates.
    depth: u8,
    /// Values that each open aggregate still lacks, outermost first.
    missing: [u32; DEPTH],
    /// How the latest reply begins that is an error, behind its `-`.
    error: [u8; ERROR],
    error_length: u8,
}

/// How many bytes of an error are kept: the longest code that anybody asks for, and a space.
const ERROR: usize = 12;

/// The deepest nesting that is followed. COMMAND DOCS of Redis 8 needs about 10.
pub const DEPTH: usize = 16;

/// What the next byte belongs to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// A new value.
    #[default]
    Mark,
    /// A value that is one line, and that line's LF.
    Line,
    LineEnd,
    /// The length or count of a value, and its line end.
    Length,
    LengthEnd,
    /// The `-1` of a null, behind its sign; its line end.
    Null,
    NullEnd,
    NullEndLf,
    /// A string, and its line end.
    Body,
    BodyEnd,
    BodyEndLf,
    Opaque,
}

/// Why nothing more is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unframed {
    /// A push begins here, or inside the current reply.
    Push,
    Opaque,
}

impl From<Opaque> for Unframed {
    fn from(_: Opaque) -> Unframed {
        Unframed::Opaque
    }
}

impl ReplyFramer {
    /// The first byte of the next reply that is complete with these bytes, which are taken as far
    /// as it goes; `None` once all are taken. Of a reply with attributes it is `|`.
    ///
    /// # Errors
    ///
    /// A push, or what is not framed; from then on always [`Unframed::Opaque`].
    pub fn next(&mut self, bytes: &mut &[u8]) -> Result<Option<u8>, Unframed> {
        let result = self.advance(bytes);
        if result.is_err() {
            self.part = Part::Opaque;
        }
        result
    }

    fn advance(&mut self, bytes: &mut &[u8]) -> Result<Option<u8>, Unframed> {
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

    /// Skips a string as far as its bytes are there.
    fn skip_body(&mut self, bytes: &mut &[u8]) {
        let taken = bytes.len().min(self.left as usize);
        *bytes = &bytes[taken..];
        self.left -= taken as u32;
        if self.left == 0 {
            self.part = Part::BodyEnd;
        }
    }

    /// Skips a line up to its CR, or as far as its bytes are there.
    fn skip_line(&mut self, bytes: &mut &[u8]) -> Result<(), Unframed> {
        self.note_error(bytes);
        let is_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
        let Some(length) = bytes.iter().position(is_end) else {
            *bytes = &[];
            return Ok(());
        };
        // A bare LF is no end.
        if bytes[length] == b'\n' {
            return Err(Unframed::Opaque);
        }
        *bytes = &bytes[length + 1..];
        self.part = Part::LineEnd;
        Ok(())
    }

    /// Takes one byte that is neither inside a line nor inside a string. Returns whether it
    /// completes a value.
    fn take_byte(&mut self, bytes: &mut &[u8]) -> Result<bool, Unframed> {
        let Some((&byte, rest)) = bytes.split_first() else { return Ok(false) };
        *bytes = rest;
        let mut is_value = false;
        self.part = match (self.part, byte) {
            (Part::Mark, mark) => self.begin_value(mark)?,
            (Part::Length, b'-') if self.number.is_none() && b"$*".contains(&self.mark) => {
                Part::Null
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
            (Part::Null, b'1') => Part::NullEnd,
            (Part::NullEnd, b'\r') => Part::NullEndLf,
            (Part::BodyEnd, b'\r') => Part::BodyEndLf,
            (Part::LineEnd | Part::NullEndLf | Part::BodyEndLf, b'\n') => {
                is_value = true;
                Part::Mark
            }
            _ => return Err(Unframed::Opaque),
        };
        Ok(is_value)
    }

    /// Begins the value of this mark. Returns what follows the mark.
    fn begin_value(&mut self, mark: u8) -> Result<Part, Unframed> {
        self.mark = mark;
        if self.depth == 0 {
            (self.first, self.error_length) = (mark, 0);
        }
        match mark {
            b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => Ok(Part::Line),
            b'$' | b'!' | b'=' | b'*' | b'~' | b'%' | b'|' => Ok(Part::Length),
            b'>' => Err(Unframed::Push),
            _ => Err(Unframed::Opaque),
        }
    }

    /// Opens an aggregate of this length. Returns whether it is empty, and so complete.
    fn open_aggregate(&mut self, length: u32) -> Result<bool, Unframed> {
        let values = match self.mark {
            b'%' => length.checked_mul(2).ok_or(Opaque)?,
            // As well as what the attributes are about.
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

    /// The first word of the latest reply, if it is an error: its code, as `READONLY`.
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

    /// Counts a complete value, and the aggregates that it completes.
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

    /// What a framer makes of these bytes: the first byte of each reply, and how it ends; the
    /// same in one piece and byte by byte.
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
                            assert!(piece.len() < before, "a reply of no byte");
                            found.push(char::from(first));
                        }
                        Ok(None) => assert!(piece.is_empty()),
                        Err(why) => {
                            found += if why == Unframed::Push { " push" } else { " opaque" };
                            ended = true;
                            let again = framer.next(&mut &b"+OK\r\n"[..]);
                            assert_eq!(again, Err(Unframed::Opaque), "for good");
                        }
                    }
                }
            }
            found
        });
        assert_eq!(frames[0], frames[1], "cutting changes nothing");
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
    fn what_no_server_sends_is_not_framed() {
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
    fn a_push_is_reported_wherever_it_begins() {
        for (bytes, expected) in [
            (">", " push"),
            ("+OK\r\n>1\r\n+a\r\n", "+ push"),
            ("*2\r\n+OK\r\n>2\r\n+a\r\n+b\r\n+OK\r\n", " push"),
            ("|1\r\n>1\r\n", " push"),
            ("%1\r\n+a\r\n>1\r\n", " push"),
            ("$3\r\n>1\r\r\n", "$"),
            ("+>1\r\n", "+"),
        ] {
            assert_eq!(frame(bytes.as_bytes()), expected, "{bytes:?}");
        }
    }

    #[test]
    fn nesting_is_followed_so_deep_and_no_deeper() {
        for mark in ["*1\r\n", "~1\r\n", "%1\r\n+a\r\n", "|0\r\n"] {
            let nested = |depth| format!("{}:1\r\n", mark.repeat(depth));
            assert_eq!(frame(nested(DEPTH).repeat(2).as_bytes()), mark[..1].repeat(2));
            assert_eq!(frame(nested(DEPTH + 1).as_bytes()), " opaque");
        }
        let empty = format!("{}*0\r\n", "*1\r\n".repeat(DEPTH));
        assert_eq!(frame(empty.as_bytes()), "*", "an empty one is no level");
    }
}
