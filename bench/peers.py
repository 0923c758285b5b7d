"""Redis, and the contenders: start-stunnel, its peers, and connections without a proxy.

To add a peer, write a function `start_…`, and add a line to PEERS.
"""

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from client import Client
from system import (
    Processes,
    accepts_connections,
    children_of,
    cpu_seconds,
    fail,
    first_line,
    free_port,
    has_ended,
    listens,
    make_certificate,
    name_of,
    resident_bytes,
    wait_until,
)

# The names that the tables use for the launcher with its defaults, with the pool off, and with the
# pool on.
OURS = "start-stunnel"
OFF, ON = f"{OURS}, off", f"{OURS}, on"
# The launcher's pool mode for each name. For OURS, STUNNEL_POOL stays unset, because auto is the
# default.
POOL_MODES = {OURS: "auto", OFF: "off", ON: "on"}
# The table's name for the older launcher that --before names. STUNNEL_POOL stays unset for this
# launcher, because it may be too old to know the variable.
BEFORE = "before"
# The names of the two contenders without a proxy: here, the client connects to Redis directly.
TLS_DIRECTLY = "TLS directly"
PLAINTEXT = "plaintext"
# The names for nginx with its default TLS versions, and for nginx with TLS 1.3 only.
NGINX, NGINX_TLS13 = "nginx", "nginx TLS 1.3"
# The number of open files that a process may need. A proxy has two open files for each of 5,000
# connections.
DESCRIPTORS = 15_000
# The Redis user and password of the loads that log in.
USER, PASSWORD = "app", "benchmark"
# The number of seconds after which the workers of a listening proxy are certainly ready.
START_PAUSE = 0.5
# The COMMAND that start-stunnel runs, which does nothing. The figures do not include COMMAND's CPU
# time and memory.
COMMAND = ("sleep", "infinity")


@dataclass
class Contender:
    """A way to Redis: through a proxy, through several instances of a proxy, or without a proxy."""

    name: str
    redis: "Redis"
    ports: tuple[int, ...]
    address: str = "127.0.0.1"
    # The pids of the main processes of all instances. Empty if there is no proxy.
    mains: tuple[int, ...] = ()
    # The options that redis-benchmark needs to connect.
    options: tuple[str, ...] = ()

    @property
    def port(self) -> int:
        """Returns the port of the first instance."""
        return self.ports[0]

    def processes(self) -> list[int]:
        """Returns all processes of the proxy, without COMMAND."""
        found: list[int] = []
        new = list(self.mains)
        while new:
            found += new
            new = [child for pid in new for child in children_of(pid)]
            new = [pid for pid in new if name_of(pid) != COMMAND[0]]
        return found

    def cpu(self) -> float:
        """Returns the user and system time of the proxy, in seconds."""
        return sum(cpu_seconds(pid) for pid in self.processes())

    def resident(self) -> int:
        """Returns the memory of the proxy that is in RAM, in bytes."""
        return sum(resident_bytes(pid) for pid in self.processes())

    def connect(self) -> Client:
        """Opens a new plaintext connection."""
        return Client(self.address, self.port)

    def runs(self) -> bool:
        """Returns whether all main processes are running."""
        return not any(has_ended(pid) for pid in self.mains)

    def listens(self) -> bool:
        """Returns whether the proxy listens on all ports, without opening a connection."""
        return all(listens(port) for port in self.ports)

    def answers(self) -> bool:
        """Returns whether Redis answers through this contender."""
        try:
            with self.connect() as client:
                return client.ping()
        except OSError:
            return False


