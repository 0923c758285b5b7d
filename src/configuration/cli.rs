//! Parses the command line. clap splits the command line into COMMAND and the options that
//! [`options`] declares.
//!
//! clap does not check the values of the options. [`super::reader`] checks them, so that a wrong
//! option is reported together with all other mistakes.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::error::{ContextKind, ContextValue};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::options::{self, Declaration};
use crate::secret::shown;
use crate::tls;

const COMMAND: &str = "command";

/// The task that the launcher performs. The command line selects the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    Run,
    Check,
    PrintEnvironment,
    PrintShim,
    Status,
}

/// The tasks other than running COMMAND, each with the option that selects the task, and the
/// option's help. The user may give only one of these options.
const TASKS: [(Task, &str, &str); 4] = [
    (Task::Check, "check", "Examine every tunnel, print a report and exit"),
    (
        Task::PrintEnvironment,
        "print-env",
        "Print the Redis variables that COMMAND would get, passwords masked, and exit",
    ),
    (
        Task::PrintShim,
        "print-shim",
        "Print a shell script to save as bin/start-stunnel, and exit. The script runs the \
         start-stunnel on PATH, or only COMMAND if the tunnels are disabled",
    ),
    (
        Task::Status,
        "status",
        "Print the state of this user's running launchers and exit with code 0 if all launchers \
         work, 1 if a launcher does not work, or 3 if no launcher runs",
    ),
];

impl Task {
    /// Returns the option that selects this task, or `None` for [`Task::Run`].
    pub fn option(self) -> Option<&'static str> {
        TASKS.into_iter().find(|(task, ..)| *task == self).map(|(_, option, _)| option)
    }
}

/// The parsed command line.
#[derive(Debug)]
pub struct Invocation {
    matches: ArgMatches,
    pub task: Task,
    /// True if the user gave the retired option `--spares`, which has no effect.
    pub retired_option: bool,
    /// COMMAND and its arguments. This list is not empty if the task is [`Task::Run`].
    pub command: Vec<OsString>,
}

impl Invocation {
    /// Parses a command line that begins with the program's name.
    ///
    /// # Errors
    /// Returns an error if the command line cannot be parsed. clap also reports `--help` and
    /// `--version` as errors, with exit code 0.
    pub fn parse_from(
        words: impl IntoIterator<Item = OsString>,
    ) -> Result<Invocation, clap::Error> {
        let mut matches = parser().try_get_matches_from(words).map_err(without_secrets)?;
        let given = TASKS.into_iter().find(|(_, option, _)| matches.get_flag(option));
        Ok(Invocation {
            task: given.map_or(Task::Run, |(task, ..)| task),
            retired_option: matches.contains_id(options::RETIRED_OPTION),
            command: matches.remove_many(COMMAND).map_or_else(Vec::new, Iterator::collect),
            matches,
        })
    }

    /// Returns the value of `setting`'s option, if the user gave the option.
    pub fn option(&self, setting: &Declaration) -> Option<&OsStr> {
        self.matches.get_one::<OsString>(&setting.option()?).map(OsString::as_os_str)
    }
}

/// Returns the parser for the launcher's command line. In addition to the options of [`command`],
/// the parser accepts the retired option, which the man page and the shell completions do not show.
fn parser() -> Command {
    let retired = Arg::new(options::RETIRED_OPTION).long(options::RETIRED_OPTION);
    command().arg(retired.value_parser(value_parser!(OsString)).hide(true))
}

/// Returns the definition of the command line that the man page and the shell completions show.
pub fn command() -> Command {
    Command::new("start-stunnel")
        .version(env!("CARGO_PKG_VERSION"))
        .long_version(long_version())
        .about("Runs COMMAND and tunnels its Redis traffic over TLS.")
        .long_about(
            "Runs COMMAND and tunnels its Redis traffic over TLS.\n\n\
             For each Redis URL in the environment (REDIS_URL and others), start-stunnel opens a \
             plaintext port on 127.0.0.1, tunnels this port to the server over TLS, points the \
             variable to this port, and runs COMMAND. Every option can also be set with a \
             variable, without a change to the command line.",
        )
        .args_override_self(true)
        .override_usage("start-stunnel [OPTIONS] [--] COMMAND [ARG]...")
        .after_help("start-stunnel --help lists all options and their variables.")
        .after_long_help(after_long_help())
        .args(options::with_option().map(|(option, setting)| setting_arg(option, setting)))
        .args(TASKS.map(task_arg))
        .arg(
            Arg::new(COMMAND)
                .value_name("COMMAND")
                .value_parser(value_parser!(OsString))
                .num_args(1..)
                .trailing_var_arg(true)
                .required_unless_present_any(TASKS.map(|(_, option, _)| option))
                .help("The command to run, with its arguments"),
        )
}

