"""A worker with RQ, written as if there were no tunnel."""
import os
import sys
import time

import redis
from rq import Queue, Worker

connection = redis.Redis.from_url(os.environ["REDIS_URL"])


def job(number):
    connection.set("started", number)
    time.sleep(1.5)
    connection.set("finished", number)


if __name__ == "__main__":
    if sys.argv[1:] == ["enqueue"]:
        import app

        print("enqueued", Queue(connection=connection).enqueue(app.job, 7).id)
    else:
        Worker(["default"], connection=connection).work(logging_level="WARNING")
