"""One plaintext connection to Redis, as an app has it."""

import re
import socket
from types import TracebackType

from system import PATIENCE


class Client:
    """A connection that ends with the `with` block."""

    def __init__(self, address: str, port: int) -> None:
        self.socket = socket.create_connection((address, port), PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ping(self) -> bool:
        """Whether Redis answers."""
        self.socket.sendall(b"PING\r\n")
        return self.socket.recv(64) == b"+PONG\r\n"

    def connected_clients(self) -> int:
        """How many connections Redis has, this one included."""
        self.socket.sendall(b"INFO clients\r\n")
        found = re.search(rb"connected_clients:(\d+)", self.socket.recv(4096))
        if not found:
            raise OSError("Redis does not say how many clients it has")
        return int(found.group(1))

    def close(self) -> None:
        """Ends the connection."""
        self.socket.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
