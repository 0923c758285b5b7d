"""Compares start-stunnel with nginx, HAProxy and stunnel.

Everything runs on this machine, and every contender gets the same loads. In each round the
contenders take turns. Each figure is the median over all rounds, followed by minimum and maximum.
CPU is the user and system time of the proxy's processes, from /proc.

A ratio is start-stunnel's figure divided by the best peer's figure of the same run. For CPU,
latency and memory, a ratio below 1 means that start-stunnel is better than every peer. For rates,
a ratio above 1 means that.
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

import report
from loads import LOADS, START_UP
from peers import BEFORE, DESCRIPTORS, OURS, PEERS, POOL_MODES, Lineup, versions
from run import Run
from system import ROOT, EndedBySignal, end_cleanly_by_signals, fail

# The number of rounds in which each load is measured, in a full run and with --quick.
ROUNDS, ROUNDS_QUICK = 5, 2
# The folders in which Debian keeps programs for administrators, such as nginx and haproxy.
SYSTEM_PATH = "/usr/sbin:/sbin"


def launcher(text: str) -> Path:
    """Converts the value of an option to the path of a program."""
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
        help="smaller loads and 2 rounds; takes a few minutes and writes no file",
    )
    parser.add_argument("--rounds", type=int, help="number of rounds of each load (default: 5)")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="WORD",
        default=[],
        help="measure only loads whose name contains one of these words",
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
        help="values of STUNNEL_POOL to measure (default: all)",
    )
    parser.add_argument(
        "--binary",
        type=launcher,
        help="the launcher to measure (default: bin/package builds it)",
    )
    parser.add_argument(
        "--before",
        type=launcher,
        help="an older launcher to measure as well, with its own default settings",
    )
    return parser.parse_args()


def packaged_launcher() -> Path:
    """Builds the binary that users get with bin/package, and returns its path."""
    machine = os.uname().machine
    package = [ROOT / "bin/package", f"{machine}-gnu"]
    subprocess.run(package, check=True, stdout=subprocess.DEVNULL)
    target = f"{machine}-unknown-linux-gnu"
    return ROOT / "target/package" / target / "release" / OURS


def raise_descriptor_limit() -> None:
    """Raises the limit on open files, for this process and the programs that it starts."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < DESCRIPTORS:
        allowed = f"bin/bench needs {DESCRIPTORS} open files, but only {hard} are allowed"
        fail(f"{allowed}: raise the hard limit (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))


def main() -> None:
    """Measures, and prints a table. A full run also writes the published tables and picture."""
    options = arguments()
    end_cleanly_by_signals()
    os.environ["PATH"] += f":{SYSTEM_PATH}"
    everything = options.peers == list(PEERS) and options.modes == list(POOL_MODES.values())
    full = everything and not options.quick and not options.only
    if full:
        # Check the page now, so that a mistake in the page does not appear only after 20 minutes.
        report.page_around_table()
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
        # End this process with the signal that it received. If the user's shell runs bin/bench in
        # a loop, Ctrl-C then also ends the loop.
        signal.signal(ended.number, signal.SIG_DFL)
        signal.raise_signal(ended.number)
