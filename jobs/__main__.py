"""Runs real job systems through a platform's troubles, with the launcher and without.

Counts the jobs that were lost, done twice or rejected, for each pool mode and in plaintext. Fails
if a mode loses or doubles more jobs than plaintext, or if a full plan or a fail-over rejects more:
there a launcher could take connections from others, or lead to the old primary. Run it on an idle
machine: under load, TLS handshakes and slow closes alone make a full plan overflow.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from ledger import Counts
from scenarios import SCENARIOS, Options
from system import ENDING_SIGNALS, ROOT
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
        told = f"some of: {' '.join(known)} (default: all)"
        parser.add_argument(f"--{option}", choices=known, default=known, help=told, **several)
    for option, default, told in (
        ("restarts", 10, "rolling restarts of both workers"),
        ("redis-restarts", 3, "restarts of Redis"),
        ("fail-overs", 3, "fail-overs"),
        ("one-off-jobs", 90, "one-off jobs beside the web processes"),
        ("linger", 25, "seconds to watch for jobs that are done again at the end"),
    ):
        told = f"{told} (default: {default})"
        parser.add_argument(f"--{option}", type=int, default=default, metavar="N", help=told)
    parser.add_argument(
        "--binary", type=Path, help="the launcher (default: a release build of this checkout)"
    )
    parser.add_argument("--keep", type=Path, help="folder that keeps the logs of every run")
    return parser.parse_args()


def built_launcher() -> Path:
    """A release build."""
    manifest = ROOT / "Cargo.toml"
    words = ["cargo", "build", "--quiet", "--locked", "--release", "--manifest-path", manifest]
    subprocess.run(words, check=True)
    return ROOT / "target/release/start-stunnel"


def row(cells: tuple[object, ...]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def main() -> None:
    """Runs every scenario in every mode, prints a table, and fails as the help says."""
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
    # While the roles change, a producer may or may not be between two jobs.
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


class EndedBySignal(BaseException):
    """Unwinds the run, which ends all that it started."""


def end(_number: int, _frame: FrameType | None) -> None:
    """Ends the run; a second signal does not cut the clean-up short."""
    for ending in ENDING_SIGNALS:
        signal.signal(ending, signal.SIG_IGN)
    raise EndedBySignal


if __name__ == "__main__":
    for ending in ENDING_SIGNALS:
        if signal.getsignal(ending) is not signal.SIG_IGN:
            signal.signal(ending, end)
    try:
        main()
    except EndedBySignal:
        sys.exit("bin/jobs: interrupted")
