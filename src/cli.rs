//! The command line: every option, its variable, its default and its help, in one table.
//!
//! Values are taken as they come and judged by [`crate::settings`], so that a wrong option is
//! reported together with every other mistake instead of alone.

use std::ffi::{OsStr, OsString};

use clap::error::{ContextKind, ContextValue};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use crate::secret::quotable;

/// One setting: an option, the variable that stands in for it, and what holds without both.
#[derive(Debug)]
pub struct Setting {
    /// The option's long name, without dashes; empty when there is a variable only.
    pub option: &'static str,
    /// The environment variable that says the same.
    pub variable: &'static str,
    /// What holds when neither is given, in the form in which a user would write it. Empty: nothing.
    pub default: &'static str,
    /// How the help shows a default that is no literal value.
    pub default_shown: &'static str,
    value_name: &'static str,
    help: &'static str,
    /// Whether an error may repeat any value: it is no secret, as paths and pins are none.
    pub is_public: bool,
}

impl Setting {
    /// What a setting has that says nothing else.
    const PLAIN: Setting = Setting {
        option: "",
        variable: "",
        default: "",
        default_shown: "",
        value_name: "",
        help: "",
        is_public: false,
    };
}

pub const ENABLED: Setting = Setting {
    option: "enabled",
    variable: "STUNNEL_ENABLED",
    default: "true",
    default_shown: "true",
    value_name: "BOOL",
    help: "1/true/yes/on or 0/false/no/off. When false, start-stunnel becomes COMMAND: no tunnel, \
           environment untouched",
    ..Setting::PLAIN
};
pub const URLS: Setting = Setting {
    option: "urls",
    variable: "REDIS_STUNNEL_URLS",
    default: "",
    default_shown: "REDIS_URL HEROKU_REDIS_* REDIS_ENDPOINT_*_URL",
    value_name: "NAMES",
    help: "Names of the variables that hold Redis URLs, separated by spaces or commas",
    ..Setting::PLAIN
};
pub const REDISS: Setting = Setting {
    option: "rediss",
    variable: "STUNNEL_REDISS",
    default: "tunnel",
    default_shown: "tunnel",
    value_name: "MODE",
    help: "For rediss:// and valkeys:// URLs: tunnel, or passthrough (the app does its own TLS)",
    ..Setting::PLAIN
};
pub const PORT_OFFSET: Setting = Setting {
    option: "port-offset",
    variable: "STUNNEL_PORT_OFFSET",
    default: "1",
    default_shown: "1",
    value_name: "N",
    help: "TLS port = URL port + N, for redis:// and valkey:// URLs",
    ..Setting::PLAIN
};
pub const LISTEN: Setting = Setting {
    option: "listen",
    variable: "STUNNEL_LISTEN",
    default: "tcp",
    default_shown: "tcp",
    value_name: "WHERE",
    help: "tcp (a port of 127.0.0.1, open to every user of this machine), or unix (a socket for this user alone; \
           the URL becomes unix://, which not every client takes)",
    ..Setting::PLAIN
};
pub const LISTEN_PORT: Setting = Setting {
    option: "listen-port",
    variable: "STUNNEL_LISTEN_PORT",
    default: "6371",
    default_shown: "6371",
    value_name: "PORT",
    help: "First local port; the next tunnel takes the next one. 0: always the kernel's pick",
    ..Setting::PLAIN
};
pub const PORT_TAKEN: Setting = Setting {
    option: "port-taken",
    variable: "STUNNEL_PORT_TAKEN",
    default: "move",
    default_shown: "move",
    value_name: "WHAT",
    help: "When a local port is taken: move (to one that the kernel picks; COMMAND's URL has it), or fail (exit \
           78), for a port that others know",
    ..Setting::PLAIN
};
pub const VERIFY: Setting = Setting {
    option: "verify",
    variable: "STUNNEL_VERIFY",
    default: "none",
    default_shown: "none",
    value_name: "LEVEL",
    help: "none; ca (the certificate's chain); full (chain and host name)",
    ..Setting::PLAIN
};
pub const CA_FILE: Setting = Setting {
    option: "ca-file",
    variable: "STUNNEL_CA_FILE",
    default: "",
    default_shown: "system roots",
    value_name: "FILE",
    help: "PEM bundle of the CAs to trust instead of the system's roots. STUNNEL_CA_PEM holds the \
           PEM text itself; both together: both are trusted",
    ..Setting::PLAIN
};
/// Has no option: a command line is no place for a bundle.
pub const CA_PEM: Setting = Setting { variable: "STUNNEL_CA_PEM", ..Setting::PLAIN };
pub const PIN: Setting = Setting {
    option: "pin",
    variable: "STUNNEL_PIN",
    default: "",
    default_shown: "none",
    value_name: "PINS",
    help: "sha256//BASE64 of the server key's SubjectPublicKeyInfo, as curl's --pinnedpubkey; several \
           joined by ;. Holds under every --verify",
    is_public: true,
};
pub const CLIENT_CERT: Setting = Setting {
    option: "client-cert",
    variable: "STUNNEL_CLIENT_CERT",
    default: "",
    default_shown: "none",
    value_name: "PEM",
    help: "Client certificate for servers that ask for one: a PEM file, or the PEM text itself",
    ..Setting::PLAIN
};
pub const CLIENT_KEY: Setting = Setting {
    option: "client-key",
    variable: "STUNNEL_CLIENT_KEY",
    default: "",
    default_shown: "none",
    value_name: "PEM",
    help: "The client certificate's key in PKCS#8: a PEM file, or the PEM text itself",
    ..Setting::PLAIN
};
pub const SERVER_NAME: Setting = Setting {
    option: "server-name",
    variable: "STUNNEL_SERVER_NAME",
    default: "",
    default_shown: "the URL's host",
    value_name: "NAME",
    help: "The name sent in SNI and checked under full",
    is_public: true,
};
pub const MIN_TLS: Setting = Setting {
    option: "min-tls",
    variable: "STUNNEL_MIN_TLS",
    default: "1.2",
    default_shown: "1.2",
    value_name: "VERSION",
    help: "Oldest TLS version to accept: 1.2 or 1.3",
    ..Setting::PLAIN
};
pub const CONNECT_TIMEOUT: Setting = Setting {
    option: "connect-timeout",
    variable: "STUNNEL_CONNECT_TIMEOUT",
    default: "10s",
    default_shown: "10s",
    value_name: "DURATION",
    help: "For name look-up, TCP and TLS handshake together",
    ..Setting::PLAIN
};
pub const CONNECT_RETRY: Setting = Setting {
    option: "connect-retry",
    variable: "STUNNEL_CONNECTION_RETRY",
    default: "no",
    default_shown: "no",
    value_name: "BOOL",
    help: "When Redis cannot be reached, keep trying until the connect timeout instead of failing \
           at once",
    ..Setting::PLAIN
};
pub const IDLE_TIMEOUT: Setting = Setting {
    option: "idle-timeout",
    variable: "STUNNEL_IDLE_TIMEOUT",
    default: "24h",
    default_shown: "24h",
    value_name: "DURATION",
    help: "Close a connection on which nothing moved for so long; 0: never",
    ..Setting::PLAIN
};
pub const DRAIN_TIMEOUT: Setting = Setting {
    option: "drain-timeout",
    variable: "STUNNEL_DRAIN_TIMEOUT",
    default: "5s",
    default_shown: "5s",
    value_name: "DURATION",
    help: "After COMMAND has ended, how long bytes that it had already written may take to reach \
           Redis",
    ..Setting::PLAIN
};
pub const SPARES: Setting = Setting {
    option: "spares",
    variable: "STUNNEL_SPARES",
    default: "1",
    default_shown: "1",
    value_name: "N",
    help: "Connections per tunnel, 0 to 8, that are kept ready while an app connects again and again; up to \
           8 when it does so fast. 0: none. None without a password in the URL",
    ..Setting::PLAIN
};
pub const FORWARD_SIGNALS: Setting = Setting {
    option: "forward-signals",
    variable: "STUNNEL_FORWARD_SIGNALS",
    default: "auto",
    default_shown: "auto",
    value_name: "WHEN",
    help: "auto (all; on a Heroku dyno all but SIGTERM, which the dyno manager itself sends to \
           every process), always, never",
    ..Setting::PLAIN
};
pub const LOG_LEVEL: Setting = Setting {
    option: "log-level",
    variable: "STUNNEL_LOGLEVEL",
    default: "notice",
    default_shown: "notice",
    value_name: "LEVEL",
    help: "emerg alert crit err warning notice info debug, or 0 to 7",
    ..Setting::PLAIN
};
pub const LOG_FORMAT: Setting = Setting {
    option: "log-format",
    variable: "STUNNEL_LOG_FORMAT",
    default: "logfmt",
    default_shown: "logfmt",
    value_name: "FORMAT",
    help: "logfmt or json",
    ..Setting::PLAIN
};

