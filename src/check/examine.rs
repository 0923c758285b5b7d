//! Examines the tunnels of a plan, all at the same time, and advises on what was found.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::timeout_at;

use super::report::{Advice, CheckStep, Clients, Mode, Outcome, Report, StepReport, Told};
use crate::configuration::Settings;
use crate::configuration::options::{self, Declaration};
use crate::figures::TunnelFigures;
use crate::plan::Plan;
use crate::redis_url::Credentials;
use crate::resp;
use crate::secret::MASK;
use crate::tls::{Certificate, Connector, Flaw, HandshakeError, Trust, Verify, certificate_of};
use crate::tunnel::Tunnel;
use crate::tunnel::diagnosis::Unexplained;
use crate::tunnel::failure::{self, Failure, Step};
use crate::tunnel::{attempts, hints, late_refusal, upstream};

/// The longest reply of Redis that is looked at, in bytes.
const LONGEST_REPLY: usize = 512;
/// The longest answer to INFO that is looked at, in bytes.
const LONGEST_INFO: usize = 8192;

/// What is found out about each tunnel of `plan`, in its order.
pub async fn all(plan: Plan, settings: &Settings) -> Vec<Report> {
    let mut examinations = JoinSet::new();
    let single = plan.routes.len() == 1;
    for (index, tunnel) in plan.routes.iter().enumerate() {
        let wishes = Wishes {
            credentials: plan.credentials(index),
            databases: plan.databases(index),
            is_single: single,
            none_chosen: !tunnel.variables.iter().any(|name| plan.unauthenticated.contains(name)),
        };
        let connector = Connector::new(tunnel.trust.clone());
        let settings = settings.connection.clone();
        let tunnel = {
            let figures = TunnelFigures::unread();
            Tunnel::new(tunnel.clone(), connector, settings, figures, Arc::default())
        };
        examinations.spawn(async move { (index, examine(&tunnel, wishes).await) });
    }
    let mut reports = examinations.join_all().await;
    reports.sort_by_key(|(index, _)| *index);
    reports.into_iter().map(|(_, report)| report).collect()
}

/// Runs `step` until `deadline`, and takes its time. What went wrong may still have to be
/// explained: outside the time limit.
async fn timed<T, E: From<Failure>>(
    deadline: tokio::time::Instant,
    late: Step,
    step: impl Future<Output = Result<T, E>>,
) -> (Result<T, E>, Duration) {
    let started = Instant::now();
    let done = timeout_at(deadline, step).await;
    (done.unwrap_or_else(|_| Err(Failure::timed_out(late).into())), started.elapsed())
}

/// What the plan knows of a tunnel beyond its route.
struct Wishes {
    credentials: Option<Credentials>,
    databases: Vec<String>,
    /// Whether it is the only tunnel, so that the general settings are its own.
    is_single: bool,
    /// Whether the user has said that nothing need authenticate it, if nothing does.
    none_chosen: bool,
}

async fn examine(tunnel: &Tunnel, wishes: Wishes) -> Report {
    let trust = &tunnel.route.trust;
    let deadline = tokio::time::Instant::now() + tunnel.settings.connect_timeout;
    let mut report = Report {
        variables: tunnel.route.variables.clone(),
        upstream: tunnel.route.upstream.to_string(),
        verify: trust.verify,
        steps: Vec::new(),
        certificate: None,
        advice: Vec::new(),
        told: Told::default(),
        selects: !wishes.databases.is_empty(),
    };
    // OpenSSL is set up beside the first steps, so that it is not taken for their time.
    let setting_up = tunnel.unverified.clone();
    let setting_up = tokio::spawn(async move { setting_up.prepare().await.map(drop) });

    let (addresses, took) = timed(deadline, Step::LookUp, upstream::look_up(tunnel)).await;
    let found = addresses.as_ref().map(|addresses| {
        addresses.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(" ")
    });
    let failure = report.record(CheckStep::LookUp, took, found, tunnel);
    let Ok(addresses) = addresses else {
        return report.broken_off(failure);
    };

    let connecting = upstream::connect_tcp(addresses.clone());
    let (stream, took) = timed(deadline, Step::Tcp, connecting).await;
    let peer = stream.as_ref().map(|stream| {
        stream.peer_addr().map_or_else(|_| String::new(), |address| address.to_string())
    });
    let failure = report.record(CheckStep::Tcp, took, peer, tunnel);
    let Ok(stream) = stream else {
        return report.broken_off(failure);
    };

    // It says nothing itself when it fails: then the handshake does.
    let _ = setting_up.await;
    let no_sessions = Arc::default();
    let unverified = upstream::handshake(tunnel, &tunnel.unverified, stream, &no_sessions);
    let (handshake, took) = timed(deadline, Step::Tls, unverified).await;
    // It takes any certificate: there is none to be explained.
    let handshake = handshake.map_err(Unexplained::bare);
    let unreadable = || Failure::Misconfigured(HandshakeError::unreadable_certificate());
    let certificate = handshake.and_then(|(tls, _)| certificate_of(&tls).ok_or_else(unreadable));
    let subject = certificate.as_ref().map(|certificate| certificate.subject.clone());
    let failure = report.record(CheckStep::Tls, took, subject, tunnel);
    let Ok(certificate) = certificate else {
        return report.broken_off(failure);
    };

    report.steps.push(pin_step(trust, &certificate));
    // Whether it would pass, whatever is demanded now; both at the same time.
    let (ca, full) = tokio::join!(
        would_pass(tunnel, CheckStep::Ca, Verify::Ca, &addresses, deadline),
        would_pass(tunnel, CheckStep::Full, Verify::Full, &addresses, deadline)
    );
    let passes = Passes { ca: !ca.outcome.is_failed(), full: !full.outcome.is_failed() };
    report.steps.extend([ca, full]);
    report.advice = advice(tunnel, &certificate, passes, &wishes);
    report.certificate = Some(certificate);
    if report.works() {
        let Spoken { steps, told, advice } = speak(tunnel, &wishes, deadline).await;
        report.steps.extend(steps);
        report.reach_no_further();
        if let Some(advice) = advice {
            report.advice.insert(0, advice.into());
        }
        report.advice.extend(told.mode.and_then(Mode::advice).map(|text| text.to_owned().into()));
        report.told = told;
    } else {
        report.reach_no_further();
    }
    report
}

