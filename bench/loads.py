"""The loads. A load runs against one contender, and returns its figures by name.

To add a load, write a function, and add a line to LOADS. A Meter measures CPU time.
"""

import contextlib
import enum
import os
import re
import selectors
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from client import Client
from peers import PASSWORD, USER, Contender, Redis
from system import PATIENCE, fail, in_processes

# The measured values of a load. Each key is the name of a figure. The name ends with the unit.
Figures = dict[str, float]
# A function that converts the number of requests in a full run to the number of requests in this
# run.
Scale = Callable[[int], int]
Measure = Callable[[Contender, Scale], Figures]

# The sizes of a small and of a large value, in bytes. 16 large values are one MiB.
SMALL_VALUE, LARGE_VALUE = 100, 65_536
LARGE_VALUES_PER_MIB, LARGE_VALUES_PER_GIB = 16, 16_384
# The number of requests that a pipelining client sends before the client waits for replies.
PIPELINE = 16
# The time limit of redis-benchmark, in seconds.
REDIS_BENCHMARK_PATIENCE = 600
# The number of new connections per second in loads with a steady pace.
PACE = 50
# The load "storm" starts STORM instances of a proxy. It opens STORM_CONNECTIONS connections to each
# instance, all at the same time.
STORM, STORM_CONNECTIONS = 10, 20
# In one load, an app reconnects for every page, as PHP does. The app has PAGE_WORKERS processes.
# PAGE_CALLS contains the requests for one page, each with its reply.
PAGE_WORKERS = 20
PAGE_VALUE = "x" * SMALL_VALUE
PAGE_CALLS = (
    (("AUTH", USER, PASSWORD), "+OK\r\n"),
    (("SELECT", "1"), "+OK\r\n"),
    (("SET", "session", PAGE_VALUE), "+OK\r\n"),
    (("GET", "session"), f"${SMALL_VALUE}\r\n{PAGE_VALUE}\r\n"),
    (("EXPIRE", "session", "1440"), ":1\r\n"),
)
# A line of redis-benchmark's CSV contains the test, the requests per second, and latencies in
# milliseconds: mean, minimum, p50, p95, p99 and maximum. The groups of this expression are requests
# per second, p50, p99 and maximum.
CSV_ROW = re.compile(
    r'^"(?:SET|GET|PING_INLINE)",'
    r'"([\d.]+)","[\d.]+","[\d.]+","([\d.]+)","[\d.]+","([\d.]+)","([\d.]+)"',
    re.MULTILINE,
)


def percentile(values: Sequence[float], share: float) -> float:
    """Returns the percentile of `values` for a `share` from 0 to 1, such as 0.99 for p99."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def latencies(times: Sequence[float]) -> Figures:
    """Returns the median, the 99th percentile and the maximum of times in milliseconds."""
    p50, p99 = percentile(times, 0.5), percentile(times, 0.99)
    return {"p50 ms": p50, "p99 ms": p99, "max ms": max(times)}


class Meter:
    """Measures the CPU time that a contender's proxy and Redis use after the meter's creation."""

    def __init__(self, contender: Contender) -> None:
        """Starts to measure CPU time."""
        self.contender = contender
        self.proxy, self.redis = contender.cpu(), contender.redis.cpu()

    def figures(self, unit: str, amount: float) -> Figures:
        """Returns the CPU seconds used so far, divided by `amount`, with the figure's `unit`."""
        proxy, redis = self.contender.cpu() - self.proxy, self.contender.redis.cpu() - self.redis
        found = {f"CPU {unit}": proxy / amount} if self.contender.mains else {}
        return found | {f"Redis CPU {unit}": redis / amount}


def redis_benchmark(
    contender: Contender,
    tests: Sequence[str],
    requests: int,
    *arguments: object,
    cpu_unit: tuple[str, float] = ("s/million", 1e6),
) -> Figures:
    """Runs redis-benchmark with `requests` for each test. Returns its figures, averaged over tests.

    `cpu_unit` contains the name of the unit for CPU time, and the number of requests in this unit.
    """
    words: list[object] = ["redis-benchmark", "-h", contender.address, "-p", contender.port]
    words += ["-n", requests, "-t", ",".join(tests), "--csv", *contender.options, *arguments]
    meter = Meter(contender)
    out = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        timeout=REDIS_BENCHMARK_PATIENCE,
    )
    unit, size = cpu_unit
    cpu = meter.figures(unit, requests * len(tests) / size)
    rows = CSV_ROW.findall(out.stdout)
    if len(rows) != len(tests):
        fail(f"redis-benchmark at {contender.name}: {out.stdout} {out.stderr}")
    rate, p50, p99, worst = (
        statistics.fmean(float(row[column]) for row in rows) for column in range(4)
    )
    return {"requests/s": rate, "p50 ms": p50, "p99 ms": p99, "max ms": worst} | cpu


def small_requests(contender: Contender, scale: Scale) -> Figures:
    """Measures SET and GET over 50 connections."""
    requests = scale(60_000)
    return redis_benchmark(contender, ["set", "get"], requests, "-c", 50, "-d", SMALL_VALUE)


