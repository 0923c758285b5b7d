"""Runs real job systems through typical outages, with the launcher and without it.

Each scenario restarts workers or Redis, uses a Redis plan's connection limit fully, or fails over
to a replica. It runs in each pool mode, and in plaintext without the launcher. A table shows how
many jobs were lost, done twice or rejected.

The run fails if a pool mode loses or doubles more jobs than plaintext. In the scenarios "plan" and
"fail-overs" it also fails if a pool mode rejects more jobs. There the launcher could hold
connections that other processes need, or could lead to the old primary.

Run this on an idle machine. On a busy machine, TLS handshakes and closes take longer, and this
alone makes a full plan exceed its limit.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ledger import Counts
from scenarios import SCENARIOS, Options
from system import ROOT, EndedBySignal, end_cleanly_by_signals
from systems import SYSTEMS

PLAINTEXT = "plaintext"
MODES = ("off", "auto", "on")
HEADINGS = ("job system", "scenario", "mode", "enqueued", "lost", "doubled", "rejected")
MORE_HEADINGS = ("refused by Redis", "killed", "crashed", "seconds")


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="bin/jobs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    several = {"nargs": "+", "metavar": "WORD"}
    for option, words in (("modes", MODES), ("systems", SYSTEMS), ("scenarios", SCENARIOS)):
        known = list(words)
        told = f"one or more of: {' '.join(known)} (default: all)"
        parser.add_argument(f"--{option}", choices=known, default=known, help=told, **several)
    for option, default, told in (
        ("restarts", 10, "number of times that both workers restart in turn"),
        ("redis-restarts", 3, "number of times that Redis restarts"),
        ("fail-overs", 3, "number of fail-overs"),
        ("one-off-jobs", 90, "number of one-off jobs while web processes run"),
        ("linger", 25, "seconds to wait at the end for jobs that are done a second time"),
    ):
        told = f"{told} (default: {default})"
        parser.add_argument(f"--{option}", type=int, default=default, metavar="N", help=told)
    parser.add_argument(
        "--binary", type=Path, help="the launcher (default: a release build of this checkout)"
    )
    parser.add_argument("--keep", type=Path, help="new folder for the logs of every run")
    return parser.parse_args()


def built_launcher() -> Path:
    """Makes a release build of the launcher, and returns its path."""
    manifest = ROOT / "Cargo.toml"
    words = ["cargo", "build", "--quiet", "--locked", "--release", "--manifest-path", manifest]
    subprocess.run(words, check=True)
    return ROOT / "target/release/start-stunnel"


def row(cells: tuple[object, ...]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def main() -> None:
    """Runs the scenarios in every mode, and prints a table. The help says when the run fails."""
    options = arguments()
    binary = (options.binary or built_launcher()).resolve()
    if not binary.is_file():
        sys.exit(f"bin/jobs: --binary: {binary} is not a program (see --help)")
    if options.keep and options.keep.exists():
        sys.exit(f"bin/jobs: --keep: {options.keep} exists already; name a new folder")
    how = Options(
        binary,
        options.restarts,
        options.redis_restarts,
        options.fail_overs,
        options.one_off_jobs,
        options.linger,
    )
    print(row((*HEADINGS, *MORE_HEADINGS)))
    print(row(("---",) * len((*HEADINGS, *MORE_HEADINGS))))
    # Each fail-over may interrupt one request of a producer, depending on the moment.
    tolerated = {"plan": 0, "fail-overs": how.fail_overs}
    complaints = []
    for name in options.scenarios:
        scenario, systems = SCENARIOS[name]
        for system in (system for system in options.systems if system in systems):
            plaintext = None
            for mode in (PLAINTEXT, *options.modes):
                counts = measure(options.keep, system, name, mode, how)
                plaintext = plaintext or counts
                for figure in counts.worse_than(plaintext, tolerated.get(name)):
                    complaints.append(f"{system}, {name}: {mode} {figure} more jobs than plaintext")
    for complaint in complaints:
        print(f"bin/jobs: {complaint}", file=sys.stderr)
    sys.exit(bool(complaints))


def measure(keep: Path | None, system: str, name: str, mode: str, how: Options) -> Counts:
    """Runs one scenario in one mode, and prints its row."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="jobs-") as temporary:
        folder = keep / f"{system}-{name}-{mode}" if keep else Path(temporary)
        folder.mkdir(parents=True, exist_ok=not keep)
        scenario, _ = SCENARIOS[name]
        launcher_mode = None if mode == PLAINTEXT else mode
        counts = scenario(SYSTEMS[system], launcher_mode, folder.resolve(), how)
    figures = (counts.enqueued, counts.lost, counts.doubled, counts.rejected)
    more = (counts.refused, counts.killed, counts.crashed, round(time.monotonic() - started))
    print(row((system, name, mode, *figures, *more)), flush=True)
    for error, times in counts.errors.most_common(3):
        print(f"{times} x {error}", file=sys.stderr)
    return counts


if __name__ == "__main__":
    end_cleanly_by_signals()
    try:
        main()
    except EndedBySignal:
        sys.exit("bin/jobs: interrupted")
