"""A one-off job with two connections. It fails if Redis refuses a connection or a request."""

import sys

from raw_redis import Redis

try:
    first, second = Redis(), Redis()
    for _ in range(5):
        first.ask("INCR", "one-off")
        second.ask("INCR", "one-off")
except OSError as error:
    sys.exit(f"one-off job: {error}")
