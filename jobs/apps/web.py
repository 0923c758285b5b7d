"""A web process with several threads. For every request, a thread connects and enqueues a job.

The jobs are Sidekiq's. Two web processes get bursts of requests in turns.
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
# Seconds that a burst lasts, and seconds from the start of a burst to the start of the other
# process's burst. A pool closes all but two idle connections after a second; the pause between two
# bursts of a process is longer.
BURST, TURN = 1.0, 2.5
# Longest pause between two requests of a thread, in seconds.
LONGEST_PAUSE = 0.2


def note(file: str, line: str) -> None:
    """Appends a line to a file of the run, in a single write."""
    descriptor = os.open(FOLDER / file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def request(name: str) -> None:
    """Enqueues a job with the requests that Sidekiq's client sends."""
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
    """Waits until a burst of this process begins. `process` is 1 or 2."""
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
