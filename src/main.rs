//! One launch: configure; then check, print, or launch.

#![deny(unsafe_code)]

use std::env;
use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};

use start_stunnel::configuration::cli::Invocation;
use start_stunnel::configuration::{
    self, ConfigError, Configuration, Configured, Settings, Unused,
};
use start_stunnel::environment::Environment;
use start_stunnel::launch::Launch;
use start_stunnel::listen;
use start_stunnel::logging::{self, LogSettings};
use start_stunnel::plan::Plan;
use start_stunnel::supervisor::{self, CommandEnvironment, ExitOutcome, Inherited, NotExecuted};
use start_stunnel::{announce, check, exit, status, tls};

/// For C code, OpenSSL's above all, as well: the crate's feature `override` sees to that.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Stands in for the launcher in an app's repository, where no buildpack put one.
const SHIM: &str = include_str!("shim.sh");

fn main() {
    let outcome = match Invocation::parse_from(env::args_os()) {
        Err(error) => error.exit(),
        Ok(invocation) if invocation.print_shim => {
            note_ignored_command(&invocation);
            exit_with(print_shim())
        }
        Ok(invocation) if invocation.status => exit_with(tell_status(&invocation)),
        Ok(invocation) => {
            let (task, log) = prepare(invocation, env::vars_os().collect());
            let _log = logging::init(log);
            // The panic hook has logged it.
            catch_unwind(AssertUnwindSafe(|| perform(task)))
                .unwrap_or_else(|_| exit_with(exit::INTERNAL_ERROR))
        }
    };
    outcome.end_launcher()
}

fn exit_with(code: u8) -> ExitOutcome {
    ExitOutcome::Exited(code.into())
}

/// The rest of the work once the command line and the environment are read.
enum Task {
    Refuse(Vec<ConfigError>),
    SayDisabled,
    /// The launcher should have become COMMAND, which could not be executed.
    NotExecuted(Vec<OsString>, NotExecuted),
    Check(Plan, Settings, Unused),
    PrintEnvironment(Plan, listen::Bound, Unused),
    Launch(Box<Launch>),
}

/// Does what needs a process with a single thread; returns the rest of the work and how to log it.
/// If the launcher is disabled, becomes COMMAND and does not return.
fn prepare(invocation: Invocation, environment: Environment) -> (Task, LogSettings) {
    let command_environment = CommandEnvironment::of_launcher();
    note_ignored_command(&invocation);
    let log_for_errors = configuration::log_settings_for_errors(&invocation, &environment);
    let configuration = match configuration::read(&invocation, &environment) {
        Err(mistakes) => return (Task::Refuse(mistakes), log_for_errors),
        Ok(Configured::Disabled) if invocation.check || invocation.print_env => {
            return (Task::SayDisabled, log_for_errors);
        }
        Ok(Configured::Disabled) => {
            let command = invocation.command;
            let error = supervisor::become_command(&command, command_environment);
            return (Task::NotExecuted(command, error), log_for_errors);
        }
        Ok(Configured::Enabled(configuration)) => *configuration,
    };
    let Configuration { settings, variables, unused } = configuration;
    let log = settings.log;
    let plan = Plan::new(variables);
    tls::roots::keep_from_native_tls();
    if invocation.check {
        supervisor::forbid_core_dumps();
        return (Task::Check(plan, settings, unused), log);
    }
    // Each thread takes its signal mask from the one that starts it.
    let inherited = Inherited::take_over();
    let bound = match listen::bind(&plan, &settings) {
        Ok(bound) => bound,
        Err(mistake) => return (Task::Refuse(vec![mistake]), log_for_errors),
    };
    if invocation.print_env {
        return (Task::PrintEnvironment(plan, bound, unused), log);
    }
    let (command, environment) = (invocation.command, command_environment);
    let launch = Launch { command, environment, settings, plan, unused, bound, inherited };
    (Task::Launch(Box::new(launch)), log)
}

/// Returns how the launcher is to end.
fn perform(task: Task) -> ExitOutcome {
    let code = match task {
        Task::Refuse(mistakes) => Ok(announce::misconfigured(&mistakes)),
        Task::SayDisabled => Ok(announce::disabled()),
        Task::NotExecuted(command, error) => Ok(announce::not_executed(&command, &error)),
        Task::Check(plan, settings, unused) => check::run(plan, &settings, &unused),
        Task::PrintEnvironment(plan, bound, unused) => {
            announce::unused(&plan, &unused);
            announce::environment(&plan, &bound)
        }
        Task::Launch(launch) => {
            return launch
                .run()
                .unwrap_or_else(|error| exit_with(announce::internal_error(&error)));
        }
    };
    exit_with(code.unwrap_or_else(|error| announce::internal_error(&error)))
}

/// The options that print something and exit do not run COMMAND.
fn note_ignored_command(invocation: &Invocation) {
    let given = [
        ("--check", invocation.check),
        ("--print-env", invocation.print_env),
        ("--print-shim", invocation.print_shim),
    ];
    if let Some((option, _)) = given.iter().find(|(_, is_given)| *is_given)
        && !invocation.command.is_empty()
    {
        announce::command_ignored(option);
    }
}

/// Whatever else is wrong with the configuration: a launcher may be running.
fn tell_status(invocation: &Invocation) -> u8 {
    let environment = env::vars_os().collect();
    let log = configuration::log_settings_for_errors(invocation, &environment);
    let switched_off = configuration::is_switched_off(invocation, &environment);
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
