//! Telling the app, in RESP, that its connection was refused.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::app::AppStream;
use crate::resp::{Requests, error};

/// How long to wait for the app's first request before answering all the same. Some clients take a
/// reply that comes before any request for a broken connection.
const FIRST_REQUEST: Duration = Duration::from_secs(2);
/// How long a refused app may stay silent before its connection is closed. At once would be too
/// soon: ioredis and others take an error in reply to their first request, HELLO, for an old
/// server, ask on, and report only what they hear then.
const LINGER: Duration = Duration::from_secs(1);
/// How long a refused app is answered at most.
const LONGEST_TALK: Duration = Duration::from_secs(10);

/// Whether the app has sent a request already, which has been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstRequest {
    Read,
    ToCome,
}

/// Answers the app's requests with the same error each, and closes when no more come.
///
/// # Errors
/// When the app is gone.
pub async fn refuse(app: &mut AppStream, text: &str, first: FirstRequest) -> io::Result<()> {
    let answer = error(text);
    // If the time is up, or the app has gone, this is over as well.
    let _ = timeout(LONGEST_TALK, answer_all(app, answer.as_bytes(), first)).await;
    app.shutdown().await?;
    // Closing with unread bytes is a reset, which may overtake the answer (RFC 1122 section
    // 4.2.2.13).
    let mut ignored = [0; 1024];
    let read_to_the_end = async {
        while app.read(&mut ignored).await? > 0 {}
        Ok(())
    };
    timeout(LINGER, read_to_the_end).await.unwrap_or(Ok(()))
}

async fn answer_all(app: &mut AppStream, answer: &[u8], first: FirstRequest) -> io::Result<()> {
    let mut requests = Requests::default();
    let mut buffer = [0; 1024];
    let mut answered = false;
    let mut owed = usize::from(first == FirstRequest::Read);
    loop {
        for _ in 0..owed {
            app.write_all(answer).await?;
            answered = true;
        }
        let patience = if answered { LINGER } else { FIRST_REQUEST };
        owed = match timeout(patience, app.read(&mut buffer)).await {
            Ok(Ok(read @ 1..)) => requests.count(&buffer[..read]),
            Ok(Err(error)) => return Err(error),
            Ok(Ok(0)) | Err(_) if answered => return Ok(()),
            // Whatever it has to say: the answer is the same.
            Ok(Ok(0)) | Err(_) => 1,
        };
    }
}
