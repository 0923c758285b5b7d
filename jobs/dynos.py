"""A dyno: an app's process, with or without the launcher, that we end as a platform does."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from ledger import Ledger
from system import LOOK_INTERVAL, Processes, fail, wait_until

# Seconds between a platform's SIGTERM and its SIGKILL.
GRACE = 30


def session(leader: int) -> list[int]:
    """The running processes of the session of `leader`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue  # The process has just ended.
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def send(pids: Sequence[int], number: int) -> None:
    """Sends a signal to each process. Skips processes that have already ended."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


class Dyno:
    """A command in a session of its own."""

    def __init__(
        self,
        name: str,
        words: Sequence[object],
        environment: dict[str, str],
        processes: Processes,
        ledger: Ledger,
    ) -> None:
        """Starts the command; its output goes to a file in the ledger's folder."""
        self.name, self.words, self.environment = name, words, environment
        self.processes, self.ledger = processes, ledger
        self.log_file = ledger.folder / f"log-{name}"
        self.generation = 0
        self.start()

    def start(self) -> None:
        """Starts the command, for the first time or again."""
        self.generation += 1
        names = {"DYNO": self.name, "JOBS_WORKER": f"{self.name}.{self.generation}"}
        with self.log_file.open("ab") as log:
            output = log.fileno()
            self.process = self.processes.start(
                self.words, env=self.environment | names, stdout=output, stderr=output
            )

    def wait_until_ready(self) -> None:
        """Waits until the app writes its name to the file `ready`."""
        name = f"{self.name}.{self.generation}"

        def is_ready() -> bool:
            if name in self.ledger.lines("ready"):
                return True
            if self.process.poll() is not None:
                told = self.log().rstrip().rpartition("\n")[2]
                fail(f"{self.name} ended before it was ready: {told}")
            return False

        wait_until(f"{name} is ready", is_ready)

    def log(self) -> str:
        """All output of the command so far."""
        return self.log_file.read_text(errors="replace")

    def wait(self) -> int:
        """Waits until the command ends by itself; returns its exit code."""
        wait_until(f"{self.name} ends", lambda: self.process.poll() is not None)
        return self.process.returncode

    def stop(self) -> bool:
        """Sends SIGTERM to every process, and SIGKILL to those that still run after GRACE seconds.

        Returns whether any process still ran.
        """
        leader = self.process.pid
        send(session(leader), signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        while (left := session(leader)) and time.monotonic() < deadline:
            self.process.poll()
            time.sleep(LOOK_INTERVAL)
        self.kill()
        return bool(left)

    def kill(self) -> None:
        """Sends SIGKILL to every process that still runs."""
        send(session(self.process.pid), signal.SIGKILL)
        self.process.wait()


def launched(
    words: Sequence[object], mode: str | None, binary: Path, namespace: int | None
) -> list[object]:
    """The command line of a dyno. If `mode` is `None`, it does not contain the launcher."""
    enter: list[object] = ["nsenter", "--mount", "--target", namespace] if namespace else []
    launcher: list[object] = [binary] if mode else []
    return [*enter, *launcher, *words]


def run_to_end(words: Sequence[object], environment: dict[str, str], patience: float) -> str:
    """Runs a short command. Returns the app's error message if it fails, or else an empty text."""
    done = subprocess.run(
        [str(word) for word in words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=patience,
    )
    # Skip the launcher's log lines, which begin with a time.
    told = [line for line in done.stderr.splitlines() if not line.startswith("ts=")]
    return (told or [f"exit code {done.returncode}"])[-1] if done.returncode else ""
