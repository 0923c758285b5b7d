//! Telling the app, in RESP, that its connection was refused.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::app::AppStream;

/// How long to wait for the app's first request before answering all the same. Some clients take a
/// reply that comes before any request for a broken connection.
const FIRST_REQUEST: Duration = Duration::from_secs(2);
/// How long a refused app may stay silent before its connection is closed. At once would be too soon: ioredis and others
/// take an error in reply to their first request, HELLO, for an old server, ask on, and report only what they hear then.
const LINGER: Duration = Duration::from_secs(1);
/// How long a refused app is answered at most.
const LONGEST_TALK: Duration = Duration::from_secs(10);
/// The longest answer, so that it stays one readable line.
const LONGEST: usize = 300;

/// The RESP error that says `text`: one line, of printable characters only.
pub fn error(text: &str) -> String {
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    let line: String = format!("-ERR start-stunnel: {text}").chars().map(printable).collect();
    let end =
        line.char_indices().map(|(at, _)| at).find(|at| *at > LONGEST - 4).unwrap_or(line.len());
    format!("{}\r\n", &line[..end])
}

/// Answers the app's requests with one and the same error each, and closes when no more come.
///
/// # Errors
/// When the app is gone.
pub async fn refuse(app: &mut AppStream, text: &str) -> io::Result<()> {
    let answer = error(text);
    // Talked out, or the app has gone: in either case it is over.
    let _ = timeout(LONGEST_TALK, answer_all(app, answer.as_bytes())).await;
    app.shutdown().await?;
    // Closing with unread bytes is a reset, which may overtake the answer (RFC 1122 section 4.2.2.13).
    let mut ignored = [0; 1024];
    let read_to_the_end = async {
        while app.read(&mut ignored).await? > 0 {}
        Ok(())
    };
    timeout(LINGER, read_to_the_end).await.unwrap_or(Ok(()))
}

async fn answer_all(app: &mut AppStream, answer: &[u8]) -> io::Result<()> {
    let (mut requests, mut answered) = (Requests::default(), false);
    let mut buffer = [0; 1024];
    loop {
        let patience = if answered { LINGER } else { FIRST_REQUEST };
        match timeout(patience, app.read(&mut buffer)).await {
            Ok(read) => {
                let read = read?;
                if read == 0 && answered {
                    return Ok(());
                }
                let complete = requests.count(&buffer[..read]).max(usize::from(read == 0));
                for _ in 0..complete {
                    app.write_all(answer).await?;
                    answered = true;
                }
            }
            Err(_) if answered => return Ok(()),
            // Whatever it has to say: the answer is the same.
            Err(_) => {
                app.write_all(answer).await?;
                answered = true;
            }
        }
    }
}

/// Counts the requests in a stream of bytes: arrays of bulk strings, or lines
/// (<https://redis.io/docs/latest/develop/reference/protocol-spec/>).
#[derive(Debug, Default)]
struct Requests {
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
    fn count(&mut self, bytes: &[u8]) -> usize {
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
        let stream = b"*2\r\n$4\r\nAUTH\r\n$6\r\na\r\n*1\n\r\nPING\r\n\r\n*1\r\n$0\r\n\r\nquit\n*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\n\r\n\r\n";
        assert_eq!(Requests::default().count(stream), 5);
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
        fn any_bytes_are_counted_without_a_panic_and_cutting_changes_nothing(
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
        let long = error(&"ä".repeat(400));
        assert!(long.len() <= LONGEST && long.len() > LONGEST - 10, "{}", long.len());
        assert!(long.ends_with("ä\r\n"));
    }
}
