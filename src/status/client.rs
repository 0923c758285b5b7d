//! Implements `--status`, which prints the state of each launcher that this user runs.

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
use crate::output;
use crate::text::is_unprintable;

/// The file in which the kernel lists all Unix sockets (proc_net(5)).
const SOCKETS: &str = "/proc/net/unix";
/// The longest time that `--status` waits for a launcher's answer.
const TIMEOUT: Duration = Duration::from_secs(3);
/// The pause before `--status` tries again to reach a launcher.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// The maximum number of bytes that `--status` reads of a launcher's answer. Real answers are far
/// shorter.
const MAX_ANSWER_BYTES: u64 = 2 << 20;

/// A launcher's answer to `--status`.
struct Answer {
    text: String,
    /// True if all tunnels of the launcher work.
    well: bool,
}

/// Prints the state of each launcher that this user runs, and returns the exit code. `switched_off`
/// is true if `--enabled` is false. In this case, the absence of a launcher is no error.
///
/// # Errors
/// If the kernel's list of sockets cannot be read, or if writing to stdout fails.
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
    Ok(output::print(&text, code)?)
}

/// Returns the pid of each launcher, and the name of the launcher's socket.
fn launchers() -> anyhow::Result<Vec<(i32, String)>> {
    // Other programs may give their sockets names that are not UTF-8.
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

/// Asks a launcher for its state. If the launcher does not answer, the returned text says why.
/// Returns `None` if the launcher has ended, or if the socket does not belong to a launcher of this
/// user.
async fn answer_of(launcher: &(i32, String), format: LogFormat) -> Option<Answer> {
    let asked = timeout(TIMEOUT, ask(launcher, format)).await;
    let error = match asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(answer) => return answer,
        Err(error) => error,
    };
    // The launcher may have ended after `--status` found the launcher's socket. A launcher that is
    // about to end may close the connection first and its socket later, so wait before you check
    // whether the socket still exists.
    sleep(RETRY_PAUSE).await;
    if launchers().is_ok_and(|found| !found.contains(launcher)) {
        return None;
    }
    let (pid, _) = launcher;
    let text = format!("start-stunnel pid {pid} does not report its state: {error}");
    let text = match format {
        LogFormat::Logfmt => text,
        LogFormat::Json => json!({ "pid": pid, "error": text }).to_string(),
    };
    Some(Answer { text: text + "\n", well: false })
}

/// Asks a launcher for its state. Returns `None` if the socket does not belong to a launcher of
/// this user.
async fn ask((pid, name): &(i32, String), format: LogFormat) -> io::Result<Option<Answer>> {
    let mut stream = loop {
        match UnixStream::connect(format!("\0{name}")).await {
            // The launcher's queue is full of connections that the launcher has not yet accepted.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(RETRY_PAUSE).await,
            // The launcher has ended, or another user's socket with a strange name faked the entry.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(None),
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
            "it answered {status}, and seems to be a different version of start-stunnel",
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
