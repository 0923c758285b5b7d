//! COMMAND's own words: URLs that a shell has expanded into them, and a redis-cli that knows no
//! REDIS_URL. Pure.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use crate::plan::{Plan, Tunnelled, Way};
use crate::redis_url::{Credentials, Local};
use crate::secret::Secret;

/// The programs that connect to 127.0.0.1:6379 unless their command line says otherwise.
const REDIS_CLIS: [&str; 2] = ["redis-cli", "valkey-cli"];
/// The variable from which they take a password: <https://redis.io/docs/latest/develop/tools/cli/>.
pub const REDISCLI_AUTH: &str = "REDISCLI_AUTH";

/// An argument of COMMAND's that held a URL which the shell had expanded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrite {
    /// Its place: 0 is COMMAND itself.
    pub argument: usize,
    /// The variable whose URL it held.
    pub variable: String,
}

/// What becomes of a redis-cli.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisCli {
    /// It is told where its server is.
    Told {
        /// The whole command line. Holds no password.
        words: Vec<OsString>,
        /// For [`REDISCLI_AUTH`].
        password: Option<Secret>,
        /// The variable whose URL it is.
        variable: String,
    },
    /// It has an option that is not known to be harmless, or one without its value.
    LeftAlone {
        /// Its name; `None` when it is none that can be shown, since it may hold a password.
        option: Option<String>,
    },
}

/// COMMAND's words with every tunnelled URL in them made local: the shell that reads a Procfile
/// line expands `$REDIS_URL` before the launcher can change it.
pub fn rewrite(
    plan: &Plan,
    words: Vec<OsString>,
    locals: &[Local],
) -> (Vec<OsString>, Vec<Rewrite>) {
    let mut rewrites = Vec::new();
    let rewritten = words.into_iter().enumerate().map(|(argument, word)| {
        let (word, variables) = rewrite_word(plan, word.as_bytes(), locals);
        rewrites.extend(variables.into_iter().map(|variable| Rewrite { argument, variable }));
        OsString::from_vec(word)
    });
    (rewritten.collect(), rewrites)
}

/// What a redis-cli that is told nothing about its server needs to connect to the first URL that
/// leads through a tunnel, an outer launcher's included. It knows no REDIS_URL of its own. `None`
/// for any other COMMAND, and without such a URL.
pub fn redis_cli(plan: &Plan, words: &[OsString], locals: &[Local]) -> Option<RedisCli> {
    let (program, rest) = words.split_first()?;
    let program = Path::new(program).file_name()?;
    if !REDIS_CLIS.iter().any(|name| program == *name) {
        return None;
    }
    let Way { variable, url, local } = plan.ways(locals).next()?;
    let names_database = match names_database(rest) {
        Ok(names_database) => names_database,
        Err(option) => return Some(RedisCli::LeftAlone { option }),
    };
    let mut options: Vec<OsString> = match &local {
        Local::Port(port) => {
            ["-h", "127.0.0.1", "-p", &port.to_string()].map(OsString::from).to_vec()
        }
        Local::Socket(path) => vec!["-s".into(), path.into()],
    };
    if let Some(database) = url.database().filter(|_| !names_database) {
        options.extend(["-n".into(), database.into()]);
    }
    let credentials = url.credentials();
    if let Some(user) = credentials.as_ref().and_then(Credentials::user) {
        options.extend(["--user".into(), user.expose().into()]);
    }
    let words = [&words[..1], &options, rest].concat();
    let password = credentials.map(|credentials| credentials.password().clone());
    Some(RedisCli::Told { words, password, variable: variable.to_owned() })
}

fn rewrite_word(plan: &Plan, word: &[u8], locals: &[Local]) -> (Vec<u8>, Vec<String>) {
    let (mut done, mut variables) = (Vec::with_capacity(word.len()), Vec::new());
    let mut rest = word;
    while let Some((&byte, after)) = rest.split_first() {
        let longest = plan
            .tunnelled()
            .filter(|tunnelled| begins_with_url(rest, tunnelled.value.expose()))
            // The first of equals, as variables are ordered.
            .reduce(|best, other| {
                let longer = other.value.expose().len() > best.value.expose().len();
                if longer { other } else { best }
            });
        match longest {
            Some(Tunnelled { variable, value, route, url }) => {
                done.extend(url.local(&locals[route]).expose().as_bytes());
                if !variables.iter().any(|known| known == variable) {
                    variables.push(variable.to_owned());
                }
                rest = &rest[value.expose().len()..];
            }
            None => {
                done.push(byte);
                rest = after;
            }
        }
    }
    (done, variables)
}

