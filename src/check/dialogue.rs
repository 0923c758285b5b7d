//! What Redis itself answers: to AUTH, PING, SELECT and INFO.

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout_at;

use super::report::{CheckStep, Clients, Mode, Outcome, StepReport, Told};
use crate::redis_url::Credentials;
use crate::resp;
use crate::secret::{MASK, Secret};
use crate::tunnel::Tunnel;
use crate::tunnel::failure::{self, Failure};
use crate::tunnel::{attempts, hints, late_refusal};

/// The longest reply of Redis that is looked at, in bytes.
const LONGEST_REPLY: usize = 512;
/// The longest answer to INFO that is looked at, in bytes.
const LONGEST_INFO: usize = 8192;

/// What a tunnel's URLs ask of Redis.
pub struct Login {
    pub credentials: Option<Credentials>,
    pub databases: Vec<String>,
}

/// What came of asking Redis itself.
#[derive(Default)]
pub struct Spoken {
    /// As far as they were reached.
    pub steps: Vec<StepReport>,
    pub told: Told,
    /// What to do about the one that failed.
    pub advice: Option<String>,
}

impl Spoken {
    /// Adds a step; whether the next one is reached.
    fn record(
        &mut self,
        step: CheckStep,
        outcome: Outcome,
        took: Duration,
        advice: Option<String>,
    ) -> bool {
        let goes_on = !outcome.is_failed();
        self.advice = advice.filter(|_| !goes_on);
        self.steps.push(StepReport { step, outcome, took, needed: true });
        goes_on
    }
}

/// AUTH, PING and SELECT, on a connection that holds by the tunnel's settings; and what Redis tells
/// of itself.
pub async fn speak(tunnel: &Tunnel, login: &Login, deadline: tokio::time::Instant) -> Spoken {
    let mut spoken = Spoken::default();
    let credentials = login.credentials.as_ref();
    let started = Instant::now();
    let mut stream = match attempts::connect_by(tunnel, deadline).await {
        Ok(stream) => stream,
        Err(failure) => {
            let (advice, outcome) = (failure.hint(tunnel), Outcome::failed(failure));
            spoken.record(CheckStep::Auth, outcome, started.elapsed(), Some(advice));
            return spoken;
        }
    };
    let goes_on = match credentials {
        None => {
            let nothing = Outcome::Skipped("no password in the URL".to_owned());
            spoken.record(CheckStep::Auth, nothing, Duration::ZERO, None)
        }
        Some(known) => authenticate(tunnel, &mut stream, known, deadline, &mut spoken).await,
    };
    if !goes_on {
        return spoken;
    }
    let (reply, took) = ask(tunnel, &mut stream, &resp::request(&["PING"]), deadline).await;
    let outcome = judge_ping(&reply, credentials);
    let goes_on = spoken.record(CheckStep::Ping, outcome, took, advice_on(&reply, tunnel));
    if goes_on && !login.databases.is_empty() {
        select(tunnel, &mut stream, login, deadline, &mut spoken).await;
    }
    let told = &mut spoken.told;
    let asking = async {
        told.mode = Mode::of(&info(&mut stream, "server").await?);
        told.clients = Clients::of(&info(&mut stream, "clients").await?);
        io::Result::Ok(())
    };
    // A server that tells nothing, in time or at all, works all the same.
    let _ = timeout_at(deadline, asking).await;
    spoken
}

/// AUTH with the URL's user and password; says whether the next step is reached. Redis 5 and older
/// know no users: there, as clients do, with the password alone.
async fn authenticate(
    tunnel: &Tunnel,
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    known: &Credentials,
    deadline: tokio::time::Instant,
    spoken: &mut Spoken,
) -> bool {
    let user = known.user.as_ref();
    let command = auth_command(user, &known.password);
    let (reply, took) = ask(tunnel, stream, &command, deadline).await;
    if user.is_none() || !knows_no_users(&reply) {
        let outcome = judge_auth(&reply, Some(known));
        return spoken.record(CheckStep::Auth, outcome, took, advice_on(&reply, tunnel));
    }
    let password_alone = auth_command(None, &known.password);
    let (reply, more) = ask(tunnel, stream, &password_alone, deadline).await;
    let mut outcome = judge_auth(&reply, Some(known));
    if let Outcome::Ok(detail) = &mut outcome
        && detail.is_empty()
    {
        *detail = "with the password alone: this Redis (5 or older) knows no users. Clients that \
                   insist on the URL's user fail"
            .to_owned();
    }
    spoken.record(CheckStep::Auth, outcome, took + more, advice_on(&reply, tunnel))
}

