//! Writes messages to the user when the launcher starts, when the start fails, and when the
//! launcher ends.

use std::ffi::OsString;

use crate::configuration::{ConfigError, Plan, Settings, is_variable_name, options};
use crate::exit;
use crate::figures::{Counts, Figures};
use crate::listen::{Bound, wanted_port};
use crate::logging::{err, notice, warning};
use crate::names;
use crate::output::{self, note};
use crate::redis_url::Local;
use crate::status;
use crate::supervisor::{ExitOutcome, NotExecuted};
use crate::tls::Verify;
use crate::tunnel::Route;

/// Logs the mistakes in the configuration. Returns how the launcher must exit.
pub fn misconfigured(mistakes: &[ConfigError]) -> ExitOutcome {
    for mistake in mistakes {
        err!(at = "config-error", var = mistake.name, msg = mistake.to_string());
    }
    ExitOutcome::Exited(exit::CONFIG.into())
}

/// Logs an error that the user did not cause, such as a defect of the launcher or a refused system
/// call.
pub fn internal_error(error: &anyhow::Error) {
    err!(at = "internal-error", error = format!("{error:#}"));
}

/// Logs that COMMAND could not be executed. Returns how the launcher must exit.
pub fn not_executed(words: &[OsString], not_executed: &NotExecuted) -> ExitOutcome {
    let code = not_executed.exit_code();
    let program = words[0].to_string_lossy();
    let no_such_command = || why_no_such_command(&program, words.len()).to_owned();
    let is_missing = code == exit::COMMAND_NOT_FOUND;
    let hint = not_executed.hint.clone().or_else(|| is_missing.then(no_such_command));
    let (name, error) = (program_name(&program), not_executed.error.to_string());
    err!(at = "command-failed", command = name, error, code, hint);
    ExitOutcome::Exited(code.into())
}

/// Returns the text that the log shows as the name of a program. If the user made a mistake, `word`
/// may be a whole command line or an assignment, which may contain a password. So the log shows
/// only the part before the first space, and only if this part looks like a path.
fn program_name(word: &str) -> &str {
    let name = word.split_whitespace().next().unwrap_or_default();
    let is_path = |c: char| c.is_alphanumeric() || "._-+/".contains(c);
    if !name.is_empty() && name.chars().all(is_path) { name } else { "(not shown)" }
}

fn why_no_such_command(program: &str, words: usize) -> &'static str {
    match program {
        "" => "COMMAND is empty. Is a variable in the command line unset?",
        _ if words == 1 && program.contains(char::is_whitespace) => {
            "quotes make the whole command line a single word. Remove the quotes, or write sh -c \
             before them"
        }
        _ if program.ends_with(':') => {
            "COMMAND is the label of a line in a Procfile. Remove the label"
        }
        _ if program.split('/').next().is_some_and(|start| start.contains('=')) => {
            "COMMAND is an assignment, not a program. Write env before the assignment"
        }
        "help" => "no such command: did you mean start-stunnel --help?",
        "version" => "no such command: did you mean start-stunnel --version?",
        "status" => "no such command: did you mean start-stunnel --status?",
        _ => "no such command: check COMMAND's name and the variable PATH",
    }
}

/// Logs the variables and options that have no effect, with the reasons.
pub fn unused(plan: &Plan) {
    let [other_urls, unknown, without_url, retired] = reasons(plan);
    if let Some((vars, msg)) = retired {
        warning!(at = "retired-setting", vars, msg);
    }
    for (vars, msg) in [unknown, without_url].into_iter().flatten() {
        warning!(at = "unknown-setting", vars, msg);
    }
    if let Some((vars, msg)) = other_urls {
        notice!(at = "not-tunnelled", vars, msg);
    }
}

/// Returns the text of each list in `plan.unused`, in the order of the fields, with the reason why
/// the variables or options in the list have no effect. Returns `None` for an empty list.
pub fn reasons(plan: &Plan) -> [Option<(String, String)>; 4] {
    let retired = "this setting is retired and ignored: start-stunnel no longer opens connections \
                   in advance. Remove the setting";
    let unused = &plan.unused;
    let all = [
        (&unused.other_urls, how_to_include(plan, &unused.other_urls)),
        (&unused.unknown, "unknown settings, ignored; see start-stunnel --help".to_owned()),
        (&unused.without_url, why_without_effect(plan)),
        (&unused.retired, retired.to_owned()),
    ];
    all.map(|(names, reason)| (!names.is_empty()).then(|| (names.join(" "), reason)))
}

/// Returns the message about settings that apply to a single variable, but have no effect because
/// this variable has no tunnel.
fn why_without_effect(plan: &Plan) -> String {
    let mut tunnelled: Vec<_> =
        plan.tunnelled.iter().map(|tunnelled| tunnelled.variable.as_str()).collect();
    if tunnelled.is_empty() {
        tunnelled.push("none");
    }
    format!(
        "these settings have no effect: each setting applies to a single variable, and that \
         variable has no tunnel. Variables with a tunnel: {names}",
        names = tunnelled.join(" ")
    )
}

/// Returns the message about variables whose Redis URLs get no tunnel, because the user does not
/// list the variables.
fn how_to_include(plan: &Plan, others: &[String]) -> String {
    let names = plan.variables().chain(others.iter().map(String::as_str));
    let all: Vec<_> = names.filter(|name| is_variable_name(name)).collect();
    let question = plan.unused.question.as_ref().map(|question| format!("{question} "));
    format!(
        "these variables hold Redis URLs, but get no tunnel. {question}To tunnel these URLs too, \
         set {urls}={all}",
        question = question.unwrap_or_default(),
        urls = names::URLS,
        all = all.join(",") // Without spaces, the value is never wrapped.
    )
}

