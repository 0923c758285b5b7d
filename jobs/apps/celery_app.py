"""A job for Celery, and a producer that opens a new connection for every job."""

import os
import time
from pathlib import Path

import redis
from celery import Celery
from celery.signals import worker_ready

URL = os.environ["REDIS_URL"]
FOLDER = Path(os.environ["JOBS_FOLDER"])

app = Celery("celery_app", broker=URL)
app.conf.update(
    # A platform sends SIGTERM to a worker's child processes too. Without the next two settings,
    # Celery loses the jobs of these processes, with or without a tunnel.
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    # Deliver a lost worker's jobs again after 20 seconds instead of an hour.
    broker_transport_options={"visibility_timeout": 20},
)


def note(file: str, line: str) -> None:
    """Appends a line to a file of the run, in a single write."""
    descriptor = os.open(FOLDER / file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


@worker_ready.connect
def ready(**_: object) -> None:
    """Writes the name of a worker that accepts jobs to the file `ready`."""
    note("ready", os.environ["JOBS_WORKER"])


@app.task(autoretry_for=(redis.RedisError,), default_retry_delay=1, max_retries=None)
def job(number: str) -> None:
    """Does a job. Opens its own Redis connection, as many tasks do."""
    with redis.Redis.from_url(URL) as client:
        client.incr("performed")
    time.sleep(float(os.environ["JOBS_DURATION"]))
    note("done", number)


def produce() -> None:
    """Enqueues jobs until the file `stop` exists."""
    number = 0
    while not (FOLDER / "stop").exists():
        number += 1
        name = f"producer-{number}"
        try:
            with app.connection_for_write() as connection:
                job.apply_async((name,), connection=connection, retry=False)
            note("enqueued", f"ok {name}")
        except Exception as error:
            note("enqueued", f"failed {name} {type(error).__name__}")
        time.sleep(1 / float(os.environ["JOBS_RATE"]))


if __name__ == "__main__":
    # Import this file, so that the task's name contains celery_app instead of __main__.
    import celery_app

    celery_app.produce()