/// The AUTH request, with a user (Redis 6 and later) or with the password alone.
fn auth_command(user: Option<&Secret>, password: &Secret) -> Vec<u8> {
    let words = [Some("AUTH"), user.map(Secret::expose), Some(password.expose())];
    resp::request(&words.into_iter().flatten().collect::<Vec<_>>())
}

/// Whether AUTH with a user was refused by a Redis before 6.
fn knows_no_users(reply: &Result<String, NoReply>) -> bool {
    reply.as_ref().is_ok_and(|line| {
        line.to_ascii_lowercase().starts_with("-err wrong number of arguments for 'auth'")
    })
}

/// Whether Redis has every database that a URL names.
async fn select(
    tunnel: &Tunnel,
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    login: &Login,
    deadline: tokio::time::Instant,
    spoken: &mut Spoken,
) {
    let started = Instant::now();
    let mut outcome = Outcome::Ok(format!("database {}", login.databases.join(", ")));
    let mut advice = None;
    for database in &login.databases {
        let (reply, _) = ask(tunnel, stream, &resp::request(&["SELECT", database]), deadline).await;
        outcome = match &reply {
            Err(problem) => Outcome::failed(problem),
            Ok(line) if line == "+OK" => continue,
            Ok(line) if line.starts_with("-NOPERM") => {
                Outcome::Ok("answered; its ACL does not allow this user SELECT".to_owned())
            }
            Ok(line) => {
                let error = shown(line, login.credentials.as_ref());
                Outcome::failed(format!("database {database}: {error}"))
            }
        };
        if outcome.is_failed() {
            advice = advice_on(&reply, tunnel).or_else(|| {
                let text = "use a database that this server has: the number behind the last / of \
                            the URL";
                Some(text.to_owned())
            });
            break;
        }
    }
    spoken.record(CheckStep::Select, outcome, started.elapsed(), advice);
}

/// What INFO says of a section; empty where this user may not ask.
async fn info(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    section: &str,
) -> io::Result<String> {
    stream.write_all(&resp::request(&["INFO", section])).await?;
    stream.flush().await?;
    let line = read_line(stream).await?;
    let length = line.strip_prefix(b"$").and_then(|number| std::str::from_utf8(number).ok());
    let Some(length) = length.and_then(|number| number.parse::<usize>().ok()) else {
        return Ok(String::new());
    };
    if length > LONGEST_INFO {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut text = vec![0; length + 2];
    stream.read_exact(&mut text).await?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The next line, without its end.
async fn read_line(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") && line.len() < LONGEST_REPLY {
        line.push(stream.read_u8().await?);
    }
    line.truncate(line.trim_ascii_end().len());
    Ok(line)
}

/// Why a request has no reply.
enum NoReply {
    /// The server refuses us in TLS.
    Refused(Failure),
    Broken(String),
}

impl fmt::Display for NoReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoReply::Refused(failure) => failure.fmt(f),
            NoReply::Broken(problem) => f.write_str(problem),
        }
    }
}

/// Sends a request, and takes the first line of the reply, or says why there is none.
async fn ask(
    tunnel: &Tunnel,
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    request: &[u8],
    deadline: tokio::time::Instant,
) -> (Result<String, NoReply>, Duration) {
    let started = Instant::now();
    let exchange = async {
        stream.write_all(request).await?;
        stream.flush().await?;
        read_line(stream).await
    };
    let reply = timeout_at(deadline, exchange).await;
    let took = started.elapsed();
    let reply = match reply {
        Ok(Ok(line)) => {
            let line = String::from_utf8_lossy(&line).into_owned();
            Ok(line.trim_end().chars().map(|c| if c.is_control() { '?' } else { c }).collect())
        }
        Ok(Err(error)) => Err(match late_refusal::behind(tunnel, &error).await {
            Some(refusal) => NoReply::Refused(Failure::Misconfigured(refusal)),
            None => NoReply::Broken(failure::in_words(&error)),
        }),
        Err(_) => Err(NoReply::Broken("timed out".to_owned())),
    };
    (reply, took)
}