def one_connection(contender: Contender, scale: Scale) -> Figures:
    """Measures SET and GET over one connection. Shows how much time a tunnel adds to a request."""
    requests = scale(8_000)
    return redis_benchmark(contender, ["set", "get"], requests, "-c", 1, "-d", SMALL_VALUE)


def pipelined(contender: Contender, scale: Scale) -> Figures:
    """Measures SET and GET over 50 connections, each with PIPELINE requests at a time."""
    arguments = ("-c", 50, "-d", SMALL_VALUE, "-P", PIPELINE)
    return redis_benchmark(contender, ["set", "get"], scale(400_000), *arguments)


def large_values(contender: Contender, scale: Scale) -> Figures:
    """Measures SET and GET of large values over 10 connections."""
    arguments = ("-c", 10, "-d", LARGE_VALUE)
    unit = ("s/GiB", LARGE_VALUES_PER_GIB)
    figures = redis_benchmark(contender, ["set", "get"], scale(8_000), *arguments, cpu_unit=unit)
    figures["MiB/s"] = figures.pop("requests/s") / LARGE_VALUES_PER_MIB
    return figures


def new_connections(contender: Contender, scale: Scale) -> Figures:
    """Measures GET with a new connection for each request, by 20 clients at a time."""
    requests = scale(many_connections(contender))
    return redis_benchmark(contender, ["get"], requests, "-c", 20, "-k", 0)


def many_connections(contender: Contender) -> int:
    """Returns the number of new connections to measure."""
    # stunnel is slow, because it needs a thread and a full handshake for each connection. So 600
    # connections already take long enough for a measurement.
    return 600 if contender.name == "stunnel" else 4_000


def reconnecting_app(contender: Contender, scale: Scale) -> Figures:
    """Measures an app that reconnects for every page, first at full speed, then at a steady pace.

    PAGE_WORKERS processes serve pages. For each page, a process connects, logs in, selects a
    database, sends three requests one after the other, and closes the connection.
    """
    if contender.options:
        return {}  # We would measure Python's own TLS.
    pages = -(-scale(many_connections(contender)) // PAGE_WORKERS)
    meter = Meter(contender)
    elapsed, times = in_processes(PAGE_WORKERS, lambda: [page(contender) for _ in range(pages)])
    cpu = meter.figures("ms/connection", len(times) / 1000)
    paced_times = paced(lambda: page(contender), scale(200))
    rate = {"connections/s": len(times) / elapsed}
    return rate | latencies(times) | {"paced p50 ms": percentile(paced_times, 0.5)} | cpu


def page(contender: Contender) -> float:
    """Serves one page. Returns the time that the page took, in milliseconds."""
    started = time.perf_counter()
    with contender.connect() as client:
        for words, expected in PAGE_CALLS:
            client.socket.sendall(_request(words))
            reply = b""
            while len(reply) < len(expected) and (more := client.socket.recv(4096)):
                reply += more
            if reply != expected.encode():
                raise OSError(f"{contender.name} answers {words} with {reply!r}")
    return (time.perf_counter() - started) * 1000


def paced(work: Callable[[], float], count: int) -> list[float]:
    """Calls `work` PACE times per second, `count` times in total. Returns the results."""
    begun = time.monotonic()
    results = []
    for index in range(count):
        time.sleep(max(0, begun + index / PACE - time.monotonic()))
        results.append(work())
    return results


def _request(words: Sequence[str]) -> bytes:
    """Returns a request in Redis's protocol RESP, as an array of bulk strings."""
    strings = "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
    return f"*{len(words)}\r\n{strings}".encode()


def paced_new_connections(contender: Contender, scale: Scale) -> Figures:
    """Opens PACE connections a second. Measures the time from connect to first reply."""
    if contender.options:
        return {}  # We would measure Python's own TLS.

    def first_reply() -> float:
        started = time.perf_counter()
        with contender.connect() as client:
            if not client.ping():
                fail(f"{contender.name}: no reply")
            return (time.perf_counter() - started) * 1000

    meter = Meter(contender)
    times = paced(first_reply, scale(200))
    return latencies(times) | meter.figures("ms/connection", len(times) / 1000)


def storm(contender: Contender, _scale: Scale) -> Figures:
    """Opens STORM_CONNECTIONS connections to each instance at once, and sends a PING on each.

    All connections stay open until the last reply. The proxy's CPU time is left out,
    because the unit of CPU time, a tick, is too coarse for such a short load.
    """
    if contender.options:
        return {}  # We would measure Python's own TLS.
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        ports = contender.ports * STORM_CONNECTIONS
        new = [(stack.enter_context(socket.socket()), port) for port in ports]
        for client, _ in new:
            client.setblocking(False)
            selector.register(client, selectors.EVENT_READ, client)
        meter, started = Meter(contender), time.perf_counter()
        for client, port in new:
            client.connect_ex((contender.address, port))
            client.send(b"PING\r\n")
        while selector.get_map():
            ready = selector.select(PATIENCE)
            if not ready:
                fail(f"{contender.name}: no reply")
            for key, _ in ready:
                if key.data.recv(64) != b"+PONG\r\n":
                    fail(f"{contender.name}: no +PONG")
                selector.unregister(key.data)
        slowest = time.perf_counter() - started
        redis = meter.figures("ms", 1 / 1000)["Redis CPU ms"]
        return {"slowest first reply ms": slowest * 1000, "Redis CPU ms": redis}


def idle_connections(count: int) -> Measure:
    """Opens `count` connections, with one PING on each. Measures the memory per connection."""

    def measure(contender: Contender, _scale: Scale) -> Figures:
        before, meter = contender.resident(), Meter(contender)
        clients: list[Client] = []
        try:
            for _ in range(count):
                clients.append(contender.connect())
                if not clients[-1].ping():
                    fail(f"{contender.name}: no reply")
            cpu = meter.figures("ms/connection", count / 1000)
            return {"KiB/connection": (contender.resident() - before) / count / 1024} | cpu
        finally:
            for client in clients:
                client.close()

    return measure


def start_up(binary: Path, redis: Redis, runs: int) -> dict[str, list[float]]:
    """Returns for each run the milliseconds by which the launcher delays COMMAND's first output."""
    environment = {
        "PATH": os.environ["PATH"],
        "STUNNEL_LISTEN_PORT": "0",
        "STUNNEL_LOGLEVEL": "err",
        "REDIS_URL": f"rediss://{redis.address}:{redis.tls}",
    }

    def once(words: Sequence[object], **extra: str) -> float:
        command = [str(word) for word in words]
        started = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment | extra) as process:
            assert process.stdout
            output = os.read(process.stdout.fileno(), 16)
            elapsed = time.perf_counter() - started
        if output != b"ready\n":
            fail(f"{command[0]}: no output")
        return elapsed * 1000

    command = ["/bin/echo", "ready"]
    direct, tunnel, disabled = [], [], []
    for _ in range(runs):
        direct.append(once(command))
        tunnel.append(once([binary, *command]))
        disabled.append(once([binary, *command], STUNNEL_ENABLED="false"))
    median = statistics.median(direct)
    return {
        "launcher ms": [value - median for value in tunnel],
        "disabled ms": [value - median for value in disabled],
    }


