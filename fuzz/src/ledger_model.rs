//! What a ledger must know, told in the plainest way: everything is kept, and read anew from its
//! first byte after each piece. The ledger's unit tests and its fuzz target compare with it.

use std::fmt;

/// Who sent a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Sent,
    Received,
}

/// What the table of commands says about one.
#[derive(Debug, Clone, Copy)]
pub struct Effect {
    pub is_repeatable: bool,
    /// Its reply must be an error.
    pub must_fail: bool,
}

/// The table of commands: what one of this name and first argument does, if it is listed.
pub type Effects<'a> = &'a dyn Fn(&[u8], Option<&[u8]>) -> Option<Effect>;

pub struct Model<'a> {
    effects: Effects<'a>,
    sent: Vec<u8>,
    received: Vec<u8>,
    gave_up: bool,
    is_settled: bool,
    is_repeatable: bool,
    is_one_request: bool,
}

impl fmt::Debug for Model<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (sent, received) = (text(&self.sent), text(&self.received));
        write!(f, "sent {sent:?}, received {received:?}")
    }
}

/// Why reading stops.
enum Stop {
    /// There are no more bytes.
    End,
    /// This is not what it should be.
    Wrong,
}

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

    /// All before CR; then LF.
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

    /// A number in its only form, before CR and LF; -1 if that is allowed.
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

    fn string(&mut self, length: u32) -> Result<Vec<u8>, Stop> {
        let mut string = Vec::new();
        for _ in 0..length {
            string.push(self.byte()?);
        }
        self.expect(b'\r')?;
        self.expect(b'\n')?;
        Ok(string)
    }

    fn request(&mut self) -> Result<Vec<Vec<u8>>, Stop> {
        let mut words = Vec::new();
        self.expect(b'*')?;
        let count = match self.bytes.as_slice() {
            [b'0', ..] => return Err(self.zero()),
            _ => self.number(false)?,
        };
        for _ in 0..count.ok_or(Stop::Wrong)? {
            self.expect(b'$')?;
            let length = self.number(false)?.ok_or(Stop::Wrong)?;
            words.push(self.string(length)?);
        }
        Ok(words)
    }

    /// An array of no words is wrong, but is known to be one behind its CR only.
    fn zero(&mut self) -> Stop {
        let _zero = self.byte();
        match self.byte() {
            Ok(_) => Stop::Wrong,
            Err(stop) => stop,
        }
    }

    /// Reads a value inside so many others.
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

/// The items of these bytes, the unfinished part of one more, and whether all is well.
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
    pub fn new(effects: Effects<'a>) -> Model<'a> {
        Model {
            effects,
            sent: Vec::new(),
            received: Vec::new(),
            gave_up: false,
            is_settled: true,
            is_repeatable: true,
            is_one_request: true,
        }
    }

    /// Whether it has given up, is settled, is repeatable, and is one request at most.
    pub fn knows(&self) -> [bool; 4] {
        [self.gave_up, self.is_settled, self.is_repeatable, self.is_one_request]
    }

    /// The next bytes of one direction.
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
        let effects: Vec<_> = requests.iter().map(|words| self.effect_of(words)).collect();
        let must_fail: Vec<usize> = effects
            .iter()
            .enumerate()
            .filter(|(_, effect)| effect.is_some_and(|effect| effect.must_fail))
            .map(|(index, _)| index)
            .collect();

        let begun = replies.len() + usize::from(is_half_reply);
        let was_accepted =
            |index: usize| replies.get(index).is_some_and(|first| *first != b'-' && *first != b'!');
        self.gave_up |= !requests_are_right
            || !replies_are_right
            || begun > requests.len()
            || requests.len() > 1_000
            || self.sent.len().max(self.received.len()) > 1_048_576
            || effects.iter().any(Option::is_none)
            || must_fail.iter().any(|index| was_accepted(*index))
            || must_fail.iter().filter(|index| **index >= replies.len()).count() > 1;
        self.is_settled = !self.gave_up && !is_half && begun == requests.len() && !is_half_reply;
        self.is_repeatable = !self.gave_up
            && !is_half
            && effects.iter().flatten().all(|effect| effect.is_repeatable);
        self.is_one_request = !self.gave_up && requests.len() + usize::from(is_half) <= 1;
    }

    fn effect_of(&self, words: &[Vec<u8>]) -> Option<Effect> {
        let short = |word: &'_ Vec<u8>| word.len() <= 24;
        let name = words.first().filter(|word| short(word))?;
        match words.get(1) {
            None => (self.effects)(name, Some(b"")),
            Some(word) if short(word) => (self.effects)(name, Some(word)),
            Some(_) => (self.effects)(name, None),
        }
    }
}
