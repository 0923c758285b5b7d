//! Runs COMMAND behind its tunnels in four steps: prepares the launch, starts COMMAND, serves the
//! tunnels, and drains the tunnels.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::announce;
use crate::command_line;
use crate::configuration::{ConfigError, Plan, Settings, options};
use crate::figures::{CommandState, Figures, TunnelLabels};
use crate::listen::Bound;
use crate::logging::{self, debug, err, warning};
use crate::pool;
use crate::sandbox::{self, Rights, SandboxMode};
use crate::status::{self, Status};
use crate::supervisor::{
    self, Child, CommandEnvironment, ExitOutcome, Forwarding, Inherited, NotExecuted, Supervisor,
    Terminal,
};
use crate::threads;
use crate::tls::{self, Connector};
use crate::tunnel::{Drain, DrainGuard, Listener, Route, Tunnel};

/// The variable that Heroku sets in every dyno (container):
/// <https://devcenter.heroku.com/articles/dynos#local-environment-variables>.
const DYNO: &str = "DYNO";

/// The data that the launcher needs to run COMMAND behind its tunnels. The tunnels' ports are
/// already bound.
pub struct Launch {
    /// COMMAND and its arguments.
    pub command: Vec<OsString>,
    /// COMMAND's environment, which is a copy of the launcher's environment, without duplicates,
    /// until [`Launch::prepare`] changes the copy.
    pub environment: CommandEnvironment,
    pub settings: Settings,
    pub plan: Plan,
    pub bound: Bound,
}

impl Launch {
    /// Runs COMMAND behind the tunnels, and returns the outcome with which the launcher must end.
    ///
    /// # Errors
    /// Returns an error if the system refuses a resource that the launcher needs to handle signals
    /// or to run tasks.
    pub fn run(mut self, inherited: io::Result<Inherited>) -> anyhow::Result<ExitOutcome> {
        let inherited = inherited.context("could not take over the handling of signals")?;
        self.prepare();
        if let Err(mistake) = try_sandbox(&self.plan, &self.bound, &self.settings) {
            return Ok(announce::misconfigured(&[mistake]));
        }
        let terminal = Terminal::open();
        let child = match self.spawn(inherited, terminal.as_ref()) {
            Ok(child) => child,
            Err(error) => return Ok(announce::not_executed(&self.command, &error)),
        };
        let figures = Arc::new(Figures::new(labels(&self.plan), child.pid.as_raw()));
        // A runtime with one thread uses the least CPU time. For 40,000 small requests of 50
        // clients on two cores, the runtime with one thread uses 1.21 s. A multi-thread runtime
        // uses 1.28 s with one worker, and 1.33 s with two workers. All three runtimes serve the
        // same number of requests per second, because Redis is slower than the launcher and also
        // has one thread.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("could not start the runtime")?;
        let ended = runtime.block_on(self.serve(child, terminal, figures.clone()))?;
        // The function `shutdown_background` closes open connections, and does not wait for
        // unfinished name lookups.
        runtime.shutdown_background();
        announce::ended(ended, &figures);
        Ok(ended)
    }

    /// Binds the address of the status page, logs the tunnels, and replaces the Redis URLs in
    /// COMMAND's arguments and environment.
    fn prepare(&mut self) {
        announce::unused(&self.plan);
        self.bound.bind_status(&self.settings);
        announce::started(&self.plan, &self.bound, &self.settings);

        let command = std::mem::take(&mut self.command);
        let (words, rewrites) = command_line::rewrite(&self.plan, command, &self.bound.locals);
        self.command = words;
        announce::rewritten(&rewrites);
        for (name, value) in self.plan.changes(&self.bound.locals) {
            self.environment.set(&name, value.whole.expose());
        }
    }

    fn spawn(
        &self,
        inherited: Inherited,
        terminal: Option<&Terminal>,
    ) -> Result<Child, NotExecuted> {
        let placement = supervisor::placement(terminal);
        let environment = self.environment.clone();
        if !self.bound.listeners.is_empty() {
            threads::keep_one_ready();
        }
        let child = supervisor::spawn(&self.command, environment, placement, &inherited)?;
        debug!(at = "command-started", pid = child.pid.as_raw(), placement = ?placement);
        if let Err(error) = supervisor::close_inherited() {
            debug!(at = "streams-kept", error = %error);
        }
        Ok(child)
    }

    /// Opens the tunnels, waits until COMMAND ends, and drains the tunnels.
    async fn serve(
        self,
        child: Child,
        terminal: Option<Terminal>,
        figures: Arc<Figures>,
    ) -> anyhow::Result<ExitOutcome> {
        let Launch { environment, settings, plan, mut bound, .. } = self;
        let dyno = environment.get(DYNO).filter(|dyno| !dyno.is_empty());
        let forwarding = Forwarding::new(settings.forward_signals, dyno.is_some());
        let mut supervisor = Supervisor::new(child, forwarding, terminal, figures.clone())
            .context("could not listen for signals")?;
        let (guard, drain_of_tunnels) = DrainGuard::new();
        let dyno = dyno.map(|dyno| dyno.to_string_lossy().into_owned());
        tell_status(&figures, plan.found_urls(), bound.status.take(), &settings, dyno);
        // Enter the sandbox before bytes arrive from the network, but after the steps above,
        // because these steps need more rights.
        enter_sandbox(&plan, &bound, &settings).await;
        let listeners = std::mem::take(&mut bound.listeners);
        open_tunnels(plan, listeners, &settings, &figures, guard);

        let ended = supervisor.wait().await.context("could not listen for signals")?;
        figures.set_command_state(CommandState::Draining);
        drain(drain_of_tunnels, &mut supervisor, settings.connection.drain_timeout).await?;
        Ok(ended)
    }
}