/// Every setting that has an option, in the order of `--help`.
pub const SETTINGS: &[&Setting] = &[
    &ENABLED,
    &URLS,
    &REDISS,
    &PORT_OFFSET,
    &LISTEN,
    &LISTEN_PORT,
    &PORT_TAKEN,
    &VERIFY,
    &CA_FILE,
    &PIN,
    &CLIENT_CERT,
    &CLIENT_KEY,
    &SERVER_NAME,
    &MIN_TLS,
    &CONNECT_TIMEOUT,
    &CONNECT_RETRY,
    &IDLE_TIMEOUT,
    &DRAIN_TIMEOUT,
    &SPARES,
    &FORWARD_SIGNALS,
    &LOG_LEVEL,
    &LOG_FORMAT,
];

const CHECK: &str = "check";
const PRINT_ENV: &str = "print-env";
const PRINT_SHIM: &str = "print-shim";
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
            command: matches.remove_many(COMMAND).map_or_else(Vec::new, Iterator::collect),
            matches,
        })
    }

    /// The value of `setting`'s option, if it was given.
    pub fn option(&self, setting: &Setting) -> Option<&OsStr> {
        if setting.option.is_empty() {
            return None;
        }
        self.matches.get_one::<OsString>(setting.option).map(OsString::as_os_str)
    }
}

