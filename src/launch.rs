//! The order of things: bind, spawn, supervise, drain.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;

use crate::announce;
use crate::command_line::{self, REDISCLI_AUTH, RedisCli};
use crate::configuration::{ConfigError, Settings, options};
use crate::environment::{Environment, lookup};
use crate::figures::{CommandState, Figures, TunnelLabels};
use crate::listen::Bound;
use crate::logging::{self, debug, err, notice, warning};
use crate::plan::Plan;
use crate::sandbox::{self, Rights, SandboxMode};
use crate::status::{self, Status};
use crate::supervisor::{self, Forwarding, Inherited, Supervisor, Terminal};
use crate::threads;
use crate::tls::{self, Connector};
use crate::tunnel::{self, Connections, Listener, Route, Tunnel};

/// Set by Heroku in every dyno:
/// <https://devcenter.heroku.com/articles/dynos#local-environment-variables>.
const DYNO: &str = "DYNO";

/// All that a launch needs.
#[derive(Debug)]
pub struct Launch {
    /// COMMAND and its arguments.
    pub command: Vec<OsString>,
    /// As it was found.
    pub environment: Environment,
    pub settings: Settings,
    pub plan: Plan,
    /// The variables with a Redis URL that stay as they are, since nobody names them.
    pub others: Vec<String>,
    /// The variables that look like settings and are none.
    pub unknown: Vec<String>,
    pub bound: Bound,
    pub inherited: io::Result<Inherited>,
}

impl Launch {
    /// Runs COMMAND behind the tunnels of the plan, and returns the launcher's exit code.
    ///
    /// # Errors
    /// An internal error: the system refuses what no launcher can do without.
    pub fn run(self) -> anyhow::Result<u8> {
        let Launch { command, environment, settings, plan, others, unknown, bound, inherited } =
            self;
        announce::unknown_settings(&unknown);
        run(command, environment, &settings, plan, &others, bound, inherited)
    }
}