fn setting_arg(option: String, setting: &'static Declaration) -> Arg {
    let help = help(setting);
    let arg = Arg::new(option.clone())
        .long(option)
        .value_name(setting.value_name)
        .value_parser(value_parser!(OsString))
        .action(ArgAction::Set)
        .allow_negative_numbers(true)
        .hide_short_help(!setting.is_common)
        // For options that -h does not list, the man page shows only the long help text.
        .long_help(help.clone())
        .help(help);
    let arg = match setting.is_pem {
        true => arg.allow_hyphen_values(true).value_parser(pem_value()),
        false => arg,
    };
    match setting.heading {
        "Options" => arg,
        heading => arg.help_heading(heading),
    }
}

fn task_arg((task, option, help): (Task, &'static str, &'static str)) -> Arg {
    let arg = Arg::new(option)
        .long(option)
        .action(ArgAction::SetTrue)
        .hide_short_help(task == Task::PrintShim)
        .long_help(help)
        .help(help)
        .conflicts_with_all(TASKS.map(|(_, other, _)| other).iter().filter(|o| **o != option));
    match task {
        Task::Status => {
            arg.help_heading(options::STATUS_ADDRESS.declaration.heading).conflicts_with(COMMAND)
        }
        _ => arg,
    }
}

/// Parses the value of an option that expects PEM text or a path. PEM text begins with hyphens. Any
/// other word that begins with a hyphen is an error, because the word is the next option and the
/// user forgot the value.
fn pem_value() -> impl TypedValueParser<Value = OsString> {
    OsStringValueParser::new().try_map(|value| {
        let bytes = value.as_bytes();
        match bytes.starts_with(b"-") && !bytes.starts_with(b"-----BEGIN ") {
            true => Err("the value is missing, and the next word is an option"),
            false => Ok(value),
        }
    })
}

fn after_long_help() -> String {
    let suffixes: Vec<_> =
        options::for_one_url().map(|setting| format!("_{}", setting.variable)).collect();
    format!(
        "An option overrides its variable; the variable overrides the default. An empty variable \
         counts as unset; an empty option value is an error.\n\n\
         Settings for one variable: <VAR>{suffixes} apply only to the URL in <VAR>, for example \
         CACHE_URL_STUNNEL_VERIFY=full.\n\n\
         Durations: 500ms, 10s, 5m, 24h, or a bare number of seconds.\n\n\
         Exit codes:\n  \
         COMMAND's own code, or 128 + n if signal n killed COMMAND\n  \
         1    an internal error; or --check found a tunnel that does not work; or --status found \
         a launcher that has a failing tunnel, has no Redis URL, or does not answer\n  \
         2    the command line cannot be parsed\n  \
         3    --status found no launcher\n  \
         78   a setting or a URL is invalid; with --check or --port-taken=fail, also if there \
         is no Redis URL\n  \
         126  COMMAND cannot be executed\n  \
         127  COMMAND was not found\n\n\
         Examples:\n  \
         start-stunnel bundle exec puma -C config/puma.rb\n  \
         start-stunnel --verify full celery -A app worker\n  \
         start-stunnel --check\n\n\
         Manual: {manual}",
        suffixes = suffixes.join(", "),
        manual = manual(),
    )
}

fn manual() -> &'static str {
    match env!("CARGO_PKG_REPOSITORY") {
        "" => "README.md and docs/ in the release archive and in the source repository",
        repository => repository,
    }
}

/// Returns the text of `--version`: the launcher's version, and below it the version of OpenSSL,
/// and the target and the commit of this build.
fn long_version() -> String {
    format!(
        "{}\n{}, {}, {}",
        env!("CARGO_PKG_VERSION"),
        tls::openssl_version(),
        target(),
        // Only bin/package sets START_STUNNEL_COMMIT, because the variable causes a rebuild after
        // each commit.
        option_env!("START_STUNNEL_COMMIT")
            .map_or("not a release".to_owned(), |commit| format!("commit {commit}")),
    )
}

/// Returns the target of this build as the names of release archives contain it, for example
/// `x86_64-linux-gnu`.
fn target() -> String {
    let libc = if cfg!(target_env = "musl") { "musl" } else { "gnu" };
    format!("{}-{}-{libc}", env::consts::ARCH, env::consts::OS)
}

/// Hides the words that clap's error quotes from the command line, because the words may be
/// secrets.
fn without_secrets(mut error: clap::Error) -> clap::Error {
    if let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue)
        && !value.is_empty()
    {
        // Remove the quotes that clap puts around some values, because `shown` adds quotes.
        let value = shown(value).trim_matches('\'').to_owned();
        error.insert(ContextKind::InvalidValue, ContextValue::String(value));
    }
    // If the user forgets the space in `--pin $REDIS_URL`, clap reports an unknown option whose
    // name contains the URL.
    let is_name = |word: &str| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    if let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg)
        && !is_name(word)
        && options::with_option().all(|(option, _)| !word.starts_with(&format!("--{option} ")))
    {
        let shown = format!("an option of {length} bytes, not shown", length = word.len());
        error.insert(ContextKind::InvalidArg, ContextValue::String(shown));
        // Remove clap's suggestion of a similar option, because the suggestion would quote the
        // hidden word.
        error.remove(ContextKind::Suggested);
    }
    error
}

