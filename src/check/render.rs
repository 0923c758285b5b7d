//! A report as a table for people, and as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::report::{Advice, CheckStep, Mode, Outcome, Report};

/// What fits a terminal.
const COLUMNS: usize = 80;

/// Colours, on a terminal only.
pub struct Paint(pub bool);

impl Paint {
    fn word(&self, outcome: &Outcome, text: String) -> String {
        let code = match outcome {
            _ if !self.0 => return text,
            Outcome::Ok(_) => 32,
            Outcome::Failed(_) => 31,
            Outcome::NotReached | Outcome::Skipped(_) => 2,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    fn title(&self, text: String) -> String {
        if self.0 { format!("\x1b[1m{text}\x1b[0m") } else { text }
    }
}

pub fn as_table(report: &Report, paint: &Paint) -> String {
    let mut table = String::new();
    let title = format!(
        "{} -> {} (verify {})",
        report.variables.join(" "),
        report.upstream,
        report.verify.word()
    );
    for (index, line) in wrapped(&title, COLUMNS - 2).into_iter().enumerate() {
        let line = if index == 0 { line } else { format!("  {line}") };
        line_to(&mut table, &paint.title(line));
    }
    for step in &report.steps {
        let took = match step.took {
            Duration::ZERO => String::new(),
            took => format!("{:.1} ms", took.as_secs_f64() * 1000.0),
        };
        let demanded = if step.needed { ' ' } else { '?' };
        let word = paint.word(&step.outcome, format!("{:<11}", step.outcome.word()));
        let head = format!("  {:<8}{demanded} {word} {took:>10}  ", step.step.name());
        rows(&mut table, &head, step.outcome.detail());
        if let (Some(certificate), CheckStep::Tls) = (&report.certificate, step.step) {
            let days = certificate.days_left;
            for (name, value) in [
                ("issuer", certificate.issuer.clone()),
                ("expires", format!("{} ({})", certificate.expires, in_days(days))),
                ("names", certificate.names.join(", ")),
            ] {
                rows(&mut table, &format!("  {:23}{name:>9}  ", ""), &value);
            }
            line_to(&mut table, &format!("    {}", certificate.pin));
        }
    }
    if let Some(clients) = report.told.clients {
        let text = format!("clients {} of {}", clients.connected, clients.most);
        rows(&mut table, &format!("{:36}", ""), &text);
    }
    if report.steps.iter().any(|step| !step.needed) {
        line_to(&mut table, "  ? = whether it would pass; not demanded by the settings");
    }
    for advice in &report.advice {
        for (index, line) in wrapped(&advice.text, COLUMNS - 4).into_iter().enumerate() {
            line_to(&mut table, &format!("  {} {line}", if index == 0 { ">" } else { " " }));
        }
        for setting in &advice.settings {
            line_to(&mut table, &format!("    {setting}"));
        }
    }
    table
}

/// How long a certificate with so many whole days left is valid.
fn in_days(left: i64) -> String {
    match left {
        ..-1 => format!("expired {} days ago", left.unsigned_abs()),
        -1 => "expired a day ago".to_owned(),
        0 => "less than a day".to_owned(),
        1 => "1 day".to_owned(),
        _ => format!("{left} days"),
    }
}

/// What is to be said of some variables.
pub fn note(names: &str, text: &str) -> String {
    let mut note = String::new();
    for line in wrapped(&format!("{names}: {text}"), COLUMNS) {
        line_to(&mut note, &line);
    }
    note
}

/// A row whose text is wrapped below itself. `head` is as wide as `HEAD` columns.
fn rows(table: &mut String, head: &str, text: &str) {
    const HEAD: usize = 36;
    let mut head = Some(head);
    for line in wrapped(text, COLUMNS - HEAD) {
        if line.chars().count() <= COLUMNS - HEAD {
            line_to(table, &format!("{:HEAD$}{line}", head.take().unwrap_or_default()));
        } else {
            // One long word, as a host or a pin is: it has more room further to the left.
            if let Some(head) = head.take() {
                line_to(table, head);
            }
            line_to(table, &format!("    {line}"));
        }
    }
}

fn line_to(table: &mut String, line: &str) {
    writeln!(table, "{}", line.trim_end()).expect("a String takes everything");
}

/// Breaks text at spaces. A word may be a value that is copied: one that is longer than `width`
/// stays whole.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is a line");
        let used = line.chars().count();
        if used == 0 {
            line.push_str(word);
        } else if used + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

pub fn as_json(report: &Report) -> Value {
    let steps: serde_json::Map<String, Value> = report
        .steps
        .iter()
        .map(|step| {
            let state = match &step.outcome {
                Outcome::Skipped(_) => "skipped",
                other => other.word(),
            };
            let mut value = json!({ "state": state, "ms": step.took.as_secs_f64() * 1000.0 });
            if !step.outcome.detail().is_empty() {
                value["detail"] = Value::from(step.outcome.detail());
            }
            (step.step.name().to_lowercase(), value)
        })
        .collect();
    json!({
        "var": report.variables.join(" "),
        "upstream": report.upstream,
        "verify": report.verify.word(),
        "works": report.works(),
        "steps": steps,
        "certificate": report.certificate.as_ref().map(|certificate| json!({
            "subject": certificate.subject,
            "issuer": certificate.issuer,
            "valid_from": certificate.valid_from,
            "expires": certificate.expires,
            "days_left": certificate.days_left,
            "names": certificate.names,
            "pin": certificate.pin.to_string(),
        })),
        "mode": report.told.mode.map(Mode::word),
        "clients": report.told.clients.map(|clients| {
            json!({ "connected": clients.connected, "max": clients.most })
        }),
        "advice": report.advice.iter().map(Advice::in_one_line).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::report::Told;
    use super::*;
    use crate::tls::Verify;

    #[test]
    fn text_is_wrapped_within_its_width() {
        assert_eq!(wrapped("", 5), [""]);
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
    }

    #[test]
    fn days_left_read_as_english() {
        let cases = [
            (394, "394 days"),
            (1, "1 day"),
            (0, "less than a day"),
            (-1, "expired a day ago"),
            (-2, "expired 2 days ago"),
        ];
        for (left, text) in cases {
            assert_eq!(in_days(left), text);
        }
    }

    #[test]
    fn a_word_is_never_broken_however_long() {
        assert_eq!(wrapped("a abcdefghij b", 4), ["a", "abcdefghij", "b"]);
        let (head, word) = (format!("{:36}", "  AUTH"), "x".repeat(COLUMNS));
        let mut table = String::new();
        rows(&mut table, &head, &format!("{word} is it"));
        assert_eq!(table, format!("  AUTH\n    {word}\n{:36}is it\n", ""));
        table.clear();
        rows(&mut table, &head, &format!("it is {word}"));
        assert_eq!(table, format!("{head}it is\n    {word}\n"));
    }

    #[test]
    fn a_setting_to_copy_is_alone_on_its_line_in_the_table() {
        let setting = format!("{}_STUNNEL_PIN=sha256//{}", "X".repeat(COLUMNS), "y".repeat(44));
        let advice =
            Advice { text: "not authenticated: set".to_owned(), settings: vec![setting.clone()] };
        let one_line = advice.in_one_line();
        assert_eq!(one_line, format!("not authenticated: set {setting}"));
        let report = Report {
            variables: vec!["X".repeat(COLUMNS)],
            upstream: "h:6380".to_owned(),
            verify: Verify::None,
            steps: Vec::new(),
            certificate: None,
            advice: vec![advice],
            told: Told::default(),
            selects: false,
        };
        let table = as_table(&report, &Paint(false));
        assert!(table.lines().any(|line| line.trim() == setting), "{table}");
        assert_eq!(as_json(&report)["advice"], json!([one_line]));
    }
}
