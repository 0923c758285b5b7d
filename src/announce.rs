//! What the user is told: at start, when it cannot start, and at the end.

use std::env::consts::ARCH;
use std::ffi::OsString;
use std::io::{self, Write as _};

use crate::command_line::Rewrite;
use crate::configuration::{ConfigError, Settings, is_variable_name, options};
use crate::exit;
use crate::figures::Totals;
use crate::listen::{Bound, wanted_port};
use crate::logging::{err, notice, warning};
use crate::plan::Plan;
use crate::redis_url::Local;
use crate::supervisor::{Cause, ExitOutcome, NotExecuted};
use crate::tls::Verify;

/// Reports what is wrong with the configuration; returns the exit code for that.
pub fn misconfigured(mistakes: &[ConfigError]) -> u8 {
    for mistake in mistakes {
        err!(at = "config-error", var = mistake.name, msg = mistake.to_string());
    }
    exit::CONFIG
}

/// Reports a defect, or a system that refuses what no launcher can do without; returns the exit
/// code for that.
pub fn internal_error(error: &anyhow::Error) -> u8 {
    err!(at = "internal-error", error = format!("{error:#}"));
    exit::INTERNAL_ERROR
}

/// Reports that COMMAND could not be executed; returns the exit code for that.
pub fn not_executed(words: &[OsString], not_executed: &NotExecuted) -> u8 {
    let code = not_executed.exit_code();
    let program = words[0].to_string_lossy();
    let hint = match &not_executed.cause {
        Cause::NoSuchCommand => Some(why_no_such_command(&program, words.len()).to_owned()),
        cause => why_not_executed(cause),
    };
    let (name, error) = (program_name(&program), not_executed.error.to_string());
    err!(at = "command-failed", command = name, error, code, hint);
    code
}

/// A program's name as a log may have it: nothing but the characters of a path, and nothing behind
/// a space, since a whole command line, or an assignment, may have been given in its place,
/// password and all.
fn program_name(word: &str) -> &str {
    let name = word.split_whitespace().next().unwrap_or_default();
    let is_path = |c: char| c.is_alphanumeric() || "._-+/".contains(c);
    if !name.is_empty() && name.chars().all(is_path) { name } else { "(not shown)" }
}

/// What the user may have meant by a command that does not exist.
fn why_no_such_command(program: &str, words: usize) -> &'static str {
    match program {
        "" => "COMMAND is empty: is a variable in it unset?",
        _ if words == 1 && program.contains(char::is_whitespace) => {
            "the whole command line is one word: leave out the quotes around it, or put sh -c \
             before it"
        }
        _ if program.ends_with(':') => "this is the label of a Procfile's line: leave it out",
        _ if program.split('/').next().is_some_and(|start| start.contains('=')) => {
            "this is no program, but an assignment: put env before it"
        }
        _ => "no such command: check its name and PATH",
    }
}

/// Why an existing file could not be executed, and what to do about it.
fn why_not_executed(cause: &Cause) -> Option<String> {
    Some(match cause {
        Cause::NoSuchCommand | Cause::Other => return None,
        Cause::NoInterpreter { file, interpreter } if interpreter.ends_with('\r') => format!(
            "{} has Windows line ends, so its interpreter {} does not exist: convert the file with \
             dos2unix",
            file.display(),
            interpreter.escape_debug()
        ),
        Cause::NoInterpreter { file, interpreter } => format!(
            "{0} exists, but its interpreter {interpreter} does not: install it, or change the \
             first line of {0}",
            file.display()
        ),
        Cause::NoLoader { file, loader } => format!(
            "{} exists, but its dynamic loader {} does not: install the C library that it was \
             built for, or a build for this system",
            file.display(),
            loader.display()
        ),
        Cause::Directory(file) => {
            format!("{} is a directory: name a program in it", file.display())
        }
        Cause::NotExecutable(file) => format!(
            "{0} has no execute permission: run chmod +x {0}, or put its interpreter before it",
            file.display()
        ),
        Cause::NotPermitted(file) => format!(
            "this user may not execute {}: check its owner and mode, and whether its file system \
             is mounted with noexec",
            file.display()
        ),
        Cause::Foreign { file, built_for } => format!(
            "{} is built for {built_for}; this system runs programs for Linux on {ARCH}",
            file.display()
        ),
        Cause::NotAProgram(file) => format!(
            "{} is neither a script nor a program for this system: is it damaged, or a data file?",
            file.display()
        ),
    })
}

/// Warns of variables that look like settings and are none: a misspelt one leaves a default in
/// force.
pub fn unknown_settings(names: &[String]) {
    if !names.is_empty() {
        warning!(at = "unknown-setting", vars = names.join(" "), msg = NO_SUCH_SETTINGS);
    }
}

/// What is said of variables that look like settings and are none.
pub const NO_SUCH_SETTINGS: &str = "there are no such settings, so that they have no effect: \
                                    start-stunnel --help lists those that there are";

/// The variables of the environment that have no effect here, though somebody may think so.
#[derive(Debug)]
pub struct Unused {
    /// They hold a Redis URL and stay as they are, since nobody names them.
    pub others: Vec<String>,
    /// They look like settings and are none.
    pub unknown: Vec<String>,
}

/// Says of both kinds what a run says.
pub fn unused(plan: &Plan, unused: &Unused) {
    unknown_settings(&unused.unknown);
    not_tunnelled(plan, &unused.others);
}