fn help(setting: &Declaration) -> String {
    let variable = format!("{} [variable: {}]", setting.help, setting.variable);
    match setting.default_shown() {
        Some(default) => format!("{variable} [default: {default}]"),
        None => variable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Invocation, clap::Error> {
        let words = ["start-stunnel"].iter().chain(words);
        Invocation::parse_from(words.map(OsString::from))
    }

    #[test]
    fn command_begins_at_the_first_word_that_is_no_option() {
        let cases: &[(&[&str], &[&str])] = &[
            (&["puma", "-C", "config/puma.rb"], &["puma", "-C", "config/puma.rb"]),
            (&["--", "puma", "-C", "x"], &["puma", "-C", "x"]),
            (&["--verify", "full", "puma", "--verify", "none"], &["puma", "--verify", "none"]),
            (
                &["--verify=full", "sh", "-c", "x", "--", "--help"],
                &["sh", "-c", "x", "--", "--help"],
            ),
            (&["env", "--help"], &["env", "--help"]),
            (&["env", "-V", "--version"], &["env", "-V", "--version"]),
            (&["--", "--odd-name"], &["--odd-name"]),
            (&["--", "--", "x"], &["--", "x"]),
            (&["--port-offset", "-1", "x"], &["x"]),
            (&["redis-cli", "--print-env"], &["redis-cli", "--print-env"]),
            (&["-"], &["-"]),
            (&["x", ""], &["x", ""]),
        ];
        for (words, command) in cases {
            let parsed = parse(words).unwrap_or_else(|error| panic!("{words:?}: {error}"));
            assert_eq!(parsed.command, *command, "{words:?}");
            assert_eq!(parsed.task, Task::Run, "{words:?}");
        }
    }

    #[test]
    fn wrong_usage_is_refused() {
        for words in
            [&[][..], &["--verify"], &["--bogus", "x"], &["-x", "y"], &["--verify", "none"]]
        {
            let error = parse(words).expect_err("wrong usage");
            assert_eq!(error.exit_code(), 2, "{words:?}");
        }
    }

    #[test]
    fn usage_error_shows_no_secret() {
        for word in [
            "--print-env=redis://:hunter2@h",
            "--bogus=redis://:hunter2@h",
            "-predis://:hunter2@h",
            "--pinredis://:hunter2@h",
            "--checkredis://u:hunter2@h/0",
            "--password-hunter2",
            "--spareshunter2",
        ] {
            let error = parse(&[word]).expect_err("wrong usage").to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
        let typo = parse(&["--verifi", "full", "x"]).expect_err("wrong usage").to_string();
        assert!(typo.contains("'--verifi'") && typo.contains("'--verify'"), "{typo}");
        let valueless = parse(&["--verify"]).expect_err("wrong usage").to_string();
        assert!(valueless.contains("a value is required for '--verify <LEVEL>'"), "{valueless}");
    }

    #[test]
    fn options_before_the_command_are_parsed() {
        let parsed = parse(&["--verify", "full", "--port-offset=-2", "x"]).unwrap();
        assert_eq!(parsed.option(&options::VERIFY.declaration), Some(OsStr::new("full")));
        assert_eq!(parsed.option(&options::PORT_OFFSET.declaration), Some(OsStr::new("-2")));
        assert_eq!(parsed.option(&options::MIN_TLS.declaration), None);

        let pem = "-----BEGIN CERTIFICATE-----\n";
        let parsed = parse(&["--client-cert", pem, "x"]).unwrap();
        assert_eq!(parsed.option(&options::CLIENT_CERT.declaration), Some(OsStr::new(pem)));
        for words in [["--ca-file", "--verify", "full"], ["--client-key", "--check", "x"]] {
            let error = parse(&words).expect_err("no value");
            assert_eq!(error.exit_code(), 2, "{words:?}: {error}");
        }
    }

    #[test]
    fn help_explains_exit_codes_without_a_redis_url() {
        let help = command().render_long_help().to_string();
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in [
            "with --check or --port-taken=fail, also if there is no Redis URL",
            "has a failing tunnel, has no Redis URL, or does not answer 2 the",
        ] {
            assert!(help.contains(part), "{help}");
        }
    }

    #[test]
    fn clap_accepts_the_declared_options() {
        parser().debug_assert();
    }
}