/// The command line as clap sees it.
pub fn command() -> Command {
    Command::new("start-stunnel")
        .version(env!("CARGO_PKG_VERSION"))
        .about(
            "Runs COMMAND with its Redis traffic behind TLS.\n\n\
             Reads REDIS_URL and its siblings, opens a plaintext port on 127.0.0.1 for each, tunnels \
             it over TLS, rewrites the variables, and runs COMMAND.",
        )
        .args_override_self(true)
        .override_usage("start-stunnel [OPTIONS] [--] COMMAND [ARG]...")
        .after_help(
            "An option wins over its variable, a variable over the default; an empty variable counts \
             as unset.\n\
             One URL's own setting: <VAR>_STUNNEL_VERIFY, _PIN, _CA_FILE, _CA_PEM, _SERVER_NAME, \
             _PORT_OFFSET, _REDISS, _CLIENT_CERT, _CLIENT_KEY; for example CACHE_URL_STUNNEL_VERIFY=full.\n\
             Durations: 500ms, 10s, 5m, 24h, or a bare number of seconds.\n\
             Exit code: COMMAND's own, or 128 + the number of the signal that ended it; 126 COMMAND \
             cannot be executed; 127 not found; 2 wrong usage; 78 a setting or a URL is wrong; 1 \
             --check found a tunnel that does not work, or an internal error.",
        )
        .args(SETTINGS.iter().map(|setting| {
            Arg::new(setting.option)
                .long(setting.option)
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
            Arg::new(PRINT_ENV)
                .long(PRINT_ENV)
                .action(ArgAction::SetTrue)
                .help("Print the Redis variables that COMMAND would get, secrets masked, and exit"),
        )
        .arg(
            Arg::new(PRINT_SHIM)
                .long(PRINT_SHIM)
                .action(ArgAction::SetTrue)
                .help("Print a script to keep as an app's bin/start-stunnel, for local development, and exit"),
        )
        .arg(
            Arg::new(COMMAND)
                .value_name("COMMAND")
                .value_parser(value_parser!(OsString))
                .num_args(1..)
                .trailing_var_arg(true)
                .required_unless_present_any([CHECK, PRINT_ENV, PRINT_SHIM])
                .help("What to run, with its arguments"),
        )
}

/// An error about wrong usage repeats a stray value only if it is a plain word.
fn without_secrets(mut error: clap::Error) -> clap::Error {
    if let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue) {
        let shown = quotable(value);
        error.insert(ContextKind::InvalidValue, ContextValue::String(shown));
    }
    error
}

fn help(setting: &Setting) -> String {
    format!(
        "{} [variable: {}] [default: {}]",
        setting.help, setting.variable, setting.default_shown
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
        for word in ["--print-env=redis://:pw@h", "--bogus=redis://:pw@h", "-predis://:pw@h"] {
            let error = parse(&[word]).expect_err("wrong usage").to_string();
            assert!(!error.contains("pw@h"), "{error}");
        }
    }

    #[test]
    fn options_are_kept_apart_from_the_command() {
        let parsed = parse(&["--verify", "full", "--port-offset=-2", "x"]).unwrap();
        assert_eq!(parsed.option(&VERIFY), Some(OsStr::new("full")));
        assert_eq!(parsed.option(&PORT_OFFSET), Some(OsStr::new("-2")));
        assert_eq!(parsed.option(&MIN_TLS), None);
    }

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }
}
