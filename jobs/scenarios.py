"""What happens to the workers and to Redis while jobs are enqueued and done."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dynos import Dyno, launched, run_to_end
from ledger import Counts, Ledger
from servers import HOST, Pair, Redis, start_redis
from system import PATIENCE, Processes
from systems import APPS, PYTHON, SYSTEMS, JobSystem, environment

# Jobs that a producer enqueues each second, and the seconds that a job takes.
RATE, DURATION = 20, 0.05
# Jobs that must be done before anything happens, and between two events.
JOBS_BETWEEN = 20
# Seconds without a finished job after which the rest counts as lost. Longer than every system's
# own time to find the jobs of a lost worker.
SETTLE = 40
# Seconds that Redis is down at a restart.
DOWN = 1
# The plan: Redis's client limit, and the threads of each of two web processes, which are busy in
# turns. With a Sidekiq of three threads (up to seven connections) and one-off jobs of two, the app
# needs 16 connections at most. A pool may keep two more for the web process that is not busy.
PLAN, WEB_THREADS = 20, 7


@dataclass(frozen=True)
class Options:
    """What the command line says about a run."""

    binary: Path
    # Rolling restarts of the workers, restarts of Redis, fail-overs, and one-off jobs.
    restarts: int
    redis_restarts: int
    fail_overs: int
    one_off_jobs: int
    # Seconds to watch for jobs that are done again after the last one was done.
    linger: float


@dataclass
class Stage:
    """One run of a scenario: the processes, and how they reach Redis."""

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
        """Starts two workers and a producer, and waits until jobs are done."""
        for name in ("worker.1", "worker.2"):
            self.start_worker(name)
        for worker in self.workers:
            worker.wait_until_ready()
        self.start_producer("web.1", *self.system.producer)
        self.wait_for_jobs()

    def wait_for_jobs(self) -> None:
        """Waits until further jobs are done, or none has been for a while: the app is stuck."""
        start = len(self.ledger.lines("done"))

        def missing() -> int:
            return max(0, start + JOBS_BETWEEN - len(self.ledger.lines("done")))

        self._wait_while_it_falls(missing)

    def _wait_while_it_falls(self, number: Callable[[], int]) -> None:
        """Waits until the number is 0, or has stayed the same for SETTLE seconds."""
        last, since = number(), time.monotonic()
        while last and time.monotonic() < since + SETTLE:
            time.sleep(0.05)
            self._start_crashed_workers()
            if (now := number()) != last:
                last, since = now, time.monotonic()

    def _start_crashed_workers(self) -> None:
        """A platform starts a process again that has ended by itself."""
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
        """Ends what an interrupted or failed run has left."""
        for dyno in [*self.workers, *self.producers]:
            dyno.kill()

    def finish(self) -> Counts:
        """Ends the producers, waits for the last jobs, and counts."""
        self.ledger.stop_producers()
        for producer in self.producers:
            producer.wait()
        self._wait_while_it_falls(lambda: len(self.ledger.open_jobs()))
        # A job that a lost worker had not acknowledged is delivered again after a while.
        time.sleep(self.options.linger)
        self.killed += sum(worker.stop() for worker in self.workers)
        counts = self.ledger.counts()
        counts.killed, counts.crashed = self.killed, self.crashed
        return counts


def rolling_restarts(stage: Stage) -> Counts:
    """Each time one worker after the other is restarted under load."""
    stage.start()
    for _ in range(stage.options.restarts):
        for worker in stage.workers:
            stage.restart(worker)
        stage.wait_for_jobs()
    return stage.finish()


def redis_restarts(stage: Stage) -> Counts:
    """Redis goes away for a moment and comes back with its data."""
    stage.start()
    for _ in range(stage.options.redis_restarts):
        stage.redis.stop()
        time.sleep(DOWN)
        stage.redis.start()
        stage.wait_for_jobs()
    return stage.finish()


def full_plan(stage: Stage) -> Counts:
    """Web processes, a worker and one-off jobs share a plan whose connections just suffice."""
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
    """The replica becomes the primary, and the old primary stays up as a replica."""
    stage.start()
    for _ in range(stage.options.fail_overs):
        pair.fail_over()
        stage.wait_for_jobs()
    return stage.finish()


def alone(scenario: Callable[[Stage], Counts], *extra: object) -> "Scenario":
    """A scenario with one Redis, which has further arguments."""

    def run(system: JobSystem, mode: str | None, folder: Path, options: Options) -> Counts:
        with Processes() as processes:
            redis = start_redis(folder, processes, *extra)
            with Processes() as dynos:
                with Stage(system, mode, options, folder, dynos, redis) as stage:
                    return scenario(stage)

    return run


def in_pair(system: JobSystem, mode: str | None, folder: Path, options: Options) -> Counts:
    """The scenario with two servers and a hosts file of its own."""
    with Processes() as processes:
        pair = Pair(folder, processes)
        with Processes() as dynos:
            place = (pair.primary, HOST, pair.namespace)
            with Stage(system, mode, options, folder, dynos, *place) as stage:
                return fail_overs(stage, pair)


Scenario = Callable[[JobSystem, str | None, Path, Options], Counts]
# Each scenario, and the job systems that it is for. Celery's workers end when their server becomes
# a replica; they lose and double jobs even in plaintext, so a comparison would be chance.
SCENARIOS: dict[str, tuple[Scenario, tuple[str, ...]]] = {
    "restarts": (alone(rolling_restarts), tuple(SYSTEMS)),
    "redis-restarts": (alone(redis_restarts), tuple(SYSTEMS)),
    "plan": (alone(full_plan, "--maxclients", PLAN), ("sidekiq",)),
    "fail-overs": (in_pair, ("sidekiq", "bullmq")),
}
