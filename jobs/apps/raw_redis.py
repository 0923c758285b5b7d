"""A minimal Redis client. It starts faster than a client library, and never retries."""

import os
import socket
from urllib.parse import urlsplit


class Redis:
    """A connection to Redis that has logged in."""

    def __init__(self) -> None:
        url = urlsplit(os.environ["REDIS_URL"])
        assert url.hostname and url.port and url.password
        self.socket = socket.create_connection((url.hostname, url.port), 10)
        self.replies = self.socket.makefile("rb")
        self.ask("AUTH", url.password)

    def ask(self, *words: str) -> str:
        """Sends a request whose reply is one line. Raises OSError for an error reply or a close."""
        strings = "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
        self.socket.sendall(f"*{len(words)}\r\n{strings}".encode())
        reply = self.replies.readline().decode().rstrip("\r\n")
        if not reply or reply.startswith("-"):
            raise OSError(reply or "Redis closed the connection")
        return reply

    def close(self) -> None:
        """Closes the connection."""
        self.replies.close()
        self.socket.close()
