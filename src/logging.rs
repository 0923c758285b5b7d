//! Log lines, logfmt or JSON, one an event, on stderr.
//!
//! The macros carry syslog's names, as `--log-level` does; `tracing` underneath has a coarser scale
//! of its own. The word after `at=` names the event and comes first in every call:
//! `notice!(at = "tunnel-up", listen = %address)`. `docs/operation.md` has every event.

use std::fmt;
use std::io::{self, Stderr, Write};
use std::panic;
use std::sync::OnceLock;

use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::sandbox;

pub use tracing::{debug as info, error as err, info as notice, trace as debug, warn as warning};

/// Syslog's severities that the launcher tells apart, the most severe first. Severities above `Err`
/// silence it, since it emits nothing so severe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    Silent,
    Err,
    Warning,
    Notice,
    Info,
    Debug,
}

/// How a line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Logfmt,
    Json,
}

/// Where and how log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSettings {
    pub level: LogLevel,
    pub format: LogFormat,
}

/// How many lines may wait for a slow reader of stderr; more are dropped rather than let a log stop
/// the traffic.
const MOST_WAITING_LINES: usize = 4096;

/// Who wrote a line: so that it is found, or left out, among the app's own.
const LOGGER: &str = "start-stunnel";

/// Where the log's thread takes its lines from; empty if there is no such thread.
static THREAD: OnceLock<NonBlocking> = OnceLock::new();

/// How many lines were dropped since nobody read them in time.
pub fn dropped_lines() -> u64 {
    let dropped = THREAD.get().map(NonBlocking::error_counter);
    dropped.map_or(0, |dropped| dropped.dropped_lines() as u64)
}

/// Starts logging, and has panics logged as one line too. A thread of its own writes the lines.
/// Dropping the guard waits for those that are still on their way (about a second at most). If the
/// system refuses to start a thread, whoever logs writes the line.
///
/// # Panics
/// When called twice in one process.
pub fn init(settings: LogSettings) -> Option<WorkerGuard> {
    // tracing-appender panics if the thread cannot be started.
    panic::set_hook(Box::new(|_| ()));
    let started = panic::catch_unwind(|| {
        NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(MOST_WAITING_LINES)
            .thread_name("log")
            .finish(SandboxedStderr(io::stderr()))
    });
    let (writer, guard) = match started {
        Ok((writer, guard)) => {
            (BoxMakeWriter::new(THREAD.get_or_init(|| writer).clone()), Some(guard))
        }
        Err(_) => (BoxMakeWriter::new(io::stderr), None),
    };
    tracing_subscriber::fmt()
        .with_max_level(filter(settings.level))
        .event_format(Lines(settings.format))
        .with_writer(writer)
        .init();
    panic::set_hook(Box::new(log_panic));
    guard
}

/// The panic's message is left out: it may quote what an app or a server sent.
fn log_panic(panic: &panic::PanicHookInfo<'_>) {
    let place = panic.location().map_or_else(String::new, |place| format!(" at {place}"));
    err!(at = "internal-error", error = format!("start-stunnel has a defect{place}"));
}

/// Has the log's thread apply the sandbox's rules now instead of before its next line.
pub fn enter_sandbox() {
    if let Some(mut thread) = THREAD.get().cloned() {
        // An empty line writes nothing.
        let _ = thread.write(b"");
    }
}

/// Standard error for the log's thread, which is older than COMMAND.
struct SandboxedStderr(Stderr);

impl Write for SandboxedStderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write(line)
    }

    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        if let Err(error) = sandbox::enter() {
            warning!(at = "sandbox-failed", error = %error);
        }
        self.0.write_all(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Silent => LevelFilter::OFF,
        LogLevel::Err => LevelFilter::ERROR,
        LogLevel::Warning => LevelFilter::WARN,
        LogLevel::Notice => LevelFilter::INFO,
        LogLevel::Info => LevelFilter::DEBUG,
        LogLevel::Debug => LevelFilter::TRACE,
    }
}

fn syslog_name(level: &Level) -> &'static str {
    match *level {
        Level::ERROR => "err",
        Level::WARN => "warning",
        Level::INFO => "notice",
        Level::DEBUG => "info",
        Level::TRACE => "debug",
    }
}

/// Writes an event as one line.
struct Lines(LogFormat);

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let mut fields = Fields(vec![
            ("ts", Value::from(time)),
            ("level", Value::from(syslog_name(event.metadata().level()))),
            ("logger", Value::from(LOGGER)),
        ]);
        event.record(&mut fields);
        match self.0 {
            LogFormat::Logfmt => logfmt(&mut writer, &fields.0),
            LogFormat::Json => json(&mut writer, &fields.0),
        }?;
        writer.write_char('\n')
    }
}

/// The fields of an event, in the order in which they were given.
struct Fields(Vec<(&'static str, Value)>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push((field.name(), Value::from(format!("{value:?}"))));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.name(), Value::from(value)));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.push((field.name(), Value::from(value)));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.push((field.name(), Value::from(value)));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.push((field.name(), Value::from(value)));
    }
}

fn logfmt(writer: &mut impl fmt::Write, fields: &[(&str, Value)]) -> fmt::Result {
    for (index, (name, value)) in fields.iter().enumerate() {
        let space = if index == 0 { "" } else { " " };
        match value {
            Value::String(text) if is_bare(text) => write!(writer, "{space}{name}={text}")?,
            // A JSON string is a logfmt string: the same quotes and escapes.
            value => write!(writer, "{space}{name}={value}")?,
        }
    }
    Ok(())
}

/// Whether logfmt takes `text` without quotes.
fn is_bare(text: &str) -> bool {
    let special = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '"' | '=' | '\\');
    !text.is_empty() && !text.contains(special)
}

fn json(writer: &mut impl fmt::Write, fields: &[(&str, Value)]) -> fmt::Result {
    for (index, (name, value)) in fields.iter().enumerate() {
        let before = if index == 0 { '{' } else { ',' };
        write!(writer, "{before}{}:{value}", Value::from(*name))?;
    }
    writer.write_char('}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields() -> Vec<(&'static str, Value)> {
        vec![
            ("at", Value::from("tunnel-up")),
            ("listen", Value::from("127.0.0.1:6371")),
            ("code", Value::from(7)),
            ("msg", Value::from("two \"words\"\nand = \\ more")),
            ("empty", Value::from("")),
        ]
    }

    #[test]
    fn logfmt_quotes_what_would_break_a_line_or_a_pair() {
        let mut line = String::new();
        logfmt(&mut line, &fields()).unwrap();
        assert_eq!(
            line,
            concat!(
                "at=tunnel-up listen=127.0.0.1:6371 code=7 ",
                r#"msg="two \"words\"\nand = \\ more" empty="""#
            )
        );
    }

    #[test]
    fn json_has_the_same_keys_in_the_same_order() {
        let mut line = String::new();
        json(&mut line, &fields()).unwrap();
        assert!(line.starts_with(r#"{"at":"tunnel-up","listen":"127.0.0.1:6371","code":7,"#));
        let parsed: Value = serde_json::from_str(&line).unwrap();
        for (name, value) in fields() {
            assert_eq!(parsed[name], value);
        }
    }
}