class Redis:
    """A redis-server with a plaintext port and a TLS port."""

    def __init__(
        self,
        folder: Path,
        processes: Processes,
        address: str = "127.0.0.1",
        namespace: str | None = None,
    ) -> None:
        """Starts redis-server on `address`, in the network namespace `namespace` if given."""
        self.address, self.plain, self.tls = address, free_port(), free_port()
        certificate, key = make_certificate(folder)
        words: list[object] = ["ip", "netns", "exec", namespace] if namespace else []
        words += ["redis-server", "--port", self.plain, "--tls-port", self.tls, "--bind", address]
        words += ["--protected-mode", "no", "--save", "", "--appendonly", "no", "--dir", folder]
        words += ["--maxclients", DESCRIPTORS, "--tcp-backlog", 4096]
        words += ["--tls-cert-file", certificate, "--tls-key-file", key]
        words += ["--tls-ca-cert-file", certificate, "--tls-auth-clients", "no"]
        # Create a user with a password. The default user of Redis needs no password.
        words += ["--user", USER, "on", f">{PASSWORD}", "~*", "&*", "+@all"]
        processes.start(words)
        ports = (self.plain, self.tls)
        wait_until(
            "redis-server answers",
            lambda: all(accepts_connections(address, port) for port in ports),
        )
        # The benchmark reads Redis's CPU time over a single connection, because each new connection
        # would add to this CPU time.
        self.control = Client(address, self.plain)

    def wait_until_unused(self) -> None:
        """Waits until our control connection is Redis's only connection."""

        def is_unused() -> bool:
            return int(self.control.info("clients")["connected_clients"]) == 1

        wait_until("Redis has closed all connections", is_unused)

    def cpu(self) -> float:
        """Returns user and system time of redis-server in seconds, exact to a few microseconds."""
        info = self.control.info("cpu")
        return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])

    def without_proxy(self) -> list[Contender]:
        """Returns the contenders without a proxy."""
        insecure = ("--tls", "--insecure")
        return [
            Contender(TLS_DIRECTLY, self, (self.tls,), self.address, options=insecure),
            Contender(PLAINTEXT, self, (self.plain,), self.address),
        ]


def start_ours(processes: Processes, redis: Redis, name: str, binary: Path) -> Contender:
    """Starts start-stunnel with the STUNNEL_… variables of bin/bench, to compare settings."""
    port = free_port()
    environment = {"PATH": os.environ["PATH"]}
    environment["REDIS_URL"] = f"rediss://{redis.address}:{redis.tls}"
    environment |= {name: text for name, text in os.environ.items() if name.startswith("STUNNEL_")}
    environment |= {"STUNNEL_LISTEN_PORT": str(port), "STUNNEL_LOGLEVEL": "err"}
    if name in (OFF, ON):
        environment["STUNNEL_POOL"] = POOL_MODES[name]
    # Show the launcher's error messages, because the user's settings may be invalid.
    process = processes.start([binary, *COMMAND], env=environment, stderr=None)
    return Contender(name, redis, (port,), mains=(process.pid,))


def start_stunnel(folder: Path, processes: Processes, redis: Redis) -> Contender:
    """Starts stunnel, with the options that make small requests fast."""
    port = free_port()
    configuration = folder / "stunnel.conf"
    configuration.write_text(f"""\
foreground = yes
pid =
syslog = no
debug = 3
[redis]
client = yes
accept = 127.0.0.1:{port}
connect = {redis.address}:{redis.tls}
socket = l:TCP_NODELAY=1
socket = r:TCP_NODELAY=1
TIMEOUTidle = 86400
""")
    process = processes.start(["stunnel4", configuration])
    return Contender("stunnel", redis, (port,), mains=(process.pid,))


def start_haproxy(folder: Path, processes: Processes, redis: Redis) -> Contender:
    """Starts HAProxy in TCP mode, with two threads for two cores."""
    port = free_port()
    configuration = folder / "haproxy.cfg"
    configuration.write_text(f"""\
global
  nbthread 2
  maxconn {DESCRIPTORS // 2 - 500}
  tune.bufsize 16384
  ssl-server-verify none
defaults
  mode tcp
  timeout connect 10s
  timeout client 24h
  timeout server 24h
listen redis
  bind 127.0.0.1:{port}
  server redis {redis.address}:{redis.tls} ssl verify none
""")
    process = processes.start(["haproxy", "-db", "-f", configuration])
    return Contender("haproxy", redis, (port,), mains=(process.pid,))


def start_nginx(folder: Path, processes: Processes, redis: Redis) -> Contender:
    """Starts nginx with its stream module, with two workers for two cores.

    nginx resumes TLS 1.2 sessions with Redis, which needs no key exchange.
    """
    return _start_nginx(folder, processes, redis, NGINX, "")


def start_nginx_tls13(folder: Path, processes: Processes, redis: Redis) -> Contender:
    """Starts nginx with TLS 1.3, where resumption includes a key exchange, as in start-stunnel."""
    return _start_nginx(folder, processes, redis, NGINX_TLS13, "proxy_ssl_protocols TLSv1.3;")


