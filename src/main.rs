//! Parse, run, exit code.

#![deny(unsafe_code)]

use std::env;
use std::io::{self, Write as _};

use start_stunnel::check;
use start_stunnel::cli::Invocation;
use start_stunnel::launch;
use start_stunnel::logging::{self, err};
use start_stunnel::plan::Plan;
use start_stunnel::settings::{ConfigError, Environment, Reader, Reported, Settings};
use start_stunnel::supervisor;
use start_stunnel::tls;

/// sysexits.h's EX_CONFIG.
const EX_CONFIG: u8 = 78;
const INTERNAL_ERROR: u8 = 1;
/// A tunnel does not work.
const FAILED_CHECK: u8 = 1;
/// Stands in for the launcher in an app's repository, where no buildpack put one.
const SHIM: &str = include_str!("shim.sh");

#[expect(unsafe_code)]
fn main() {
    let invocation = match Invocation::parse_from(env::args_os()) {
        Ok(invocation) => invocation,
        Err(error) => error.exit(),
    };
    let code = run(invocation);
    // SAFETY: ends the process, and nothing else. Not `exit`: that has OpenSSL tear down its globals
    // while another thread may still be reading certificates.
    unsafe { nix::libc::_exit(code.into()) }
}

/// Returns the exit code; by then every log line is written.
#[expect(unsafe_code)]
fn run(invocation: Invocation) -> u8 {
    if invocation.print_shim {
        return match io::stdout().write_all(SHIM.as_bytes()) {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("start-stunnel: could not write the shim: {error}");
                INTERNAL_ERROR
            }
        };
    }
    let environment: Environment = env::vars_os().collect();
    let mut reader = Reader::new(&invocation, &environment);
    if reader.enabled() == Ok(false) {
        if invocation.print_env || invocation.check {
            eprintln!(
                "start-stunnel is disabled: no tunnel, and COMMAND's environment is untouched"
            );
            return 0;
        }
        let error = supervisor::become_command(invocation.command.clone());
        let _log = logging::init(reader.log_settings_for_errors());
        return launch::not_executed(&invocation.command, &error);
    }

    let Ok((settings, plan)) = configure(&mut reader, &environment) else {
        let _log = logging::init(reader.log_settings_for_errors());
        return misconfigured(reader.mistakes.all());
    };

    // SAFETY: this is the only thread.
    unsafe { tls::roots::keep_from_native_tls() };
    if invocation.check {
        supervisor::forbid_core_dumps();
        let _log = logging::init(settings.log);
        return check::run(plan, &settings).map_or_else(
            |error| internal_error(&error),
            |works| if works { 0 } else { FAILED_CHECK },
        );
    }
    // Before the first thread starts: each takes its signal mask from the one that starts it.
    let inherited = supervisor::Inherited::take_over();
    let bound = match launch::bind(&plan, &settings) {
        Ok(bound) => bound,
        Err(error) => {
            let _log = logging::init(reader.log_settings_for_errors());
            return misconfigured(&[error]);
        }
    };
    let _log = logging::init(settings.log);
    let done = match invocation.print_env {
        true => launch::print_env(&plan, &bound).map(|()| 0).map_err(anyhow::Error::from),
        false => launch::run(invocation.command, environment, &settings, plan, bound, inherited),
    };
    done.unwrap_or_else(|error| internal_error(&error))
}

/// Reads everything, so that all mistakes are found.
fn configure(
    reader: &mut Reader<'_>,
    environment: &Environment,
) -> Result<(Settings, Plan), Reported> {
    let enabled = reader.enabled();
    let settings = reader.settings();
    let general = reader.check_general_url_settings();
    let plan = reader.urls().and_then(|listed| Plan::make(listed, environment, reader));
    enabled?;
    general?;
    Ok((settings?, plan?))
}

fn internal_error(error: &anyhow::Error) -> u8 {
    err!(at = "internal-error", error = format!("{error:#}"));
    INTERNAL_ERROR
}

fn misconfigured(errors: &[ConfigError]) -> u8 {
    for error in errors {
        err!(at = "config-error", var = error.name, msg = error.to_string());
    }
    EX_CONFIG
}
