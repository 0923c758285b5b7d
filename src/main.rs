//! Reads the configuration, and performs the task that the command line selects.

#![deny(unsafe_code)]

use std::env;
use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::Context as _;
use start_stunnel::configuration::cli::{Invocation, Task};
use start_stunnel::configuration::{self, ConfigError, Configuration};
use start_stunnel::environment::{self, Environment};
use start_stunnel::launch::Launch;
use start_stunnel::listen;
use start_stunnel::logging::{self, LogSettings};
use start_stunnel::supervisor::{self, CommandEnvironment, ExitOutcome, Inherited};
use start_stunnel::{announce, check, exit, output, status, tls};

/// The memory allocator of the program. C code such as OpenSSL uses this allocator, too, because of
/// the crate's feature `override`.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The script that `--print-shim` prints. An app's repository contains the script as
/// `bin/start-stunnel`, and the script runs the start-stunnel that is installed on PATH.
const SHIM: &str = include_str!("shim.sh");

fn main() {
    let outcome = match Invocation::parse_from(env::args_os()) {
        Err(error) => show(&error),
        Ok(invocation) => run(invocation),
    };
    outcome.end_launcher()
}

/// Prints clap's help, version or error, and returns the outcome with which the launcher must end.
/// clap itself would lose a part of the text if the stream is non-blocking.
fn show(message: &clap::Error) -> ExitOutcome {
    let text = message.render().to_string();
    if message.use_stderr() {
        output::note(text.trim_end());
        return ExitOutcome::Exited(message.exit_code());
    }
    printed(output::print(&text, exit::SUCCESS).map_err(Into::into))
}

/// Performs the task that the command line selects, and returns the outcome with which the launcher
/// must end.
fn run(invocation: Invocation) -> ExitOutcome {
    if let Some(option) = invocation.task.option()
        && !invocation.command.is_empty()
    {
        announce::command_ignored(option);
    }
    let environment = environment::of_launcher();
    let is_disabled = configuration::is_disabled(&invocation, &environment);
    let log_for_errors = configuration::log_settings_for_errors(&invocation, &environment);
    match invocation.task {
        Task::PrintShim => return printed(print_shim()),
        // Show the status before reading the settings, so that `--status` works even if a setting
        // is wrong.
        Task::Status => return printed(status::client::run(log_for_errors.format, is_disabled)),
        Task::Check | Task::PrintEnvironment if is_disabled => {
            announce::disabled();
            return exit_with(exit::SUCCESS);
        }
        Task::Run | Task::Check | Task::PrintEnvironment => {}
    }
    let prepared = match is_disabled {
        true => Err(become_command(invocation.command)),
        false => prepare(invocation, &environment),
    };
    let (work, log) = prepared.unwrap_or_else(|refusal| (refusal, log_for_errors));
    let _log = logging::init(log);
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(ended)) => ended,
        Ok(Err(error)) => {
            announce::internal_error(&error);
            exit_with(exit::INTERNAL_ERROR)
        }
        // The panic hook has already logged the panic.
        Err(_) => exit_with(exit::INTERNAL_ERROR),
    }
}

fn exit_with(code: u8) -> ExitOutcome {
    ExitOutcome::Exited(code.into())
}

/// The part of the launcher's task that runs after the log has started. A returned error is an
/// internal error.
type Work = Box<dyn FnOnce() -> anyhow::Result<ExitOutcome>>;

fn refuse(mistakes: Vec<ConfigError>) -> Work {
    Box::new(move || Ok(announce::misconfigured(&mistakes)))
}

/// Replaces the launcher by COMMAND. Returns only if COMMAND cannot be executed: then returns a
/// closure that logs the error.
fn become_command(command: Vec<OsString>) -> Work {
    let error = supervisor::become_command(&command, CommandEnvironment::of_launcher());
    Box::new(move || Ok(announce::not_executed(&command, &error)))
}

/// Performs the steps that must run before the process has a second thread. Returns a closure that
/// does the rest, and the log settings. If the user made a mistake, returns a closure that logs the
/// mistake instead.
fn prepare(invocation: Invocation, environment: &Environment) -> Result<(Work, LogSettings), Work> {
    // Copy the environment for COMMAND before `keep_from_native_tls` changes a variable.
    let command_environment = CommandEnvironment::of_launcher().without_duplicates();
    let configuration = configuration::read(&invocation, environment).map_err(refuse)?;
    let Configuration { settings, plan } = configuration;
    let log = settings.log;
    tls::roots::keep_from_native_tls();
    if invocation.task == Task::Check {
        supervisor::forbid_core_dumps();
        let check = move || check::run(plan, &settings).map(exit_with);
        return Ok((Box::new(check), log));
    }
    // Block signals before the first new thread, because a thread inherits the signal mask.
    let inherited = Inherited::take_over();
    let bound = listen::bind(&plan, &settings).map_err(|mistake| refuse(vec![mistake]))?;
    if invocation.task == Task::PrintEnvironment {
        let print = move || {
            announce::unused(&plan);
            announce::environment(&plan, &bound).map(exit_with)
        };
        return Ok((Box::new(print), log));
    }
    let (command, environment) = (invocation.command, command_environment);
    let launch = Launch { command, environment, settings, plan, bound };
    Ok((Box::new(move || launch.run(inherited)), log))
}

/// Returns the outcome of a task that prints to stdout and writes no log.
fn printed(code: anyhow::Result<u8>) -> ExitOutcome {
    exit_with(code.unwrap_or_else(|error| {
        output::note(&format!("start-stunnel: {error:#}"));
        exit::INTERNAL_ERROR
    }))
}

fn print_shim() -> anyhow::Result<u8> {
    let from = concat!("shim_from='", env!("CARGO_PKG_REPOSITORY"), "'");
    let shim = SHIM.replacen("shim_from=''", from, 1);
    output::print(&shim, exit::SUCCESS).context("could not write the shim")
}
