//! `--check`: examines every tunnel at the same time, and reports what would work and what would not.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::timeout_at;

use crate::cli;
use crate::plan::Plan;
use crate::redis_url::Credentials;
use crate::secret::MASK;
use crate::settings::{LogFormat, Settings, TrustSettings, Verify};
use crate::tls::{Certificate, Connector, HandshakeError, certificate_of};
use crate::tunnel::failure::{self, Failure, Step};
use crate::tunnel::upstream::{self, Unexplained};
use crate::tunnel::{Totals, Tunnel};

/// The longest reply of Redis that is looked at, in bytes.
const LONGEST_REPLY: usize = 512;
/// The longest answer to INFO that is looked at, in bytes.
const LONGEST_INFO: usize = 8192;
/// The steps of an examination, in their order.
const STEPS: [&str; 8] = ["look-up", "TCP", "TLS", "pin", "ca", "full", "AUTH", "PING"];
/// What fits a terminal.
const COLUMNS: usize = 80;

/// What became of one step.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Ok(String),
    Failed(String),
    /// Something before it failed.
    NotReached,
    /// There is nothing to do.
    Skipped(String),
}

impl Outcome {
    fn failed(reason: impl ToString) -> Outcome {
        Outcome::Failed(reason.to_string())
    }

    fn word(&self) -> &'static str {
        match self {
            Outcome::Ok(_) => "ok",
            Outcome::Failed(_) => "failed",
            Outcome::NotReached => "not reached",
            Outcome::Skipped(_) => "-",
        }
    }

    fn detail(&self) -> &str {
        match self {
            Outcome::Ok(text) | Outcome::Failed(text) | Outcome::Skipped(text) => text,
            Outcome::NotReached => "",
        }
    }

    fn is_failed(&self) -> bool {
        matches!(self, Outcome::Failed(_))
    }
}

/// One step of an examination.
#[derive(Debug, Clone)]
struct StepReport {
    name: &'static str,
    outcome: Outcome,
    took: Duration,
    /// Whether the tunnel needs it under its settings.
    needed: bool,
}

/// All that was found out about one tunnel.
#[derive(Debug)]
struct Report {
    variables: Vec<String>,
    upstream: String,
    verify: Verify,
    steps: Vec<StepReport>,
    certificate: Option<Certificate>,
    advice: Vec<Advice>,
    /// `None`: it did not come so far, or Redis does not tell this user.
    mode: Option<Mode>,
}

/// What the user should do.
#[derive(Debug)]
struct Advice {
    /// Prose, which is wrapped.
    text: String,
    /// `NAME=VALUE` each, for copying: each has a line of its own, which is never broken.
    settings: Vec<String>,
}

impl From<String> for Advice {
    fn from(text: String) -> Advice {
        Advice { text, settings: Vec::new() }
    }
}

impl Advice {
    /// On one line, for programs.
    fn in_one_line(&self) -> String {
        let settings = self.settings.iter().map(String::as_str);
        std::iter::once(self.text.as_str()).chain(settings).collect::<Vec<_>>().join(" ")
    }
}

/// How a Redis runs, as it says itself: `redis_mode` of <https://redis.io/docs/latest/commands/info/>.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Standalone,
    Cluster,
    Sentinel,
}

impl Mode {
    const ALL: [Mode; 3] = [Mode::Standalone, Mode::Cluster, Mode::Sentinel];

    fn word(self) -> &'static str {
        match self {
            Mode::Standalone => "standalone",
            Mode::Cluster => "cluster",
            Mode::Sentinel => "sentinel",
        }
    }

    /// From the reply to INFO.
    fn of(info: &str) -> Option<Mode> {
        let word = info.lines().find_map(|line| line.strip_prefix("redis_mode:"))?;
        Mode::ALL.into_iter().find(|mode| mode.word() == word)
    }

    /// What the user has to know: both hand out addresses, to which clients connect past the tunnel.
    fn advice(self) -> Option<&'static str> {
        match self {
            Mode::Standalone => None,
            Mode::Cluster => Some(
                "a node of a Redis Cluster: it answers MOVED for keys of other nodes, and a cluster \
                              client connects to these past the tunnel, without TLS. Keys of this node work. Use a \
                              client that does its own TLS (STUNNEL_REDISS=passthrough), a proxy in front of the \
                              cluster, or a Redis with cluster mode disabled",
            ),
            Mode::Sentinel => Some(
                "a Redis Sentinel: it names the master's address, to which a client connects past \
                               the tunnel, without TLS. Give the master's own host name in the URL (it is looked up \
                               anew for each connection), or use a client that does its own TLS",
            ),
        }
    }
}

