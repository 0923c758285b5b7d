//! `--check`: examines every tunnel, and reports which steps work and which fail.

mod advice;
mod dialogue;
mod examine;
mod render;
mod report;

use crate::announce;
use crate::configuration::{Plan, Settings};
use crate::exit;
use crate::logging::{LogFormat, err};
use crate::names;
use crate::output;
use crate::sandbox::{Rights, SandboxMode};
use render::{Paint, as_json, as_table, paragraph};
use report::{Report, Subject};

/// Examines every tunnel of `plan`, prints the report to stdout, and returns the exit code.
///
/// # Errors
/// If tokio's runtime cannot start, or if writing to stdout fails.
pub fn run(plan: Plan, settings: &Settings) -> anyhow::Result<u8> {
    let found_urls = plan.found_urls();
    let mut notes: Vec<_> = announce::reasons(&plan).into_iter().flatten().collect();
    let untouched = plan.untouched().collect::<Vec<_>>().join(" ");
    if settings.log.format == LogFormat::Json {
        // Log the notes, because stdout must contain only one JSON object per tunnel.
        announce::unused(&plan);
        if !found_urls {
            err!(at = "no-redis-url", msg = why_none(&untouched));
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let reports = runtime.block_on(examine::all(plan, settings));
    runtime.shutdown_background();
    if settings.sandbox != SandboxMode::Off {
        notes.push(("sandbox".to_owned(), Rights::default().try_out().to_string()));
    }
    let code = match reports.iter().all(|(_, report)| report.works()) {
        // If there is no Redis URL, the check must fail, because the user may have misspelt a
        // variable's name.
        _ if !found_urls => exit::CONFIG,
        true => exit::SUCCESS,
        false => exit::CHECK_FAILED,
    };
    let text = match settings.log.format {
        LogFormat::Json => reports
            .iter()
            .map(|(subject, report)| format!("{}\n", as_json(subject, report)))
            .collect(),
        LogFormat::Logfmt => tables(&reports, &untouched, &notes),
    };
    Ok(output::print(&text, code)?)
}

fn tables(reports: &[(Subject, Report)], untouched: &str, notes: &[(String, String)]) -> String {
    let paint = Paint::for_stdout();
    let table = |(subject, report): &(_, _)| as_table(subject, report, &paint);
    let mut parts: Vec<String> = reports.iter().map(table).collect();
    if reports.is_empty() {
        parts.push(format!("No tunnel to check: {}.\n", why_none(untouched)));
    }
    parts.extend(notes.iter().map(|(names, text)| paragraph("", 0, &format!("{names}: {text}"))));
    parts.join("\n")
}

/// Returns the reason why there is no tunnel. `untouched` lists the variables whose Redis URLs need
/// no tunnel.
fn why_none(untouched: &str) -> String {
    match untouched {
        "" => names::NO_URL.to_owned(),
        variables => announce::why_untouched(variables),
    }
}
