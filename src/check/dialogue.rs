//! Performs the part of `--check` that sends commands to Redis: AUTH, PING, SELECT and INFO.

use std::collections::BTreeSet;
use std::time::Instant;
use std::{io, iter};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout_at;

use super::report::{Clients, Outcome, Problem, Report, Subject};
use crate::redis_url::Credentials;
use crate::resp;
use crate::secret::{MASK, Secret};
use crate::text::printable;
use crate::tunnel::failure::{self, Failure};
use crate::tunnel::stream::TlsUpstream;
use crate::tunnel::{attempts, client_limit, hints, late_refusal};

/// The longest reply to INFO that `--check` reads, in bytes.
const LONGEST_INFO: usize = 8192;

/// A connection to Redis that uses the tunnel's settings. `--check` sends one request at a time on
/// this connection.
struct Dialogue<'a> {
    subject: &'a Subject,
    stream: TlsUpstream,
    deadline: tokio::time::Instant,
}

/// Runs the steps AUTH, PING and SELECT, and then asks Redis for its mode and its number of
/// clients. Adds the results to `report`. Returns `None` if a step failed.
pub async fn speak(
    subject: &Subject,
    report: &mut Report,
    deadline: tokio::time::Instant,
) -> Option<()> {
    let started = Instant::now();
    let stream = attempts::connect(&subject.tunnel, deadline, None)
        .await
        .map_err(|failure| report.fail("AUTH", started, Problem::of(&failure, &subject.tunnel)))
        .ok()?;
    let mut redis = Dialogue { subject, stream, deadline };
    match &subject.credentials[..] {
        [] => report.add("AUTH", Outcome::Skipped, "no password in the URL"),
        all => drop(report.step("AUTH", redis.log_in_as_each(all), String::clone).await?),
    }
    report.step("PING", redis.ping(), String::clone).await?;
    if !subject.databases.is_empty() {
        report.step("SELECT", redis.select(), String::clone).await?;
    }
    // Ignore errors, because the tunnel works without Redis's mode and number of clients.
    let _ = timeout_at(deadline, redis.describe(report)).await;
    Some(())
}

