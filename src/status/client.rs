//! `--status`: prints the state of this user's launchers.

use std::fs;
use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{sleep, timeout};

use super::local;
use super::server::WELL;
use crate::exit;
use crate::logging::LogFormat;
use crate::names;
use crate::text::is_harmful;
use crate::tunnel::failure::is_hang_up;

/// The kernel's list of Unix sockets.
const SOCKETS: &str = "/proc/net/unix";
/// A launcher must answer within this time.
const PATIENCE: Duration = Duration::from_secs(3);
/// The pause between attempts to connect to a launcher whose queue is full.
const RETRY: Duration = Duration::from_millis(50);
/// The longest answer, in bytes: far longer than any real one.
const LONGEST: u64 = 2 << 20;

/// A launcher's answer.
struct Answer {
    text: String,
    well: bool,
}

/// Prints the state of every launcher of this user, and returns the exit code. If launchers are
/// `switched_off`, it is no failure that there is none.
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
    match print(&shown(&answers, format, switched_off)) {
        // The reader, such as `head`, has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(code),
        printed => printed.map(|()| code).map_err(Into::into),
    }
}

/// The names of all launchers' sockets.
fn sockets() -> anyhow::Result<Vec<String>> {
    // Names of other programs' sockets may hold any bytes.
    let sockets = fs::read(SOCKETS).with_context(|| format!("could not read {SOCKETS}"))?;
    Ok(local::names(&String::from_utf8_lossy(&sockets)))
}

async fn ask_all(format: LogFormat) -> anyhow::Result<Vec<Answer>> {
    let names = sockets()?;
    // Ask all of them at once, so that a stopped launcher delays no other answer.
    let asked: Vec<_> = names
        .into_iter()
        .map(|name| tokio::spawn(async move { answer_of(&name, format).await }))
        .collect();
    let mut answers = Vec::new();
    for asked in asked {
        answers.extend(asked.await?);
    }
    Ok(answers)
}

/// What to print about the launcher at the socket with this name; `None` if it belongs to another
/// user, or has ended meanwhile.
async fn answer_of(name: &str, format: LogFormat) -> Option<Answer> {
    let asked = timeout(PATIENCE, ask(name, format)).await;
    let error = match asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(answer) => return answer,
        // A launcher that is short of memory also closes the connection, but still listens.
        Err(error) if may_have_ended(&error) => match after_a_moment().await {
            Ok(names) if !names.iter().any(|other| other == name) => return None,
            _ => error,
        },
        Err(error) => error,
    };
    let pid = local::pid_of(name);
    let text = format!("start-stunnel pid {pid} does not answer: {error}");
    let text = match format {
        LogFormat::Logfmt => text,
        LogFormat::Json => json!({ "pid": pid.parse::<u32>().ok(), "error": text }).to_string(),
    };
    Some(Answer { text: text + "\n", well: false })
}

/// The names of the sockets, once the kernel has closed those of a process that was ending.
async fn after_a_moment() -> anyhow::Result<Vec<String>> {
    sleep(RETRY).await;
    sockets()
}

/// Whether the launcher may have ended: nothing listens, or the connection was closed.
fn may_have_ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused || is_hang_up(error)
}

/// Asks the launcher at the socket with this name; `None` if it is no launcher of this user.
async fn ask(name: &str, format: LogFormat) -> io::Result<Option<Answer>> {
    let mut stream = loop {
        match local::connect(name) {
            // Its queue is full.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(RETRY).await,
            connected => break connected?,
        }
    };
    if !local::is_believed(&stream, name) {
        return Ok(None);
    }
    let path = match format {
        LogFormat::Logfmt => "/status.txt",
        LogFormat::Json => "/status.json",
    };
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer).await?;
    read(&String::from_utf8_lossy(&answer)).map(Some)
}

fn read(answer: &str) -> io::Result<Answer> {
    let (head, text) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let (code, headers) = head.split_once("\r\n").unwrap_or((head, ""));
    if code != "HTTP/1.1 200 OK" {
        return Err(io::Error::other(format!("it is another version ({})", printable(code))));
    }
    let well = headers.lines().any(|line| line == format!("{WELL}: true"));
    Ok(Answer { text: printable(text), well })
}

/// Text without characters that would control the terminal.
fn printable(text: &str) -> String {
    text.chars().filter(|c| *c == '\n' || !is_harmful(*c)).collect()
}

fn shown(answers: &[Answer], format: LogFormat, switched_off: bool) -> String {
    let texts: Vec<&str> = answers.iter().map(|answer| answer.text.as_str()).collect();
    match (format, answers.is_empty(), switched_off) {
        (LogFormat::Json, ..) => texts.concat(),
        (LogFormat::Logfmt, false, _) => texts.join("\n"),
        (LogFormat::Logfmt, true, false) => "No start-stunnel of this user runs here.\n".to_owned(),
        (LogFormat::Logfmt, true, true) => format!(
            "No start-stunnel of this user runs here, because {} turns it off.\n",
            names::ENABLED
        ),
    }
}

fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whether_all_is_well_is_a_header_of_the_answer() {
        let answer =
            read("HTTP/1.1 200 OK\r\nstart-stunnel-well: true\r\nx: y\r\n\r\nA \x1b[1m\nB\n");
        let answer = answer.unwrap();
        assert_eq!((answer.text.as_str(), answer.well), ("A [1m\nB\n", true));
        assert!(!read("HTTP/1.1 200 OK\r\n\r\nstart-stunnel-well: true").unwrap().well);
        assert!(read("HTTP/1.1 404 Not Found\r\n\r\n").is_err());
        assert!(may_have_ended(&read("").err().unwrap()));
    }
}
