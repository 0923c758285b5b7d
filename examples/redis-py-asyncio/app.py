"""A Python app with redis.asyncio, written as if there were no tunnel."""
import asyncio
import os
import signal
import sys

import redis
import redis.asyncio

r = redis.asyncio.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True)


async def check(name, condition):
    try:
        print(f"check {name}:", "ok" if await condition() else "wrong result", flush=True)
    except Exception as error:
        print(f"check {name}: {type(error).__name__}: {error}", flush=True)


async def user():
    return await r.acl_whoami() == "app"


async def database():
    return int((await r.client_info())["db"]) == 3


async def pipeline():
    async with r.pipeline(transaction=False) as p:
        for n in range(100):
            p.echo(str(n))
        return await p.execute() == [str(n) for n in range(100)]


async def transaction():
    async with r.pipeline(transaction=True) as p:
        return await p.set("a", 1).incr("a").execute() == [True, 2]


async def pubsub():
    async with r.pubsub() as listener:
        await listener.subscribe("news")
        await listener.get_message(timeout=10)
        await r.publish("news", "hello")
        return (await listener.get_message(timeout=10))["data"] == "hello"


async def blocking():
    async def push():
        await asyncio.sleep(0.1)
        await r.rpush("jobs", "job")

    pushing = asyncio.create_task(push())
    popped = await r.blpop("jobs", timeout=10)
    await pushing
    return list(popped) == ["jobs", "job"]


async def big():
    value = "v" * (10 << 20)
    return await r.set("big", value) and await r.get("big") == value


async def checks():
    await check("boot", r.ping)
    await check("user", user)
    await check("database", database)
    await check("pipeline", pipeline)
    await check("transaction", transaction)
    await check("pubsub", pubsub)
    await check("blocking", blocking)
    await check("10 MiB", big)


async def once():
    try:
        print("got", await r.echo("PONG"), flush=True)
    except Exception as error:
        print(f"error {type(error).__name__}: {error}", flush=True)


async def outlive():
    await r.ping()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    errors = []
    while len(errors) < 400:
        try:
            await r.ping()
            break
        except redis.RedisError as error:
            errors.append(type(error).__name__)
            await asyncio.sleep(0.05)
    print("back after", len(errors), "errors", *sorted(set(errors)), flush=True)


async def serve():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await r.set("serving", 1)
    print("ready", flush=True)
    while not stop.is_set():
        await r.blpop("nothing", timeout=1)
    await r.set("farewell", "bye")
    print("bye", flush=True)


asyncio.run(globals()[sys.argv[1] if len(sys.argv) > 1 else "checks"]())
