"""Measures start-stunnel beside nginx, HAProxy and stunnel.

Everything runs on this machine, in one run, with the same load for all. Rounds alternate between
the contenders; figures are medians over rounds, with minimum and maximum. CPU is user + system time
of the proxy's processes, from /proc. Ratios divide our figure by the best peer's of the same run:
for CPU, latency and memory, less than 1 is better than every peer; for rates, more than 1 is.
"""

import argparse
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import textwrap
import time
from pathlib import Path
from types import FrameType

import report
from loads import LOADS, START_UP
from peers import BEFORE, DESCRIPTORS, OURS, PEERS, POOL_MODES, Lineup, versions
from run import Run
from system import ENDING_SIGNALS, ROOT, fail

# Rounds of each load, in a full run and in the quick form.
ROUNDS, ROUNDS_QUICK = 5, 2
# Debian's folders for programs of root.
SYSTEM_PATH = "/usr/sbin:/sbin"


def launcher(text: str) -> Path:
    """The path of an existing program."""
    found = shutil.which(Path(text).absolute())
    if not found:
        raise argparse.ArgumentTypeError(f"{text} is not a program")
    return Path(found)


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="bin/bench",
        description=__doc__,
        epilog=textwrap.fill(f"loads: {'; '.join([*LOADS, START_UP])}", 79),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="smaller loads and 2 rounds, in a few minutes; writes no file",
    )
    parser.add_argument("--rounds", type=int, help="rounds of each load (default: 5)")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="WORD",
        default=[],
        help="only loads whose name holds one of these",
    )
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=list(PEERS),
        default=list(PEERS),
        help="peers to measure (default: all)",
    )
    modes = list(POOL_MODES.values())
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=modes,
        default=modes,
        help="STUNNEL_POOL modes to measure (default: all)",
    )
    parser.add_argument(
        "--binary",
        type=launcher,
        help="the launcher to measure (default: the one that bin/package makes)",
    )
    parser.add_argument(
        "--before",
        type=launcher,
        help="an older launcher to measure beside it, with its own default settings",
    )
    return parser.parse_args()


def packaged_launcher() -> Path:
    """The binary that users get, from bin/package."""
    machine = os.uname().machine
    package = [ROOT / "bin/package", f"{machine}-gnu"]
    subprocess.run(package, check=True, stdout=subprocess.DEVNULL)
    target = f"{machine}-unknown-linux-gnu"
    return ROOT / "target/package" / target / "release" / OURS


def raise_descriptor_limit() -> None:
    """Raises the limit for this process and all that it starts."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < DESCRIPTORS:
        allowed = f"{DESCRIPTORS} open files are needed and {hard} allowed"
        fail(f"{allowed}: raise the hard limit (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))


class EndedBySignal(BaseException):
    """Unwinds the run, which ends all that it started."""

    def __init__(self, number: int) -> None:
        """Keeps the signal's number."""
        self.number = number


def _end(number: int, _: FrameType | None) -> None:
    # A second signal does not cut the clean-up short.
    for ending in ENDING_SIGNALS:
        signal.signal(ending, signal.SIG_IGN)
    raise EndedBySignal(number)


def end_cleanly_by_signals() -> None:
    """Cleans up on signals, except on those that our caller ignores, as nohup(1) does."""
    for ending in ENDING_SIGNALS:
        if signal.getsignal(ending) is not signal.SIG_IGN:
            signal.signal(ending, _end)


def main() -> None:
    """Reads the command line, measures, prints; a full run writes its files."""
    options = arguments()
    end_cleanly_by_signals()
    os.environ["PATH"] += f":{SYSTEM_PATH}"
    everything = options.peers == list(PEERS) and options.modes == list(POOL_MODES.values())
    full = everything and not options.quick and not options.only
    if full:
        report.page_around_table()  # Fail now rather than in 20 minutes.
    binary = options.binary or packaged_launcher()
    launchers = {name: binary for name, mode in POOL_MODES.items() if mode in options.modes}
    if options.before:
        launchers[BEFORE] = options.before
    raise_descriptor_limit()

    rounds = options.rounds or (ROUNDS_QUICK if options.quick else ROUNDS)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        Path(folder).chmod(0o755)
        lineup = Lineup(Path(folder), launchers, options.peers)
        results = Run(lineup, rounds, options.quick, options.only).measure()
    print(report.table(results))
    print(f"\n{time.monotonic() - started:.0f} s, {rounds} rounds")
    if full:
        for path, text in report.files(results, rounds, versions(binary)).items():
            path.write_text(text)


if __name__ == "__main__":
    try:
        main()
    except EndedBySignal as ended:
        # End by the same signal, so that Ctrl-C ends a shell's loop too.
        signal.signal(ended.number, signal.SIG_DFL)
        signal.raise_signal(ended.number)
