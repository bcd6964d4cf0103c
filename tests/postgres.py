"""A real PostgreSQL from Debian's package: a cluster of a test's own, on a unix socket, with fsync."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, text

USER = "postgres"
"""PostgreSQL refuses to run as root; Debian's package makes this user."""


def _binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    assert found, "PostgreSQL is not installed: apt-get install --no-install-recommends postgresql (lab/packages.txt)"
    return found[-1].parent


class Cluster:
    """A running server."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._data = directory / "data"
        self._bin = _binaries()
        self._databases = 0

    def start(self) -> None:
        """Start the server, or start it again after a crash."""
        options = f"-k {self._directory} -c listen_addresses= -c fsync=on -c max_connections=60 -c shared_buffers=32MB"
        log = self._directory / "log"
        self._run("pg_ctl", "-D", str(self._data), "-o", options, "-l", str(log), "-w", "-t", "60", "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop it; `immediate` is a crash."""
        self._run("pg_ctl", "-D", str(self._data), "-m", mode, "-w", "-t", "60", "stop")

    def initialise(self) -> None:
        """Make the cluster."""
        self._run("initdb", "-D", str(self._data), "-A", "trust", "-U", USER, "-E", "UTF8", "--locale=C", "--no-sync")

    def database(self) -> str:
        """Return the URL of a new, empty database."""
        self._databases += 1
        name = f"skerry{self._databases}"
        self.administer(f"CREATE DATABASE {name}")
        return self.url(name)

    def copy(self, url: str) -> str:
        """Return the URL of a new database that is a copy of one that nobody uses."""
        self._databases += 1
        name = f"skerry{self._databases}"
        self.administer(f"CREATE DATABASE {name} TEMPLATE {url.partition('?')[0].rpartition('/')[2]}")
        return self.url(name)

    def drop(self, url: str) -> None:
        """Drop a database, whoever still uses it: each is hundreds of files, and a run has hundreds of them."""
        self.administer(f"DROP DATABASE {url.partition('?')[0].rpartition('/')[2]} WITH (FORCE)")

    def url(self, name: str) -> str:
        """Return a database's URL."""
        return f"postgresql://{USER}@/{name}?host={self._directory}"

    def administer(self, statement: str) -> None:
        """Run a statement as the server's owner."""
        engine = create_engine(self.url(USER).replace("postgresql:", "postgresql+psycopg:"))
        try:
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(text(statement))
        finally:
            engine.dispose()

    def cut(self) -> None:
        """End every client's connection, as a failover does."""
        self.administer("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")

    def run(self, program: str, *args: str) -> str:
        """Run one of PostgreSQL's programs against the server."""
        return self._run(program, "-h", str(self._directory), "-U", USER, *args)

    def _run(self, program: str, *args: str) -> str:
        line = [str(self._bin / program), *args]
        if os.geteuid() == 0:
            line = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *line]
        # pg_ctl's server would inherit a pipe and keep it open: what it prints goes to a file.
        with tempfile.TemporaryFile() as out:
            done = subprocess.run(
                line, stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd="/", timeout=90, check=False
            )
            out.seek(0)
            said = out.read().decode(errors="replace")
        assert done.returncode == 0, f"{' '.join(line)}\n{said}"
        return said


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Have a server until the block is left; nothing of it stays."""
    directory = Path(tempfile.mkdtemp(prefix="skerry-pg-", dir="/tmp"))  # a socket's path has 107 bytes at most
    if os.geteuid() == 0:
        owner = pwd.getpwnam(USER)
        os.chown(directory, owner.pw_uid, owner.pw_gid)
    cluster = Cluster(directory)
    try:
        cluster.initialise()
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.stop("immediate")
    finally:
        shutil.rmtree(directory)
