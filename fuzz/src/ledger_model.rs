//! A simple model of the pool's ledger. The model stores all bytes of a connection. After each
//! piece it parses them again from the first byte. The ledger's unit tests and its fuzz target
//! check that the ledger and the model always agree.

use std::fmt;

/// The direction of a piece of bytes, as the app sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the app to Redis.
    Sent,
    /// From Redis to the app.
    Received,
}

/// Looks up a command in the pool's command table by its name and first argument. Returns whether
/// the connection is reusable only if Redis replies with an error, or `None` for a command that is
/// not in the table.
pub type MustFail<'a> = &'a dyn Fn(&[u8], Option<&[u8]>) -> Option<bool>;

/// All bytes of a connection so far, and the conclusions that the ledger must draw from them.
pub struct Model<'a> {
    must_fail: MustFail<'a>,
    sent: Vec<u8>,
    received: Vec<u8>,
    /// The expected result of the ledger's `is_spoiled`.
    pub is_spoiled: bool,
    /// The expected result of the ledger's `is_reusable`.
    pub is_reusable: bool,
}

impl fmt::Debug for Model<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (sent, received) = (text(&self.sent), text(&self.received));
        write!(f, "sent {sent:?}, received {received:?}")
    }
}

/// The reason why the parser stops.
enum Stop {
    /// The bytes end before the item is complete.
    End,
    /// The bytes are invalid RESP, or RESP that the ledger does not accept.
    Wrong,
}

/// Parses RESP.
struct Reader<'a> {
    bytes: std::slice::Iter<'a, u8>,
}

impl Reader<'_> {
    fn byte(&mut self) -> Result<u8, Stop> {
        self.bytes.next().copied().ok_or(Stop::End)
    }

    fn is_at_end(&self) -> bool {
        self.bytes.as_slice().is_empty()
    }

    fn expect(&mut self, expected: u8) -> Result<(), Stop> {
        if self.byte()? == expected { Ok(()) } else { Err(Stop::Wrong) }
    }

    /// Reads a line that ends with CR LF. Returns its text without CR LF.
    fn line(&mut self) -> Result<String, Stop> {
        let mut line = String::new();
        loop {
            match self.byte()? {
                b'\r' => break,
                b'\n' => return Err(Stop::Wrong),
                byte => line.push(char::from(byte)),
            }
        }
        self.expect(b'\n')?;
        Ok(line)
    }

    /// Reads a number and CR LF. The number has no plus sign and no leading zeros. The null value
    /// -1 is valid only if `may_be_null`; it is returned as `None`.
    fn number(&mut self, may_be_null: bool) -> Result<Option<u32>, Stop> {
        let mut text = String::new();
        loop {
            match self.byte()? {
                b'\r' if !text.is_empty() && text != "-" => break,
                byte => text.push(char::from(byte)),
            }
            let is_number = text.parse::<u32>().is_ok_and(|number| number.to_string() == text);
            let is_null = may_be_null && ["-", "-1"].contains(&text.as_str());
            if !is_number && !is_null {
                return Err(Stop::Wrong);
            }
        }
        self.expect(b'\n')?;
        Ok(text.parse().ok())
    }

    /// Reads a bulk string of this length and CR LF.
    fn string(&mut self, length: u32) -> Result<Vec<u8>, Stop> {
        let mut string = Vec::new();
        for _ in 0..length {
            string.push(self.byte()?);
        }
        self.expect(b'\r')?;
        self.expect(b'\n')?;
        Ok(string)
    }

    /// Reads a request: an array of bulk strings. Returns its words.
    fn request(&mut self) -> Result<Vec<Vec<u8>>, Stop> {
        let mut words = Vec::new();
        self.expect(b'*')?;
        let count = self.number(false)?.filter(|count| *count > 0).ok_or(Stop::Wrong)?;
        for _ in 0..count {
            self.expect(b'$')?;
            let length = self.number(false)?.ok_or(Stop::Wrong)?;
            words.push(self.string(length)?);
        }
        Ok(words)
    }

    /// Reads a value that is nested inside `depth` other values.
    fn value(&mut self, depth: usize) -> Result<(), Stop> {
        let values = match self.byte()? {
            b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => {
                self.line()?;
                0
            }
            mark @ (b'$' | b'!' | b'=') => {
                if let Some(length) = self.number(mark == b'$')? {
                    self.string(length)?;
                }
                0
            }
            b'*' => u64::from(self.number(true)?.unwrap_or(0)),
            b'~' => u64::from(self.number(false)?.unwrap_or(0)),
            b'>' if depth == 0 => u64::from(self.number(false)?.unwrap_or(0)),
            b'%' => 2 * u64::from(self.number(false)?.unwrap_or(0)),
            b'|' => 2 * u64::from(self.number(false)?.unwrap_or(0)) + 1,
            _ => return Err(Stop::Wrong),
        };
        if values > u64::from(u32::MAX) || (values > 0 && depth == 16) {
            return Err(Stop::Wrong);
        }
        for _ in 0..values {
            self.value(depth + 1)?;
        }
        Ok(())
    }
}

