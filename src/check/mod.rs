//! `--check`: examines every tunnel at the same time, and reports what would work and what would
//! not.

mod examine;
mod render;
mod report;

use std::io::{self, IsTerminal as _, Write as _};

use crate::announce::{self, Unused};
use crate::configuration::{Settings, options};
use crate::exit;
use crate::logging::LogFormat;
use crate::plan::Plan;
use crate::sandbox::{Rights, SandboxMode};
use report::Report;

/// Examines every tunnel of `plan`, prints the report to stdout, and returns the exit code.
///
/// # Errors
/// When the runtime cannot be started or stdout not be written.
pub fn run(plan: Plan, settings: &Settings, unused: &Unused) -> anyhow::Result<u8> {
    let (others, unknown) = (unused.others.join(" "), unused.unknown.join(" "));
    let why_not = announce::why_not_tunnelled(&plan, &unused.others);
    if settings.log.format == LogFormat::Json {
        // Its objects are tunnels, and nothing else.
        announce::unused(&plan, unused);
    }
    let untouched = plan.untouched().collect::<Vec<_>>().join(" ");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let reports = runtime.block_on(examine::all(plan, settings));
    runtime.shutdown_background();
    let works = reports.iter().all(Report::works);
    let mut stdout = io::stdout().lock();
    match settings.log.format {
        LogFormat::Json => {
            for report in &reports {
                writeln!(stdout, "{}", render::as_json(report))?;
            }
        }
        LogFormat::Logfmt => {
            let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            let paint = render::Paint(stdout.is_terminal() && !no_color);
            if reports.is_empty() {
                writeln!(stdout, "No tunnel to check: {}.", why_none(&untouched))?;
            }
            for (index, report) in reports.iter().enumerate() {
                let space = if index == 0 { "" } else { "\n" };
                write!(stdout, "{space}{}", render::as_table(report, &paint))?;
            }
            for (names, text) in [(others, &*why_not), (unknown, announce::NO_SUCH_SETTINGS)] {
                if !names.is_empty() {
                    write!(stdout, "\n{}", render::note(&names, text))?;
                }
            }
            if settings.sandbox != SandboxMode::Off {
                let offered = Rights::default().try_out();
                write!(stdout, "\n{}", render::note("sandbox", &offered.to_string()))?;
            }
        }
    }
    stdout.flush()?;
    Ok(if works { exit::SUCCESS } else { exit::CHECK_FAILED })
}

/// `untouched`: the variables that hold Redis URLs and have no tunnel.
fn why_none(untouched: &str) -> String {
    let [urls, rediss] = [&options::URLS.declaration, &options::REDISS.declaration];
    match untouched {
        "" => format!(
            "none of {} holds a Redis URL. Set REDIS_URL, or name your variables in {}",
            urls.default_shown(),
            urls.variable
        ),
        names => format!(
            "{names} leads through one already, or has none because of {}=passthrough",
            rediss.variable
        ),
    }
}
