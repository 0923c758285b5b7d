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
}

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
        while let Some((&byte, rest)) = bytes.split_first() {
            match self.part {
                Part::Body => {
                    let taken = bytes.len().min(self.left as usize);
                    *bytes = &bytes[taken..];
                    self.left -= taken as u32;
                    if self.left == 0 {
                        self.part = Part::BodyEnd;
                    }
                    continue;
                }
                Part::Line => {
                    let is_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
                    let Some(length) = bytes.iter().position(is_end) else {
                        *bytes = &[];
                        continue;
                    };
                    // A bare LF is no end.
                    if bytes[length] == b'\n' {
                        return Err(Unframed::Opaque);
                    }
                    *bytes = &bytes[length + 1..];
                    self.part = Part::LineEnd;
                    continue;
                }
                _ => *bytes = rest,
            }
            let mut is_value = false;
            self.part = match (self.part, byte) {
                (Part::Mark, mark) => {
                    self.mark = mark;
                    if self.depth == 0 {
                        self.first = mark;
                    }
                    match mark {
                        b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => Part::Line,
                        b'$' | b'!' | b'=' | b'*' | b'~' | b'%' | b'|' => Part::Length,
                        b'>' => return Err(Unframed::Push),
                        _ => return Err(Unframed::Opaque),
                    }
                }
                (Part::Length, b'-') if self.number.is_none() && b"$*".contains(&self.mark) => {
                    Part::Null
                }
                (Part::Length, b'\r') => Part::LengthEnd,
                (Part::Length, digit) => {
                    self.number = with_digit(self.number, digit)?;
                    Part::Length
                }
                (Part::LengthEnd, b'\n') => {
                    let number = self.number.take().ok_or(Opaque)?;
                    let values = match self.mark {
                        b'$' | b'!' | b'=' => None,
                        b'%' => Some(number.checked_mul(2).ok_or(Opaque)?),
                        // As well as what the attributes are about.
                        b'|' => Some(number.checked_mul(2).ok_or(Opaque)? + 1),
                        _ => Some(number),
                    };
                    match (values, number) {
                        (Some(0), _) => {
                            is_value = true;
                            Part::Mark
                        }
                        (Some(values), _) => {
                            let depth = usize::from(self.depth);
                            *self.missing.get_mut(depth).ok_or(Opaque)? = values;
                            self.depth += 1;
                            Part::Mark
                        }
                        (None, 0) => Part::BodyEnd,
                        (None, length) => {
                            self.left = length;
                            Part::Body
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
            if is_value && self.completes_reply() {
                return Ok(Some(self.first));
            }
        }
        Ok(None)
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