impl Report {
    /// Adds a step; returns the advice that goes with its failure.
    fn record(
        &mut self,
        step: CheckStep,
        took: Duration,
        result: Result<String, &Failure>,
        tunnel: &Tunnel,
    ) -> Option<String> {
        let advice = result.as_ref().err().map(|failure| failure.hint(tunnel));
        let outcome = result.map_or_else(Outcome::failed, Outcome::Ok);
        self.steps.push(StepReport { step, outcome, took, needed: true });
        advice
    }

    fn broken_off(mut self, advice: Option<String>) -> Report {
        self.reach_no_further();
        self.advice.extend(advice.map(Advice::from));
        self
    }

    fn reach_no_further(&mut self) {
        let step = |step: &CheckStep| StepReport {
            step: *step,
            outcome: Outcome::NotReached,
            took: Duration::ZERO,
            needed: true,
        };
        let all = CheckStep::ALL.iter().filter(|step| self.selects || **step != CheckStep::Select);
        self.steps.extend(all.skip(self.steps.len()).map(step));
    }
}

fn pin_step(trust: &Trust, certificate: &Certificate) -> StepReport {
    let outcome = match &trust.pins[..] {
        [] => Outcome::Skipped("none set".to_owned()),
        _ if trust.pin_holds(&certificate.pin) => Outcome::Ok(String::new()),
        _ => Outcome::failed("the server's key is none of the pinned"),
    };
    StepReport { step: CheckStep::Pin, outcome, took: Duration::ZERO, needed: true }
}

/// Whether the server would pass at `verify`, with the CAs and the name that are set.
async fn would_pass(
    tunnel: &Tunnel,
    step: CheckStep,
    verify: Verify,
    addresses: &[std::net::SocketAddr],
    deadline: tokio::time::Instant,
) -> StepReport {
    let trust = Trust { verify, pins: Vec::new(), ..tunnel.route.trust.clone() };
    let connector = Connector::new(trust);
    let attempt = async {
        let stream = upstream::connect_tcp(addresses.to_vec()).await?;
        connector.prepare().await.map_err(Failure::Internal)?;
        upstream::handshake(tunnel, &connector, stream, &Arc::default()).await
    };
    let (passed, took) = timed(deadline, Step::Tls, attempt).await;
    let outcome = match passed {
        Ok(_) => Outcome::Ok(String::new()),
        Err(unexplained) => match unexplained.explain(tunnel).await {
            Failure::Misconfigured(HandshakeError::Certificate(_, reason)) => {
                Outcome::Failed(reason)
            }
            failure => Outcome::failed(failure),
        },
    };
    StepReport { step, outcome, took, needed: tunnel.route.trust.verify == verify }
}

