//! Tests the status page in a real browser, and the metrics in a real Prometheus.
//!
//! `WRITE_DOCS=1 cargo test --test page` also replaces the manual's screenshots.

mod support;

use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::figures::Scene;
use support::launcher::Outcome;
use support::pki::{Authority, Request};
use support::resp::{Client, Reply};
use support::servers::{Front, PASSWORD, Server, connections};
use support::status::StatusPage;
use support::{Process, eventually, eventually_within, two_free_ports, wait_until};

/// A host name in a certificate. If the page did not escape this name, the name would change the
/// page's title.
const HOSTILE: &str = "</dd><script>document.title='owned'</script><img src=x onerror=x>";

/// Red, green and blue.
type Colour = [u8; 3];

/// The size of a browser window, and colours that the status page must show in this window.
#[derive(Debug)]
struct View {
    name: &'static str,
    width: u32,
    height: u32,
    dark: bool,
    background: Colour,
    good: Colour,
    bad: Colour,
}

/// The manual has a screenshot of each view.
const VIEWS: [View; 2] = [
    View {
        name: "wide-light",
        width: 1100,
        height: 960,
        dark: false,
        background: [0xff, 0xff, 0xff],
        good: [0x1a, 0x7f, 0x37],
        bad: [0xcf, 0x22, 0x2e],
    },
    View {
        name: "narrow-dark",
        width: 360,
        height: 1150,
        dark: true,
        background: [0x0d, 0x11, 0x17],
        good: [0x3f, 0xb9, 0x50],
        bad: [0xf8, 0x51, 0x49],
    },
];

/// The browser's time limit. The browser usually needs a few seconds.
const BROWSER: Duration = Duration::from_secs(300);

/// Runs Chromium with a profile in `folder`, and returns its standard output.
fn chromium(folder: &Path, words: &[String]) -> String {
    fs::create_dir(folder).unwrap();
    let [said, errors] = ["said", "errors"].map(|name| folder.join(name));
    let child = Command::new("chromium")
        // Chromium's sandbox does not work for root. The page is harmless.
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        .args(["--hide-scrollbars", "--no-first-run", "--disable-background-networking"])
        .arg(format!("--user-data-dir={}", folder.join("profile").display()))
        .args(words)
        .stdin(Stdio::null())
        .stdout(File::create(&said).unwrap())
        .stderr(File::create(&errors).unwrap())
        .spawn();
    let mut browser = Process(child.expect("chromium (see bin/setup test)"));
    let status =
        eventually_within(BROWSER, "the browser has ended", || browser.0.try_wait().expect("wait"));
    assert!(status.success(), "{}", fs::read_to_string(errors).unwrap());
    fs::read_to_string(said).expect("text")
}

/// The rows of pixels in a screenshot.
fn pixels(file: &Path) -> Vec<Vec<Colour>> {
    let decoder = png::Decoder::new(BufReader::new(File::open(file).unwrap()));
    let mut reader = decoder.read_info().unwrap();
    let mut bytes = vec![0; reader.output_buffer_size().expect("a small picture")];
    let info = reader.next_frame(&mut bytes).unwrap();
    let each = info.color_type.samples();
    assert!(each >= 3 && info.bit_depth == png::BitDepth::Eight, "{info:?}");
    let rows = bytes[..info.buffer_size()].chunks(info.line_size);
    rows.map(|row| row.chunks(each).map(|p| [p[0], p[1], p[2]]).collect()).collect()
}

fn check(view: &View, file: &Path) {
    let rows = pixels(file);
    assert_eq!((rows[0].len(), rows.len()), (view.width as usize, view.height as usize));
    assert_eq!(rows[2][2], view.background, "{view:?}");
    for colour in [view.good, view.bad] {
        let count = rows.iter().flatten().filter(|pixel| **pixel == colour).count();
        assert!(count > 300, "{colour:?}: {count} pixels in {view:?}");
    }
    // The right margin is empty, so no content is cut off. (Chromium does not draw the last rows.)
    for row in &rows[..rows.len() - 50] {
        assert_eq!(row[row.len() - 3], view.background, "{view:?}: content beyond the margin");
    }
}

