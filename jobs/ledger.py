"""Records what happens to every job. Apps write to files, so a Redis outage loses no record."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Counts:
    """The figures of one run."""

    enqueued: int = 0
    # Jobs that the producer enqueued successfully, and that no worker did.
    lost: int = 0
    # Jobs that workers did more than once.
    doubled: int = 0
    # Jobs that the producer could not enqueue, and one-off jobs that failed.
    rejected: int = 0
    # Connections that Redis refused at its client limit.
    refused: int = 0
    # Processes that outlived SIGTERM by 30 seconds.
    killed: int = 0
    # Workers that ended by themselves and were started again.
    crashed: int = 0
    # Number of failed requests and one-off jobs, by error message.
    errors: Counter[str] = field(default_factory=Counter)

    def worse_than(self, plaintext: "Counts", tolerated: int | None) -> list[str]:
        """The figures that are worse than in plaintext.

        `tolerated` is the number of further rejected jobs to allow; `None`: any number.
        """
        found = []
        if self.lost > plaintext.lost:
            found.append("lost")
        if self.doubled > plaintext.doubled:
            found.append("doubled")
        if tolerated is not None and self.rejected > plaintext.rejected + tolerated:
            found.append("rejected")
        return found


class Ledger:
    """The files `enqueued`, `done`, `ready` and `stop` of a run.

    Producers write to `enqueued`, and workers to `done`. Both write their names to `ready` when
    they have started. Producers end once `stop` exists.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def lines(self, file: str) -> list[str]:
        """The complete lines of a file. Empty if the file does not exist yet."""
        try:
            text = (self.folder / file).read_text()
        except FileNotFoundError:
            return []
        return text[: text.rfind("\n") + 1].splitlines()

    def acknowledged(self) -> set[str]:
        """The names of the jobs that producers enqueued successfully."""
        return {line.split()[1] for line in self.lines("enqueued") if line.startswith("ok ")}

    def open_jobs(self) -> set[str]:
        """The names of the acknowledged jobs that no worker has done yet."""
        return self.acknowledged() - set(self.lines("done"))

    def stop_producers(self) -> None:
        """Tells producers to end."""
        (self.folder / "stop").touch()

    def counts(self) -> Counts:
        """The figures that the files show so far."""
        done = Counter(self.lines("done"))
        failed = [line.split(maxsplit=2) for line in self.lines("enqueued")]
        errors = Counter(words[2] for words in failed if words[0] == "failed")
        return Counts(
            enqueued=len(self.acknowledged()),
            lost=len(self.open_jobs()),
            doubled=sum(times > 1 for times in done.values()),
            rejected=errors.total(),
            errors=errors,
        )
