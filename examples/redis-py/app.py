"""A Python app with redis-py, written as if there were no tunnel."""
import os
import signal
import sys
import threading
import time

import redis

r = redis.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True)


def check(name, condition):
    try:
        print(f"check {name}:", "ok" if condition() else "wrong result", flush=True)
    except Exception as error:
        print(f"check {name}: {type(error).__name__}: {error}", flush=True)


def pipeline():
    with r.pipeline(transaction=False) as p:
        for n in range(100):
            p.echo(str(n))
        return p.execute() == [str(n) for n in range(100)]


def transaction():
    with r.pipeline(transaction=True) as p:
        return p.set("a", 1).incr("a").execute() == [True, 2]


def pubsub():
    listener = r.pubsub()
    listener.subscribe("news")
    listener.get_message(timeout=10)
    r.publish("news", "hello")
    return listener.get_message(timeout=10)["data"] == "hello"


def blocking():
    threading.Timer(0.1, lambda: r.rpush("jobs", "job")).start()
    return list(r.blpop("jobs", timeout=10)) == ["jobs", "job"]


def big():
    value = "v" * (10 << 20)
    return r.set("big", value) and r.get("big") == value


def checks():
    check("boot", r.ping)
    check("user", lambda: r.acl_whoami() == "app")
    check("database", lambda: int(r.client_info()["db"]) == 3)
    check("pipeline", pipeline)
    check("transaction", transaction)
    check("pubsub", pubsub)
    check("blocking", blocking)
    check("10 MiB", big)


def once():
    try:
        print("got", r.echo("PONG"), flush=True)
    except Exception as error:
        print(f"error {type(error).__name__}: {error}", flush=True)


def outlive():
    r.ping()
    print("ready", flush=True)
    sys.stdin.readline()
    errors = []
    while len(errors) < 400:
        try:
            r.ping()
            break
        except redis.RedisError as error:
            errors.append(type(error).__name__)
            time.sleep(0.05)
    print("back after", len(errors), "errors", *sorted(set(errors)), flush=True)


def serve():
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    r.set("serving", 1)
    print("ready", flush=True)
    while not stop.is_set():
        r.blpop("nothing", timeout=1)
    r.set("farewell", "bye")
    print("bye", flush=True)


globals()[sys.argv[1] if len(sys.argv) > 1 else "checks"]()
