//! Replaces Redis URLs in COMMAND's arguments by the URLs of their tunnels.

use std::cmp::Reverse;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::configuration::{Plan, Tunnelled};
use crate::redis_url::Local;

/// Replaces every tunnelled URL in COMMAND's arguments by the tunnel's URL. The arguments contain
/// URLs because the shell expands `$REDIS_URL` in a Procfile's line before the launcher runs.
///
/// Returns the new arguments, and a list of the replacements. A replacement contains the number of
/// the argument, where 0 is the program, and the name of the variable that holds the same URL.
pub fn rewrite(
    plan: &Plan,
    words: Vec<OsString>,
    locals: &[Local],
) -> (Vec<OsString>, Vec<(usize, String)>) {
    let mut rewrites = Vec::new();
    let rewritten = words.into_iter().enumerate().map(|(argument, word)| {
        let (word, variables) = rewrite_word(plan, word.as_bytes(), locals);
        rewrites.extend(variables.into_iter().map(|variable| (argument, variable)));
        OsString::from_vec(word)
    });
    (rewritten.collect(), rewrites)
}

fn rewrite_word(plan: &Plan, word: &[u8], locals: &[Local]) -> (Vec<u8>, Vec<String>) {
    // Sort by length, the longest URL first. The sort is stable: variables with the same URL keep
    // their order in the plan.
    let mut urls: Vec<_> = plan.tunnelled.iter().collect();
    urls.sort_by_key(|url| Reverse(url.value.expose().len()));
    let (mut done, mut variables) = (Vec::with_capacity(word.len()), Vec::new());
    let mut rest = word;
    while let Some((&byte, after)) = rest.split_first() {
        match urls.iter().find(|url| begins_with_url(rest, url.value.expose())) {
            Some(Tunnelled { variable, value, route, url }) => {
                done.extend(url.local(&locals[*route]).whole.expose().as_bytes());
                if !variables.contains(variable) {
                    variables.push(variable.clone());
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

/// Returns true if `text` begins with `url` and the URL in `text` ends where `url` ends. A longer
/// URL may begin with the same characters, as `redis://h:63790` begins with `redis://h:6379`.
fn begins_with_url(text: &[u8], url: &str) -> bool {
    let Some(after) = text.strip_prefix(url.as_bytes()) else {
        return false;
    };
    let goes_on = |byte: u8| match byte {
        // In a URL that contains `?`, the character `&` begins another query parameter. In any
        // other URL, the character `&` is an operator of the shell.
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
    use crate::configuration::tests::{plan, ports};

    #[test]
    fn tunnelled_url_in_an_argument_becomes_local() {
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
            assert!(rewrites.iter().all(|(argument, _)| *argument == 1), "{given}");
        }
        let (_, rewrites) = rewrite(&plan, vec!["redis://h:6379/1 redis://h:6379".into()], &ports);
        let variables: Vec<_> = rewrites.iter().map(|(_, variable)| variable.as_str()).collect();
        assert_eq!(variables, ["HEROKU_REDIS_A_URL", "REDIS_URL"]);
    }

    #[test]
    fn argument_that_is_not_utf8_is_rewritten_too() {
        let plan = plan(&[], &[("REDIS_URL", "redis://h")]).unwrap();
        let word = OsString::from_vec(b"\xff redis://h \xfe".to_vec());
        let (words, _) = rewrite(&plan, vec![word], &ports([7]));
        assert_eq!(words[0].as_bytes(), b"\xff redis://127.0.0.1:7 \xfe");
    }
}
