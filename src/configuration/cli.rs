//! The command line: clap over the table of [`options`].
//!
//! Values are taken as they come and judged by the [`super::reader`], so that a wrong option is
//! reported together with every other mistake instead of alone.

use std::env;
use std::ffi::{OsStr, OsString};
use std::sync::LazyLock;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::options::{self, Declaration};
use crate::secret::quotable;
use crate::tls;

const CHECK: &str = "check";
const PRINT_ENV: &str = "print-env";
const PRINT_SHIM: &str = "print-shim";
const STATUS: &str = "status";
const COMMAND: &str = "command";

/// What was typed.
#[derive(Debug)]
pub struct Invocation {
    matches: ArgMatches,
    /// `--check` was given.
    pub check: bool,
    /// `--print-env` was given.
    pub print_env: bool,
    /// `--print-shim` was given.
    pub print_shim: bool,
    /// `--status` was given.
    pub status: bool,
    /// COMMAND and its arguments; empty only together with one of the above.
    pub command: Vec<OsString>,
}

impl Invocation {
    /// Parses a command line, the program's own name first.
    ///
    /// # Errors
    /// Wrong usage, and `--help` and `--version`, which clap treats as errors that exit with 0.
    pub fn parse_from(
        words: impl IntoIterator<Item = OsString>,
    ) -> Result<Invocation, clap::Error> {
        let mut matches = command().try_get_matches_from(words).map_err(without_secrets)?;
        Ok(Invocation {
            check: matches.get_flag(CHECK),
            print_env: matches.get_flag(PRINT_ENV),
            print_shim: matches.get_flag(PRINT_SHIM),
            status: matches.get_flag(STATUS),
            command: matches.remove_many(COMMAND).map_or_else(Vec::new, Iterator::collect),
            matches,
        })
    }

    /// The value of `setting`'s option, if it was given.
    pub fn option(&self, setting: &Declaration) -> Option<&OsStr> {
        self.matches.get_one::<OsString>(setting.option?).map(OsString::as_os_str)
    }
}

/// The command line as clap sees it.
pub fn command() -> Command {
    Command::new("start-stunnel")
        .version(env!("CARGO_PKG_VERSION"))
        .long_version(LONG_VERSION.as_str())
        .about(
            "Runs COMMAND with its Redis traffic behind TLS.\n\n\
             Reads REDIS_URL and its siblings, opens a plaintext port on 127.0.0.1 for each, \
             tunnels \
             it over TLS, rewrites the variables, and runs COMMAND.",
        )
        .args_override_self(true)
        .override_usage("start-stunnel [OPTIONS] [--] COMMAND [ARG]...")
        .after_help(format!(
            "An option wins over its variable, a variable over the default; an empty variable \
             counts \
             as unset, an empty value of an option is an error.\n\
             One URL's own setting: <VAR>{suffixes}; for example CACHE_URL_STUNNEL_VERIFY=full.\n\
             Durations: 500ms, 10s, 5m, 24h, or a bare number of seconds.\n\
             Exit code: COMMAND's own, or 128 + the number of the signal that ended it; 126 \
             COMMAND \
             cannot be executed; 127 not found; 2 wrong usage; 78 a setting or a URL is wrong; 1 \
             --check found a tunnel that does not work, or --status one that fails, or an internal \
             error; 3 --status found no launcher.",
            suffixes = options::one_url_suffixes().collect::<Vec<_>>().join(", "),
        ))
        .args(options::with_option().map(|(option, setting)| {
            Arg::new(option)
                .long(option)
                .value_name(setting.value_name)
                .value_parser(value_parser!(OsString))
                .action(ArgAction::Set)
                .allow_negative_numbers(true)
                .help(help(setting))
        }))
        .arg(
            Arg::new(CHECK)
                .long(CHECK)
                .action(ArgAction::SetTrue)
                .help("Examine every tunnel, print a report, and exit"),
        )
        .arg(
            Arg::new(STATUS)
                .long(STATUS)
                .action(ArgAction::SetTrue)
                .conflicts_with_all([CHECK, PRINT_ENV, PRINT_SHIM, COMMAND])
                .help(
                    "Print the state of this user's running launchers, and exit with 0 if all is \
                     well, 1 if a tunnel fails, 3 if none runs",
                ),
        )
        .arg(
            Arg::new(PRINT_ENV)
                .long(PRINT_ENV)
                .action(ArgAction::SetTrue)
                .help("Print the Redis variables that COMMAND would get, secrets masked, and exit"),
        )
        .arg(Arg::new(PRINT_SHIM).long(PRINT_SHIM).action(ArgAction::SetTrue).help(
            "Print a script to keep as an app's bin/start-stunnel, for local development, and exit",
        ))
        .arg(
            Arg::new(COMMAND)
                .value_name("COMMAND")
                .value_parser(value_parser!(OsString))
                .num_args(1..)
                .trailing_var_arg(true)
                .required_unless_present_any([CHECK, PRINT_ENV, PRINT_SHIM, STATUS])
                .help("What to run, with its arguments"),
        )
}