/// Names the variables with a Redis URL that stay as they are.
pub fn not_tunnelled(plan: &Plan, others: &[String]) {
    if !others.is_empty() {
        notice!(
            at = "not-tunnelled",
            vars = others.join(" "),
            msg = why_not_tunnelled(plan, others)
        );
    }
}

/// What is said of them.
pub fn why_not_tunnelled(plan: &Plan, others: &[String]) -> String {
    format!(
        "these hold Redis URLs and stay as they are; to tunnel them too, set {}=\"{}\"",
        options::URLS.declaration.variable,
        with_others(plan, others)
    )
}

/// One line a tunnel, and what the user should know about it.
pub fn started(plan: &Plan, others: &[String], bound: &Bound, settings: &Settings) {
    let urls = options::URLS.declaration.variable;
    if !plan.found_urls() {
        let remedy = match others.is_empty() {
            true => format!("Set REDIS_URL, or name your variables in {urls}"),
            false => "Others do: see the next line".to_owned(),
        };
        warning!(
            at = "no-redis-url",
            msg = format!(
                "none of {} holds a Redis URL; COMMAND runs without a tunnel. {remedy}",
                options::URLS.declaration.default_shown()
            ),
        );
    }
    let untouched: Vec<&str> = plan.untouched().collect();
    if !untouched.is_empty() {
        notice!(
            at = "left-alone",
            vars = untouched.join(" "),
            msg = format!(
                "these have no tunnel here: they lead through one already, or {}=passthrough \
                 leaves TLS to the app",
                options::REDISS.declaration.variable
            ),
        );
    }
    not_tunnelled(plan, others);
    for (index, (route, local)) in plan.routes.iter().zip(&bound.locals).enumerate() {
        let variables = route.variables.join(" ");
        let wanted = wanted_port(settings, index);
        if let Local::Port(port) = local
            && wanted != *port
            && settings.listen_port != 0
        {
            notice!(
                at = "port-taken",
                var = variables,
                wanted,
                port,
                msg = "somebody else listens there; COMMAND's URL has the other port",
            );
        }
        notice!(
            at = "tunnel-up",
            var = variables,
            listen = %local,
            upstream = %route.upstream,
            verify = route.trust.verify.word(),
        );
        if route.trust.verify == Verify::None && route.trust.ca.is_some() {
            warning!(
                at = "ca-unused",
                var = variables,
                msg = format!(
                    "a CA is set, but not used: set {0}=ca or {0}=full",
                    options::VERIFY.declaration.variable
                ),
            );
        }
    }
    if let Some(page) = &bound.status {
        notice!(at = "status-up", address = %page);
        if page.is_exposed() {
            warning!(
                at = "status-exposed",
                address = %page,
                msg = "other machines can read it: it shows names of servers and variables, and \
                       figures, but no password; 127.0.0.1 is for this machine alone",
            );
        }
    }
    if !plan.unauthenticated.is_empty() {
        warning!(
            at = "not-authenticated",
            vars = plan.unauthenticated.join(" "),
            msg = format!(
                "traffic is encrypted, but nothing proves that the servers are the right ones: set \
                 {pin} (start-stunnel --check prints the value), or {verify}=full for a \
                 certificate of a public CA; {verify}=none says that it is meant so",
                pin = options::PIN.declaration.variable,
                verify = options::VERIFY.declaration.variable
            ),
        );
    }
}

/// Warns of each argument that held a URL which the shell had expanded.
pub fn rewritten(rewrites: &[Rewrite]) {
    for Rewrite { argument, variable } in rewrites {
        warning!(
            at = "argument-rewritten",
            argument,
            var = variable,
            msg = format!(
                "argument {argument} held the URL of {variable}, expanded by the shell before \
                 start-stunnel ran; it now leads through the tunnel"
            ),
        );
    }
}

/// Says why there is nothing to print or to check; returns the exit code for that.
pub fn disabled() -> u8 {
    eprintln!("start-stunnel is disabled: no tunnel, and COMMAND's environment is untouched");
    exit::SUCCESS
}

/// Writes the Redis variables that COMMAND would get to stdout; returns the exit code for that.
///
/// # Errors
/// When stdout cannot be written.
pub fn environment(plan: &Plan, bound: &Bound) -> anyhow::Result<u8> {
    let mut stdout = io::stdout().lock();
    for line in plan.describe(&bound.locals) {
        writeln!(stdout, "{line}")?;
    }
    if !plan.found_urls() {
        eprintln!(
            "start-stunnel: nothing to print: none of {} holds a Redis URL",
            options::URLS.declaration.default_shown()
        );
    }
    stdout.flush()?;
    Ok(exit::SUCCESS)
}

/// How COMMAND ended, and what went through the tunnels.
pub fn ended(ended: ExitOutcome, totals: Totals) {
    let (code, signal) = match ended {
        ExitOutcome::Exited(code) => (Some(code), None),
        ExitOutcome::Killed(signal) => (None, Some(signal)),
    };
    notice!(
        at = "command-ended",
        code,
        signal,
        connections = totals.connections,
        sent = totals.sent,
        received = totals.received,
        failed = totals.failed,
    );
}

/// What [`options::URLS`] would have to be for the others to be tunnelled as well.
fn with_others(plan: &Plan, others: &[String]) -> String {
    let names = plan.variables().chain(others.iter().map(String::as_str));
    names.filter(|name| is_variable_name(name)).collect::<Vec<_>>().join(" ")
}
