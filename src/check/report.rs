//! What was found out about a tunnel.

use std::time::Duration;

use crate::tls::{Certificate, Verify};

/// The steps of an examination: the rows of its table, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckStep {
    LookUp,
    Tcp,
    Tls,
    Pin,
    /// Whether the server passes under `--verify ca`.
    Ca,
    /// Whether it passes under `--verify full`.
    Full,
    Auth,
    Ping,
    /// Whether Redis has the databases of the URLs; for others than 0 only.
    Select,
}

impl CheckStep {
    pub const ALL: [CheckStep; 9] = {
        use CheckStep::{Auth, Ca, Full, LookUp, Pin, Ping, Select, Tcp, Tls};
        [LookUp, Tcp, Tls, Pin, Ca, Full, Auth, Ping, Select]
    };

    /// As the table has it; JSON has it in lower case.
    pub fn name(self) -> &'static str {
        match self {
            CheckStep::LookUp => "look-up",
            CheckStep::Tcp => "TCP",
            CheckStep::Tls => "TLS",
            CheckStep::Pin => "pin",
            CheckStep::Ca => "ca",
            CheckStep::Full => "full",
            CheckStep::Auth => "AUTH",
            CheckStep::Ping => "PING",
            CheckStep::Select => "SELECT",
        }
    }
}

/// What became of one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Ok(String),
    Failed(String),
    /// Something before it failed.
    NotReached,
    /// There is nothing to do.
    Skipped(String),
}

impl Outcome {
    pub fn failed(reason: impl ToString) -> Outcome {
        Outcome::Failed(reason.to_string())
    }

    pub fn word(&self) -> &'static str {
        match self {
            Outcome::Ok(_) => "ok",
            Outcome::Failed(_) => "failed",
            Outcome::NotReached => "not reached",
            Outcome::Skipped(_) => "-",
        }
    }

    pub fn detail(&self) -> &str {
        match self {
            Outcome::Ok(text) | Outcome::Failed(text) | Outcome::Skipped(text) => text,
            Outcome::NotReached => "",
        }
    }

    pub fn is_failed(&self) -> bool {
        matches!(self, Outcome::Failed(_))
    }
}

/// One step of an examination.
#[derive(Debug, Clone)]
pub struct StepReport {
    pub step: CheckStep,
    pub outcome: Outcome,
    pub took: Duration,
    /// Whether the tunnel needs it under its settings.
    pub needed: bool,
}

/// All that was found out about one tunnel.
#[derive(Debug)]
pub struct Report {
    pub variables: Vec<String>,
    pub upstream: String,
    pub verify: Verify,
    pub steps: Vec<StepReport>,
    pub certificate: Option<Certificate>,
    pub advice: Vec<Advice>,
    pub told: Told,
    /// Whether a URL names a database that has to be asked for.
    pub selects: bool,
}

/// What Redis tells of itself: nothing, if the check stopped earlier, or to a user who may not ask.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Told {
    pub mode: Option<Mode>,
    pub clients: Option<Clients>,
}

/// How many connections a server has, and may have: `connected_clients` and `maxclients` of
/// <https://redis.io/docs/latest/commands/info/>.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clients {
    /// The one that asks included.
    pub connected: u64,
    pub most: u64,
}

impl Clients {
    /// From the reply to INFO.
    pub fn of(info: &str) -> Option<Clients> {
        let number = |name: &str| {
            let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            value.parse().ok()
        };
        Some(Clients { connected: number("connected_clients")?, most: number("maxclients")? })
    }
}

/// What the user should do.
#[derive(Debug)]
pub struct Advice {
    /// Prose, which is wrapped.
    pub text: String,
    /// `NAME=VALUE` each, for copying: each has a line of its own, which is never broken.
    pub settings: Vec<String>,
}

impl From<String> for Advice {
    fn from(text: String) -> Advice {
        Advice { text, settings: Vec::new() }
    }
}

impl Advice {
    /// On one line, for programs.
    pub fn in_one_line(&self) -> String {
        let settings = self.settings.iter().map(String::as_str);
        std::iter::once(self.text.as_str()).chain(settings).collect::<Vec<_>>().join(" ")
    }
}

/// How a Redis runs, as it says itself: `redis_mode` of
/// <https://redis.io/docs/latest/commands/info/>.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Standalone,
    Cluster,
    Sentinel,
}

impl Mode {
    const ALL: [Mode; 3] = [Mode::Standalone, Mode::Cluster, Mode::Sentinel];

    pub fn word(self) -> &'static str {
        match self {
            Mode::Standalone => "standalone",
            Mode::Cluster => "cluster",
            Mode::Sentinel => "sentinel",
        }
    }

    /// From the reply to INFO.
    pub fn of(info: &str) -> Option<Mode> {
        let word = info.lines().find_map(|line| line.strip_prefix("redis_mode:"))?;
        Mode::ALL.into_iter().find(|mode| mode.word() == word)
    }

    /// What the user has to know: both hand out addresses, to which clients connect past the
    /// tunnel.
    pub fn advice(self) -> Option<&'static str> {
        match self {
            Mode::Standalone => None,
            Mode::Cluster => Some(
                "a node of a Redis Cluster: it answers MOVED for keys of other nodes, and a \
                 cluster client connects to these past the tunnel, without TLS. Keys of this node \
                 work. Use a client that does its own TLS (STUNNEL_REDISS=passthrough), a proxy in \
                 front of the cluster, or a Redis with cluster mode disabled",
            ),
            Mode::Sentinel => Some(
                "a Redis Sentinel: it names the master's address, to which a client connects past \
                 the tunnel, without TLS. Give the master's own host name in the URL (it is looked \
                 up anew for each connection), or use a client that does its own TLS",
            ),
        }
    }
}

impl Report {
    pub fn works(&self) -> bool {
        self.steps.iter().all(|step| {
            !step.needed || matches!(step.outcome, Outcome::Ok(_) | Outcome::Skipped(_))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_clients_is_read_from_info() {
        let info =
            "# Clients\r\nconnected_clients:12\r\ncluster_connections:0\r\nmaxclients:20\r\n";
        assert_eq!(Clients::of(info), Some(Clients { connected: 12, most: 20 }));
        assert_eq!(Clients::of("connected_clients:12\r\n"), None, "Redis before 6.2");
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
}
