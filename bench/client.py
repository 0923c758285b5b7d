"""A plaintext client of Redis, like the client in an app."""

import socket

from system import PATIENCE


class Client:
    """A connection, which is closed at the end of its `with` block."""

    def __init__(self, address: str, port: int) -> None:
        self.socket = socket.create_connection((address, port), PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ping(self) -> bool:
        """Sends PING. Returns whether the reply is PONG."""
        self.socket.sendall(b"PING\r\n")
        return self.socket.recv(64) == b"+PONG\r\n"

    def info(self, section: str) -> dict[str, str]:
        """Returns the fields of one section of Redis's reply to INFO."""
        self.socket.sendall(f"INFO {section}\r\n".encode())
        with self.socket.makefile("rb") as replies:
            header = replies.readline()
            if not header.startswith(b"$"):
                raise OSError(f"Redis answers INFO with {header!r}")
            text = replies.read(int(header[1:]) + len(b"\r\n")).decode()
        return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

    def close(self) -> None:
        """Closes the connection."""
        self.socket.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
