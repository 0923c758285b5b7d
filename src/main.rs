//! Reads the configuration; then checks, prints or launches.

#![deny(unsafe_code)]

use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};

use start_stunnel::configuration::cli::{Invocation, Task};
use start_stunnel::configuration::{self, ConfigError, Configuration};
use start_stunnel::environment::Environment;
use start_stunnel::launch::Launch;
use start_stunnel::listen;
use start_stunnel::logging::{self, LogSettings};
use start_stunnel::supervisor::{self, CommandEnvironment, ExitOutcome, Inherited};
use start_stunnel::{announce, check, exit, status, tls};

/// C code, above all OpenSSL, uses this allocator, too: that is the crate's feature `override`.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The script that `--print-shim` prints. It runs the start-stunnel on PATH, for machines whose
/// `bin/start-stunnel` is not the launcher.
const SHIM: &str = include_str!("shim.sh");

fn main() {
    let outcome = match Invocation::parse_from(env::args_os()) {
        Err(error) => error.exit(),
        Ok(invocation) => run(invocation),
    };
    outcome.end_launcher()
}

/// Performs the task; returns how the launcher is to end.
fn run(invocation: Invocation) -> ExitOutcome {
    if let Some(option) = invocation.task.option()
        && !invocation.command.is_empty()
    {
        announce::command_ignored(option);
    }
    match invocation.task {
        Task::PrintShim => return exit_with(print_shim()),
        Task::Status => return exit_with(tell_status(&invocation)),
        Task::Run | Task::Check | Task::PrintEnvironment => {}
    }
    let (work, log) = prepare(invocation, env::vars_os().collect());
    let _log = logging::init(log);
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(ended) => ended.unwrap_or_else(|error| exit_with(announce::internal_error(&error))),
        // The panic hook has logged the panic.
        Err(_) => exit_with(exit::INTERNAL_ERROR),
    }
}

fn exit_with(code: u8) -> ExitOutcome {
    ExitOutcome::Exited(code.into())
}

/// The work that remains after [`prepare`]. An error is an internal error.
type Work = Box<dyn FnOnce() -> anyhow::Result<ExitOutcome>>;

/// Work that ends with an exit code.
fn exiting(work: impl FnOnce() -> anyhow::Result<u8> + 'static) -> Work {
    Box::new(move || work().map(exit_with))
}

fn refuse(mistakes: Vec<ConfigError>) -> Work {
    exiting(move || Ok(announce::misconfigured(&mistakes)))
}

/// Performs the steps that need a process with a single thread; returns the remaining work and the
/// log settings. If the launcher is disabled, becomes COMMAND and does not return.
fn prepare(invocation: Invocation, environment: Environment) -> (Work, LogSettings) {
    let Invocation { task, command, .. } = &invocation;
    let command_environment = CommandEnvironment::of_launcher();
    let log_for_errors = configuration::log_settings_for_errors(&invocation, &environment);
    if configuration::is_disabled(&invocation, &environment) {
        if *task != Task::Run {
            return (exiting(|| Ok(announce::disabled())), log_for_errors);
        }
        let error = supervisor::become_command(command, command_environment);
        let work = exiting(move || Ok(announce::not_executed(&invocation.command, &error)));
        return (work, log_for_errors);
    }
    let Configuration { settings, plan, unused } =
        match configuration::read(&invocation, &environment) {
            Ok(configuration) => configuration,
            Err(mistakes) => return (refuse(mistakes), log_for_errors),
        };
    let log = settings.log;
    tls::roots::keep_from_native_tls();
    if *task == Task::Check {
        supervisor::forbid_core_dumps();
        return (exiting(move || check::run(plan, &settings, &unused)), log);
    }
    // Before any thread starts: a new thread inherits the signal mask.
    let inherited = Inherited::take_over();
    let bound = match listen::bind(&plan, &settings) {
        Ok(bound) => bound,
        Err(mistake) => return (refuse(vec![mistake]), log_for_errors),
    };
    if *task == Task::PrintEnvironment {
        let work = exiting(move || {
            announce::unused(&plan, &unused);
            announce::environment(&plan, &bound)
        });
        return (work, log);
    }
    let (command, environment) = (invocation.command, command_environment);
    let launch = Launch { command, environment, settings, plan, unused, bound, inherited };
    (Box::new(move || launch.run()), log)
}

/// Prints the state of running launchers. This reads only two settings, and so works even if
/// another setting is wrong.
fn tell_status(invocation: &Invocation) -> u8 {
    let environment = env::vars_os().collect();
    let log = configuration::log_settings_for_errors(invocation, &environment);
    let switched_off = configuration::is_disabled(invocation, &environment);
    status::client::run(log.format, switched_off).unwrap_or_else(|error| {
        eprintln!("start-stunnel: {error:#}");
        exit::INTERNAL_ERROR
    })
}

fn print_shim() -> u8 {
    let install_from = concat!("install_from='", env!("CARGO_PKG_REPOSITORY"), "'");
    let shim = SHIM.replacen("install_from=''", install_from, 1);
    announce::print(&shim).unwrap_or_else(|error| {
        eprintln!("start-stunnel: could not write the shim: {error}");
        exit::INTERNAL_ERROR
    })
}
