//! A launcher whose state a test reads from the status page, `--status`, the metrics and the log.

use std::fs::{self, File};
use std::io::Write;

use serde_json::Value;

use super::launcher::{Launcher, Running, port_of};
use super::resp::Client;
use super::servers::PASSWORD;
use super::status::StatusPage;
use super::{eventually, rest, wait_until};

/// A script for COMMAND: prints the URL of each variable in `REDIS_STUNNEL_URLS`, then waits until
/// its standard input ends.
const HOLD_ALL: &str = "for name in $REDIS_STUNNEL_URLS; do eval \"echo \\$$name\"; done
                        exec cat >/dev/null";

/// A launcher that serves a status page, and logs metrics each second.
pub struct Scene {
    pub running: Running,
    pub page: StatusPage,
    /// The variables of the URLs, each with the local port of its tunnel.
    pub ports: Vec<(String, u16)>,
    /// The file to which the launcher logs.
    pub log: tempfile::NamedTempFile,
}

impl Scene {
    /// Starts a launcher with a tunnel for each URL. `set` adds settings.
    pub fn new(urls: &[(&str, String)], set: impl FnOnce(Launcher) -> Launcher) -> Scene {
        let log = tempfile::NamedTempFile::new().unwrap();
        let names: Vec<&str> = urls.iter().map(|(name, _)| *name).collect();
        let mut launcher = Launcher::script(HOLD_ALL)
            .env("REDIS_STUNNEL_URLS", names.join(" "))
            .env("STUNNEL_STATUS_ADDRESS", "0")
            .env("STUNNEL_METRICS_INTERVAL", "1s");
        for (name, url) in urls {
            launcher = launcher.env(name, url);
        }
        launcher.command.stderr(File::create(log.path()).unwrap());
        let mut running = set(launcher).start();
        let names = names.into_iter().map(str::to_owned);
        let ports: Vec<_> = names.map(|name| (name, port_of(&running.line()))).collect();
        let taken: Vec<u16> = ports.iter().map(|(_, port)| *port).collect();
        let page = StatusPage::of(running.pid(), &taken);
        Scene { running, page, ports, log }
    }

    /// Starts a launcher with one tunnel, for `REDIS_URL`.
    pub fn of(url: &str) -> Scene {
        Scene::new(&[("REDIS_URL", url.to_owned())], |launcher| launcher)
    }

    /// Waits until the launcher has opened all descriptors that the launcher keeps open.
    pub fn has_opened_all_descriptors(&self) {
        assert_eq!(self.page.get("/healthz").code, 200);
        wait_until("--status finds the launcher", || {
            self.is_ours(&one_line(&Launcher::new(["--status"]).run().stdout))
        });
    }

    pub fn port(&self, variable: &str) -> u16 {
        self.ports.iter().find(|(name, _)| name == variable).expect("a tunnel").1
    }

    pub fn client(&self) -> Client {
        Client::connect(self.ports[0].1, PASSWORD)
    }

    /// Sends a request through a tunnel. Returns all bytes that the app reads until the close.
    pub fn exchange(&self, variable: &str) -> Vec<u8> {
        let mut app = Client::open(self.port(variable)).stream.into_inner();
        // Writing fails if the launcher has already closed the connection.
        let _ = app.write_all(b"PING\r\n");
        rest(&mut app).0
    }

    /// The value of the metric `start_stunnel_NAME` of the tunnel for `REDIS_URL`.
    pub fn metric(&self, name: &str) -> Option<f64> {
        self.page.of_tunnel(name, "")
    }

    /// Like [`Scene::metric`], for the sample whose label `label` has the value `word`.
    pub fn count(&self, name: &str, label: &str, word: &str) -> f64 {
        self.page.of_tunnel(name, &format!(",{label}=\"{word}\"")).expect("a sample")
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.page.get("/status.json").body).expect("JSON")
    }

    /// The text of `--status` about a tunnel, without line breaks, and the exit code of `--status`.
    /// The exit code also depends on other launchers of this user.
    pub fn status(&self, variable: &str) -> (String, i32) {
        let ended = Launcher::new(["--status"]).run();
        let of_us = ended.stdout.split("\n\n").map(one_line).find(|said| self.is_ours(said));
        let of_us = of_us
            .unwrap_or_else(|| panic!("--status does not show this launcher: {}", ended.stdout));
        let begin = of_us.find(&format!("{variable} → ")).expect("a block");
        let end = of_us[begin..].find(" Moved ").expect("the last row of the tunnel");
        (of_us[begin..begin + end].to_owned(), ended.code())
    }

    /// True if `said`, a text of `--status` without line breaks, is about this launcher.
    fn is_ours(&self, said: &str) -> bool {
        said.contains(&format!(" pid {} · sandbox ", self.running.pid()))
    }

    /// Checks that the metrics, the page, `--status` and the log show one failure of a tunnel, with
    /// this reason.
    pub fn failed_once(&self, variable: &str, reason: &str) {
        let sample = format!(
            "start_stunnel_connections_failed_total{{tunnel=\"{variable}\",reason=\"{reason}\"}}"
        );
        eventually(&format!("{variable} fails"), || {
            (self.page.metric(&sample)? == 1.0).then_some(())
        });
        let page = self.page.get("/").body;
        assert!(page.contains(&format!(" · {reason} 1")) && !page.contains(PASSWORD), "{page}");
        let (text, code) = self.status(variable);
        assert!(text.contains(&format!(" · {reason} 1 ")), "{text}");
        // A tunnel whose connections are all in use works.
        let is_full = reason == "queue_timeout";
        let state = if is_full { " WORKING, SEE BELOW " } else { " FAILING since " };
        assert!(text.contains(state) && code == 1, "{code} {text}");
        let source = format!(" source={variable} ");
        let failed = format!("count#redis-tunnel.failed.{}=1", reason.replace('_', "-"));
        wait_until(&format!("{variable} has a metrics line with {failed}"), || {
            let log = fs::read_to_string(self.log.path()).unwrap();
            let has_failed =
                |line: &str| line.contains(&source) && line.split(' ').any(|pair| pair == failed);
            log.lines().any(has_failed)
        });
    }
}

/// Text without its line breaks.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
