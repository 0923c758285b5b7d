"""The job systems, with the command lines of their workers and producers."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from system import ROOT

APPS = Path(__file__).resolve().parent / "apps"
# The folder into which bin/setup installs Redis clients and job systems.
CLIENTS = ROOT / "target/clients"
PYTHON = CLIENTS / "python/bin/python3"


@dataclass(frozen=True)
class JobSystem:
    """A job system: the command lines of a worker and of a producer."""

    name: str
    worker: Sequence[object]
    producer: Sequence[object]


SYSTEMS = {
    system.name: system
    for system in (
        JobSystem(
            "sidekiq",
            ["sidekiq", "-r", APPS / "sidekiq_app.rb", "-c", "3"],
            ["ruby", APPS / "sidekiq_app.rb"],
        ),
        JobSystem(
            "celery",
            [PYTHON, "-m", "celery", "-A", "celery_app", "worker", "-c", "2", "-l", "warning"],
            [PYTHON, APPS / "celery_app.py"],
        ),
        JobSystem(
            "bullmq",
            ["node", APPS / "bullmq_app.js"],
            ["node", APPS / "bullmq_app.js", "produce"],
        ),
    )
}


def environment() -> dict[str, str]:
    """The environment variables that every app needs. Stage adds the variables of its run."""
    inherited = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
    return inherited | {
        "PATH": f"{CLIENTS / 'python/bin'}:{os.environ['PATH']}",
        "NODE_PATH": str(CLIENTS / "node_modules"),
        "PYTHONPATH": str(APPS),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
