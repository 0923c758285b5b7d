"""What happened to every job: the apps write lines to files, which no Redis can lose."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Counts:
    """The figures of one run."""

    enqueued: int = 0
    # Acknowledged to the producer, and never done.
    lost: int = 0
    # Done more than once.
    doubled: int = 0
    # The producer got an error, or a one-off job failed.
    rejected: int = 0
    # Connections that Redis refused at its client limit.
    refused: int = 0
    # Processes that outlived SIGTERM by 30 seconds.
    killed: int = 0
    # Workers that ended by themselves and were started again.
    crashed: int = 0
    # How often each error made a producer's request fail.
    errors: Counter[str] = field(default_factory=Counter)

    def worse_than(self, plaintext: "Counts", tolerated: int | None) -> list[str]:
        """The figures that exceed those of plaintext.

        Rejected jobs may exceed them by `tolerated`; `None`: by any number.
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
    """The files `enqueued`, `done`, `ready` and `stop` of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def lines(self, file: str) -> list[str]:
        """The complete lines of a file; none if it does not exist yet."""
        try:
            text = (self.folder / file).read_text()
        except FileNotFoundError:
            return []
        return text[: text.rfind("\n") + 1].splitlines()

    def acknowledged(self) -> set[str]:
        """The jobs that the producer knows to be enqueued."""
        return {line.split()[1] for line in self.lines("enqueued") if line.startswith("ok ")}

    def open_jobs(self) -> set[str]:
        """The acknowledged jobs that are not done yet."""
        return self.acknowledged() - set(self.lines("done"))

    def stop_producers(self) -> None:
        """Asks producers to end."""
        (self.folder / "stop").touch()

    def counts(self) -> Counts:
        """What is known so far."""
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