impl Report {
    fn works(&self) -> bool {
        self.steps.iter().all(|step| {
            !step.needed || matches!(step.outcome, Outcome::Ok(_) | Outcome::Skipped(_))
        })
    }
}

/// Examines every tunnel of `plan`, prints the report to stdout, and says whether all work.
///
/// # Errors
/// When the runtime cannot be started or stdout not be written.
pub fn run(plan: Plan, settings: &Settings) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let reports = runtime.block_on(examine_all(plan, settings));
    runtime.shutdown_background();
    let works = reports.iter().all(Report::works);
    let mut stdout = io::stdout().lock();
    match settings.log.format {
        LogFormat::Json => {
            for report in &reports {
                writeln!(stdout, "{}", as_json(report))?;
            }
        }
        LogFormat::Logfmt => {
            let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            let paint = Paint(stdout.is_terminal() && !no_color);
            if reports.is_empty() {
                writeln!(stdout, "No tunnel to check: no variable holds a Redis URL to tunnel.")?;
            }
            for (index, report) in reports.iter().enumerate() {
                let space = if index == 0 { "" } else { "\n" };
                write!(stdout, "{space}{}", as_table(report, &paint))?;
            }
        }
    }
    stdout.flush()?;
    Ok(works)
}

async fn examine_all(plan: Plan, settings: &Settings) -> Vec<Report> {
    let mut examinations = JoinSet::new();
    let single = plan.tunnels.len() == 1;
    for (index, tunnel) in plan.tunnels.iter().enumerate() {
        let credentials = plan.credentials(index);
        let connector = Connector::new(tunnel.trust.clone());
        let settings = settings.connection.clone();
        let tunnel = Tunnel::new(tunnel.clone(), connector, settings, Arc::new(Totals::default()));
        examinations.spawn(async move { (index, examine(&tunnel, credentials, single).await) });
    }
    let mut reports = examinations.join_all().await;
    reports.sort_by_key(|(index, _)| *index);
    reports.into_iter().map(|(_, report)| report).collect()
}

/// Runs `step` until `deadline`, and takes its time. What went wrong may still have to be explained: outside
/// the time limit.
async fn timed<T, E: From<Failure>>(
    deadline: tokio::time::Instant,
    late: Step,
    step: impl Future<Output = Result<T, E>>,
) -> (Result<T, E>, Duration) {
    let started = Instant::now();
    let done = timeout_at(deadline, step).await;
    (done.unwrap_or_else(|_| Err(Failure::timed_out(late).into())), started.elapsed())
}

/// `single`: whether it is the only tunnel, so that the general settings are its own.
async fn examine(tunnel: &Tunnel, credentials: Option<Credentials>, single: bool) -> Report {
    let trust = &tunnel.plan.trust;
    let deadline = tokio::time::Instant::now() + tunnel.settings.connect_timeout;
    let mut report = Report {
        variables: tunnel.plan.variables.clone(),
        upstream: tunnel.plan.upstream.to_string(),
        verify: trust.verify,
        steps: Vec::new(),
        certificate: None,
        advice: Vec::new(),
        mode: None,
    };
    // OpenSSL is set up beside the first steps, so that it is not taken for their time.
    let setting_up = tunnel.look.clone();
    let setting_up = tokio::spawn(async move { setting_up.prepare().await.map(drop) });

    let (addresses, took) = timed(deadline, Step::LookUp, upstream::look_up(tunnel)).await;
    let found = addresses.as_ref().map(|addresses| {
        addresses.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(" ")
    });
    let failure = report.record("look-up", took, found, tunnel);
    let Ok(addresses) = addresses else {
        return report.broken_off(failure);
    };

    let connecting = upstream::connect_tcp(addresses.clone());
    let (stream, took) = timed(deadline, Step::Tcp, connecting).await;
    let peer = stream.as_ref().map(|stream| {
        stream.peer_addr().map_or_else(|_| String::new(), |address| address.to_string())
    });
    let failure = report.record("TCP", took, peer, tunnel);
    let Ok(stream) = stream else {
        return report.broken_off(failure);
    };

    // It says nothing itself when it fails: then the handshake does.
    let _ = setting_up.await;
    let no_sessions = Arc::default();
    let look = upstream::handshake(tunnel, &tunnel.look, stream, &no_sessions);
    let (looked, took) = timed(deadline, Step::Tls, look).await;
    // It takes any certificate: there is none to be explained.
    let looked = looked.map_err(Unexplained::bare);
    let certificate = looked.and_then(|tls| certificate_of(&tls).map_err(Failure::Misconfigured));
    let subject = certificate.as_ref().map(|certificate| certificate.subject.clone());
    let failure = report.record("TLS", took, subject, tunnel);
    let Ok(certificate) = certificate else {
        return report.broken_off(failure);
    };

    report.steps.push(pin_step(trust, &certificate));
    // Whether it would pass, whatever is demanded now; both at the same time.
    let (ca, full) = tokio::join!(
        would_pass(tunnel, Verify::Ca, &addresses, deadline),
        would_pass(tunnel, Verify::Full, &addresses, deadline)
    );
    let passes_full = !full.outcome.is_failed();
    report.steps.extend([ca, full]);
    report.advice = advice(tunnel, &certificate, passes_full, single);
    report.certificate = Some(certificate);
    if report.works() {
        let (steps, mode) = speak(tunnel, credentials, deadline).await;
        report.steps.extend(steps);
        report.advice.extend(mode.and_then(Mode::advice).map(|text| text.to_owned().into()));
        report.mode = mode;
    } else {
        report.reach_no_further();
    }
    report
}