/// The version; below it which OpenSSL is in use, what this was built for, and from which commit.
static LONG_VERSION: LazyLock<String> = LazyLock::new(|| {
    format!(
        "{}\n{}, {}, {}",
        env!("CARGO_PKG_VERSION"),
        tls::openssl_version(),
        target(),
        // Set by bin/package alone: elsewhere each commit would have everything built anew.
        option_env!("START_STUNNEL_COMMIT")
            .map_or("not a release".to_owned(), |commit| format!("commit {commit}")),
    )
});

/// What this was built for, as the names of release archives have it: `x86_64-linux-gnu`.
fn target() -> String {
    let libc = match () {
        () if cfg!(target_env = "gnu") => "-gnu",
        () if cfg!(target_env = "musl") => "-musl",
        () => "",
    };
    format!("{}-{}{libc}", env::consts::ARCH, env::consts::OS)
}

/// An error about wrong usage repeats a stray value only if it is a plain word.
fn without_secrets(mut error: clap::Error) -> clap::Error {
    // clap calls a value that is not there an invalid one.
    if error.kind() == ErrorKind::InvalidValue
        && let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue)
        && value.is_empty()
        && let Some(ContextValue::String(option)) = error.get(ContextKind::InvalidArg)
    {
        let which = if option.ends_with("<BOOL>") { ": yes or no" } else { "" };
        let text = format!("'{option}' needs a value{which}");
        return command().error(ErrorKind::InvalidValue, text);
    }
    if let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue) {
        let shown = quotable(value);
        error.insert(ContextKind::InvalidValue, ContextValue::String(shown));
    }
    // A value that was joined to an option's name: `--pin$REDIS_URL`.
    let is_name = |word: &str| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    if let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg)
        && !is_name(word)
        && options::with_option().all(|(option, _)| !word.starts_with(&format!("--{option} ")))
    {
        let shown = format!("an option of {} bytes, not shown", word.len());
        error.insert(ContextKind::InvalidArg, ContextValue::String(shown));
        // The tip repeats it.
        error.remove(ContextKind::Suggested);
    }
    error
}

fn help(setting: &Declaration) -> String {
    format!(
        "{} [variable: {}] [default: {}]",
        setting.help,
        setting.variable,
        setting.default_shown()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Invocation, clap::Error> {
        let words = ["start-stunnel"].iter().chain(words);
        Invocation::parse_from(words.map(OsString::from))
    }

    #[test]
    fn everything_from_the_first_word_that_is_no_option_is_the_command() {
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
            assert!(!parsed.print_env, "{words:?}");
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
    fn an_error_about_usage_repeats_no_secret() {
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
        assert!(valueless.contains("'--verify <LEVEL>' needs a value\n"), "{valueless}");
        let valueless = parse(&["--connect-retry"]).expect_err("wrong usage").to_string();
        assert!(valueless.contains("needs a value: yes or no"), "{valueless}");
    }

    #[test]
    fn options_are_kept_apart_from_the_command() {
        let parsed = parse(&["--verify", "full", "--port-offset=-2", "x"]).unwrap();
        assert_eq!(parsed.option(&options::VERIFY.declaration), Some(OsStr::new("full")));
        assert_eq!(parsed.option(&options::PORT_OFFSET.declaration), Some(OsStr::new("-2")));
        assert_eq!(parsed.option(&options::MIN_TLS.declaration), None);
    }

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }
}
