//! Writes a report of `--check` as a table or as JSON.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use serde_json::{Value, json};

use super::report::{Outcome, Report, StepReport, Subject};
use crate::text::{counted, wrapped};
use crate::tls::Certificate;

/// The maximum width of a table's line, in characters.
const COLUMNS: usize = 80;
/// The column at which the text of each step's row begins.
const TEXT: usize = 36;

/// True if the table may have colours.
pub struct Paint(bool);

impl Paint {
    /// Allows colours if stdout is a terminal, unless `NO_COLOR` is set (<https://no-color.org>).
    pub fn for_stdout() -> Paint {
        let is_unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Paint(io::stdout().is_terminal() && !is_unwanted)
    }

    /// Returns `text` with the terminal's code for a colour or a style (SGR in ECMA-48 section
    /// 8.3.117).
    fn paint(&self, code: u8, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

pub fn as_table(subject: &Subject, report: &Report, paint: &Paint) -> String {
    let route = &subject.tunnel.route;
    let (variables, verify) = (route.variables.join(" "), route.trust.verify.word());
    let title = format!("{variables} -> {} (verify {verify})", route.upstream);
    let mut table = paint.paint(1, paragraph("", 2, &title).trim()) + "\n";
    for step in &report.steps {
        table += &row(step, paint);
        if let (Some(certificate), "TLS") = (&report.certificate, step.name) {
            table += &rows_of(certificate);
        }
    }
    if let Some(clients) = report.clients {
        let text = format!("clients {} of {}", clients.connected, clients.most);
        table += &paragraph("", TEXT, &text);
    }
    if report.steps.iter().any(|step| !step.required) {
        table += "  ? = not required by the current settings\n";
    }
    table + &report.advice.iter().map(|advice| advised(advice)).collect::<String>()
}

/// Writes one text of [`Report::advice`] for the table. Settings are never wrapped, because users
/// copy the settings.
fn advised(advice: &str) -> String {
    let (text, settings) = advice.split_once('\n').unwrap_or((advice, ""));
    let settings = settings.lines().map(|setting| format!("    {setting}\n"));
    paragraph("  > ", 4, text) + &settings.collect::<String>()
}

fn row(step: &StepReport, paint: &Paint) -> String {
    let code = match step.outcome {
        Outcome::Ok => 32,
        Outcome::Failed => 31,
        Outcome::NotReached | Outcome::Skipped => 2,
    };
    let word = paint.paint(code, &format!("{:<11}", step.outcome.word()));
    let took = match step.took {
        Duration::ZERO => String::new(),
        took => format!("{:.1} ms", took.as_secs_f64() * 1000.0),
    };
    let mark = if step.required { ' ' } else { '?' };
    let head = format!("  {:<8}{mark} {word} {took:>10}  ", step.name);
    paragraph(&head, TEXT, &step.detail)
}

fn rows_of(certificate: &Certificate) -> String {
    let expires = format!("{} ({})", certificate.expires, in_days(certificate.days_left));
    let row = |name, value: &str| paragraph(&format!("{name:>34}  "), TEXT, value);
    row("issuer", &certificate.issuer)
        + &row("expires", &expires)
        + &row("names", &certificate.names.join(", "))
        + &format!("    {}\n", certificate.pin)
}

/// Describes the time until a certificate expires. `left` is the number of whole days.
fn in_days(left: i64) -> String {
    match left {
        ..0 => "expired".to_owned(),
        _ => counted(left as u64, "day"),
    }
}

pub fn paragraph(head: &str, indent: usize, text: &str) -> String {
    wrapped(COLUMNS, indent, head, text)
}

pub fn as_json(subject: &Subject, report: &Report) -> Value {
    let route = &subject.tunnel.route;
    let steps: serde_json::Map<String, Value> = report
        .steps
        .iter()
        .map(|step| {
            let mut value =
                json!({ "state": step.outcome.word(), "ms": step.took.as_secs_f64() * 1000.0 });
            if !step.detail.is_empty() {
                value["detail"] = Value::from(step.detail.as_str());
            }
            (step.name.to_lowercase(), value)
        })
        .collect();
    json!({
        "var": route.variables.join(" "),
        "upstream": route.upstream.to_string(),
        "verify": route.trust.verify.word(),
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
        "mode": report.mode,
        "clients": report.clients.map(|clients| {
            json!({ "connected": clients.connected, "max": clients.most })
        }),
        "advice": report.advice.iter().map(|advice| advice.replace('\n', " ")).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry_is_shown_as_a_number_of_days_or_as_expired() {
        let cases = [(394, "394 days"), (1, "1 day"), (0, "0 days"), (-1, "expired")];
        for (left, text) in cases {
            assert_eq!(in_days(left), text);
        }
    }

    #[test]
    fn a_setting_to_copy_is_never_wrapped() {
        let setting = format!("{}_STUNNEL_PIN=sha256//{}", "X".repeat(COLUMNS), "y".repeat(44));
        let table = advised(&format!("not authenticated: set\n{setting}"));
        assert_eq!(table, format!("  > not authenticated: set\n    {setting}\n"));
    }
}
