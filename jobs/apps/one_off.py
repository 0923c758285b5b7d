"""A one-off job: two connections and a few requests. It fails if Redis refuses either."""

import sys

from raw_redis import Redis

try:
    first, second = Redis(), Redis()
    for _ in range(5):
        first.ask("INCR", "one-off")
        second.ask("INCR", "one-off")
except OSError as error:
    sys.exit(f"one-off job: {error}")
