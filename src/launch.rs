//! The order of things: bind, spawn, supervise, drain.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;

use crate::cli;
use crate::logging::{debug, err, notice, warning};
use crate::plan::{Plan, REDISCLI_AUTH};
use crate::redis_url::Local;
use crate::settings::{ConfigError, Environment, Listen, PortTaken, Settings, Verify, lookup};
use crate::supervisor::{self, Ended, Forwarding, Inherited, Supervisor, Terminal};
use crate::tls::Connector;
use crate::tunnel::{self, Connections, Listener, SocketFolder, Totals, Tunnel};

/// Set by Heroku in every dyno: <https://devcenter.heroku.com/articles/dynos#local-environment-variables>.
const DYNO: &str = "DYNO";

/// A local port or socket for each tunnel of a plan, bound and listening, but not yet served.
#[derive(Debug, Default)]
pub struct Bound {
    listeners: Vec<Listener>,
    locals: Vec<Local>,
    /// Holds the sockets; removed when it is dropped.
    folder: Option<SocketFolder>,
}

/// Binds a local port or socket for each tunnel.
///
/// # Errors
/// When a port cannot be had for another reason than that it is taken, or no socket be made.
pub fn bind(plan: &Plan, settings: &Settings) -> Result<Bound, ConfigError> {
    let mut bound = Bound::default();
    if settings.listen == Listen::Unix && !plan.tunnels.is_empty() {
        bound.folder = Some(SocketFolder::make().map_err(no_socket)?);
    }
    for index in 0..plan.tunnels.len() {
        let (listener, local) = match &bound.folder {
            Some(folder) => {
                let (listener, path) = folder.bind(index).map_err(no_socket)?;
                (listener, Local::Socket(path))
            }
            None => {
                let wanted = wanted_port(settings, index);
                if wanted == 0
                    && settings.listen_port != 0
                    && settings.port_taken == PortTaken::Fail
                {
                    return Err(ports_used_up(settings.listen_port));
                }
                let (listener, port) = Listener::bind(wanted, settings.port_taken)
                    .map_err(|error| no_port(wanted, &error))?;
                (listener, Local::Port(port))
            }
        };
        bound.listeners.push(listener);
        bound.locals.push(local);
    }
    Ok(bound)
}

/// There are more tunnels than ports from the first on, and no other may be taken.
fn ports_used_up(first: u16) -> ConfigError {
    let remedy = format!("set a lower one, or {}=move", cli::PORT_TAKEN.variable);
    ConfigError::new(
        cli::LISTEN_PORT.variable,
        format!("is {first}, and there are fewer ports from there on than tunnels; {remedy}"),
    )
}

fn no_port(wanted: u16, error: &io::Error) -> ConfigError {
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!(
                "end who listens there, or set another port, or {}=move",
                cli::PORT_TAKEN.variable
            )
        }
        _ => "set it to a port from 1024 to 65535, or to 0".to_owned(),
    };
    let problem = format!("leads to 127.0.0.1:{wanted}, which cannot be bound ({error})");
    ConfigError::new(cli::LISTEN_PORT.variable, format!("{problem}; {remedy}"))
}

fn no_socket(error: io::Error) -> ConfigError {
    let remedy = "set TMPDIR to a writable folder with a short name, or unset this";
    ConfigError::new(
        cli::LISTEN.variable,
        format!("is unix, but no socket can be made ({error}); {remedy}"),
    )
}

/// The local port that the tunnel of this index should have; 0: the kernel's pick.
fn wanted_port(settings: &Settings, index: usize) -> u16 {
    match settings.listen_port {
        0 => 0,
        // Past the last port, the kernel picks.
        first => u16::try_from(usize::from(first) + index).unwrap_or(0),
    }
}

/// Writes the Redis variables that COMMAND would get to stdout.
///
/// # Errors
/// When stdout cannot be written.
pub fn print_env(plan: &Plan, bound: &Bound) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    for line in plan.describe(&bound.locals) {
        writeln!(stdout, "{line}")?;
    }
    stdout.flush()
}