/// Parses all of `bytes` with `read`. Returns the complete items, whether the last item is
/// incomplete or invalid, and whether all bytes are valid.
fn read_all<T>(
    bytes: &[u8],
    read: impl Fn(&mut Reader<'_>) -> Result<T, Stop>,
) -> (Vec<T>, bool, bool) {
    let mut reader = Reader { bytes: bytes.iter() };
    let mut items = Vec::new();
    while !reader.is_at_end() {
        match read(&mut reader) {
            Ok(item) => items.push(item),
            Err(Stop::End) => return (items, true, true),
            Err(Stop::Wrong) => return (items, true, false),
        }
    }
    (items, false, true)
}

impl<'a> Model<'a> {
    pub fn new(must_fail: MustFail<'a>) -> Model<'a> {
        let (sent, received) = (Vec::new(), Vec::new());
        Model { must_fail, sent, received, is_spoiled: false, is_reusable: true }
    }

    /// Adds the next bytes of one direction, and evaluates the whole connection again.
    pub fn step(&mut self, direction: Direction, piece: &[u8]) {
        match direction {
            Direction::Sent => self.sent.extend(piece),
            Direction::Received => self.received.extend(piece),
        }
        let (requests, is_half, requests_are_right) =
            read_all(&self.sent, |reader| reader.request());
        let (replies, is_half_reply, replies_are_right) = read_all(&self.received, |reader| {
            let first = reader.bytes.as_slice()[0];
            reader.value(0).map(|()| first)
        });
        let must_fail: Vec<_> = requests.iter().map(|words| self.must_fail(words)).collect();
        let maintenance: Vec<usize> =
            (0..must_fail.len()).filter(|index| must_fail[*index] == Some(true)).collect();

        let begun = replies.len() + usize::from(is_half_reply);
        let was_accepted =
            |index: usize| replies.get(index).is_some_and(|first| *first != b'-' && *first != b'!');
        self.is_spoiled |= !requests_are_right
            || !replies_are_right
            || replies.contains(&b'>')
            || begun > requests.len()
            || requests.len() > 1_000
            || must_fail.iter().any(Option::is_none)
            || maintenance.iter().any(|index| was_accepted(*index))
            || maintenance.iter().filter(|index| **index >= replies.len()).count() > 1;
        self.is_reusable =
            !self.is_spoiled && !is_half && begun == requests.len() && !is_half_reply;
    }

    /// Looks up a request's command. The ledger stores only words of at most 24 bytes. So a command
    /// with a longer name is not in the table, and a longer argument counts as unknown.
    fn must_fail(&self, words: &[Vec<u8>]) -> Option<bool> {
        let short = |word: &'_ Vec<u8>| word.len() <= 24;
        let name = words.first().filter(|word| short(word))?;
        match words.get(1) {
            None => (self.must_fail)(name, Some(b"")),
            Some(word) if short(word) => (self.must_fail)(name, Some(word)),
            Some(_) => (self.must_fail)(name, None),
        }
    }
}
