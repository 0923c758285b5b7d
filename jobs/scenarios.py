"""The scenarios: restarts, a full plan and fail-overs while producers and workers run."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dynos import Dyno, launched, run_to_end
from ledger import Counts, Ledger
from servers import HOST, Pair, Redis, start_redis
from system import PATIENCE, Processes
from systems import APPS, PYTHON, SYSTEMS, JobSystem, environment

# Jobs that a producer enqueues per second, and the duration of a job in seconds.
RATE, DURATION = 20, 0.05
# Jobs that workers must do before the first restart or fail-over, and after each one.
JOBS_BETWEEN = 20
# If no job is done for so many seconds, the remaining jobs count as lost. Every job system needs
# less time to find the jobs of a lost worker.
SETTLE = 40
# Seconds for which Redis is down during a restart.
DOWN = 1
# The client limit of Redis, and the threads of each web process. Two web processes are busy in
# turns, so they need seven connections. A Sidekiq with three threads needs at most seven, and a
# one-off job two. The app thus needs at most 16 connections. A pool may hold two more for the web
# process that is not busy.
PLAN, WEB_THREADS = 20, 7


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

    binary: Path
    # How many times to restart both workers, restart Redis, fail over, and run a one-off job.
    restarts: int
    redis_restarts: int
    fail_overs: int
    one_off_jobs: int
    # Seconds to wait, after the last job, for jobs that are done a second time.
    linger: float


@dataclass
class Stage:
    """One run of a scenario: its processes, and the way to Redis."""

    system: JobSystem
    mode: str | None
    options: Options
    folder: Path
    processes: Processes
    redis: Redis
    host: str = "127.0.0.1"
    namespace: int | None = None
    workers: list[Dyno] = field(default_factory=list)
    producers: list[Dyno] = field(default_factory=list)
    killed: int = 0
    crashed: int = 0

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.folder)
        url = self.redis.url(self.host, tls=self.mode is not None)
        self.environment = environment() | {
            "REDIS_URL": url,
            "JOBS_FOLDER": str(self.folder),
            "JOBS_DURATION": str(DURATION),
            "JOBS_RATE": str(RATE),
        }
        if self.mode:
            self.environment |= {"STUNNEL_POOL": self.mode, "STUNNEL_LISTEN_PORT": "0"}

    def words(self, command: tuple[object, ...]) -> list[object]:
        """A dyno's command line."""
        return launched(command, self.mode, self.options.binary, self.namespace)

    def start_worker(self, name: str) -> None:
        """Starts a worker."""
        self.workers.append(self._dyno(name, *self.system.worker))

    def start_producer(self, name: str, *command: object) -> None:
        """Starts a process that enqueues jobs."""
        self.producers.append(self._dyno(name, *command))

    def _dyno(self, name: str, *command: object) -> Dyno:
        words = self.words(command)
        return Dyno(name, words, self.environment, self.processes, self.ledger)

    def start(self) -> None:
        """Starts two workers and a producer, and waits until the workers have done some jobs."""
        for name in ("worker.1", "worker.2"):
            self.start_worker(name)
        for worker in self.workers:
            worker.wait_until_ready()
        self.start_producer("web.1", *self.system.producer)
        self.wait_for_jobs()

    def wait_for_jobs(self) -> None:
        """Waits until workers have done JOBS_BETWEEN more jobs, or make no progress."""
        start = len(self.ledger.lines("done"))

        def missing() -> int:
            return max(0, start + JOBS_BETWEEN - len(self.ledger.lines("done")))

        self._wait_while_it_falls(missing)

    def _wait_while_it_falls(self, number: Callable[[], int]) -> None:
        """Waits until `number` returns 0, or the same value for SETTLE seconds."""
        last, since = number(), time.monotonic()
        while last and time.monotonic() < since + SETTLE:
            time.sleep(0.05)
            self._start_crashed_workers()
            if (now := number()) != last:
                last, since = now, time.monotonic()

    def _start_crashed_workers(self) -> None:
        """Starts workers again that have ended by themselves, as a platform does."""
        for worker in self.workers:
            if worker.process.poll() is not None:
                self.crashed += 1
                worker.stop()
                worker.start()

    def restart(self, worker: Dyno) -> None:
        """Restarts a worker as a platform does."""
        self.killed += worker.stop()
        worker.start()
        worker.wait_until_ready()

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *_: object) -> None:
        """Kills the processes that still run after an interrupted or failed run."""
        for dyno in [*self.workers, *self.producers]:
            dyno.kill()

    def finish(self) -> Counts:
        """Ends the producers, waits for the last jobs, and returns the figures."""
        self.ledger.stop_producers()
        for producer in self.producers:
            producer.wait()
        self._wait_while_it_falls(lambda: len(self.ledger.open_jobs()))
        # Job systems deliver the unacknowledged jobs of a lost worker again, after a while.
        time.sleep(self.options.linger)
        self.killed += sum(worker.stop() for worker in self.workers)
        counts = self.ledger.counts()
        counts.killed, counts.crashed = self.killed, self.crashed
        return counts


