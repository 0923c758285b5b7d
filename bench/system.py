"""Functions of the operating system, for waiting, ports, processes, CPU time and memory."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import BinaryIO, NoReturn

# The root of this repository.
ROOT = Path(__file__).resolve().parent.parent
# The time limit of each wait, in seconds. A run fails when a wait exceeds the limit.
PATIENCE = 60
# The number of seconds between two checks of a condition for which the program waits.
LOOK_INTERVAL = 0.005
# The number of seconds for which a program may continue after SIGTERM. Then SIGKILL ends the
# program.
END_PATIENCE = 10
# The signals that end a run. Before the run ends, the run ends all programs that it started.
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# The number of ticks per second. A tick is the unit of CPU time in proc_pid_stat(5).
TICKS = os.sysconf("SC_CLK_TCK")
# The number of bytes per page. A page is the unit of memory in proc_pid_statm(5).
PAGE = os.sysconf("SC_PAGE_SIZE")
# The value of PR_SET_PDEATHSIG in <sys/prctl.h>. PR_SET_PDEATHSIG(2const) explains this operation.
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)


def fail(message: str) -> NoReturn:
    """Ends the run with exit code 1."""
    sys.exit(f"bin/{Path(sys.argv[0]).name}: {message}")


class EndedBySignal(BaseException):
    """An exception that ends the run, so that the run ends all programs which it started."""

    def __init__(self, number: int) -> None:
        """`number` is the signal's number."""
        self.number = number


def _end(number: int, _: FrameType | None) -> None:
    # Ignore further signals, so that the signals do not interrupt the clean-up.
    for ending in ENDING_SIGNALS:
        signal.signal(ending, signal.SIG_IGN)
    raise EndedBySignal(number)


def end_cleanly_by_signals() -> None:
    """Makes ENDING_SIGNALS raise EndedBySignal, except signals that the calling program ignores."""
    for ending in ENDING_SIGNALS:
        if signal.getsignal(ending) is not signal.SIG_IGN:
            signal.signal(ending, _end)


def wait_until(what: str, condition: Callable[[], bool]) -> None:
    """Waits until `condition` is true. After PATIENCE, the run fails with the text `what`."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            fail(f"timed out after {PATIENCE} s; expected: {what}")
        time.sleep(LOOK_INTERVAL)


def free_port() -> int:
    """Returns a free TCP port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Returns whether a program listens on this port of 127.0.0.1. Does not connect."""
    # The table of sockets in /proc shows addresses in little-endian order. 0A is the state of a
    # listening socket (proc_pid_net(5)).
    local, state = f"0100007F:{port:04X}", "0A"
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()]
    return any(row[1] == local and row[3] == state for row in rows)


def accepts_connections(address: str, port: int) -> bool:
    """Returns whether a new TCP connection succeeds."""
    try:
        socket.create_connection((address, port), 1).close()
        return True
    except OSError:
        return False


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Returns the paths of a certificate and its key in `folder`. Makes missing files."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    if not key.exists():
        words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30"]
        words += ["-subj", "/CN=localhost", "-keyout", str(key), "-out", str(certificate)]
        subprocess.run(words, check=True, stderr=subprocess.DEVNULL)
    return certificate, key


def first_line(*words: str) -> str:
    """Returns the first line that a command prints to stdout, or else to stderr."""
    out = subprocess.run(words, capture_output=True, text=True)
    return (out.stdout + out.stderr).strip().splitlines()[0]


def _end_with_parent() -> None:
    """Makes the kernel send SIGTERM when the parent ends. A child calls this before exec."""
    if LIBC.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGTERM)) != 0:
        raise OSError(ctypes.get_errno(), "prctl PR_SET_PDEATHSIG")


class Processes:
    """Programs that are ended in reverse order at the end of a `with` block."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[bytes]] = []

    def start(
        self,
        words: Iterable[object],
        env: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.DEVNULL,
        stderr: int | None = subprocess.DEVNULL,
    ) -> subprocess.Popen[bytes]:
        """Starts a program. If `stderr` is `None`, the program inherits our standard error.

        The program leads a session of its own, so that Ctrl-C reaches only us, and we end the
        programs in order. If a signal ends us before the program is in the list, the kernel ends
        the program.
        """
        process = subprocess.Popen(
            [str(word) for word in words],
            env=env,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        self.started.append(process)
        return process

    def stop(self) -> None:
        """Ends all programs, and waits until they have ended."""
        for process in reversed(self.started):
            if process.stdin:
                process.stdin.close()
            process.send_signal(signal.SIGTERM)
        for process in reversed(self.started):
            try:
                process.wait(END_PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if process.stdout:
                process.stdout.close()
        self.started.clear()

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def in_processes(count: int, work: Callable[[], Sequence[float]]) -> tuple[float, list[float]]:
    """Runs `work` in `count` processes at the same time.

    Returns the seconds until the last process ended, and the results of all processes.
    """
    gate, opener = os.pipe()
    workers: list[int] = []
    outputs: list[BinaryIO] = []
    try:
        for _ in range(count):
            output, result = os.pipe()
            # Block signals until the child process has replaced the signal handlers that it
            # inherits.
            signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
            if (pid := os.fork()) == 0:
                os.close(opener)
                _work(gate, result, work)
            workers.append(pid)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)
            os.close(result)
            outputs.append(os.fdopen(output, "rb"))
        os.close(opener)
        started = time.monotonic()
        found = [output.read() for output in outputs]
        elapsed = time.monotonic() - started
    except BaseException:
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        raise
    finally:
        os.close(gate)
        for open_output in outputs:
            open_output.close()
        statuses = [os.waitpid(pid, 0)[1] for pid in workers]
    if any(statuses):
        fail("a client process ended early; its error is above")
    return elapsed, [value for data in found for value in array("d", data)]


def _work(gate: int, result: int, work: Callable[[], Sequence[float]]) -> NoReturn:
    """Waits until the parent closes its end of `gate`, calls `work`, and writes the results."""
    code = 1
    try:
        for ending in ENDING_SIGNALS:
            signal.signal(ending, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)
        _end_with_parent()
        os.read(gate, 1)
        with os.fdopen(result, "wb") as output:
            output.write(array("d", work()).tobytes())
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)


def children_of(pid: int) -> list[int]:
    """Returns the child processes of the process `pid`."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def name_of(pid: int) -> str:
    """Returns the name of the program that the process `pid` runs."""
    return Path(f"/proc/{pid}/comm").read_text().strip()


def has_ended(pid: int) -> bool:
    """Returns whether the child process `pid` is a zombie, because the child has ended."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"


def cpu_seconds(pid: int) -> float:
    """Returns the user and system time that the process `pid` has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_bytes(pid: int) -> int:
    """Returns the memory of the process `pid` that is in RAM, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