impl Report {
    /// Adds a step; returns the advice that goes with its failure.
    fn record(
        &mut self,
        name: &'static str,
        took: Duration,
        result: Result<String, &Failure>,
        tunnel: &Tunnel,
    ) -> Option<String> {
        let advice = result.as_ref().err().map(|failure| failure.hint(tunnel));
        let outcome = result.map_or_else(Outcome::failed, Outcome::Ok);
        self.steps.push(StepReport { name, outcome, took, needed: true });
        advice
    }

    fn broken_off(mut self, advice: Option<String>) -> Report {
        self.reach_no_further();
        self.advice.extend(advice.map(Advice::from));
        self
    }

    fn reach_no_further(&mut self) {
        let step = |name: &&'static str| StepReport {
            name,
            outcome: Outcome::NotReached,
            took: Duration::ZERO,
            needed: true,
        };
        self.steps.extend(STEPS[self.steps.len()..].iter().map(step));
    }
}

fn pin_step(trust: &TrustSettings, certificate: &Certificate) -> StepReport {
    let outcome = match &trust.pins[..] {
        [] => Outcome::Skipped("none set".to_owned()),
        pins if pins.contains(&certificate.pin) => Outcome::Ok(String::new()),
        _ => Outcome::failed("the server's key is none of the pinned"),
    };
    StepReport { name: "pin", outcome, took: Duration::ZERO, needed: true }
}

/// Whether the server would pass at `verify`, with the CAs and the name that are set.
async fn would_pass(
    tunnel: &Tunnel,
    verify: Verify,
    addresses: &[std::net::SocketAddr],
    deadline: tokio::time::Instant,
) -> StepReport {
    let trust = TrustSettings { verify, pins: Vec::new(), ..tunnel.plan.trust.clone() };
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
    StepReport { name: verify.word(), outcome, took, needed: tunnel.plan.trust.verify == verify }
}

/// AUTH and PING, on a connection that holds by the tunnel's settings; and how Redis runs, if it tells.
async fn speak(
    tunnel: &Tunnel,
    credentials: Option<Credentials>,
    deadline: tokio::time::Instant,
) -> (Vec<StepReport>, Option<Mode>) {
    let report = |name, outcome, took| StepReport { name, outcome, took, needed: true };
    let not_reached = |name| report(name, Outcome::NotReached, Duration::ZERO);
    let started = Instant::now();
    let mut stream = match upstream::connect_by(tunnel, deadline).await {
        Ok(stream) => stream,
        Err(failure) => {
            let auth = report("AUTH", Outcome::failed(failure), started.elapsed());
            return (vec![auth, not_reached("PING")], None);
        }
    };
    let auth = match credentials {
        None => {
            let nothing = Outcome::Skipped("no password in the URL".to_owned());
            report("AUTH", nothing, Duration::ZERO)
        }
        Some(ref credentials) => {
            let (reply, took) =
                ask(tunnel, &mut stream, &credentials.auth_command(), deadline).await;
            report("AUTH", judge_auth(&reply, Some(credentials)), took)
        }
    };
    if auth.outcome.is_failed() {
        return (vec![auth, not_reached("PING")], None);
    }
    let (reply, took) = ask(tunnel, &mut stream, b"*1\r\n$4\r\nPING\r\n", deadline).await;
    let mode = timeout_at(deadline, ask_for_mode(&mut stream)).await;
    let mode = mode.ok().and_then(Result::ok).flatten();
    (vec![auth, report("PING", judge_ping(&reply, credentials.as_ref()), took)], mode)
}