/// What to do about a reply with which a step has failed.
fn advice_on(reply: &Result<String, NoReply>, tunnel: &Tunnel) -> Option<String> {
    match reply {
        Err(NoReply::Refused(failure)) => Some(failure.hint(tunnel)),
        Err(NoReply::Broken(_)) => Some(hints::NO_ANSWER.to_owned()),
        Ok(line) if refuses_password(line) => Some(hints::WRONG_PASSWORD.to_owned()),
        Ok(line) if line.starts_with("-NOAUTH") => Some(hints::no_password(tunnel)),
        Ok(line) if line.contains("max number of clients") => Some(hints::full()),
        Ok(_) => None,
    }
}

/// Whether an error is about user and password: Redis from 6 on, and before.
fn refuses_password(line: &str) -> bool {
    line.starts_with("-WRONGPASS") || line.starts_with("-ERR invalid password")
}

/// An error of the server's as it may be shown: without the credentials, which it may repeat.
fn shown(error: &str, credentials: Option<&Credentials>) -> String {
    // Redis and others after it: "unknown command 'AUTH', with args beginning with: 'USER' 'PASSW",
    // cut anywhere.
    let error = error.split(", with args beginning with").next().unwrap_or_default();
    let mut error = error.trim_start_matches('-').to_owned();
    let secrets = credentials.map(|known| [Some(&known.password), known.user.as_ref()]);
    for secret in secrets.into_iter().flatten().flatten() {
        if !secret.expose().is_empty() {
            error = error.replace(secret.expose(), MASK);
        }
    }
    error
}

fn judge_auth(reply: &Result<String, NoReply>, credentials: Option<&Credentials>) -> Outcome {
    match reply {
        Err(problem) => Outcome::failed(problem),
        Ok(line) if line == "+OK" => Outcome::Ok(String::new()),
        Ok(line) if refuses_password(line) => Outcome::failed("wrong user or password"),
        // Redis before 6, and a default user without a password: nothing is wrong with the tunnel.
        Ok(line)
            if line.contains("without any password") || line.contains("no password is set") =>
        {
            Outcome::Ok("the server wants no password".to_owned())
        }
        Ok(line) => Outcome::failed(shown(line, credentials)),
    }
}

fn judge_ping(reply: &Result<String, NoReply>, credentials: Option<&Credentials>) -> Outcome {
    match reply {
        Err(problem) => Outcome::failed(problem),
        Ok(line) if line.starts_with("+PONG") => Outcome::Ok(String::new()),
        Ok(line) if line.starts_with("-NOPERM") => {
            Outcome::Ok("answered; its ACL does not allow this user PING".to_owned())
        }
        Ok(line) if line.starts_with("-NOAUTH") => {
            Outcome::failed("the server wants a password, and the URL has none")
        }
        Ok(line) if line.starts_with("-LOADING") => {
            Outcome::failed("the server is still loading its data")
        }
        Ok(line) if line.starts_with('-') => Outcome::failed(shown(line, credentials)),
        Ok(_) => Outcome::failed("the server does not answer as Redis does"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_redis_says_is_told_apart() {
        let reply = |line: &str| Ok(line.to_owned());
        assert_eq!(judge_auth(&reply("+OK"), None), Outcome::Ok(String::new()));
        assert!(judge_auth(&reply("-WRONGPASS invalid username-password pair"), None).is_failed());
        let none =
            "-ERR AUTH <password> called without any password configured for the default user.";
        assert!(!judge_auth(&reply(none), None).is_failed());
        assert!(judge_auth(&Err(NoReply::Broken("timed out".to_owned())), None).is_failed());
        assert_eq!(judge_ping(&reply("+PONG"), None), Outcome::Ok(String::new()));
        assert!(
            judge_ping(&reply("-NOAUTH Authentication required."), None)
                .detail()
                .contains("password")
        );
        assert!(judge_ping(&reply("-LOADING Redis is loading"), None).detail().contains("loading"));
        assert!(!judge_ping(&reply("-NOPERM this user has no permissions"), None).is_failed());
        assert!(judge_ping(&reply("HTTP/1.1 400"), None).is_failed());
    }
}