def rolling_restarts(stage: Stage) -> Counts:
    """Restarts one worker after the other while jobs are enqueued."""
    stage.start()
    for _ in range(stage.options.restarts):
        for worker in stage.workers:
            stage.restart(worker)
        stage.wait_for_jobs()
    return stage.finish()


def redis_restarts(stage: Stage) -> Counts:
    """Stops Redis, and starts it again with its data."""
    stage.start()
    for _ in range(stage.options.redis_restarts):
        stage.redis.stop()
        time.sleep(DOWN)
        stage.redis.start()
        stage.wait_for_jobs()
    return stage.finish()


def full_plan(stage: Stage) -> Counts:
    """Web processes, a worker and one-off jobs share a plan with barely enough connections."""
    stage.start_worker("worker.1")
    for number in (1, 2):
        stage.start_producer(f"web.{number}", PYTHON, APPS / "web.py", WEB_THREADS, number)
    for dyno in [*stage.workers, *stage.producers]:
        dyno.wait_until_ready()
    stage.wait_for_jobs()
    failed = []
    for number in range(1, stage.options.one_off_jobs + 1):
        words = stage.words((PYTHON, APPS / "one_off.py"))
        run = stage.environment | {"DYNO": f"run.{number}"}
        if error := run_to_end(words, run, PATIENCE):
            failed.append(error)
    counts = stage.finish()
    counts.rejected += len(failed)
    counts.errors.update(failed)
    counts.refused = stage.redis.refused()
    return counts


def fail_overs(stage: Stage, pair: Pair) -> Counts:
    """Makes the replica the primary, and the primary a replica."""
    stage.start()
    for _ in range(stage.options.fail_overs):
        pair.fail_over()
        stage.wait_for_jobs()
    return stage.finish()


def alone(scenario: Callable[[Stage], Counts], *extra: object) -> "Scenario":
    """Makes a scenario with one Redis server. `extra` are options for redis-server."""

    def run(system: JobSystem, mode: str | None, folder: Path, options: Options) -> Counts:
        with Processes() as processes:
            redis = start_redis(folder, processes, *extra)
            with Processes() as dynos:
                with Stage(system, mode, options, folder, dynos, redis) as stage:
                    return scenario(stage)

    return run


def in_pair(system: JobSystem, mode: str | None, folder: Path, options: Options) -> Counts:
    """The scenario `fail_overs`, with two Redis servers and its own hosts file."""
    with Processes() as processes:
        pair = Pair(folder, processes)
        with Processes() as dynos:
            place = (pair.primary, HOST, pair.namespace)
            with Stage(system, mode, options, folder, dynos, *place) as stage:
                return fail_overs(stage, pair)


Scenario = Callable[[JobSystem, str | None, Path, Options], Counts]
# The scenarios, each with its job systems. Celery is not in "fail-overs": its workers end when
# their server becomes a replica. They then lose and double jobs even in plaintext, so a comparison
# would say nothing about the launcher.
SCENARIOS: dict[str, tuple[Scenario, tuple[str, ...]]] = {
    "restarts": (alone(rolling_restarts), tuple(SYSTEMS)),
    "redis-restarts": (alone(redis_restarts), tuple(SYSTEMS)),
    "plan": (alone(full_plan, "--maxclients", PLAN), ("sidekiq",)),
    "fail-overs": (in_pair, ("sidekiq", "bullmq")),
}
