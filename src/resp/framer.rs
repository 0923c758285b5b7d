//! Finds the end of each request and each reply.
//!
//! Servers accept requests that violate the protocol, and each server reads such requests in its
//! own way. For example, Redis ignores the two bytes after a bulk string, and accepts any byte
//! after a CR. So this module accepts only requests that end at the same byte for every server:
//! arrays of bulk strings with canonical numbers and CRLF. This module does not accept arrays that
//! get no reply (`*0`, `*-1`). Nor does this module accept inline requests (lines of words), which
//! no client library sends.
//!
//! Replies may use RESP2 and RESP3. A push between two replies counts as a reply. This module does
//! not accept a push inside a reply, or streamed values (`$?`, `*?`), which no server sends.

use super::Opaque;

/// A framer that finds requests, which are arrays of bulk strings.
pub type RequestFramer = Framer<true>;
/// A framer that finds replies and pushes, which are values of any type.
pub type ReplyFramer = Framer<false>;

/// Finds the requests or the replies in the bytes of one connection. The bytes may arrive in pieces
/// of any size. The framer allocates no memory, and stores only the beginnings of the first two
/// strings of a request or reply.
#[derive(Debug, Default)]
pub struct Framer<const REQUESTS: bool> {
    part: Part,
    /// The first byte of the current value, which is its type.
    mark: u8,
    /// The first byte of the current request or reply.
    first: u8,
    /// The length or count that the framer is reading, as far as its digits have arrived.
    number: Option<u32>,
    /// The number of bytes that are still missing in the current string, not counting its line end.
    left: u32,
    /// The number of aggregates, such as arrays, that are not complete yet.
    depth: u8,
    /// The number of values that are still missing in each incomplete aggregate. The outermost
    /// aggregate comes first.
    missing: [u32; DEPTH],
    /// The number of complete values of the current request or reply.
    count: u8,
    words: [Word; 2],
}

/// The most bytes in a word that [`Framer::words`] returns. In Redis 8, the longest name of a
/// command has 20 bytes, and the longest name of a subcommand has 21.
pub const WORD: usize = 24;

/// The most levels of nested aggregates that a framer follows. The reply to COMMAND DOCS of Redis 8
/// has about 10 levels.
pub const DEPTH: usize = 16;

/// The part of a value to which the next byte belongs.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The first byte of a new value.
    #[default]
    Mark,
    /// The rest of a value's only line, up to its LF.
    Line,
    /// The length or count of a value, up to the CR.
    Length,
    /// The LF after a length or count.
    LengthEnd,
    /// The bytes of a string, without its line end.
    Body,
    /// The bytes that must follow to complete a value.
    End(&'static [u8]),
    Opaque,
}

/// The first bytes of a string or line. A length of [`WORD`] + 1 bytes shows that the word is too
/// long.
#[derive(Debug, Default, Clone, Copy)]
struct Word {
    bytes: [u8; WORD + 1],
    length: u8,
}

impl<const REQUESTS: bool> Framer<REQUESTS> {
    /// Removes the next request or reply from the beginning of `bytes`, and returns true. If the
    /// request or reply is not complete yet, removes all bytes and returns false.
    ///
    /// # Errors
    ///
    /// If the end of the request or reply cannot be found. Every later call returns the same error.
    pub fn next(&mut self, bytes: &mut &[u8]) -> Result<bool, Opaque> {
        let result = self.advance(bytes);
        if result.is_err() {
            self.part = Part::Opaque;
        }
        result
    }

    /// True if the next byte begins a new request or reply.
    pub fn is_at_boundary(&self) -> bool {
        self.part == Part::Mark && self.depth == 0
    }

    /// Returns the first byte of the latest reply, which is `|` if the reply has attributes, and
    /// `>` for a push.
    pub fn first(&self) -> u8 {
        self.first
    }

    /// Returns the command and the first argument of the latest request. Returns `None` for a word
    /// that is longer than [`WORD`], and an empty word for a missing argument.
    pub fn words(&self) -> [Option<&[u8]>; 2] {
        self.words.each_ref().map(|word| Some(word.text()).filter(|text| text.len() <= WORD))
    }

