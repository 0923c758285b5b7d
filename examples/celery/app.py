"""A worker with Celery, written as if there were no tunnel."""
import os
import time

from celery import Celery

app = Celery("app", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])


@app.task
def job(number):
    app.backend.client.set("started", number)
    time.sleep(1.5)
    app.backend.client.set("finished", number)
    return number


if __name__ == "__main__":
    print("enqueued", job.delay(7).id)