fn run(
    command: Vec<OsString>,
    mut environment: Environment,
    settings: &Settings,
    plan: Plan,
    others: &[String],
    mut bound: Bound,
    inherited: io::Result<Inherited>,
) -> anyhow::Result<u8> {
    let inherited = inherited.context("could not take over signals")?;
    bound.bind_status(settings);
    announce::started(&plan, others, &bound, settings);

    let (words, rewrites) = command_line::rewrite(&plan, command, &bound.locals);
    announce::rewritten(&rewrites);
    let dyno = lookup(&environment, DYNO).map(|dyno| dyno.to_string_lossy().into_owned());
    let on_dyno = dyno.is_some();
    for (name, value) in plan.changes(&bound.locals) {
        environment.insert(name.into(), value.into());
    }

    let words = tell_redis_cli(words, &mut environment, &plan, &bound);
    let sockets = bound.socket_folder().map(Path::to_owned);
    if let Err(mistake) = try_sandbox(&plan, sockets.as_deref(), settings) {
        return Ok(announce::misconfigured(&[mistake]));
    }
    let listeners = std::mem::take(&mut bound.listeners);
    let page = bound.status.take();
    let terminal = Terminal::open();
    let placement = supervisor::placement(terminal.as_ref());
    if !listeners.is_empty() {
        threads::keep_one_ready();
    }
    let child = match supervisor::spawn(&words, &environment, placement, inherited) {
        Ok(child) => child,
        Err(error) => return Ok(announce::not_executed(&words, &error)),
    };
    debug!(at = "command-started", pid = child.pid.as_raw(), placement = ?placement);
    if let Err(error) = supervisor::let_go_of_streams() {
        debug!(at = "streams-kept", error = %error);
    }

    // One thread. On two cores with 50 clients and Redis, 40,000 small requests cost 1.21 s of CPU
    // so, 1.28 s on a multi-thread runtime with one worker, 1.33 s with two; pipelined 0.42, 0.43
    // and 0.47; the rates differ by less than their noise. Redis has one thread as well, and more
    // to do.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("could not start the runtime")?;
    let forwarding = Forwarding::new(settings.forward_signals, on_dyno);
    let figures = Arc::new(Figures::new(labels(&plan), child.pid.as_raw()));
    let ended = runtime.block_on(async {
        let mut supervisor = Supervisor::new(child, forwarding, terminal, figures.clone())
            .context("could not listen for signals")?;
        let (connections, drain) = Connections::new();
        tell_status(&figures, page, settings, dyno);
        // The last step before bytes arrive from the network: what comes before needs more rights.
        enter_sandbox(&plan, sockets.as_deref(), settings);
        open_tunnels(plan, listeners, settings, &figures, connections);

        let ended = supervisor.wait().await.context("could not listen for signals")?;
        figures.command.is_now(CommandState::Draining);
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
    announce::ended(ended, figures.totals());
    Ok(ended.exit_code())
}

/// COMMAND's words, and the environment, with what a redis-cli needs to know if COMMAND is one.
fn tell_redis_cli(
    words: Vec<OsString>,
    environment: &mut Environment,
    plan: &Plan,
    bound: &Bound,
) -> Vec<OsString> {
    let (words, password) = match command_line::redis_cli(plan, &words, &bound.locals) {
        None => return words,
        Some(RedisCli::LeftAlone { option }) => {
            let option = option.as_deref().unwrap_or("an option of its own");
            notice!(
                at = "redis-cli",
                msg = format!("redis-cli has {option}, so it was not told where the tunnel is"),
            );
            return words;
        }
        Some(RedisCli::Told { words, password, variable }) => {
            notice!(
                at = "redis-cli",
                var = variable,
                msg = format!("redis-cli connects to {variable}'s tunnel"),
            );
            (words, password)
        }
    };
    if let Some(password) = password {
        environment.entry(REDISCLI_AUTH.into()).or_insert_with(|| password.expose().into());
    }
    words
}

/// The rights that the launcher needs once COMMAND runs. `sockets`: the directory of its Unix
/// sockets.
fn rights(plan: &Plan, sockets: Option<&Path>) -> Rights {
    Rights {
        ports: plan.routes.iter().map(|route| route.upstream.port).collect(),
        read: tls::late_files(plan.routes.iter().map(|route| &route.trust)),
        sockets: sockets.map(Path::to_owned),
    }
}

/// Tries the sandbox if the user requires one; an error if there would be none.
fn try_sandbox(
    plan: &Plan,
    sockets: Option<&Path>,
    settings: &Settings,
) -> Result<(), ConfigError> {
    if settings.sandbox != SandboxMode::Require {
        return Ok(());
    }
    let found = rights(plan, sockets).try_out();
    if found.abi().is_some() {
        return Ok(());
    }
    let name = settings.names.of(options::SANDBOX.declaration.variable);
    let problem = "is require, but the sandbox would be";
    Err(ConfigError::new(name, format!("{problem} {found}; set auto or off to do without")))
}

/// Restricts every thread of the launcher.
fn enter_sandbox(plan: &Plan, sockets: Option<&Path>, settings: &Settings) {
    if settings.sandbox == SandboxMode::Off {
        return sandbox::leave_off();
    }
    match rights(plan, sockets).keep_only() {
        sandbox::State::Failed(error) => warning!(at = "sandbox-failed", error),
        state => debug!(at = "sandbox", state = %state),
    }
    logging::enter_sandbox();
    threads::enter_sandbox();
}

/// By what the tunnels of a plan are known to those who read their figures.
fn labels(plan: &Plan) -> Vec<TunnelLabels> {
    let of_route = |route: &Route| TunnelLabels {
        variables: route.variables.clone(),
        upstream: route.upstream.to_string(),
        verify: route.trust.verify.word(),
    };
    plan.routes.iter().map(of_route).collect()
}

/// Tells the figures to whoever asks, in tasks of the current runtime that nobody waits for.
fn tell_status(
    figures: &Arc<Figures>,
    page: Option<status::Listener>,
    settings: &Settings,
    dyno: Option<String>,
) {
    let status = Status::new(figures.clone());
    if let Some(page) = page {
        tokio::spawn(status::serve(page, status.clone()));
    }
    tokio::spawn(status::serve_local(status));
    if let Some(interval) = settings.status.metrics_interval {
        tokio::spawn(status::log_each(interval, figures.clone(), dyno));
    }
}

/// Serves every listener, in tasks of the current runtime.
fn open_tunnels(
    plan: Plan,
    listeners: Vec<Listener>,
    settings: &Settings,
    figures: &Figures,
    connections: Connections,
) {
    let mut connectors: Vec<Arc<Connector>> = Vec::new();
    let routes = plan.routes.into_iter().zip(listeners).zip(figures.tunnels());
    for ((route, listener), figures) in routes {
        let known = connectors.iter().find(|connector| *connector.trust() == route.trust);
        let connector = known.cloned().unwrap_or_else(|| {
            let connector = Connector::new(route.trust.clone());
            connectors.push(connector.clone());
            prepare(connector.clone());
            connector
        });
        let tunnel = Tunnel::new(route, connector, settings.connection.clone(), figures.clone());
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
