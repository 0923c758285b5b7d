//! Telling the app, in RESP, that its connection was refused.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::app::AppStream;

/// How long to wait for the app's first request before answering all the same. Some clients take a
/// reply that comes before any request for a broken connection.
const FIRST_REQUEST: Duration = Duration::from_secs(2);
/// How long to go on reading what the app sends before its connection is closed: closing with unread
/// bytes is a reset, which may overtake the answer (RFC 1122 section 4.2.2.13).
const LINGER: Duration = Duration::from_secs(2);
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

/// Answers the app's first request with one error, and closes.
///
/// # Errors
/// When the app is gone.
pub async fn refuse(app: &mut AppStream, text: &str) -> io::Result<()> {
    // Whether a request came or not, the answer is the same.
    let _ = timeout(FIRST_REQUEST, app.readable()).await;
    app.write_all(error(text).as_bytes()).await?;
    app.shutdown().await?;
    let read_to_the_end = async {
        let mut ignored = [0; 1024];
        while app.read(&mut ignored).await? > 0 {}
        Ok(())
    };
    timeout(LINGER, read_to_the_end).await.unwrap_or(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_of_at_most_300_bytes() {
        assert_eq!(error("a\r\nb"), "-ERR start-stunnel: a  b\r\n");
        let long = error(&"ä".repeat(400));
        assert!(long.len() <= LONGEST && long.len() > LONGEST - 10, "{}", long.len());
        assert!(long.ends_with("ä\r\n"));
    }
}
