"""One redis-server with a plaintext and a TLS port, or a pair of them with fail-over."""

import subprocess
import tempfile
from pathlib import Path

from system import Processes, free_port, make_certificate, wait_until

PASSWORD = "jobs"
# The host name of the fail-over pair. Its own hosts file contains this name.
HOST = "redis.test"


class Redis:
    """A redis-server that loses no acknowledged write when it restarts."""

    def __init__(
        self,
        folder: Path,
        processes: Processes,
        ports: tuple[int, int],
        address: str,
        *extra: object,
    ) -> None:
        """Starts the server. `ports` are its plaintext port and its TLS port."""
        certificate, key = make_certificate(folder)
        self.processes, self.address = processes, address
        self.plain, self.tls = ports
        words: list[object] = ["redis-server", "--bind", address, "--port", self.plain]
        words += ["--tls-port", self.tls, "--tls-auth-clients", "no"]
        words += ["--tls-cert-file", certificate, "--tls-key-file", key]
        words += ["--tls-ca-cert-file", certificate]
        words += ["--requirepass", PASSWORD, "--masterauth", PASSWORD]
        words += ["--replica-announce-ip", address]
        words += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        words += ["--dir", tempfile.mkdtemp(prefix="redis-", dir=folder), *extra]
        self.words = words
        self.start()

    def start(self) -> None:
        """Starts the server, and waits until it answers."""
        self.process = self.processes.start(self.words)
        wait_until("redis-server answers", lambda: self.ask("PING") == "PONG")

    def stop(self) -> None:
        """Ends the server with SIGTERM, as an administrator does."""
        self.process.terminate()
        self.process.wait()

    def ask(self, *words: object) -> str:
        """Sends a command with redis-cli. Returns an empty text if no server answers."""
        command = ["redis-cli", "-h", self.address, "-p", self.plain, "-a", PASSWORD, *words]
        environment = {"PATH": "/usr/bin:/bin:/usr/local/bin"}
        asked = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, env=environment
        )
        return asked.stdout.strip()

    def info(self, section: str, name: str) -> str:
        """One value from the reply to INFO. Empty if the reply does not contain it."""
        lines = self.ask("INFO", section).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line).get(name, "")

    def refused(self) -> int:
        """The number of connections that Redis has refused because of its client limit."""
        return int(self.info("stats", "rejected_connections") or 0)

    def url(self, host: str, tls: bool) -> str:
        """The URL that an app gets from its provider."""
        scheme, port = ("rediss", self.tls) if tls else ("redis", self.plain)
        return f"{scheme}://:{PASSWORD}@{host}:{port}"


def start_redis(folder: Path, processes: Processes, *extra: object) -> Redis:
    """Starts a server on 127.0.0.1."""
    return Redis(folder, processes, (free_port(), free_port()), "127.0.0.1", *extra)


class Pair:
    """A primary and a replica with different addresses, and a host name that leads to the primary.

    The name is in a hosts file that only processes in `namespace` see. A fail-over exchanges the
    roles: the old primary becomes the replica.
    """

    def __init__(self, folder: Path, processes: Processes) -> None:
        ports = (free_port(), free_port())
        primary = Redis(folder, processes, ports, "127.0.0.2")
        replicate = ("--replicaof", primary.address, primary.plain)
        self.primary = primary
        self.replica = Redis(folder, processes, ports, "127.0.0.3", *replicate)
        self.hosts = folder / "hosts"
        self._lead_to_primary()
        script = f'mount --bind "{self.hosts}" /etc/hosts && echo && exec sleep infinity'
        words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
        holder = processes.start(words, stdout=subprocess.PIPE, stderr=None)
        assert holder.stdout
        if holder.stdout.readline() != b"\n":
            raise OSError("cannot make a mount namespace; run bin/jobs as root")
        self.namespace = holder.pid
        self._wait_for_replica()

    def _lead_to_primary(self) -> None:
        # The mount shows this inode, so write to the file and never replace it.
        with self.hosts.open("w") as file:
            file.write(f"127.0.0.1 localhost\n{self.primary.address} {HOST}\n")

    def _wait_for_replica(self) -> None:
        def is_up() -> bool:
            return self.replica.info("replication", "master_link_status") == "up"

        wait_until("the replica is in step", is_up)

    def fail_over(self) -> None:
        """Exchanges the roles without losing a write, then changes the hosts file."""
        self.primary.ask("FAILOVER")

        def is_promoted() -> bool:
            return self.replica.info("replication", "role") == "master"

        wait_until("the replica is promoted", is_promoted)
        self.primary, self.replica = self.replica, self.primary
        self._lead_to_primary()
        self._wait_for_replica()
