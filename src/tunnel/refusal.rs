//! Answers an app's requests with a Redis error if a wrong setting prevents the connection to
//! Redis.

use std::io;
use std::mem;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::app::AppStream;
use crate::resp::{Opaque, RequestFramer, error};

/// The time that the launcher waits for the app's first request. If no request comes, the launcher
/// then sends the error anyway. The launcher does not send the error earlier, because some clients
/// treat the connection as broken if a reply arrives before they have sent a request.
const FIRST_REQUEST: Duration = Duration::from_secs(2);
/// The time without requests after which the launcher closes the app's connection. The launcher
/// does not close the connection at once, because ioredis and other clients ignore an error that
/// answers their first request, HELLO, and report only the errors that answer later requests.
const LINGER: Duration = Duration::from_secs(1);
/// The time limit for answering the app's requests.
const LONGEST_TALK: Duration = Duration::from_secs(10);

/// Answers each of the app's requests with the error `text`, and closes the app's connection when
/// no more requests come. `requests` has counted the requests that the launcher has already read.
///
/// # Errors
/// If the app is gone.
pub async fn refuse(app: &mut AppStream, text: &str, requests: Requests) -> io::Result<()> {
    let answer = error(text);
    // Ignore errors and the time limit, because the launcher closes the connection in any case.
    let _ = timeout(LONGEST_TALK, answer_all(app, answer.as_bytes(), requests)).await;
    app.shutdown().await?;
    // Read the app's remaining bytes before closing. Closing a socket with unread bytes would reset
    // the connection, and the app might lose the answer (RFC 1122 section 4.2.2.13).
    let mut ignored = [0; 1024];
    let read_to_the_end = async {
        while app.read(&mut ignored).await? > 0 {}
        Ok(())
    };
    timeout(LINGER, read_to_the_end).await.unwrap_or(Ok(()))
}

async fn answer_all(app: &mut AppStream, answer: &[u8], mut requests: Requests) -> io::Result<()> {
    let mut buffer = [0; 1024];
    let mut answered = false;
    loop {
        for _ in 0..mem::take(&mut requests.unanswered) {
            app.write_all(answer).await?;
            answered = true;
        }
        let patience = if answered { LINGER } else { FIRST_REQUEST };
        match timeout(patience, app.read(&mut buffer)).await {
            Ok(Ok(read @ 1..)) => requests.count(&buffer[..read]),
            Ok(Err(error)) => return Err(error),
            Ok(Ok(0)) | Err(_) if answered => return Ok(()),
            // An app that sends no complete request gets the error, too.
            Ok(Ok(0)) | Err(_) => requests.unanswered = 1,
        }
    }
}

/// A counter of an app's unanswered requests, which may be RESP arrays or lines of words.
#[derive(Default)]
pub struct Requests {
    framer: RequestFramer,
    /// True if the next byte belongs to an incomplete line.
    in_line: bool,
    unanswered: usize,
}

impl Requests {
    /// Counts the requests that end within `bytes`. Bytes that are not a valid request count as one
    /// request.
    pub fn count(&mut self, mut bytes: &[u8]) {
        while let Some(first) = bytes.first() {
            if self.in_line || (self.framer.is_at_boundary() && *first != b'*') {
                let end = bytes.iter().position(|byte| *byte == b'\n');
                self.in_line = end.is_none();
                bytes = &bytes[end.map_or(bytes.len(), |end| end + 1)..];
                self.unanswered += usize::from(!self.in_line);
                continue;
            }
            match self.framer.next(&mut bytes) {
                Ok(is_complete) => self.unanswered += usize::from(is_complete),
                Err(Opaque) => {
                    self.unanswered += 1;
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_even_if_they_arrive_in_pieces() {
        let sent = b"PING\r\n*1\r\n$4\r\nPING\r\n*2\r\n$4\r\nECHO\r\n$2\r\nhi\r\nAUTH x\r\n";
        for cut in 0..sent.len() {
            let mut requests = Requests::default();
            let (first, second) = sent.split_at(cut);
            requests.count(first);
            requests.count(second);
            assert_eq!(requests.unanswered, 4, "{cut}");
        }
        let mut requests = Requests::default();
        for (bytes, unanswered) in [(b"*x\r\n", 1), (b"*1\r\n", 2)] {
            requests.count(bytes);
            assert_eq!(requests.unanswered, unanswered);
        }
    }
}