/// A launcher with three tunnels. The first tunnel fails because Redis is at its client limit, the
/// second tunnel works, and the third tunnel fails because the server's certificate has another
/// name. The states stay the same until the servers or the clients are dropped.
fn three_tunnels(folder: &Path) -> (Scene, [Server; 3], Vec<Client>) {
    let authority = Authority::new(folder);
    let request = Request { ip: &[], valid: (-1, 395), ..Request::default() };
    let [usual, hostile] = [("usual", "redis.example.com"), ("hostile", HOSTILE)]
        .map(|(file, name)| authority.issue(folder, file, &Request { dns: &[name], ..request }));
    let servers = [&usual, &usual, &hostile].map(Server::with_certificate);
    let variables = ["REDIS_URL", "CACHE_URL", "HOSTILE_URL"];
    let urls = [0, 1, 2].map(|index| (variables[index], servers[index].url()));
    let scene = Scene::new(&urls, |launcher| {
        launcher
            .env("HOSTILE_URL_STUNNEL_VERIFY", "full")
            .env("HOSTILE_URL_STUNNEL_CA_PEM", authority.root.pem())
    });

    let mut clients: Vec<Client> = (0..5).map(|_| scene.client()).collect();
    let mut direct = servers[0].direct();
    wait_until("Redis has no other connections", || connections(&mut direct) == 5);
    assert_eq!(direct.ask(&["CONFIG", "SET", "maxclients", "6"]), Reply::line("+OK"));
    for variable in ["REDIS_URL", "REDIS_URL", "HOSTILE_URL"] {
        scene.exchange(variable);
    }
    clients.extend((0..3).map(|_| Client::connect(scene.port("CACHE_URL"), PASSWORD)));
    clients.push(direct);
    let status = scene.json();
    let states = [0, 1, 2].map(|index| status["tunnels"][index]["state"].clone());
    assert_eq!(states, ["failing", "working", "failing"], "{status}");
    (scene, servers, clients)
}

#[test]
fn a_browser_shows_the_status_page_in_wide_and_narrow_windows() {
    // Chromium may be missing, because bin/setup cannot install Chromium on Ubuntu.
    if Command::new("chromium").arg("--version").output().is_err() {
        return support::skip("the status page in a browser: there is no chromium");
    }
    let folder = tempfile::tempdir().unwrap();
    let (scene, _servers, _clients) = three_tunnels(folder.path());
    let url = scene.page.url();
    for view in &VIEWS {
        let picture = folder.path().join(format!("status-{}.png", view.name));
        let words = [
            format!("--window-size={},{}", view.width, view.height),
            format!("--blink-settings=preferredColorScheme={}", u8::from(!view.dark)),
            format!("--screenshot={}", picture.display()),
            url.clone(),
        ];
        chromium(&folder.path().join(view.name), &words);
        check(view, &picture);
        if std::env::var_os("WRITE_DOCS").is_some() {
            let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
            fs::copy(&picture, docs.join(picture.file_name().unwrap())).unwrap();
        }
    }
    // `dom` is the page's HTML after the browser has parsed the page.
    let dom = chromium(&folder.path().join("dom"), &["--dump-dom".to_owned(), url]);
    assert!(dom.contains("<title>FAILING · start-stunnel</title>"), "{dom}");
    assert!(!dom.contains("<script") && !dom.contains("<img"), "{dom}");
    assert!(dom.contains("is for &lt;/dd&gt;&lt;script&gt;document.title='owned'"), "{dom}");
    assert_eq!(dom.matches("<svg class=\"held\"").count(), 3, "{dom}");
    assert_eq!(dom.matches("<svg class=\"failed\"").count(), 2, "{dom}");
}

/// The first value in Prometheus's answer to a query (PromQL).
fn query(prometheus: StatusPage, query: &str) -> Option<f64> {
    let escaped: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
    // With HTTP/1.0, Prometheus does not send the answer in chunks, which `ask` cannot read.
    let answer = prometheus.ask(&format!("GET /api/v1/query?query={escaped} HTTP/1.0\r\n\r\n"))?;
    let answer: Value = serde_json::from_str(&answer.body).ok()?;
    assert!(answer["status"] == "success", "{query}: {answer}");
    answer["data"]["result"][0]["value"][1].as_str()?.parse().ok()
}

/// Starts a program whose input and output are /dev/null.
fn silent(command: &mut Command) -> Process {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Process(command.spawn().expect("the program is installed (see bin/setup test)"))
}

#[test]
fn prometheus_scrapes_a_launcher_under_load() {
    let server = Server::start(Front::Redis);
    let scene = Scene::of(&server.url());
    let folder = tempfile::tempdir().unwrap();

    let port = scene.port("REDIS_URL").to_string();
    let words = ["-p", &port, "-a", PASSWORD, "-c", "20", "-l", "-q", "-t", "set,get"];
    let _load = silent(Command::new("redis-benchmark").args(words).args(["-n", "20000"]));

    let configuration = folder.path().join("prometheus.yml");
    let text = format!(
        "global: {{ scrape_interval: 2s, scrape_timeout: 2s }}\n\
         scrape_configs:\n\
         - job_name: app\n  \
           static_configs: [{{ targets: ['127.0.0.1:{}'] }}]\n",
        scene.page.port
    );
    fs::write(&configuration, text).unwrap();
    let port = two_free_ports();
    let _prometheus = silent(Command::new("prometheus").args([
        format!("--config.file={}", configuration.display()),
        format!("--storage.tsdb.path={}", folder.path().join("data").display()),
        format!("--web.listen-address=127.0.0.1:{port}"),
        "--log.level=error".to_owned(),
    ]));
    for (what, least) in [
        ("up{job='app'}", 1.0),
        ("start_stunnel_build_info", 1.0),
        ("start_stunnel_connections_open{tunnel='REDIS_URL'}", 20.0),
        ("start_stunnel_upstream_connections{state='relaying'}", 20.0),
        ("increase(start_stunnel_sent_bytes_total[1m])", 1e5),
        ("increase(start_stunnel_received_bytes_total[1m])", 1e4),
        ("start_stunnel_connections_failed_total{reason='tls_eof'} + 1", 1.0),
        ("histogram_quantile(0.95, start_stunnel_connection_wait_seconds_bucket)", 1e-5),
        ("histogram_quantile(0.95, start_stunnel_reply_wait_seconds_bucket)", 1e-5),
        ("start_stunnel_server_certificate_expiry_timestamp_seconds - time()", 3600.0),
        ("process_resident_memory_bytes{job='app'}", 1e6),
        ("scrape_samples_scraped{job='app'}", 100.0),
    ] {
        let prometheus = StatusPage { port };
        eventually(what, || query(prometheus, what).filter(|value| *value >= least));
    }

    assert!(
        scene.page.get_as("/metrics", "application/openmetrics-text").body.ends_with("# EOF\n")
    );
    // curl and other programs that do not ask for OpenMetrics send this Accept header.
    let metrics = scene.page.get_as("/metrics", "*/*").body;
    fs::write(folder.path().join("metrics"), metrics).unwrap();
    let mut promtool = Command::new("sh");
    promtool.args(["-c", "promtool check metrics <metrics"]).current_dir(folder.path());
    assert_eq!(Outcome::of(&mut promtool).ok(), "");
}

