"""A web process: threads that open a connection for every request and enqueue a Sidekiq job.

Its requests come in bursts, in turns with those of another web process.
"""

import json
import os
import random
import sys
import threading
import time
from pathlib import Path

from raw_redis import Redis

FOLDER = Path(os.environ["JOBS_FOLDER"])
# Seconds of a burst, and from one process's burst to the other's. The pause between two bursts is
# longer than the second for which a pool keeps connections beyond two.
BURST, TURN = 1.0, 2.5
# Longest pause of a thread between two requests, in seconds.
LONGEST_PAUSE = 0.2


def note(file: str, line: str) -> None:
    """Appends a line in one write."""
    descriptor = os.open(FOLDER / file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def request(name: str) -> None:
    """Enqueues one job, as Sidekiq's client does."""
    now = time.time()
    job = {"class": "Job", "args": [name], "retry": True, "queue": "default", "jid": name}
    redis = Redis()
    try:
        redis.ask("SADD", "queues", "default")
        payload = json.dumps(job | {"created_at": now, "enqueued_at": now})
        redis.ask("LPUSH", "queue:default", payload)
    finally:
        redis.close()


def wait_for_turn(process: int) -> None:
    """Waits until it is the turn of this process, 1 or 2."""
    since_turn = (time.time() + process * TURN) % (2 * TURN)
    if since_turn > BURST:
        time.sleep(2 * TURN - since_turn)


def serve(thread: int, process: int) -> None:
    """Sends requests until the file `stop` exists."""
    number = 0
    while not (FOLDER / "stop").exists():
        wait_for_turn(process)
        number += 1
        name = f"{os.environ['JOBS_WORKER']}-{thread}-{number}"
        try:
            request(name)
            note("enqueued", f"ok {name}")
        except OSError as error:
            note("enqueued", f"failed {name} {error}")
        time.sleep(random.uniform(0, LONGEST_PAUSE))


if __name__ == "__main__":
    count, process = int(sys.argv[1]), int(sys.argv[2])
    for thread in range(count):
        threading.Thread(target=serve, args=(thread, process)).start()
    note("ready", os.environ["JOBS_WORKER"])