/// Logs one line for each tunnel, and warnings about the plan, before COMMAND starts.
pub fn started(plan: &Plan, bound: &Bound, settings: &Settings) {
    if !plan.found_urls() {
        let msg = format!("COMMAND runs without a tunnel: {}", names::NO_URL);
        warning!(at = "no-redis-url", msg);
    }
    left_alone(plan);
    for (index, (route, local)) in plan.routes.iter().zip(&bound.locals).enumerate() {
        port_taken(route, wanted_port(settings, index), local);
        tunnel_up(route, local);
    }
    if let Some(page) = &bound.status {
        status_up(page);
    }
    not_authenticated(&plan.unauthenticated);
}

/// Logs the variables whose Redis URLs need no tunnel.
fn left_alone(plan: &Plan) {
    let vars = plan.untouched().collect::<Vec<_>>().join(" ");
    if !vars.is_empty() {
        notice!(at = "left-alone", vars, msg = why_untouched(&vars));
    }
}

/// Returns the reason why the Redis URLs in `variables` need no tunnel.
pub fn why_untouched(variables: &str) -> String {
    format!(
        "no tunnel is needed for {variables}: each URL already points to a tunnel, or \
         {rediss}=passthrough leaves TLS to the app",
        rediss = options::REDISS.declaration.variable
    )
}

fn port_taken(route: &Route, wanted: u16, local: &Local) {
    if let Local::Port(port) = local
        && *port != wanted
        && wanted != 0
    {
        notice!(
            at = "port-taken",
            var = route.variables.join(" "),
            wanted,
            port,
            msg = "the wanted port is taken; the tunnel uses another port, and COMMAND's URL \
                   points to that port",
        );
    }
}

fn tunnel_up(route: &Route, local: &Local) {
    let variables = route.variables.join(" ");
    notice!(
        at = "tunnel-up",
        var = variables,
        listen = %local,
        upstream = %route.upstream,
        verify = route.trust.verify.word(),
        pinned = route.trust.is_pinned().then_some(true),
    );
    if route.trust.verify == Verify::None && route.trust.ca.is_some() {
        warning!(
            at = "ca-unused",
            var = variables,
            msg = format!(
                "a CA is set, but has no effect with {0}=none. Set {0}=ca or {0}=full",
                route.setting_names.of(names::VERIFY)
            ),
        );
    }
}

fn status_up(page: &status::StatusListener) {
    notice!(at = "status-up", address = page.address);
    if page.is_exposed {
        warning!(
            at = "status-exposed",
            address = page.address,
            msg = "other machines can read the status page. The page shows metrics and the names \
                   of servers and variables, but no passwords. To allow only this machine, use an \
                   address on 127.0.0.1",
        );
    }
}

/// Warns that the launcher does not authenticate the servers of the URLs in `variables`.
fn not_authenticated(variables: &[String]) {
    if !variables.is_empty() {
        warning!(
            at = "not-authenticated",
            vars = variables.join(" "),
            msg = format!(
                "traffic is encrypted, but the servers are not authenticated. To authenticate the \
                 servers, set {pin} (start-stunnel --check prints the value), or set {verify}=full \
                 if a public CA has issued the certificate. To turn off this warning, set \
                 {verify}=none",
                pin = names::PIN,
                verify = names::VERIFY
            ),
        );
    }
}

/// Warns about the arguments of COMMAND in which [`crate::command_line::rewrite`] has replaced
/// URLs.
pub fn rewritten(rewrites: &[(usize, String)]) {
    for (argument, variable) in rewrites {
        warning!(
            at = "argument-rewritten",
            argument,
            var = variable,
            msg = format!(
                "the shell expanded {variable} in argument {argument} before start-stunnel ran. \
                 start-stunnel has replaced the URL in this argument with the tunnel's URL"
            ),
        );
    }
}

/// Tells the user that `--check` or `--print-env` does nothing while the launcher is disabled.
pub fn disabled() {
    note(
        "start-stunnel is disabled: it opens no tunnel, and does not change COMMAND's environment",
    );
}

/// Warns that the launcher ignores COMMAND because of `option`, for example `check`.
pub fn command_ignored(option: &str) {
    note(&format!("start-stunnel: --{option} runs no command; the given command is ignored"));
}

/// Prints the Redis variables that COMMAND would get, and returns the launcher's exit code.
///
/// # Errors
/// Returns an error if stdout cannot be written.
pub fn environment(plan: &Plan, bound: &Bound) -> anyhow::Result<u8> {
    if !plan.found_urls() {
        note(&format!("start-stunnel: nothing to print: {}", names::NO_URL));
    }
    let text: String = plan.describe(&bound.locals).into_iter().map(|line| line + "\n").collect();
    Ok(output::print(&text, exit::SUCCESS)?)
}

/// Logs how COMMAND ended, and the total numbers of connections and bytes of all tunnels.
pub fn ended(ended: ExitOutcome, figures: &Figures) {
    let (code, signal) = match ended {
        ExitOutcome::Exited(code) => (Some(code), None),
        ExitOutcome::Killed(signal) => (None, Some(signal)),
    };
    notice!(
        at = "command-ended",
        code,
        signal,
        connections = figures.sum(|counts| counts.accepted),
        sent = figures.sum(|counts| counts.sent),
        received = figures.sum(|counts| counts.received),
        failed = figures.sum(Counts::failed_in_all),
    );
}