/// The options of redis-cli that leave it to us which server is asked, as whom, and whether it
/// stays with that server, each with the number of words that follow it:
/// <https://redis.io/docs/latest/develop/tools/cli/>.
const HARMLESS_OPTIONS: [(&str, usize); 31] = [
    ("-2", 0),
    ("-3", 0),
    ("-D", 1),
    ("-X", 1),
    ("-d", 1),
    ("-e", 0),
    ("-i", 1),
    ("-n", 1),
    ("-r", 1),
    ("-x", 0),
    ("--bigkeys", 0),
    ("--count", 1),
    ("--csv", 0),
    ("--eval", 1),
    ("--hotkeys", 0),
    ("--json", 0),
    ("--latency", 0),
    ("--latency-dist", 0),
    ("--latency-history", 0),
    ("--memkeys", 0),
    ("--memkeys-samples", 1),
    ("--no-auth-warning", 0),
    ("--no-raw", 0),
    ("--pattern", 1),
    ("--pipe", 0),
    ("--pipe-timeout", 1),
    ("--quoted-input", 0),
    ("--raw", 0),
    ("--scan", 0),
    ("--show-pushes", 1),
    ("--stat", 0),
];

/// Whether redis-cli's own `-n` is among its options.
///
/// # Errors
/// The first option that is none of [`HARMLESS_OPTIONS`], or has no value: our password must not go
/// to another server.
fn names_database(arguments: &[OsString]) -> Result<bool, Option<String>> {
    let mut names_database = false;
    let mut rest = arguments.iter();
    // What does not begin with a dash is the command for Redis, and all behind it belongs to that.
    while let Some(option) = rest.next().filter(|word| word.as_bytes().starts_with(b"-")) {
        let known = HARMLESS_OPTIONS.iter().find(|(known, _)| option == *known);
        let (known, words) = known.ok_or_else(|| option_shown(option))?;
        names_database |= *known == "-n";
        for _ in 0..*words {
            rest.next().ok_or_else(|| option_shown(option))?;
        }
    }
    Ok(names_database)
}

/// An option as the log may name it: without a value that is joined to it.
fn option_shown(option: &OsStr) -> Option<String> {
    let option = option.to_str()?;
    let is_short = option.len() == 2 && option.as_bytes()[1].is_ascii_alphanumeric();
    let is_long = OPTIONS_THAT_LEAD_ELSEWHERE.contains(&option);
    (is_short || is_long).then(|| option.to_owned())
}

/// Long options of redis-cli that may be named as the reason why it is left alone.
const OPTIONS_THAT_LEAD_ELSEWHERE: [&str; 15] = [
    "--askpass",
    "--cacert",
    "--cacertdir",
    "--cert",
    "--cluster",
    "--help",
    "--insecure",
    "--key",
    "--pass",
    "--rdb",
    "--replica",
    "--sni",
    "--tls",
    "--user",
    "--version",
];