/// Runs COMMAND behind the tunnels of `plan`, and returns the launcher's exit code.
///
/// # Errors
/// An internal error: the system refuses what no launcher can do without.
pub fn run(
    command: Vec<OsString>,
    environment: Environment,
    settings: &Settings,
    plan: Plan,
    mut bound: Bound,
    inherited: io::Result<Inherited>,
) -> anyhow::Result<u8> {
    let inherited = inherited.context("could not take over signals")?;
    announce(&plan, &bound, settings);

    let (words, rewrites) = plan.rewrite(command, &bound.locals);
    for rewrite in rewrites {
        warning!(
            at = "argument-rewritten",
            argument = rewrite.argument,
            var = rewrite.variable,
            msg = format!(
                "argument {} held the URL of {}, expanded by the shell before start-stunnel ran; it now \
                 leads through the tunnel",
                rewrite.argument, rewrite.variable
            ),
        );
    }
    let on_dyno = lookup(&environment, DYNO).is_some();
    let mut environment = environment;
    for (name, value) in plan.changes(&bound.locals) {
        environment.insert(name.into(), value.into());
    }

    let words = tell_redis_cli(words, &mut environment, &plan, &bound);
    let listeners = std::mem::take(&mut bound.listeners);
    let terminal = Terminal::open();
    let placement = supervisor::placement(terminal.as_ref());
    let child = match supervisor::spawn(&words, &environment, placement, inherited) {
        Ok(child) => child,
        Err(error) => return Ok(not_executed(&words, &error)),
    };
    debug!(at = "command-started", pid = child.pid.as_raw(), placement = ?placement);
    if let Err(error) = supervisor::let_go_of_streams() {
        debug!(at = "streams-kept", error = %error);
    }

    // One thread. On two cores with 50 clients and Redis, 40,000 small requests cost 1.21 s of CPU so, 1.28 s on a
    // multi-thread runtime with one worker, 1.33 s with two; pipelined 0.42, 0.43 and 0.47; the rates differ by less than
    // their noise. Redis has one thread as well, and more to do.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("could not start the runtime")?;
    let forwarding = Forwarding::new(settings.forward_signals, on_dyno);
    let totals = Arc::new(Totals::default());
    let ended = runtime.block_on(async {
        let mut supervisor =
            Supervisor::new(child, forwarding, terminal).context("could not listen for signals")?;
        let (connections, drain) = Connections::new();
        open_tunnels(plan, listeners, settings, &totals, connections);

        let ended = supervisor.wait().await.context("could not listen for signals")?;
        let limit = settings.connection.drain_timeout;
        tokio::select! {
            biased;
            () = drain.finish() => {}
            cut = supervisor.drain_cut() => {
                let signal = cut.context("could not listen for signals")?;
                warning!(
                    at = "drain-cut",
                    signal,
                    msg = format!("connections were still open at signal {signal} and are cut"),
                );
            }
            () = tokio::time::sleep(limit) => {
                warning!(
                    at = "drain-timeout",
                    msg = format!(
                        "connections were still open {limit:?} after COMMAND had ended and are cut"
                    ),
                );
            }
        }
        anyhow::Ok(ended)
    })?;
    // Cuts what is still open; a look-up that hangs in the resolver is not waited for.
    runtime.shutdown_background();
    summarize(ended, &totals);
    Ok(ended.exit_code())
}

/// COMMAND's words, and the environment, with what a redis-cli needs to know if COMMAND is one.
fn tell_redis_cli(
    words: Vec<OsString>,
    environment: &mut Environment,
    plan: &Plan,
    bound: &Bound,
) -> Vec<OsString> {
    let Some(told) = plan.redis_cli(&words, &bound.locals) else {
        return words;
    };
    notice!(
        at = "redis-cli",
        var = told.variable,
        msg = format!(
            "it is told to connect to {}; with -h, -p, -s or -u it is left alone",
            told.variable
        ),
    );
    if let Some(password) = told.password {
        environment.entry(REDISCLI_AUTH.into()).or_insert_with(|| password.expose().into());
    }
    told.words
}

/// Reports that COMMAND could not be executed; returns the exit code for that.
pub fn not_executed(words: &[OsString], error: &io::Error) -> u8 {
    let code = supervisor::exit_code_of(error);
    let program = words[0].to_string_lossy();
    let (name, hint) = (program_name(&program), why_not_executed(&program, words.len(), code));
    let error = error.to_string();
    err!(at = "command-failed", command = name, error, code, hint);
    code
}

/// A program's name as a log may have it: nothing but the characters of a path, and nothing behind a space, since a
/// whole command line, or an assignment, may have been given in its place, password and all.
fn program_name(word: &str) -> &str {
    let name = word.split_whitespace().next().unwrap_or_default();
    let is_path = |c: char| c.is_alphanumeric() || "._-+/".contains(c);
    if !name.is_empty() && name.chars().all(is_path) { name } else { "(not shown)" }
}

