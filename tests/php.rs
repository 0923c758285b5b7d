//! Tests PHP-FPM behind nginx, and Apache with mod_php and CGI. The web servers are set up as in
//! `docs/php.md`.

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::libc;
use support::launcher::{BINARY, Launcher, Running};
use support::servers::{Front, PASSWORD, Server};
use support::snippets::{snippet, with_ours};
use support::{Process, eventually, http_get, two_free_ports, write_executable};

/// Prints where PHP finds `REDIS_URL`, and sends PING to Redis.
const PAGE: &str = r#"<?php
$url = getenv('REDIS_URL');
echo $url ? 'getenv ' : '';
echo isset($_SERVER['REDIS_URL']) ? 'server ' : '';
echo isset($_ENV['REDIS_URL']) ? 'env ' : '';
if ($url) {
    $parts = parse_url($url);
    $redis = new Redis();
    $redis->connect($parts['host'], $parts['port']);
    $redis->auth($parts['pass']);
    echo $redis->ping() ? 'PONG' : 'no answer';
}
"#;

/// A web site whose files every user can read.
struct Site {
    folder: tempfile::TempDir,
    port: u16,
    redis: Server,
}

impl Site {
    fn new() -> Site {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let site = Site { folder, port: two_free_ports(), redis: Server::start(Front::Redis) };
        site.write("index.php", PAGE);
        site
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let file = self.folder.path().join(name);
        write_executable(&file, text);
        file
    }

    /// Runs a command line of the manual with the tested launcher.
    fn run(&self, line: &str) -> Running {
        let line = line.trim().replacen("start-stunnel ", &format!("{BINARY} "), 1);
        let launcher = Launcher::of("sh", ["-c", &format!("exec {line}")]);
        let path = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";
        let url = format!("rediss://default:{PASSWORD}@127.0.0.1:{}/3", self.redis.tls_port());
        launcher.redis(&url).env("PATH", path).start()
    }

    /// Waits for the web server, and returns the body of a page.
    fn get(&self, path: &str) -> String {
        eventually("the web server answers", || http_get(self.port, path))
    }

    /// Starts nginx in front of PHP-FPM. nginx does not run under the launcher.
    fn nginx(&self) -> Process {
        let folder = self.folder.path().display();
        let configuration = format!(
            "daemon off; master_process off; pid {folder}/pid; error_log {folder}/error;
            events {{}}
            http {{
                access_log off;
                server {{
                    listen 127.0.0.1:{};
                    location / {{
                        include /etc/nginx/fastcgi_params;
                        fastcgi_param SCRIPT_FILENAME {folder}/index.php;
                        fastcgi_pass unix:{folder}/fpm;
                    }}
                }}
            }}",
            self.port
        );
        let file = self.write("nginx.conf", &configuration);
        let mut nginx = Command::new("/usr/sbin/nginx");
        nginx.arg("-e").arg(self.folder.path().join("error")).arg("-c").arg(file);
        let nginx = nginx.stdin(Stdio::null()).stderr(Stdio::null()).spawn();
        Process(nginx.expect("nginx (see bin/setup test)"))
    }

    /// The output of the PHP page if the configuration of PHP-FPM's pool contains `line`.
    fn php_fpm(&self, line: &str) -> String {
        let folder = self.folder.path().display();
        let configuration = format!(
            "[global]\ndaemonize = no\nerror_log = {folder}/fpm.log\n\
             [www]\nuser = nobody\ngroup = nogroup\nlisten = {folder}/fpm\nlisten.mode = 0666\n\
             pm = static\npm.max_children = 2\n{line}\n"
        );
        let file = self.write("fpm.conf", &configuration);
        let program = program("/usr/sbin", "php-fpm");
        let command = snippet("php-fpm-command");
        let ours = format!("{} --nodaemonize --fpm-config {}", program.display(), file.display());
        let running = self.run(&with_ours(&command, &[("php-fpm8.2 --nodaemonize", &ours)]));
        let nginx = self.nginx();
        let seen = self.get("/");
        drop(nginx);
        running.signal(libc::SIGQUIT);
        let ended = running.finish();
        assert_eq!(ended.code(), 0, "{}", ended.stderr);
        seen
    }
}

/// The file in this folder whose name begins with `name`. The rest of the file's name is PHP's
/// version, which differs between distributions.
fn program(folder: &str, name: &str) -> PathBuf {
    let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    let is_it = |path: &PathBuf| {
        path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name))
    };
    entries.into_iter().find(is_it).unwrap_or_else(|| panic!("{name}: see bin/setup clients"))
}

#[test]
fn php_fpm_sees_the_url_with_env_line_or_with_clear_env_off() {
    assert_eq!(Site::new().php_fpm(""), "", "clear_env is on by default");
    for marker in ["php-fpm-env", "php-fpm-clear-env"] {
        assert_eq!(Site::new().php_fpm(&snippet(marker)), "getenv server PONG", "{marker}");
    }
}

#[test]
fn apache_sees_the_url_with_pass_env() {
    let with_mod_php = |line: &str| {
        let site = Site::new();
        let folder = site.folder.path().display();
        fs::create_dir(site.folder.path().join("cgi")).unwrap();
        site.write(
            "cgi/url",
            "#!/bin/sh\nprintf 'Content-Type: text/plain\n\n%s' \"${REDIS_URL+set}\"\n",
        );
        let php = program("/usr/lib/apache2/modules", "libphp");
        let module =
            |name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n");
        let modules = ["mpm_prefork", "env", "cgi", "mime", "authz_core", "alias"];
        let modules = modules.map(module).concat();
        let file = site.write(
            "apache.conf",
            &format!(
                "ServerName localhost\nListen 127.0.0.1:{}\nUser nobody\nGroup nogroup\n\
             PidFile {folder}/pid\nErrorLog {folder}/error\nDefaultRuntimeDir {folder}\n\
             {modules}LoadModule php_module {}\nTypesConfig /dev/null\n\
             AddType application/x-httpd-php .php\nDocumentRoot {folder}\n\
             ScriptAlias /cgi/ {folder}/cgi/\n{line}\n",
                site.port,
                php.display()
            ),
        );
        let running = site.run(&with_ours(
            &snippet("apache-command"),
            &[
                ("/etc/apache2/envvars", "/dev/null"),
                ("-D FOREGROUND", &format!("-D FOREGROUND -f {}", file.display())),
            ],
        ));
        let seen = (site.get("/index.php"), site.get("/cgi/url"));
        running.signal(libc::SIGTERM);
        let ended = running.finish();
        assert_eq!(ended.code(), 0, "{}", ended.stderr);
        seen
    };
    assert_eq!(with_mod_php(""), ("getenv PONG".to_owned(), String::new()));
    let passed = with_mod_php(&snippet("apache"));
    assert_eq!(passed, ("getenv server PONG".to_owned(), "set".to_owned()));
}
