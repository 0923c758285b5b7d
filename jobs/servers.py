"""redis-server with a plaintext and a TLS port, alone or as a pair with fail-over."""

import subprocess
import tempfile
from pathlib import Path

from system import Processes, free_port, wait_until

PASSWORD = "jobs"
# The host name of the fail-over pair, in a hosts file of its own.
HOST = "redis.test"


def make_certificate(folder: Path) -> None:
    """Writes cert.pem and key.pem, unless they are there."""
    if not (folder / "cert.pem").exists():
        words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30"]
        words += ["-subj", f"/CN={HOST}", "-keyout", folder / "key.pem"]
        words += ["-out", folder / "cert.pem"]
        subprocess.run(words, check=True, stderr=subprocess.DEVNULL)


class Redis:
    """A redis-server that keeps what it has acknowledged."""

    def __init__(
        self,
        folder: Path,
        processes: Processes,
        ports: tuple[int, int],
        address: str,
        *extra: object,
    ) -> None:
        """Starts it; `ports` are those of plaintext and TLS."""
        make_certificate(folder)
        self.processes, self.address = processes, address
        self.plain, self.tls = ports
        words: list[object] = ["redis-server", "--bind", address, "--port", self.plain]
        words += ["--tls-port", self.tls, "--tls-auth-clients", "no"]
        words += ["--tls-cert-file", folder / "cert.pem", "--tls-key-file", folder / "key.pem"]
        words += ["--tls-ca-cert-file", folder / "cert.pem"]
        words += ["--requirepass", PASSWORD, "--masterauth", PASSWORD]
        words += ["--replica-announce-ip", address]
        words += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        words += ["--dir", tempfile.mkdtemp(prefix="redis-", dir=folder), *extra]
        self.words = words
        self.start()

    def start(self) -> None:
        """Starts the server and waits for its answer."""
        self.process = self.processes.start(self.words)
        wait_until("redis-server answers", lambda: self.ask("PING") == "PONG")

    def stop(self) -> None:
        """Ends the server, as an administrator does."""
        self.process.terminate()
        self.process.wait()

    def ask(self, *words: object) -> str:
        """Asks by redis-cli; an empty text if there is no server."""
        command = ["redis-cli", "-h", self.address, "-p", self.plain, "-a", PASSWORD, *words]
        environment = {"PATH": "/usr/bin:/bin:/usr/local/bin"}
        asked = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, env=environment
        )
        return asked.stdout.strip()

    def info(self, section: str, name: str) -> str:
        """One value of INFO; empty if it is not there."""
        lines = self.ask("INFO", section).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line).get(name, "")

    def refused(self) -> int:
        """Connections that it has refused at its client limit."""
        return int(self.info("stats", "rejected_connections") or 0)

    def url(self, host: str, tls: bool) -> str:
        """The URL that an app gets from its provider."""
        scheme, port = ("rediss", self.tls) if tls else ("redis", self.plain)
        return f"{scheme}://:{PASSWORD}@{host}:{port}"


def start_redis(folder: Path, processes: Processes, *extra: object) -> Redis:
    """A server on 127.0.0.1."""
    return Redis(folder, processes, (free_port(), free_port()), "127.0.0.1", *extra)


class Pair:
    """A primary and a replica on two addresses behind one host name.

    The name is in a hosts file that only processes in `namespace` see. The old primary stays up as
    a replica.
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
            raise OSError("only root can make a mount namespace")
        self.namespace = holder.pid
        self._wait_for_replica()

    def _lead_to_primary(self) -> None:
        # The mount shows this inode: write to it, never replace it.
        with self.hosts.open("w") as file:
            file.write(f"127.0.0.1 localhost\n{self.primary.address} {HOST}\n")

    def _wait_for_replica(self) -> None:
        def is_up() -> bool:
            return self.replica.info("replication", "master_link_status") == "up"

        wait_until("the replica is in step", is_up)

    def fail_over(self) -> None:
        """Changes the roles without losing a write, then the hosts file."""
        self.primary.ask("FAILOVER")

        def is_promoted() -> bool:
            return self.replica.info("replication", "role") == "master"

        wait_until("the replica is promoted", is_promoted)
        self.primary, self.replica = self.replica, self.primary
        self._lead_to_primary()
        self._wait_for_replica()