/// What came of asking Redis itself.
#[derive(Default)]
struct Spoken {
    /// As far as they were reached.
    steps: Vec<StepReport>,
    told: Told,
    /// What to do about the one that failed.
    advice: Option<String>,
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
async fn speak(tunnel: &Tunnel, wishes: &Wishes, deadline: tokio::time::Instant) -> Spoken {
    let mut spoken = Spoken::default();
    let credentials = wishes.credentials.as_ref();
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
    if goes_on && !wishes.databases.is_empty() {
        select(tunnel, &mut stream, wishes, deadline, &mut spoken).await;
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
    let (reply, took) = ask(tunnel, stream, &known.auth_command(), deadline).await;
    if known.user().is_none() || !knows_no_users(&reply) {
        let outcome = judge_auth(&reply, Some(known));
        return spoken.record(CheckStep::Auth, outcome, took, advice_on(&reply, tunnel));
    }
    let password_alone = known.auth_command_without_user();
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
    wishes: &Wishes,
    deadline: tokio::time::Instant,
    spoken: &mut Spoken,
) {
    let started = Instant::now();
    let mut outcome = Outcome::Ok(format!("database {}", wishes.databases.join(", ")));
    let mut advice = None;
    for database in &wishes.databases {
        let (reply, _) = ask(tunnel, stream, &resp::request(&["SELECT", database]), deadline).await;
        outcome = match &reply {
            Err(problem) => Outcome::failed(problem),
            Ok(line) if line == "+OK" => continue,
            Ok(line) if line.starts_with("-NOPERM") => {
                Outcome::Ok("answered; its ACL does not allow this user SELECT".to_owned())
            }
            Ok(line) => {
                let error = shown(line, wishes.credentials.as_ref());
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
    let user = credentials.and_then(Credentials::user);
    for secret in [credentials.map(Credentials::password), user].into_iter().flatten() {
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

/// Which levels of verification the server passes.
#[derive(Clone, Copy)]
struct Passes {
    ca: bool,
    full: bool,
}

/// What the user should do about who the server is.
fn advice(
    tunnel: &Tunnel,
    certificate: &Certificate,
    passes: Passes,
    wishes: &Wishes,
) -> Vec<Advice> {
    let trust = &tunnel.route.trust;
    let advise = |text: &str, settings: &[(&Declaration, &str)]| Advice {
        text: text.to_owned(),
        settings: settings
            .iter()
            .flat_map(|(setting, value)| {
                let names = names_to_set(tunnel, setting, wishes.is_single);
                names.into_iter().map(move |name| format!("{name}={value}"))
            })
            .collect(),
    };
    let (pin, verify) = (&options::PIN.declaration, &options::VERIFY.declaration);
    let key = certificate.pin.to_string();
    let [full, ca, none] = [Verify::Full, Verify::Ca, Verify::None].map(Verify::word);
    let passes_demanded = match trust.verify {
        Verify::None => true,
        Verify::Ca => passes.ca,
        Verify::Full => passes.full,
    };
    let mut all = Vec::new();
    if !trust.authenticates() {
        // A CA of the system's would vouch for anybody's server.
        let own_ca = trust.ca.is_some() && passes.ca;
        let (what, value) = match passes.full {
            true => (verify, full),
            false if own_ca => (verify, ca),
            false => (pin, key.as_str()),
        };
        let passes_it =
            if what.variable == verify.variable { " this, which it passes:" } else { "" };
        let text = match wishes.none_chosen {
            true => "the server is not authenticated, as you wish; if it should be:".to_owned(),
            false => format!("the server is not authenticated: set{passes_it}"),
        };
        all.push(advise(&text, &[(what, value)]));
    } else if !trust.pin_holds(&certificate.pin) {
        let text = "the key differs from the pin; if it was changed on purpose, set";
        all.push(advise(text, &[(pin, &key)]));
    } else if trust.verify == Verify::Full && !passes.full && passes.ca {
        all.push(hints::certificate(Flaw::Name, tunnel).into());
    } else if !passes_demanded {
        all.push(match trust.pins.is_empty() {
            true => advise(&unverified(tunnel, wishes.is_single), &[(pin, &key), (verify, none)]),
            // The pin holds, so it is the right server.
            false => advise("the pin holds; to let the pin alone decide, set", &[(verify, none)]),
        });
    }
    const SOON: i64 = 14;
    if certificate.days_left < SOON && trust.verify != Verify::None {
        all.push(format!("the certificate expires on {}", certificate.expires).into());
    }
    all
}

/// What to consider before the key of a server whose certificate is not trusted becomes the pin.
fn unverified(tunnel: &Tunnel, is_single: bool) -> String {
    let ca = names_to_set(tunnel, &options::CA_FILE.declaration, is_single).join(" and ");
    format!(
        "someone may be in between. If a CA of your own signed the certificate, set {ca} to that \
         CA. Otherwise get the pin over a connection that you trust; if it is the same as here, set"
    )
}

/// The names that give `setting` another value for a tunnel: the general one, or its option, when
/// it is the only tunnel and no variable of its own overrides that, else one for each variable that
/// leads there.
fn names_to_set(tunnel: &Tunnel, setting: &Declaration, single: bool) -> Vec<String> {
    let variables = &tunnel.route.variables;
    let per_url = |variable: &String| setting.for_one(variable);
    let is_set = |name: String| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if single && !variables.iter().map(per_url).any(is_set) {
        return vec![tunnel.route.setting_names.of(setting.variable).to_owned()];
    }
    variables.iter().map(per_url).collect()
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