/// The YAML examples in the manual's section about Prometheus.
fn examples() -> Vec<String> {
    let manual = include_str!("../docs/operation.md");
    let (_, section) = manual.split_once("\n### Prometheus\n").expect("the section");
    let section = section.split("\n### ").next().unwrap_or(section);
    let blocks = section.split("```yaml\n").skip(1);
    blocks.map(|block| block.split("```").next().unwrap_or(block).to_owned()).collect()
}

/// Tests of the manual's alerts, for `promtool test rules`.
const ALERT_TESTS: &str = r#"
rule_files: [alerts.yml]
evaluation_interval: 1m
tests:
- interval: 1m
  input_series:
  - series: start_stunnel_tunnel_failing{tunnel="REDIS_URL", instance="app-1"}
    values: 0 0 1 1 1 1 0 0 0 0 0
  - {series: 'up{job="start-stunnel", instance="app-2"}', values: 1 0x9}
  - series: start_stunnel_connections_waiting{tunnel="REDIS_URL", instance="app-1"}
    values: 0 0 0 0 0 3 1 2 1 0 0
  - series: start_stunnel_received_bytes_total{tunnel="REDIS_URL", instance="app-1"}
    values: 0 0 0 0 0 0 0 0 0 0 0
  alert_rule_test:
  - {eval_time: 1m, alertname: RedisTunnelFailing}
  - eval_time: 5m
    alertname: RedisTunnelLauncherDown
    exp_alerts: [{exp_labels: {job: start-stunnel, instance: app-2}, exp_annotations: {
      summary: Prometheus cannot reach the launcher on app-2}}]
  - eval_time: 5m
    alertname: RedisTunnelFailing
    exp_alerts:
    - exp_labels: {tunnel: REDIS_URL, instance: app-1}
      exp_annotations: {summary: REDIS_URL on app-1 cannot reach Redis}
  - {eval_time: 10m, alertname: RedisTunnelFailing}
  - {eval_time: 4m, alertname: RedisTunnelQueueing}
  - eval_time: 8m
    alertname: RedisTunnelQueueing
    exp_alerts:
    - exp_labels: {tunnel: REDIS_URL, instance: app-1}
      exp_annotations: {summary: App connections on app-1 wait for REDIS_URL}
  - {eval_time: 10m, alertname: RedisTunnelSilent}
- interval: 1m
  input_series:
  - series: start_stunnel_received_bytes_total{tunnel="REDIS_URL", instance="app-1"}
    values: 0+10x30 300+0x40
  alert_rule_test:
  - {eval_time: 40m, alertname: RedisTunnelSilent}
  - eval_time: 65m
    alertname: RedisTunnelSilent
    exp_alerts:
    - exp_labels: {tunnel: REDIS_URL, instance: app-1}
      exp_annotations: {summary: REDIS_URL on app-1 has received nothing for 30 min}
"#;

#[test]
fn promtool_accepts_the_manuals_prometheus_examples() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let [scrape, alerts] = &examples()[..] else { panic!("two examples") };
    for (name, text) in
        [("prometheus.yml", scrape.as_str()), ("alerts.yml", alerts), ("tests.yml", ALERT_TESTS)]
    {
        fs::write(path(name), text).unwrap();
    }
    let promtool = |words: [&str; 3]| Outcome::of(Command::new("promtool").args(words)).ok();
    promtool(["check", "config", &path("prometheus.yml")]);
    let said = promtool(["check", "rules", &path("alerts.yml")]);
    assert!(said.contains("4 rules found"), "{said}");
    promtool(["test", "rules", &path("tests.yml")]);
}