async fn ask_for_mode(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
) -> io::Result<Option<Mode>> {
    stream.write_all(b"*2\r\n$4\r\nINFO\r\n$6\r\nserver\r\n").await?;
    stream.flush().await?;
    let mut reply = Vec::new();
    // An error, as for a user who may not ask, has no such line, and is short.
    while reply.len() < LONGEST_INFO && !(reply.first() == Some(&b'-') && reply.ends_with(b"\r\n"))
    {
        if stream.read_buf(&mut reply).await? == 0 {
            break;
        }
        // Complete when its line is.
        let text = String::from_utf8_lossy(&reply);
        if let Some((whole_lines, _)) = text.rsplit_once("\r\n")
            && let Some(mode) = Mode::of(whole_lines)
        {
            return Ok(Some(mode));
        }
    }
    Ok(None)
}

/// Sends a request, and takes the first line of the reply, or says why there is none.
async fn ask(
    tunnel: &Tunnel,
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    request: &[u8],
    deadline: tokio::time::Instant,
) -> (Result<String, String>, Duration) {
    let started = Instant::now();
    let exchange = async {
        stream.write_all(request).await?;
        stream.flush().await?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") && line.len() < LONGEST_REPLY {
            line.push(stream.read_u8().await?);
        }
        io::Result::Ok(line)
    };
    let reply = timeout_at(deadline, exchange).await;
    let took = started.elapsed();
    let reply = match reply {
        Ok(Ok(line)) => {
            let line = String::from_utf8_lossy(&line).into_owned();
            Ok(line.trim_end().chars().map(|c| if c.is_control() { '?' } else { c }).collect())
        }
        Ok(Err(error)) => Err(match upstream::late_refusal(tunnel, &error).await {
            Some(refusal) => Failure::Misconfigured(refusal).to_string(),
            None => failure::in_words(&error),
        }),
        Err(_) => Err("timed out".to_owned()),
    };
    (reply, took)
}

