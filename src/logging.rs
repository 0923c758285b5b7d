//! Log lines on stderr: one line per event, in logfmt or JSON.
//!
//! The macros have syslog's names, like `--log-level`. They map to the levels of `tracing`,
//! whose names are shifted: `notice` is INFO there. Every call begins with the name of the event:
//! `notice!(at = "tunnel-up", listen = %address)`. `docs/operation.md` lists all events.

use std::fmt;
use std::sync::OnceLock;

use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

pub use tracing::{debug as info, error as err, info as notice, trace as debug, warn as warning};

/// The syslog severities that make a difference, the most severe first. Those above `Err` silence
/// the launcher, because it logs nothing that severe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    Silent,
    Err,
    Warning,
    Notice,
    Info,
    Debug,
}

/// The format of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Logfmt,
    Json,
}

/// Which log lines are written, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSettings {
    pub level: LogLevel,
    pub format: LogFormat,
}

/// Lines that may wait for a slow reader of stderr. Further lines are dropped, because a log must
/// not stop the traffic.
const MOST_WAITING_LINES: usize = 4096;

/// Marks the launcher's lines, so that they can be told from the app's.
const LOGGER: &str = "start-stunnel";

/// Counts the lines that were dropped.
static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// The number of lines dropped because stderr was not read in time.
pub fn dropped_lines() -> u64 {
    DROPPED.get().map_or(0, |dropped| dropped.dropped_lines() as u64)
}

/// Starts logging. A thread writes the lines. Dropping the guard waits until it has written them
/// all, for at most about a second.
///
/// # Panics
/// If called twice in one process.
pub fn init(settings: LogSettings) -> WorkerGuard {
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(MOST_WAITING_LINES)
        .thread_name("log")
        .finish(std::io::stderr());
    DROPPED.get_or_init(|| writer.error_counter());
    tracing_subscriber::fmt()
        .with_max_level(filter(settings.level))
        .event_format(Lines(settings.format))
        .with_writer(writer)
        .init();
    guard
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

/// The fields of an event, in the order of the call.
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
            // logfmt has the same quotes and escapes as JSON.
            value => write!(writer, "{space}{name}={value}")?,
        }
    }
    Ok(())
}

/// Whether `text` needs no quotes in logfmt.
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
    fn logfmt_quotes_text_that_would_break_a_line_or_pair() {
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
