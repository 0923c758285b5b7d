//! `--status`: asks the launchers of this user how they are.

use std::fs;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{sleep, timeout};

use super::local;
use super::server::WELL;
use super::words::is_harmful;
use crate::exit;
use crate::logging::LogFormat;
use crate::names;

/// Where the system lists its sockets.
const SOCKETS: &str = "/proc/net/unix";
/// How long a launcher may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two attempts to connect to one that has too many to accept.
const RETRY: Duration = Duration::from_millis(50);
/// Between two looks with `--watch`.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest answer, in bytes: far more than a launcher has to say.
const LONGEST: u64 = 2 << 20;
/// Takes a terminal's cursor to its top left corner, and clears what is below (ECMA-48).
const CLEAR: &str = "\x1b[H\x1b[J";

/// What a launcher said.
struct Answer {
    text: String,
    well: bool,
}

/// Prints the state of every launcher of this user; with `watch` again and again. That there is
/// none is all right if they are `switched_off`. Returns the exit code.
///
/// # Errors
/// When the system does not list its sockets, or stdout cannot be written.
pub fn run(format: LogFormat, watch: bool, switched_off: bool) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        loop {
            let answers = ask_all(format).await?;
            let code = match &answers[..] {
                [] if switched_off => exit::SUCCESS,
                [] => exit::NO_LAUNCHER,
                answers if answers.iter().all(|answer| answer.well) => exit::SUCCESS,
                _ => exit::STATUS_FAILING,
            };
            match print(&answers, watch, format, switched_off) {
                Ok(()) if !watch => return Ok(code),
                Ok(()) => sleep(PAUSE).await,
                // Whoever read it has seen enough.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(code),
                Err(error) => return Err(error.into()),
            }
        }
    })
}

/// The names of all launchers' sockets.
fn sockets() -> anyhow::Result<Vec<String>> {
    // Names of others' sockets may be anything.
    let sockets = fs::read(SOCKETS).with_context(|| format!("could not read {SOCKETS}"))?;
    Ok(local::names(&String::from_utf8_lossy(&sockets)))
}

async fn ask_all(format: LogFormat) -> anyhow::Result<Vec<Answer>> {
    let names = sockets()?;
    // All at once: one that is stopped keeps no other waiting.
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

/// What is to be said of the launcher at the socket of this name; `None` if it is another user's,
/// or has ended meanwhile.
async fn answer_of(name: &str, format: LogFormat) -> Option<Answer> {
    let asked = timeout(PATIENCE, ask(name, format)).await;
    let error = match asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(answer) => return answer,
        // A launcher that is short of memory hangs up, too, but still listens.
        Err(error) if is_hang_up(&error) => match after_a_moment().await {
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

/// The names, once the system has closed all that a process had open which was just ending.
async fn after_a_moment() -> anyhow::Result<Vec<String>> {
    sleep(RETRY).await;
    sockets()
}

fn is_hang_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), ConnectionRefused | ConnectionReset | BrokenPipe | UnexpectedEof)
}

/// What the launcher at the socket of this name says; `None` if it is no launcher of
/// this user's.
async fn ask(name: &str, format: LogFormat) -> io::Result<Option<Answer>> {
    let mut stream = loop {
        match local::connect(name) {
            // It has not come to accept those before.
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
        return Err(io::Error::other(format!("it is of another version ({})", printable(code))));
    }
    let well = headers.lines().any(|line| line == format!("{WELL}: true"));
    Ok(Answer { text: printable(text), well })
}

/// What is said must not speak to the terminal, whoever says it.
fn printable(text: &str) -> String {
    text.chars().filter(|c| *c == '\n' || !is_harmful(*c)).collect()
}

fn print(answers: &[Answer], watch: bool, format: LogFormat, switched_off: bool) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let on_terminal = stdout.is_terminal();
    let mut text = String::new();
    if watch && on_terminal {
        text.push_str(CLEAR);
    }
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    for (index, answer) in answers.iter().enumerate() {
        if index > 0 && format == LogFormat::Logfmt {
            text.push('\n');
        }
        let paint = on_terminal && !no_color && format == LogFormat::Logfmt;
        text.push_str(&if paint { painted(&answer.text) } else { answer.text.clone() });
    }
    if answers.is_empty() && format == LogFormat::Logfmt {
        text.push_str("No start-stunnel of this user runs here");
        if switched_off {
            text.push_str(", and none is to: ");
            text.push_str(names::ENABLED);
            text.push_str(" is off");
        }
        text.push_str(".\n");
    }
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// With the verdicts, which stand in capitals at the end of a tunnel's first line, in colour.
fn painted(text: &str) -> String {
    const VERDICTS: [(&str, u8); 5] = [
        ("   FAILING", 31),
        ("   LAST ATTEMPT FAILED", 33),
        ("   WORKING, SEE BELOW", 33),
        ("   WORKING", 32),
        ("   NOT USED YET", 2),
    ];
    let paint = |line: &str| {
        if line.starts_with(' ') {
            return format!("{line}\n");
        }
        let verdict = VERDICTS.iter().find_map(|(word, code)| Some((line.find(word)?, *code)));
        match verdict {
            Some((at, code)) => {
                let (title, verdict) = line.split_at(at);
                format!("\x1b[1m{title}\x1b[0m\x1b[{code}m{verdict}\x1b[0m\n")
            }
            None => format!("{line}\n"),
        }
    };
    text.lines().map(paint).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_read_from_the_head_and_the_text_from_the_body() {
        let answer =
            read("HTTP/1.1 200 OK\r\nstart-stunnel-well: true\r\nx: y\r\n\r\nA \x1b[1m\nB\n");
        let answer = answer.unwrap();
        assert_eq!((answer.text.as_str(), answer.well), ("A [1m\nB\n", true));
        assert!(!read("HTTP/1.1 200 OK\r\n\r\nstart-stunnel-well: true").unwrap().well);
        assert!(read("HTTP/1.1 404 Not Found\r\n\r\n").is_err());
        assert!(is_hang_up(&read("").err().unwrap()));
    }

    #[test]
    fn verdicts_are_painted_and_nothing_else() {
        let text = "A → h:1   FAILING since 02:14\n  1 Held   WORKING\n";
        let expected =
            "\x1b[1mA → h:1\x1b[0m\x1b[31m   FAILING since 02:14\x1b[0m\n  1 Held   WORKING\n";
        assert_eq!(painted(text), expected);
    }
}
