//! Implements `--status`, which prints the state of each launcher of this user.

use std::fs;
use std::io;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use super::local;
use super::server::WELL;
use crate::exit;
use crate::logging::LogFormat;
use crate::names;
use crate::text::is_unprintable;

/// The kernel's list of Unix sockets.
const SOCKETS: &str = "/proc/net/unix";
/// The time limit for a launcher's answer.
const TIMEOUT: Duration = Duration::from_secs(3);
/// The pause before `--status` asks a launcher again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// The longest answer to read. Real answers are far shorter.
const MAX_ANSWER_BYTES: u64 = 2 << 20;

/// A launcher's answer.
struct Answer {
    text: String,
    /// True if all tunnels of the launcher work.
    well: bool,
}

/// Prints the state of each launcher of this user, and returns the exit code. `switched_off` means
/// that `--enabled` is false, so that no launcher is expected.
///
/// # Errors
/// If the kernel's list of sockets cannot be read, or stdout cannot be written.
pub fn run(format: LogFormat, switched_off: bool) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answers = runtime.block_on(ask_all(format))?;
    let code = match &answers[..] {
        [] if switched_off => exit::SUCCESS,
        [] => exit::NO_LAUNCHER,
        answers if answers.iter().all(|answer| answer.well) => exit::SUCCESS,
        _ => exit::STATUS_FAILING,
    };
    let mut texts: Vec<&str> = answers.iter().map(|answer| answer.text.as_str()).collect();
    let reason = match switched_off {
        true => format!(", because {} turns it off", names::ENABLED),
        false => String::new(),
    };
    let none = format!("No start-stunnel of this user is running{reason}.\n");
    let text = match format {
        LogFormat::Json => texts.concat(),
        LogFormat::Logfmt => {
            texts.extend(answers.is_empty().then_some(&*none));
            texts.join("\n")
        }
    };
    Ok(exit::print(&text, code)?)
}

/// The pids of all launchers, and the names of their sockets.
fn launchers() -> anyhow::Result<Vec<(i32, String)>> {
    // The names of other programs' sockets may contain bytes that are not UTF-8.
    let sockets = fs::read(SOCKETS).with_context(|| format!("could not read {SOCKETS}"))?;
    Ok(local::launchers(&String::from_utf8_lossy(&sockets)))
}

async fn ask_all(format: LogFormat) -> anyhow::Result<Vec<Answer>> {
    // Ask all launchers at the same time, so that a stopped launcher does not delay the answers of
    // the other launchers.
    let asked: Vec<_> = launchers()?
        .into_iter()
        .map(|launcher| tokio::spawn(async move { answer_of(&launcher, format).await }))
        .collect();
    let mut answers = Vec::new();
    for asked in asked {
        answers.extend(asked.await?);
    }
    Ok(answers)
}

/// A launcher's answer, or a text that says why the launcher does not answer. `None` if the
/// launcher has ended, or if the socket does not belong to a launcher of this user.
async fn answer_of(launcher: &(i32, String), format: LogFormat) -> Option<Answer> {
    let asked = timeout(TIMEOUT, ask(launcher, format)).await;
    let error = match asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(answer) => return answer,
        Err(error) => error,
    };
    // The launcher may have ended meanwhile. A launcher that is about to end may close the
    // connection before the launcher closes its socket.
    sleep(RETRY_PAUSE).await;
    if launchers().is_ok_and(|found| !found.contains(launcher)) {
        return None;
    }
    let (pid, _) = launcher;
    let text = format!("start-stunnel pid {pid} does not answer: {error}");
    let text = match format {
        LogFormat::Logfmt => text,
        LogFormat::Json => json!({ "pid": pid, "error": text }).to_string(),
    };
    Some(Answer { text: text + "\n", well: false })
}

/// Asks a launcher for its state. `None` if the socket does not belong to a launcher of this user.
async fn ask((pid, name): &(i32, String), format: LogFormat) -> io::Result<Option<Answer>> {
    let mut stream = loop {
        match UnixStream::connect(format!("\0{name}")).await {
            // The launcher has not yet accepted earlier connections, and their queue is full.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(RETRY_PAUSE).await,
            connected => break connected?,
        }
    };
    if !local::belongs_to_launcher(&stream, *pid) {
        return Ok(None);
    }
    let path = match format {
        LogFormat::Logfmt => "/status.txt",
        LogFormat::Json => "/status.json",
    };
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).await?;
    parse(&String::from_utf8_lossy(&answer)).map(Some)
}

fn parse(answer: &str) -> io::Result<Answer> {
    let (head, text) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let (code, headers) = head.split_once("\r\n").unwrap_or((head, ""));
    if code != "HTTP/1.1 200 OK" {
        return Err(io::Error::other(format!(
            "the launcher seems to have another version than this start-stunnel (answer: \
             {status})",
            status = without_controls(code)
        )));
    }
    let well = headers.lines().any(|line| line == format!("{WELL}: true"));
    Ok(Answer { text: without_controls(text), well })
}

/// Removes all characters that could control the terminal, except line breaks.
fn without_controls(text: &str) -> String {
    text.chars().filter(|c| *c == '\n' || !is_unprintable(*c)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_of_the_answer_shows_whether_all_tunnels_work() {
        let answer =
            parse("HTTP/1.1 200 OK\r\nstart-stunnel-well: true\r\nx: y\r\n\r\nA \x1b[1m\nB\n");
        let answer = answer.unwrap();
        assert_eq!((answer.text.as_str(), answer.well), ("A [1m\nB\n", true));
        assert!(!parse("HTTP/1.1 200 OK\r\n\r\nstart-stunnel-well: true").unwrap().well);
        assert!(parse("HTTP/1.1 404 Not Found\r\n\r\n").is_err());
        assert!(parse("").is_err());
    }
}
