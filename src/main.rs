//! One launch: configure; then check, print, or launch.

#![deny(unsafe_code)]

use std::env;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};

use start_stunnel::announce::Unused;
use start_stunnel::configuration::cli::Invocation;
use start_stunnel::configuration::{self, ConfigError, Configuration, Configured, Settings};
use start_stunnel::environment::Environment;
use start_stunnel::launch::Launch;
use start_stunnel::listen;
use start_stunnel::logging::{self, LogSettings};
use start_stunnel::plan::Plan;
use start_stunnel::supervisor::{self, Inherited};
use start_stunnel::{announce, check, exit, status, tls};

/// For C code, OpenSSL's above all, as well: the crate's feature `override` sees to that.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Stands in for the launcher in an app's repository, where no buildpack put one.
const SHIM: &str = include_str!("shim.sh");

#[expect(unsafe_code)]
fn main() {
    let code = match Invocation::parse_from(env::args_os()) {
        Err(error) => error.exit(),
        Ok(invocation) if invocation.print_shim => print_shim(),
        Ok(invocation) if invocation.status => tell_status(&invocation),
        Ok(invocation) => {
            let (task, log) = prepare(invocation, env::vars_os().collect());
            let _log = logging::init(log);
            // The panic hook has logged it.
            catch_unwind(AssertUnwindSafe(|| perform(task))).unwrap_or(exit::INTERNAL_ERROR)
        }
    };
    // SAFETY: ends the process, and nothing else. Not `exit`: that has OpenSSL tear down its
    // globals while another thread may still be reading certificates.
    unsafe { nix::libc::_exit(code.into()) }
}

/// What is left to do once the command line and the environment are read.
enum Task {
    Refuse(Vec<ConfigError>),
    SayDisabled,
    /// COMMAND, which the launcher was to become, could not be executed.
    NotExecuted(Vec<OsString>, io::Error),
    Check(Plan, Settings, Unused),
    PrintEnvironment(Plan, listen::Bound, Unused),
    Launch(Box<Launch>),
}

/// What must happen while there is one thread only; returns the rest, and how it is to log. Where
/// the switch says so, it becomes COMMAND, and does not return.
#[expect(unsafe_code)]
fn prepare(invocation: Invocation, environment: Environment) -> (Task, LogSettings) {
    let log_for_errors = configuration::log_settings_for_errors(&invocation, &environment);
    let configuration = match configuration::read(&invocation, &environment) {
        Err(mistakes) => return (Task::Refuse(mistakes), log_for_errors),
        Ok(Configured::Disabled) if invocation.check || invocation.print_env => {
            return (Task::SayDisabled, log_for_errors);
        }
        Ok(Configured::Disabled) => {
            let error = supervisor::become_command(invocation.command.clone());
            return (Task::NotExecuted(invocation.command, error), log_for_errors);
        }
        Ok(Configured::Enabled(configuration)) => *configuration,
    };
    let Configuration { settings, variables, others, unknown } = configuration;
    let log = settings.log;
    let plan = Plan::new(variables);
    // SAFETY: this is the only thread.
    unsafe { tls::roots::keep_from_native_tls() };
    if invocation.check {
        supervisor::forbid_core_dumps();
        return (Task::Check(plan, settings, Unused { others, unknown }), log);
    }
    // Each thread takes its signal mask from the one that starts it.
    let inherited = Inherited::take_over();
    let bound = match listen::bind(&plan, &settings) {
        Ok(bound) => bound,
        Err(mistake) => return (Task::Refuse(vec![mistake]), log_for_errors),
    };
    if invocation.print_env {
        return (Task::PrintEnvironment(plan, bound, Unused { others, unknown }), log);
    }
    let command = invocation.command;
    let launch = Launch { command, environment, settings, plan, others, unknown, bound, inherited };
    (Task::Launch(Box::new(launch)), log)
}

/// Returns the exit code.
fn perform(task: Task) -> u8 {
    let done = match task {
        Task::Refuse(mistakes) => Ok(announce::misconfigured(&mistakes)),
        Task::SayDisabled => Ok(announce::disabled()),
        Task::NotExecuted(command, error) => Ok(announce::not_executed(&command, &error)),
        Task::Check(plan, settings, unused) => check::run(plan, &settings, &unused),
        Task::PrintEnvironment(plan, bound, unused) => {
            announce::unused(&plan, &unused);
            announce::environment(&plan, &bound)
        }
        Task::Launch(launch) => launch.run(),
    };
    done.unwrap_or_else(|error| announce::internal_error(&error))
}

/// Whatever else is wrong with the configuration: a launcher may be running.
fn tell_status(invocation: &Invocation) -> u8 {
    let environment = env::vars_os().collect();
    let log = configuration::log_settings_for_errors(invocation, &environment);
    let switched_off = configuration::is_switched_off(invocation, &environment);
    status::client::run(log.format, invocation.watch, switched_off).unwrap_or_else(|error| {
        eprintln!("start-stunnel: {error:#}");
        exit::INTERNAL_ERROR
    })
}

fn print_shim() -> u8 {
    let mut stdout = io::stdout();
    match stdout.write_all(SHIM.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => exit::SUCCESS,
        Err(error) => {
            eprintln!("start-stunnel: could not write the shim: {error}");
            exit::INTERNAL_ERROR
        }
    }
}