/// Whether `text` begins with `url`, and the URL ends there instead of going on as another one.
fn begins_with_url(text: &[u8], url: &str) -> bool {
    let Some(after) = text.strip_prefix(url.as_bytes()) else {
        return false;
    };
    let goes_on = |byte: u8| match byte {
        // In a query another parameter follows; elsewhere it is the shell's `&`.
        b'&' => url.contains('?'),
        _ => {
            byte.is_ascii_alphanumeric() || !byte.is_ascii() || b"-._~%:/?#[@!$*+=".contains(&byte)
        }
    };
    !after.first().copied().is_some_and(goes_on)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::{plan, ports};

    #[test]
    fn a_url_that_the_shell_expanded_into_an_argument_becomes_local() {
        let plan = plan(
            &[],
            &[
                ("REDIS_URL", "redis://h:6379"),
                ("HEROKU_REDIS_A_URL", "redis://h:6379/1"),
                ("HEROKU_REDIS_Q_URL", "rediss://:pw@q/0?a=1"),
            ],
        )
        .unwrap();
        let ports = ports([1, 2]);
        let cases = [
            ("redis://h:6379", "redis://127.0.0.1:1"),
            ("-uredis://h:6379", "-uredis://127.0.0.1:1"),
            ("--url=redis://h:6379", "--url=redis://127.0.0.1:1"),
            ("redis://h:6379/1", "redis://127.0.0.1:1/1"),
            ("redis://h:6379/12", "redis://h:6379/12"),
            ("redis://h:6379/0", "redis://h:6379/0"),
            ("redis://h:63790/0", "redis://h:63790/0"),
            ("redis://h:6379x", "redis://h:6379x"),
            ("redis://h:6379?x=1", "redis://h:6379?x=1"),
            ("redis-cli -u redis://h:6379; echo", "redis-cli -u redis://127.0.0.1:1; echo"),
            (
                "'redis://h:6379' \"redis://h:6379\"",
                "'redis://127.0.0.1:1' \"redis://127.0.0.1:1\"",
            ),
            ("$(x redis://h:6379)", "$(x redis://127.0.0.1:1)"),
            ("a redis://h:6379&", "a redis://127.0.0.1:1&"),
            ("redis://h:6379,redis://h:6379/1", "redis://127.0.0.1:1,redis://127.0.0.1:1/1"),
            ("rediss://:pw@q/0?a=1", "redis://:pw@127.0.0.1:2/0?a=1"),
            ("rediss://:pw@q/0?a=1&b=2", "rediss://:pw@q/0?a=1&b=2"),
            ("rediss://h:6379", "rediss://h:6379"),
            ("plain", "plain"),
            ("", ""),
        ];
        for (given, expected) in cases {
            let (words, rewrites) = rewrite(&plan, vec!["cmd".into(), given.into()], &ports);
            assert_eq!(words, ["cmd", expected], "{given}");
            assert_eq!(rewrites.is_empty(), given == expected, "{given}");
            assert!(rewrites.iter().all(|rewrite| rewrite.argument == 1), "{given}");
        }
        let (_, rewrites) = rewrite(&plan, vec!["redis://h:6379/1 redis://h:6379".into()], &ports);
        let variables: Vec<_> = rewrites.iter().map(|rewrite| rewrite.variable.as_str()).collect();
        assert_eq!(variables, ["HEROKU_REDIS_A_URL", "REDIS_URL"]);
    }

    #[test]
    fn a_redis_cli_that_is_told_nothing_gets_to_know_its_server() {
        let plan = plan(&[], &[("REDIS_URL", "redis://us%65r:p%40ss@h/3")]).unwrap();
        let told = |words: &[&str], local: Local| {
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            match redis_cli(&plan, &words, &[local])? {
                RedisCli::LeftAlone { option } => {
                    Some(format!("left alone: {}", option.unwrap_or_default()))
                }
                RedisCli::Told { words, password, .. } => {
                    assert_eq!(password, Some(Secret::new("p@ss")));
                    Some(words.join(OsStr::new(" ")).into_string().unwrap())
                }
            }
        };
        let port = Local::Port(7);
        for (words, expected) in [
            (&["redis-cli"][..], "redis-cli -h 127.0.0.1 -p 7 -n 3 --user user"),
            (
                &["/usr/bin/valkey-cli", "-3"],
                "/usr/bin/valkey-cli -h 127.0.0.1 -p 7 -n 3 --user user -3",
            ),
            (&["redis-cli", "get", "k"], "redis-cli -h 127.0.0.1 -p 7 -n 3 --user user get k"),
            (
                &["redis-cli", "-r", "5", "--raw", "get", "-h"],
                "redis-cli -h 127.0.0.1 -p 7 -n 3 --user user -r 5 --raw get -h",
            ),
            (&["redis-cli", "-n", "1"], "redis-cli -h 127.0.0.1 -p 7 --user user -n 1"),
        ] {
            assert_eq!(told(words, port.clone()).as_deref(), Some(expected));
        }
        let socket = Local::Socket("/t/r.sock".into());
        assert_eq!(
            told(&["redis-cli"], socket).as_deref(),
            Some("redis-cli -s /t/r.sock -n 3 --user user")
        );
        for (words, option) in [
            (&["redis-cli", "-h", "other"][..], "-h"),
            (&["redis-cli", "-p", "1", "ping"], "-p"),
            (&["redis-cli", "-u", "redis://other"], "-u"),
            (&["redis-cli", "--tls"], "--tls"),
            (&["redis-cli", "-c"], "-c"),
            (&["redis-cli", "-x", "--cluster", "info"], "--cluster"),
            (&["redis-cli", "-r"], "-r"),
            (&["redis-cli", "--no-such-option"], ""),
            (&["redis-cli", "-ahunter2"], ""),
            (&["redis-cli", "-"], ""),
        ] {
            let expected = format!("left alone: {option}");
            assert_eq!(told(words, port.clone()), Some(expected), "{words:?}");
        }
        for words in [&["redis-benchmark"][..], &["sh", "-c", "redis-cli"]] {
            assert_eq!(told(words, port.clone()), None, "{words:?}");
        }
    }

    #[test]
    fn an_argument_that_is_not_utf8_is_rewritten_too() {
        let plan = plan(&[], &[("REDIS_URL", "redis://h")]).unwrap();
        let word = OsString::from_vec(b"\xff redis://h \xfe".to_vec());
        let (words, _) = rewrite(&plan, vec![word], &ports([7]));
        assert_eq!(words[0].as_bytes(), b"\xff redis://127.0.0.1:7 \xfe");
    }
}