/// Waits until the tunnels have sent COMMAND's last bytes. Stops waiting after `limit`, or when the
/// launcher receives a signal such as SIGTERM.
async fn drain(tunnels: Drain, supervisor: &mut Supervisor, limit: Duration) -> anyhow::Result<()> {
    tokio::select! {
        biased;
        () = tunnels.finish() => {}
        cut = supervisor.drain_cut() => {
            let signal = cut.context("could not listen for signals")?;
            warning!(
                at = "drain-cut",
                signal,
                msg = format!("connections were still open when signal {signal} arrived; \
                               start-stunnel closes these connections"),
            );
        }
        () = tokio::time::sleep(limit) => {
            warning!(
                at = "drain-timeout",
                msg = format!(
                    "connections were still open {limit:?} after COMMAND exited; start-stunnel \
                     closes these connections"
                ),
            );
        }
    }
    Ok(())
}

/// Returns the rights that the launcher still needs in the sandbox.
fn rights(plan: &Plan, bound: &Bound) -> Rights {
    Rights {
        ports: plan.routes.iter().map(|route| route.upstream.port).collect(),
        read: tls::late_files(plan.routes.iter().map(|route| &route.trust)),
        sockets: bound.socket_folder().map(Path::to_owned),
    }
}

/// Returns an error if the user requires the sandbox, but a trial of the sandbox fails.
fn try_sandbox(plan: &Plan, bound: &Bound, settings: &Settings) -> Result<(), ConfigError> {
    if settings.sandbox != SandboxMode::Require {
        return Ok(());
    }
    let found = rights(plan, bound).try_out();
    if found.abi().is_some() {
        return Ok(());
    }
    let problem = format!(
        "is 'require', but the test of the sandbox found: {found}; to start without a sandbox, \
         set auto or off"
    );
    Err(settings.wrong(&options::SANDBOX, problem))
}

/// Applies the sandbox's rules to every thread of the launcher, if the user and the kernel allow
/// the sandbox.
async fn enter_sandbox(plan: &Plan, bound: &Bound, settings: &Settings) {
    if settings.sandbox == SandboxMode::Off {
        return;
    }
    match rights(plan, bound).keep_only() {
        sandbox::State::Failed(error) => warning!(at = "sandbox-failed", error),
        state => debug!(at = "sandbox", state = %state),
    }
    logging::enter_sandbox();
    // On older kernels, each thread that is already running must enter the sandbox itself. Besides
    // this thread, these are the thread that writes the log (see above), and the permanent thread
    // for blocking work.
    if let Ok(Err(error)) = threads::run(sandbox::enter).await {
        warning!(at = "sandbox-failed", error = %error);
    }
}

/// Returns the facts about each tunnel that the metrics, the status page and the log show.
fn labels(plan: &Plan) -> Vec<TunnelLabels> {
    let of_route = |route: &Route| TunnelLabels {
        variables: route.variables.clone(),
        upstream: route.upstream.to_string(),
        verify: route.trust.verify.word(),
        pinned: route.trust.is_pinned(),
        limit: route.max_connections.map(|limit| limit.get() as u64),
    };
    plan.routes.iter().map(of_route).collect()
}

/// Starts background tasks that serve the status page, answer `--status`, and log metrics.
fn tell_status(
    figures: &Arc<Figures>,
    found_urls: bool,
    page: Option<status::StatusListener>,
    settings: &Settings,
    dyno: Option<String>,
) {
    let status = Status::new(figures.clone(), found_urls);
    if let Some(page) = page {
        tokio::spawn(status::serve(page, status.clone()));
    }
    tokio::spawn(status::serve_local(status));
    if let Some(interval) = settings.metrics_interval {
        tokio::spawn(status::log_each(interval, figures.clone(), dyno));
    }
}

/// Starts a background task for each tunnel. Tunnels with the same trust settings share a TLS
/// connector.
fn open_tunnels(
    plan: Plan,
    listeners: Vec<Listener>,
    settings: &Settings,
    all: &Figures,
    guard: DrainGuard,
) {
    let mut connectors: Vec<Arc<Connector>> = Vec::new();
    let routes = plan.routes.into_iter().zip(plan.pools).zip(listeners).zip(all.tunnels());
    for (((route, mode), listener), figures) in routes {
        let known = connectors.iter().find(|connector| *connector.trust() == route.trust);
        let connector = known.cloned().unwrap_or_else(|| {
            let connector = Connector::new(route.trust.clone());
            connectors.push(connector.clone());
            prepare(connector.clone());
            connector
        });
        let same_server = all.of_server(&route.upstream.to_string());
        let (connection, figures) = (settings.connection.clone(), figures.clone());
        let tunnel = Arc::new(Tunnel::new(route, connector, connection, figures, same_server));
        let guard = guard.clone();
        tokio::spawn(async move {
            let variable = tunnel.variable().to_owned();
            if let Err(error) = pool::serve(mode, listener, tunnel, guard).await {
                err!(at = "tunnel-down", var = variable, error = %error);
            }
        });
    }
}

/// Loads certificates and keys in the background, so that the first connection does not wait for
/// them.
fn prepare(connector: Arc<Connector>) {
    tokio::spawn(async move {
        let started = Instant::now();
        match connector.prepare().await {
            Ok(_) => debug!(at = "tls-ready", duration_ms = started.elapsed().as_millis() as u64),
            // Log only a debug message, because each connection tries again and logs its own error.
            Err(error) => debug!(at = "tls-not-ready", error = %error),
        }
    });
}