    /// Returns the error code of the latest reply if this reply is an error, for example
    /// `READONLY`.
    pub fn error_code(&self) -> &[u8] {
        self.words[0].text().split(|byte| *byte == b' ').next().unwrap_or_default()
    }

    fn advance(&mut self, bytes: &mut &[u8]) -> Result<bool, Opaque> {
        while let Some((&byte, rest)) = bytes.split_first() {
            match self.part {
                Part::Body => self.skip_body(bytes),
                Part::Line => self.skip_line(bytes)?,
                _ => {
                    *bytes = rest;
                    if self.take_byte(byte)? && self.is_complete() {
                        return Ok(true);
                    }
                }
            }
        }
        Ok(false)
    }

    fn skip_body(&mut self, bytes: &mut &[u8]) {
        let (taken, rest) = bytes.split_at(bytes.len().min(self.left as usize));
        self.keep(taken);
        *bytes = rest;
        self.left -= taken.len() as u32;
        if self.left == 0 {
            self.part = Part::End(b"\r\n");
        }
    }

    /// Skips a line up to its CR.
    fn skip_line(&mut self, bytes: &mut &[u8]) -> Result<(), Opaque> {
        let end = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
        let (line, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
        self.keep(line);
        *bytes = match rest {
            [] => rest,
            [b'\r', rest @ ..] => {
                self.part = Part::End(b"\n");
                rest
            }
            // A line must not end with LF alone.
            _ => return Err(Opaque),
        };
        Ok(())
    }

    /// Takes a byte that is not part of a line or string. Returns whether the byte completes a
    /// value.
    fn take_byte(&mut self, byte: u8) -> Result<bool, Opaque> {
        let mut is_value = false;
        self.part = match (self.part, byte) {
            (Part::Mark, mark) => self.begin_value(mark)?,
            // The length -1 stands for a null value.
            (Part::Length, b'-')
                if !REQUESTS && self.number.is_none() && b"$*".contains(&self.mark) =>
            {
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

    /// Begins a value whose first byte is `mark`. Returns which part of this value comes next.
    fn begin_value(&mut self, mark: u8) -> Result<Part, Opaque> {
        self.mark = mark;
        if self.depth == 0 {
            (self.first, self.count, self.words) = (mark, 0, Default::default());
        }
        match mark {
            // A request is an array of bulk strings.
            _ if REQUESTS && mark != [b'*', b'$'][usize::from(self.depth)] => Err(Opaque),
            b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => Ok(Part::Line),
            b'$' | b'!' | b'=' | b'*' | b'~' | b'%' | b'|' => Ok(Part::Length),
            b'>' if self.depth == 0 => Ok(Part::Length),
            // The framer accepts no other value.
            _ => Err(Opaque),
        }
    }

    /// Begins an aggregate, such as an array. Returns whether the aggregate is empty, and therefore
    /// complete.
    fn open_aggregate(&mut self, length: u32) -> Result<bool, Opaque> {
        let values = match self.mark {
            b'%' => length.checked_mul(2).ok_or(Opaque)?,
            // Count the names and values of the attributes, and one value that the attributes
            // describe.
            b'|' => length.checked_mul(2).ok_or(Opaque)? + 1,
            _ => length,
        };
        if values == 0 {
            return if REQUESTS { Err(Opaque) } else { Ok(true) };
        }
        *self.missing.get_mut(usize::from(self.depth)).ok_or(Opaque)? = values;
        self.depth += 1;
        Ok(false)
    }

    /// Counts a complete value. Returns whether this value completes the request or reply.
    fn is_complete(&mut self) -> bool {
        self.count = self.count.saturating_add(1);
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

    /// Stores the text of a string or line, if the string or line is one of the first two.
    fn keep(&mut self, text: &[u8]) {
        if let Some(word) = self.words.get_mut(usize::from(self.count)) {
            let free = &mut word.bytes[usize::from(word.length)..];
            let kept = text.len().min(free.len());
            free[..kept].copy_from_slice(&text[..kept]);
            word.length += kept as u8;
        }
    }
}

impl Word {
    fn text(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// Appends a digit to a number. Accepts only numbers without a sign, without leading zeros, and up
/// to `u32::MAX`. This maximum is high enough, because Redis accepts strings of at most 512 MiB by
/// default.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Shows the bytes to one framer in one piece, and to another framer byte by byte. Both must
    /// find the same replies. Returns the first byte of each reply, followed by " opaque" if the
    /// framers have returned an error.
    #[track_caller]
    fn replies(bytes: &[u8]) -> String {
        let frames = [bytes.len().max(1), 1].map(|size| {
            let (mut framer, mut found) = (ReplyFramer::default(), String::new());
            let mut ended = false;
            for mut piece in bytes.chunks(size) {
                while !ended && !piece.is_empty() {
                    let before = piece.len();
                    match framer.next(&mut piece) {
                        Ok(true) => {
                            assert!(piece.len() < before, "a reply has at least one byte");
                            found.push(char::from(framer.first()));
                        }
                        Ok(false) => assert!(piece.is_empty()),
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
            assert_eq!(replies(reply.as_bytes()), first, "{reply:?}");
            for end in 0..reply.len() {
                assert_eq!(replies(&reply.as_bytes()[..end]), "", "{:?}", &reply[..end]);
            }
            assert_eq!(replies(reply.repeat(3).as_bytes()), first.repeat(3), "{reply:?}");
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
            assert_eq!(replies(bytes.as_bytes()), " opaque", "{bytes:?}");
        }
        for bytes in ["$4294967295\r\n", "*4294967295\r\n", "%2147483647\r\n", "|2147483647\r\n"] {
            assert_eq!(replies(bytes.as_bytes()), "", "{bytes:?}");
        }
    }

    #[test]
    fn a_push_is_framed_between_replies_but_not_inside_a_reply() {
        for (bytes, expected) in [
            (">", ""),
            (">-1", " opaque"),
            ("+OK\r\n>2\r\n+a\r\n*1\r\n:1\r\n+OK\r\n", "+>+"),
            (">1\r\n>1\r\n", " opaque"),
            ("*2\r\n+OK\r\n>2\r\n+a\r\n+b\r\n+OK\r\n", " opaque"),
            ("|1\r\n>1\r\n", " opaque"),
            ("%1\r\n+a\r\n>1\r\n", " opaque"),
            ("$3\r\n>1\r\r\n", "$"),
            ("+>1\r\n", "+"),
        ] {
            assert_eq!(replies(bytes.as_bytes()), expected, "{bytes:?}");
        }
    }

    #[test]
    fn nesting_beyond_the_limit_is_not_framed() {
        for mark in ["*1\r\n", "~1\r\n", "%1\r\n+a\r\n", "|0\r\n"] {
            let nested = |depth| format!("{}:1\r\n", mark.repeat(depth));
            assert_eq!(replies(nested(DEPTH).repeat(2).as_bytes()), mark[..1].repeat(2));
            assert_eq!(replies(nested(DEPTH + 1).as_bytes()), " opaque");
        }
        let empty = format!("{}*0\r\n", "*1\r\n".repeat(DEPTH));
        assert_eq!(replies(empty.as_bytes()), "*", "an empty aggregate is not a level");
    }

    /// Shows the bytes to one framer in one piece, and to another framer byte by byte. Both must
    /// find the same requests. Returns the command and the first argument of each request, with `?`
    /// for a word that is too long. The framer's state follows at the end.
    #[track_caller]
    fn requests(bytes: &[u8]) -> String {
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
                        Ok(true) => {
                            assert!(piece.len() < before, "a request has at least one byte");
                            let [command, argument] = framer.words().map(word);
                            found += &format!("{command},{argument};");
                        }
                        Ok(false) => break,
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
            // The first request breaks off after `PI`, so the framer takes `*1`, the beginning of
            // the next request, as the rest of the string.
            ("*1\r\n$4\r\nPI*1\r\n$5\r\nRESET\r\n", "PI*1,;opaque"),
        ] {
            assert_eq!(requests(bytes.as_bytes()), expected, "{bytes:?}");
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
            assert_eq!(requests(&request), expected);
            // The framer does not return words of an earlier request.
            let twice = [&request[..], b"*1\r\n$1\r\na\r\n"].concat();
            assert_eq!(requests(&twice), format!("{expected}a,;"));
        }
    }
}
