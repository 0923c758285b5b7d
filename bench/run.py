"""Measures the contenders with the loads, in the right order and number of rounds."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from loads import LOADS, START_UP, Load, Setting, start_up
from peers import PLAINTEXT, Contender, Lineup, Redis
from report import Results
from system import ROOT, Processes, fail

# With --quick, a run divides the number of requests by QUICK_SHARE, but makes at least
# FEWEST_REQUESTS.
QUICK_SHARE, FEWEST_REQUESTS = 6, 50
# The round-trip time of the slow link in Setting.FAR, in milliseconds.
FAR_DELAY_MS = 2
# The number of measurements of each proxy in Setting.ALONE, in a full run and with --quick.
ALONE_TIMES, ALONE_TIMES_QUICK = 3, 1
# The number of starts that the load START_UP measures, in a full run and with --quick.
STARTS, STARTS_QUICK = 200, 20
# The number of measurements of each proxy in Setting.UNUSED with --quick. A full run makes one
# measurement per round.
UNUSED_TIMES_QUICK = 1


@dataclass
class Run:
    """One run of bin/bench."""

    lineup: Lineup
    rounds: int
    quick: bool
    # The run measures only loads whose names contain one of these words. If there are no words, the
    # run measures all loads.
    only: Sequence[str]
    results: Results = field(default_factory=Results)

    def wanted(self, setting: Setting) -> list[Load]:
        """Returns the loads to measure in this setting."""
        return [
            load
            for load in LOADS.values()
            if load.setting is setting
            and (load.quick or not self.quick)
            and (not self.only or any(word in load.name for word in self.only))
        ]

    def scale(self, requests: int) -> int:
        """Returns the number of requests in this run. A full run makes `requests`."""
        return max(FEWEST_REQUESTS, requests // QUICK_SHARE) if self.quick else requests

    def measure(self) -> Results:
        """Starts Redis and the contenders, measures all loads, and ends the programs."""
        with Processes() as servers:
            redis = Redis(self.lineup.folder, servers)
            self._together(redis)
            for load in self.wanted(Setting.UNUSED):
                self._unused(load, redis)
            for load in self.wanted(Setting.ALONE):
                self._alone(load, redis)
            for load in self.wanted(Setting.FAR):
                self._far(load)
            if not self.only or START_UP in self.only:
                self._start_up(redis)
        return self.results

    def _note(self, load: Load, contender: Contender) -> None:
        """Measures a contender once, and stores the figures."""
        self.results.add(load.name, contender.name, load.measure(contender, self.scale))

    def _together(self, redis: Redis) -> None:
        """Measures contenders that all run at once. Ends them before other loads begin."""
        if loads := self.wanted(Setting.TOGETHER):
            with Processes() as proxies:
                contenders = self.lineup.start_all(proxies, redis) + redis.without_proxy()
                for load in loads:
                    self._in_turns(load, contenders)

    def _in_turns(self, load: Load, contenders: list[Contender]) -> None:
        """Measures each contender once per round."""
        self._take_turns(load, self.rounds, [partial(self._note, load, way) for way in contenders])

    def _take_turns(self, load: Load, rounds: int, turns: Sequence[Callable[[], None]]) -> None:
        """Calls all `turns` in each round, with another contender first in each round."""
        for index in range(rounds):
            first = index % len(turns)
            for turn in [*turns[first:], *turns[:first]]:
                turn()
                print(".", end="", flush=True, file=sys.stderr)
        print(f" {load.name}", file=sys.stderr)

    def _unused(self, load: Load, redis: Redis) -> None:
        """Measures unused proxies, which are started afresh for each measurement."""

        def measure(name: str) -> None:
            with Processes() as processes:
                way = self.lineup.start_unused(name, load.instances, processes, redis)
                self._note(load, way)
            redis.wait_until_unused()

        turns = [partial(measure, name) for name in self.lineup.names()]
        plaintext = Contender(PLAINTEXT, redis, (redis.plain,) * load.instances)
        turns.append(partial(self._note, load, plaintext))
        self._take_turns(load, UNUSED_TIMES_QUICK if self.quick else self.rounds, turns)

    def _alone(self, load: Load, redis: Redis) -> None:
        """Measures contenders one after the other, with a fresh proxy for each measurement."""

        def measure(name: str) -> None:
            with Processes() as processes:
                self._note(load, self.lineup.start(name, processes, redis))
            redis.wait_until_unused()

        turns = [partial(measure, name) for name in self.lineup.names()]
        self._take_turns(load, ALONE_TIMES_QUICK if self.quick else ALONE_TIMES, turns)

    def _far(self, load: Load) -> None:
        """Measures contenders whose Redis is behind a slow link, in a network namespace."""
        if os.geteuid() != 0 or not Path("/dev/net/tun").exists():
            reason = "only root may make a network namespace with a TUN device"
            print(f"skipped: {load.name}: {reason}", file=sys.stderr)
            return
        namespace = f"bench-{os.getpid()}"
        words = [ROOT / "tests/support/slow-link", namespace, "--delay-ms", FAR_DELAY_MS]
        with Processes() as processes:
            # The program slow-link removes the network namespace when slow-link ends.
            pipe = subprocess.PIPE
            link = processes.start(words, stdin=pipe, stdout=pipe, stderr=None)
            assert link.stdout
            address = link.stdout.readline().decode().strip()
            if not address:
                fail("tests/support/slow-link failed; its error is above")
            redis = Redis(self.lineup.folder, processes, address, namespace)
            contenders = self.lineup.start_all(processes, redis)
            contenders += [way for way in redis.without_proxy() if way.name == PLAINTEXT]
            self._in_turns(load, contenders)

    def _start_up(self, redis: Redis) -> None:
        """Measures how long the launchers take to start COMMAND."""
        for name, binary in self.lineup.launchers.items():
            starts = STARTS_QUICK if self.quick else STARTS
            self.results.add(START_UP, name, start_up(binary, redis, starts))