/// What the user may have meant.
fn why_not_executed(program: &str, words: usize, code: u8) -> Option<&'static str> {
    match code {
        127 if program.is_empty() => Some("COMMAND is empty: is a variable in it unset?"),
        127 if words == 1 && program.contains(char::is_whitespace) => Some(
            "the whole command line is one word: leave out the quotes around it, or put sh -c before it",
        ),
        127 if program.split('/').next().is_some_and(|start| start.contains('=')) => {
            Some("this is no program, but an assignment: put env before it")
        }
        127 => Some("no such command: check its name and PATH"),
        _ => None,
    }
}

/// One line a tunnel, and what the user should know about it.
fn announce(plan: &Plan, bound: &Bound, settings: &Settings) {
    let urls = cli::URLS.variable;
    if !plan.found_urls() {
        let remedy = match plan.others.is_empty() {
            true => format!("Set REDIS_URL, or name your variables in {urls}"),
            false => "Others do: see the next line".to_owned(),
        };
        warning!(
            at = "no-redis-url",
            msg = format!(
                "none of {} holds a Redis URL; COMMAND runs without a tunnel. {remedy}",
                cli::URLS.default_shown
            ),
        );
    }
    if !plan.others.is_empty() {
        notice!(
            at = "not-tunnelled",
            vars = plan.others.join(" "),
            msg = format!(
                "these hold Redis URLs and stay as they are; to tunnel them too, set {urls}=\"{}\"",
                plan.with_others()
            ),
        );
    }
    for (index, (tunnel, local)) in plan.tunnels.iter().zip(&bound.locals).enumerate() {
        let variables = tunnel.variables.join(" ");
        let wanted = wanted_port(settings, index);
        if let Local::Port(port) = local
            && wanted != *port
            && settings.listen_port != 0
        {
            notice!(at = "port-taken", var = variables, wanted, port);
        }
        notice!(
            at = "tunnel-up",
            var = variables,
            listen = %local,
            upstream = %tunnel.upstream,
            verify = tunnel.trust.verify.word(),
        );
        if tunnel.trust.verify == Verify::None && tunnel.trust.ca.is_some() {
            warning!(
                at = "ca-unused",
                var = variables,
                msg = format!(
                    "a CA is set, but not used: set {0}=ca or {0}=full",
                    cli::VERIFY.variable
                ),
            );
        }
    }
    if !plan.unauthenticated.is_empty() {
        warning!(
            at = "not-authenticated",
            vars = plan.unauthenticated.join(" "),
            msg = format!(
                "traffic is encrypted, but nothing proves that the servers are the right ones: set {pin} \
                 (start-stunnel --check prints the value), or {verify}=full for a certificate of a public CA; \
                 {verify}=none says that it is meant so",
                pin = cli::PIN.variable,
                verify = cli::VERIFY.variable
            ),
        );
    }
}

/// Serves every listener, in tasks of the current runtime.
fn open_tunnels(
    plan: Plan,
    listeners: Vec<Listener>,
    settings: &Settings,
    totals: &Arc<Totals>,
    connections: Connections,
) {
    let mut connectors: Vec<Arc<Connector>> = Vec::new();
    for (plan, listener) in plan.tunnels.into_iter().zip(listeners) {
        let known = connectors.iter().find(|connector| *connector.trust() == plan.trust);
        let connector = known.cloned().unwrap_or_else(|| {
            let connector = Connector::new(plan.trust.clone());
            connectors.push(connector.clone());
            prepare(connector.clone());
            connector
        });
        let tunnel = Tunnel::new(plan, connector, settings.connection.clone(), totals.clone());
        let tunnel = Arc::new(tunnel);
        let connections = connections.clone();
        tokio::spawn(async move {
            let variable = tunnel.variable().to_owned();
            if let Err(error) = tunnel::serve(listener, tunnel, connections).await {
                err!(at = "tunnel-down", var = variable, error = %error);
            }
        });
    }
}

/// Builds a connector beside COMMAND's start, before the first connection asks for it.
fn prepare(connector: Arc<Connector>) {
    tokio::spawn(async move {
        let started = Instant::now();
        match connector.prepare().await {
            Ok(_) => debug!(at = "tls-ready", duration_ms = started.elapsed().as_millis() as u64),
            // Each connection tries again, and reports it.
            Err(error) => debug!(at = "tls-not-ready", error = %error),
        }
    });
}

/// How COMMAND ended, and what went through the tunnels.
fn summarize(ended: Ended, totals: &Totals) {
    let (code, signal) = match ended {
        Ended::Exited(code) => (Some(code), None),
        Ended::Killed(signal) => (None, Some(signal)),
    };
    let counts = totals.counts();
    notice!(
        at = "command-ended",
        code,
        signal,
        connections = counts.connections,
        sent = counts.sent,
        received = counts.received,
        failed = counts.failed,
    );
}