def _start_nginx(
    folder: Path, processes: Processes, redis: Redis, name: str, setting: str
) -> Contender:
    port = free_port()
    configuration = folder / "nginx.conf"
    # If root starts nginx, nginx's workers by default switch to a user who may not read `folder`.
    user = "user root;\n" if os.geteuid() == 0 else ""
    configuration.write_text(f"""\
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
{user}worker_processes 2;
worker_rlimit_nofile {DESCRIPTORS};
pid {folder}/nginx.pid;
error_log stderr crit;
events {{ worker_connections {DESCRIPTORS // 2}; }}
stream {{
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    proxy_pass {redis.address}:{redis.tls};
    proxy_ssl on;
    {setting}
    proxy_ssl_verify off;
    proxy_ssl_session_reuse on;
    proxy_buffer_size 16k;
    proxy_timeout 24h;
    tcp_nodelay on;
  }}
}}
""")
    process = processes.start(["nginx", "-p", folder, "-e", "stderr", "-c", configuration])
    return Contender(name, redis, (port,), mains=(process.pid,))


# The alternatives to start-stunnel, in the order of the tables.
PEERS: dict[str, Callable[[Path, Processes, Redis], Contender]] = {
    NGINX: start_nginx,
    NGINX_TLS13: start_nginx_tls13,
    "haproxy": start_haproxy,
    "stunnel": start_stunnel,
}
# The names of all contenders, in the order of the tables' columns.
COLUMNS = (*POOL_MODES, BEFORE, *PEERS, TLS_DIRECTLY, PLAINTEXT)


@dataclass
class Lineup:
    """The contenders of a run, and the folder for their files."""

    folder: Path
    # The launchers to measure, by the launchers' names in the tables. There is one launcher for
    # each pool mode, and BEFORE if the user gave --before.
    launchers: dict[str, Path]
    peers: list[str]

    def names(self) -> list[str]:
        """Returns the names of launchers and peers, in the order of the tables."""
        return [name for name in COLUMNS if name in self.launchers or name in self.peers]

    def start(self, name: str, processes: Processes, redis: Redis) -> Contender:
        """Starts a launcher or a peer, and waits until Redis answers through this contender."""
        contender = self._start_once(name, processes, redis)

        def answers() -> bool:
            if not contender.runs():
                fail(f"{name} ended instead of starting")
            return contender.answers()

        wait_until(f"{name} answers", answers)
        return contender

    def start_unused(
        self, name: str, instances: int, processes: Processes, redis: Redis
    ) -> Contender:
        """Starts `instances` fresh proxies, and waits until all proxies listen."""
        started = [self._start_once(name, processes, redis) for _ in range(instances)]
        ports = tuple(port for contender in started for port in contender.ports)
        mains = tuple(main for contender in started for main in contender.mains)
        contender = Contender(name, redis, ports, mains=mains)
        wait_until(f"{name} listens", contender.listens)
        # Wait longer, because a proxy opens its port before the proxy's workers are ready.
        time.sleep(START_PAUSE)
        return contender

    def _start_once(self, name: str, processes: Processes, redis: Redis) -> Contender:
        if name in self.launchers:
            return start_ours(processes, redis, name, self.launchers[name])
        # Give each instance of the proxy a folder for the instance's files.
        folder = Path(tempfile.mkdtemp(prefix="peer-", dir=self.folder))
        return PEERS[name](folder, processes, redis)

    def start_all(self, processes: Processes, redis: Redis) -> list[Contender]:
        """Starts every launcher and every peer."""
        return [self.start(name, processes, redis) for name in self.names()]


def versions(launcher: Path) -> dict[str, str]:
    """Returns the versions of the measured programs, and the name of the CPU."""
    stunnel = subprocess.run(["stunnel4", "-version"], capture_output=True, text=True).stderr
    stunnel_version = re.search(r"stunnel [\d.]+", stunnel)
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        OURS: first_line(str(launcher), "--version"),
        "nginx": first_line("nginx", "-v"),
        "haproxy": first_line("haproxy", "-v").split(" - ")[0],
        "stunnel": stunnel_version.group(0) if stunnel_version else "unknown",
        "redis-server": first_line("redis-server", "--version").split(" sha=")[0],
        "CPU": f"{cpu.group(1) if cpu else 'unknown'}, {os.cpu_count()} cores",
    }