class Setting(enum.Enum):
    """The state of the contenders when a load begins."""

    TOGETHER = "all contenders run the whole time, and take turns"
    ALONE = "each measurement starts a fresh proxy"
    UNUSED = "each measurement starts fresh proxies, which have served no connection yet"
    FAR = "all contenders run and take turns, and Redis is behind a link of 2 ms"


@dataclass(frozen=True)
class Load:
    """A load, and the names of the figures for which the tables show a ratio."""

    name: str
    measure: Measure
    # The names of the figures for which the tables show a ratio. The value is true if a higher
    # figure is better.
    more_is_better: dict[str, bool]
    setting: Setting = Setting.TOGETHER
    # True if a run with --quick includes this load.
    quick: bool = True
    # The number of instances of the proxy. Only Setting.UNUSED supports more than one instance.
    instances: int = 1


def _by_name(*loads: Load) -> dict[str, Load]:
    return {load.name: load for load in loads}


# All loads except START_UP, in the order of the short table in docs/performance.md.
LOADS = _by_name(
    Load(
        "small requests",
        small_requests,
        {
            "CPU s/million": False,
            "Redis CPU s/million": False,
            "p99 ms": False,
            "requests/s": True,
        },
    ),
    Load(
        "one connection",
        one_connection,
        {"p50 ms": False, "CPU s/million": False, "Redis CPU s/million": False},
    ),
    Load(
        "pipelined",
        pipelined,
        {"CPU s/million": False, "Redis CPU s/million": False, "requests/s": True},
    ),
    Load(
        "large values",
        large_values,
        {"CPU s/GiB": False, "Redis CPU s/GiB": False, "MiB/s": True},
    ),
    Load(
        "new connections",
        new_connections,
        {"requests/s": True, "CPU s/million": False, "Redis CPU s/million": False},
    ),
    Load(
        "app that reconnects",
        reconnecting_app,
        {
            "connections/s": True,
            "CPU ms/connection": False,
            "Redis CPU ms/connection": False,
            "paced p50 ms": False,
        },
    ),
    Load(
        "paced new connections, 2 ms away",
        paced_new_connections,
        {"p50 ms": False, "Redis CPU ms/connection": False},
        Setting.FAR,
    ),
    Load(
        f"storm of {STORM} x {STORM_CONNECTIONS}",
        storm,
        {"slowest first reply ms": False, "Redis CPU ms": False},
        Setting.UNUSED,
        instances=STORM,
    ),
    Load(
        "1,000 idle connections",
        idle_connections(1_000),
        {"KiB/connection": False, "Redis CPU ms/connection": False},
        Setting.ALONE,
    ),
    Load(
        "5,000 idle connections",
        idle_connections(5_000),
        {"KiB/connection": False, "Redis CPU ms/connection": False},
        Setting.ALONE,
        quick=False,
    ),
)
# The name of the load that measures the start of launchers. The load has no ratio, because peers
# are not measured.
START_UP = "start-up"