impl Dialogue<'_> {
    /// Logs in with each user and password in the tunnel's URLs.
    async fn log_in_as_each(&mut self, all: &[(String, Credentials)]) -> Result<String, Problem> {
        let mut details = BTreeSet::new();
        for (variable, known) in all {
            details.insert(self.authenticate(known).await.map_err(|problem| Problem {
                text: match all.len() {
                    1 => problem.text,
                    _ => format!("{variable}: {}", problem.text),
                },
                advice: problem.advice,
            })?);
        }
        Ok(details.into_iter().collect::<Vec<_>>().join("; "))
    }

    /// Sends AUTH with the URL's user and password. Redis 5 and older have no users. If Redis
    /// refuses the user for this reason, the check sends AUTH again with the password only, as
    /// clients do.
    async fn authenticate(&mut self, known: &Credentials) -> Result<String, Problem> {
        let user = known.user.as_ref();
        let mut reply = self.ask(&auth_command(user, &known.password)).await?;
        let mut detail = "";
        if user.is_some() && knows_no_users(&reply) {
            reply = self.ask(&auth_command(None, &known.password)).await?;
            detail = "logged in with the password only: this Redis (5 or older) has no users. \
                      Clients that always send the URL's user cannot log in";
        }
        if reply.contains("without any password") || reply.contains("no password is set") {
            // The server is Redis 5 without a password, or a later Redis whose default user has no
            // password. The app can use both servers.
            return Ok("the server requires no password".to_owned());
        }
        if reply == "+OK" { Ok(detail.to_owned()) } else { Err(self.problem(&reply)) }
    }

    async fn ping(&mut self) -> Result<String, Problem> {
        match self.ask(&resp::request(&["PING"])).await? {
            line if line.starts_with("+PONG") => Ok(String::new()),
            line if line.starts_with("-NOPERM") => Ok(not_allowed("PING")),
            line => Err(self.problem(&line)),
        }
    }

    /// Sends SELECT for each database in the tunnel's URLs.
    async fn select(&mut self) -> Result<String, Problem> {
        let databases = &self.subject.databases;
        for database in databases {
            let line = self.ask(&resp::request(&["SELECT", database])).await?;
            if line.starts_with("-NOPERM") {
                return Ok(not_allowed("SELECT"));
            }
            if line != "+OK" {
                let problem = self.problem(&line);
                let advice = "change the URL's database number (after the last /) to a database \
                              that this server has";
                return Err(Problem {
                    text: format!("database {database}: {}", problem.text),
                    advice: problem.advice.or_else(|| Some(advice.to_owned())),
                });
            }
        }
        Ok(format!("database {}", databases.join(", ")))
    }

    /// Asks Redis for its mode and its number of clients, and adds both to the report
    /// (<https://redis.io/docs/latest/commands/info/>).
    async fn describe(&mut self, report: &mut Report) -> io::Result<()> {
        report.mode = field(&self.info("server").await?, "redis_mode");
        report.advice.extend(report.mode.as_deref().and_then(mode_advice).map(str::to_owned));
        report.clients = clients(&self.info("clients").await?);
        Ok(())
    }

    /// Returns one section of Redis's reply to INFO. The text is empty if this user may not call
    /// INFO.
    async fn info(&mut self, section: &str) -> io::Result<String> {
        let line = self.exchange(&resp::request(&["INFO", section])).await?;
        let Some(length) = line.strip_prefix('$').and_then(|number| number.parse::<usize>().ok())
        else {
            return Ok(String::new());
        };
        if length > LONGEST_INFO {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut text = vec![0; length + 2];
        self.stream.read_exact(&mut text).await?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Sends a request to Redis, and returns the first line of the reply.
    async fn ask(&mut self, request: &[u8]) -> Result<String, Problem> {
        let no_answer = |text| Problem { text, advice: Some(hints::NO_ANSWER.to_owned()) };
        match timeout_at(self.deadline, self.exchange(request)).await {
            Ok(Ok(line)) => Ok(printable(&line)),
            Ok(Err(error)) => {
                let tunnel = &self.subject.tunnel;
                Err(match late_refusal::behind(tunnel, &error).await {
                    Some(refusal) => Problem::of(&Failure::Misconfigured(refusal), tunnel),
                    None => no_answer(failure::in_words(&error)),
                })
            }
            Err(_) => Err(no_answer("timed out".to_owned())),
        }
    }

    async fn exchange(&mut self, request: &[u8]) -> io::Result<String> {
        self.stream.write_all(request).await?;
        self.stream.flush().await?;
        let line = resp::read_line(&mut self.stream).await?;
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    /// Describes the problem that an unexpected reply shows. `line` is the reply's first line.
    fn problem(&self, line: &str) -> Problem {
        let refused = line.starts_with("-WRONGPASS") || line.starts_with("-ERR invalid password");
        let (text, advice) = if refused {
            ("wrong user or password".to_owned(), Some(hints::WRONG_PASSWORD.to_owned()))
        } else if line.starts_with("-NOAUTH") {
            let text = "the server requires a password, but the URL contains no \
                        password"
                .to_owned();
            (text, Some(hints::no_password(&self.subject.tunnel)))
        } else if line.starts_with("-LOADING") {
            ("the server is still loading its data".to_owned(), None)
        } else if line.starts_with('-') {
            let is_full = client_limit::is_error(line.as_bytes());
            (shown(line, &self.subject.credentials), is_full.then(hints::full))
        } else {
            ("unexpected reply: the server may not be Redis".to_owned(), None)
        };
        Problem { text, advice }
    }
}

/// Makes a request to log in with a user and a password, or with the password only.
fn auth_command(user: Option<&Secret>, password: &Secret) -> Vec<u8> {
    let words = [Some("AUTH"), user.map(Secret::expose), Some(password.expose())];
    resp::request(&words.into_iter().flatten().collect::<Vec<_>>())
}

/// True if `reply` shows that Redis is older than version 6 and has no users. `reply` is the reply
/// to AUTH with a user.
fn knows_no_users(reply: &str) -> bool {
    reply.to_ascii_lowercase().starts_with("-err wrong number of arguments for 'auth'")
}

fn not_allowed(command: &str) -> String {
    format!("Redis answered, but the ACL does not allow this user to call {command}")
}

/// Returns a server's error without the leading `-`, and masks the users and passwords in the
/// error.
fn shown(error: &str, credentials: &[(String, Credentials)]) -> String {
    // Remove the arguments from an error such as "unknown command 'AUTH', with args beginning with:
    // 'USER' 'PASSW". Redis may shorten the password in such an error. The code below could not
    // mask a shortened password, because it searches for the whole password.
    let error = error.split(", with args beginning with").next().unwrap_or_default();
    let mut error = error.trim_start_matches('-').to_owned();
    let secrets = credentials
        .iter()
        .flat_map(|(_, known)| iter::once(&known.password).chain(known.user.as_ref()));
    for secret in secrets.map(Secret::expose).filter(|secret| !secret.is_empty()) {
        error = error.replace(secret, MASK);
    }
    error
}

/// Returns the value of the field `name` in Redis's reply to INFO.
fn field(info: &str, name: &str) -> Option<String> {
    let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(printable(value))
}

fn clients(info: &str) -> Option<Clients> {
    let number = |name| field(info, name)?.parse().ok();
    Some(Clients { connected: number("connected_clients")?, most: number("maxclients")? })
}

/// Returns advice about a Redis that tells its clients to connect to other addresses. For
/// connections to these addresses, clients do not use the tunnel.
fn mode_advice(mode: &str) -> Option<&'static str> {
    match mode {
        "cluster" => Some(
            "this server is a node of a Redis Cluster. Commands for this node's own keys work. For \
             keys of other nodes, this node answers MOVED, and a cluster client then connects to \
             the other nodes directly, bypassing the tunnel and without TLS. Use a client that \
             does its own TLS (STUNNEL_REDISS=passthrough), a proxy in front of the cluster, or a \
             Redis with cluster mode disabled",
        ),
        "sentinel" => Some(
            "this server is a Redis Sentinel. A Sentinel tells the client the master's address, \
             and the client then connects to the master directly, bypassing the tunnel and without \
             TLS. Give the master's own host name in the URL (start-stunnel looks the name up for \
             each connection), or use a client that does its own TLS",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_clients_is_read_from_info() {
        let info =
            "# Clients\r\nconnected_clients:12\r\ncluster_connections:0\r\nmaxclients:20\r\n";
        assert_eq!(clients(info), Some(Clients { connected: 12, most: 20 }));
        assert_eq!(clients("connected_clients:12\r\n"), None, "Redis before 6.2");
    }
}
