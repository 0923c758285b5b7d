//! `--check`: examines every tunnel, and reports which steps work and which fail.

mod advice;
mod dialogue;
mod examine;
mod render;
mod report;

use std::io::{self, Write as _};

use crate::announce;
use crate::configuration::{Plan, Settings, Unused, options};
use crate::exit;
use crate::logging::{LogFormat, err};
use crate::sandbox::{Rights, SandboxMode};
use report::Report;

/// Examines every tunnel of `plan`, prints the report to stdout, and returns the exit code.
///
/// # Errors
/// If the runtime cannot start, or stdout cannot be written.
pub fn run(plan: Plan, settings: &Settings, unused: &Unused) -> anyhow::Result<u8> {
    let found_urls = plan.found_urls();
    let mut notes: Vec<_> = announce::reasons(&plan, unused).into_iter().flatten().collect();
    let untouched = plan.untouched().collect::<Vec<_>>().join(" ");
    if settings.log.format == LogFormat::Json {
        // stdout gets one object per tunnel only.
        announce::unused(&plan, unused);
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
    let code = match reports.iter().all(Report::works) {
        // The user may have misspelt a variable's name, so a check without a Redis URL must not
        // succeed.
        _ if !found_urls => exit::CONFIG,
        true => exit::SUCCESS,
        false => exit::CHECK_FAILED,
    };
    let printed = match settings.log.format {
        LogFormat::Json => print_json(&reports),
        LogFormat::Logfmt => print_tables(&reports, &untouched, &notes),
    };
    Ok(exit::despite_closed_pipe(printed, code)?)
}

fn print_json(reports: &[Report]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    for report in reports {
        writeln!(stdout, "{}", render::as_json(report))?;
    }
    stdout.flush()
}

fn print_tables(reports: &[Report], untouched: &str, notes: &[(String, String)]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let paint = render::Paint::for_stdout();
    if reports.is_empty() {
        writeln!(stdout, "No tunnel to check: {}.", why_none(untouched))?;
    }
    for (index, report) in reports.iter().enumerate() {
        let space = if index == 0 { "" } else { "\n" };
        write!(stdout, "{space}{}", render::as_table(report, &paint))?;
    }
    for (names, text) in notes {
        write!(stdout, "\n{}", render::note(names, text))?;
    }
    stdout.flush()
}

/// The reason why there is no tunnel. `untouched` lists the variables whose Redis URLs need no
/// tunnel.
fn why_none(untouched: &str) -> String {
    match untouched {
        "" => options::NO_URL.to_owned(),
        variables => format!(
            "{variables} needs no tunnel. The variable already points to a tunnel, or \
             {}=passthrough leaves TLS to the app",
            options::REDISS.declaration.variable
        ),
    }
}