/// An error of the server's as it may be shown: without the credentials, which it may repeat.
fn shown(error: &str, credentials: Option<&Credentials>) -> String {
    // Redis and others after it: "unknown command 'AUTH', with args beginning with: 'USER' 'PASSW", cut anywhere.
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

fn judge_auth(reply: &Result<String, String>, credentials: Option<&Credentials>) -> Outcome {
    match reply {
        Err(problem) => Outcome::failed(problem),
        Ok(line) if line == "+OK" => Outcome::Ok(String::new()),
        Ok(line) if line.starts_with("-WRONGPASS") || line.starts_with("-ERR invalid password") => {
            Outcome::failed("wrong user or password")
        }
        // Redis before 6, and a default user without a password: nothing is wrong with the tunnel.
        Ok(line)
            if line.contains("without any password") || line.contains("no password is set") =>
        {
            Outcome::Ok("the server wants no password".to_owned())
        }
        Ok(line) => Outcome::failed(shown(line, credentials)),
    }
}

fn judge_ping(reply: &Result<String, String>, credentials: Option<&Credentials>) -> Outcome {
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

/// What the user should do about who the server is.
fn advice(
    tunnel: &Tunnel,
    certificate: &Certificate,
    passes_full: bool,
    single: bool,
) -> Vec<Advice> {
    let trust = &tunnel.plan.trust;
    let advise = |text: &str, settings: &[(&cli::Setting, &str)]| Advice {
        text: text.to_owned(),
        settings: settings
            .iter()
            .flat_map(|(setting, value)| {
                let names = variables_to_set(&tunnel.plan.variables, setting, single);
                names.into_iter().map(move |name| format!("{name}={value}"))
            })
            .collect(),
    };
    let pin = certificate.pin.to_string();
    let [full, none] = [Verify::Full, Verify::None].map(Verify::word);
    let mut all = Vec::new();
    if !trust.authenticates() {
        all.push(match passes_full {
            true => advise(
                "not authenticated: set this, which the server passes:",
                &[(&cli::VERIFY, full)],
            ),
            false => advise("not authenticated: set", &[(&cli::PIN, &pin)]),
        });
    } else if !trust.pins.is_empty() && !trust.pins.contains(&certificate.pin) {
        let text = "the key differs from the pin; if it was changed on purpose, set";
        all.push(advise(text, &[(&cli::PIN, &pin)]));
    } else if trust.verify != Verify::None && !passes_full {
        let text = "to trust this very key, whoever signed it, set";
        all.push(advise(text, &[(&cli::PIN, &pin), (&cli::VERIFY, none)]));
    }
    const SOON: i64 = 14;
    if certificate.days_left < SOON && trust.verify != Verify::None {
        all.push(format!("the certificate expires on {}", certificate.expires).into());
    }
    all
}

/// The variables that give `setting` another value for a tunnel: the general one when it is the only tunnel
/// (`single`) and no variable of its own overrides that, else one for each variable that leads there.
fn variables_to_set(variables: &[String], setting: &cli::Setting, single: bool) -> Vec<String> {
    let per_url = |variable: &String| format!("{variable}_{}", setting.variable);
    let is_set = |name: String| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if single && !variables.iter().map(per_url).any(is_set) {
        return vec![setting.variable.to_owned()];
    }
    variables.iter().map(per_url).collect()
}

/// Colours, on a terminal only.
struct Paint(bool);

impl Paint {
    fn word(&self, outcome: &Outcome, text: String) -> String {
        let code = match outcome {
            _ if !self.0 => return text,
            Outcome::Ok(_) => 32,
            Outcome::Failed(_) => 31,
            Outcome::NotReached | Outcome::Skipped(_) => 2,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    fn title(&self, text: String) -> String {
        if self.0 { format!("\x1b[1m{text}\x1b[0m") } else { text }
    }
}

fn as_table(report: &Report, paint: &Paint) -> String {
    let mut table = String::new();
    let title = format!(
        "{} -> {} (verify {})",
        report.variables.join(" "),
        report.upstream,
        report.verify.word()
    );
    for (index, line) in wrapped(&title, COLUMNS - 2).into_iter().enumerate() {
        let line = if index == 0 { line } else { format!("  {line}") };
        line_to(&mut table, &paint.title(line));
    }
    for step in &report.steps {
        let took = match step.took {
            Duration::ZERO => String::new(),
            took => format!("{:.1} ms", took.as_secs_f64() * 1000.0),
        };
        let demanded = if step.needed { ' ' } else { '?' };
        let word = paint.word(&step.outcome, format!("{:<11}", step.outcome.word()));
        let head = format!("  {:<8}{demanded} {word} {took:>10}  ", step.name);
        rows(&mut table, &head, step.outcome.detail());
        if let (Some(certificate), "TLS") = (&report.certificate, step.name) {
            let days = certificate.days_left;
            for (name, value) in [
                ("issuer", certificate.issuer.clone()),
                ("expires", format!("{} ({days} days)", certificate.expires)),
                ("names", certificate.names.join(", ")),
            ] {
                rows(&mut table, &format!("  {:23}{name:>9}  ", ""), &value);
            }
            line_to(&mut table, &format!("    {}", certificate.pin));
        }
    }
    if report.steps.iter().any(|step| !step.needed) {
        line_to(&mut table, "  ? = whether it would pass; not demanded by the settings");
    }
    for advice in &report.advice {
        for (index, line) in wrapped(&advice.text, COLUMNS - 4).into_iter().enumerate() {
            line_to(&mut table, &format!("  {} {line}", if index == 0 { ">" } else { " " }));
        }
        for setting in &advice.settings {
            line_to(&mut table, &format!("    {setting}"));
        }
    }
    table
}

/// A row whose text is wrapped below itself. `head` is as wide as [`HEAD`] columns.
fn rows(table: &mut String, head: &str, text: &str) {
    const HEAD: usize = 36;
    let mut head = Some(head);
    for line in wrapped(text, COLUMNS - HEAD) {
        if line.chars().count() <= COLUMNS - HEAD {
            line_to(table, &format!("{:HEAD$}{line}", head.take().unwrap_or_default()));
        } else {
            // One long word, as a host or a pin is: it has more room further to the left.
            if let Some(head) = head.take() {
                line_to(table, head);
            }
            line_to(table, &format!("    {line}"));
        }
    }
}

fn line_to(table: &mut String, line: &str) {
    writeln!(table, "{}", line.trim_end()).expect("a String takes everything");
}

/// Breaks text at spaces. A word may be a value that is copied: one that is longer than `width` stays whole.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is a line");
        let used = line.chars().count();
        if used == 0 {
            line.push_str(word);
        } else if used + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

fn as_json(report: &Report) -> Value {
    let steps: serde_json::Map<String, Value> = report
        .steps
        .iter()
        .map(|step| {
            let state = match &step.outcome {
                Outcome::Skipped(_) => "skipped",
                other => other.word(),
            };
            let mut value = json!({ "state": state, "ms": step.took.as_secs_f64() * 1000.0 });
            if !step.outcome.detail().is_empty() {
                value["detail"] = Value::from(step.outcome.detail());
            }
            (step.name.to_lowercase(), value)
        })
        .collect();
    json!({
        "var": report.variables.join(" "),
        "upstream": report.upstream,
        "verify": report.verify.word(),
        "works": report.works(),
        "steps": steps,
        "certificate": report.certificate.as_ref().map(|certificate| json!({
            "subject": certificate.subject,
            "issuer": certificate.issuer,
            "valid_from": certificate.valid_from,
            "expires": certificate.expires,
            "days_left": certificate.days_left,
            "names": certificate.names,
            "pin": certificate.pin.to_string(),
        })),
        "mode": report.mode.map(Mode::word),
        "advice": report.advice.iter().map(Advice::in_one_line).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_wrapped_within_its_width() {
        assert_eq!(wrapped("", 5), [""]);
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
    }

    #[test]
    fn a_word_is_never_broken_however_long() {
        assert_eq!(wrapped("a abcdefghij b", 4), ["a", "abcdefghij", "b"]);
        let (head, word) = (format!("{:36}", "  AUTH"), "x".repeat(COLUMNS));
        let mut table = String::new();
        rows(&mut table, &head, &format!("{word} is it"));
        assert_eq!(table, format!("  AUTH\n    {word}\n{:36}is it\n", ""));
        table.clear();
        rows(&mut table, &head, &format!("it is {word}"));
        assert_eq!(table, format!("{head}it is\n    {word}\n"));
    }

    #[test]
    fn a_setting_to_be_copied_has_a_line_of_its_own_in_the_table_and_is_part_of_one_string_in_json()
    {
        let setting = format!("{}_STUNNEL_PIN=sha256//{}", "X".repeat(COLUMNS), "y".repeat(44));
        let advice =
            Advice { text: "not authenticated: set".to_owned(), settings: vec![setting.clone()] };
        let one_line = advice.in_one_line();
        assert_eq!(one_line, format!("not authenticated: set {setting}"));
        let report = Report {
            variables: vec!["X".repeat(COLUMNS)],
            upstream: "h:6380".to_owned(),
            verify: Verify::None,
            steps: Vec::new(),
            certificate: None,
            advice: vec![advice],
            mode: None,
        };
        let table = as_table(&report, &Paint(false));
        assert!(table.lines().any(|line| line.trim() == setting), "{table}");
        assert_eq!(as_json(&report)["advice"], json!([one_line]));
    }

    #[test]
    fn the_mode_is_read_from_info() {
        let info =
            |mode: &str| format!("$99\r\n# Server\r\nredis_version:7\r\nredis_mode:{mode}\r\nos:x");
        for mode in Mode::ALL {
            assert_eq!(Mode::of(&info(mode.word())), Some(mode));
        }
        assert_eq!(Mode::of(&info("other")), None);
        assert_eq!(Mode::of("-NOPERM no"), None);
    }

    #[test]
    fn what_redis_says_is_told_apart() {
        let reply = |line: &str| Ok(line.to_owned());
        assert_eq!(judge_auth(&reply("+OK"), None), Outcome::Ok(String::new()));
        assert!(judge_auth(&reply("-WRONGPASS invalid username-password pair"), None).is_failed());
        let none =
            "-ERR AUTH <password> called without any password configured for the default user.";
        assert!(!judge_auth(&reply(none), None).is_failed());
        assert!(judge_auth(&Err("timed out".to_owned()), None).is_failed());
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
