"""Looking at this machine for `skerry-controller doctor`: everything has a time limit, and nothing is changed."""

import http.client
import ipaddress
import os
import resource
import shutil
import socket
import ssl
import time
from pathlib import Path

from common import tls
from common.checkup import booted_by_systemd, is_held, rooms, synchronised
from common.errors import SkerryError
from common.run import CommandFailed, run
from controller.config import Config, split_listen
from controller.doctor import UNIT, Database, Files, Port, Service, Sight, Standing
from controller.packages import KEPT
from controller.pki.look import look as look_at_pki
from controller.store.database import schema_at, shown_url

_ANSWERS_S = 5.0
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what is asked instead of every address


async def look(config: Config) -> Sight:
    """Look at everything."""
    running = is_held(config.state_dir / "lock")
    return Sight(
        now=time.time(),
        config=config,
        files=_files(config.state_dir),
        database=_database(config),
        pairs=look_at_pki(config.state_dir / "pki"),
        ports=tuple(
            Port(key=key, listen=listen, problem=answers(listen) if running else free(listen))
            for key, listen in (("api.listen", config.api.listen), ("link.listen", config.link.listen))
        ),
        unresolved=tuple(name for name in config.link.names if not _resolves(name)),
        service=await _service(config, running),
        upgrade=Standing(pending=(KEPT / "pending").exists(), held=(KEPT / "hold").exists()),
        qemu_img=shutil.which("qemu-img") is not None,
        clock_kept=synchronised(),
        rooms=rooms((config.state_dir,)),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
    )


def _files(path: Path) -> Files:
    if not path.exists():
        return Files(path=str(path), there=False, writable=False, open_to_others=False, strangers=())
    seen = path.stat()
    return Files(
        path=str(path),
        there=True,
        writable=os.access(path, os.W_OK | os.X_OK),
        open_to_others=bool(seen.st_mode & 0o077),
        strangers=_strangers(path, seen.st_uid),
    )


def _strangers(path: Path, owner: int) -> tuple[str, ...]:
    """Return what lies in a directory, and in `pki` below it, and belongs to another user than `owner`."""
    try:
        entries = [*path.iterdir(), *((path / "pki").iterdir() if (path / "pki").is_dir() else ())]
        return tuple(sorted(str(one) for one in entries if one.lstat().st_uid != owner))
    except OSError:
        return ()


def _database(config: Config) -> Database:
    url = config.database_url
    try:
        found = schema_at(url)
    except SkerryError as err:
        return Database(shown=shown_url(url), problem=err.detail)
    return Database(
        shown=shown_url(url),
        made=found.revision is not None,
        revision=found.revision or "",
        newest=found.newest,
        known=found.known,
    )


def free(listen: str) -> str:
    """Return why an address can't be listened on; empty: it can."""
    host, port = split_listen(listen)
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return ""
    except OSError as err:
        return os.strerror(err.errno) if err.errno and err.errno > 0 else str(err)


def answers(listen: str) -> str:
    """Return why nobody answers on an address; empty: somebody does."""
    host, port = split_listen(listen)
    try:
        with socket.create_connection((_EVERYWHERE.get(host, host), port), timeout=_ANSWERS_S):
            return ""
    except OSError as err:
        return os.strerror(err.errno) if err.errno and err.errno > 0 else str(err)


def _resolves(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        try:
            return bool(socket.getaddrinfo(name, None))
        except OSError:
            return False
    return True


async def _service(config: Config, running: bool) -> Service:
    systemd = booted_by_systemd()
    return Service(
        systemd=systemd,
        enabled=systemd and await _enabled(),
        running=running,
        unready=_unready(config) if running else "",
    )


async def _enabled() -> bool:
    try:
        return (await run(["systemctl", "is-enabled", UNIT], timeout_s=_ANSWERS_S)).strip() == "enabled"
    except CommandFailed:
        return False


def _unready(config: Config) -> str:
    host, port = split_listen(config.api.listen)
    host = _EVERYWHERE.get(host, host)
    line: http.client.HTTPConnection
    if config.api.tls:
        line = http.client.HTTPSConnection(host, port, timeout=_ANSWERS_S, context=tls.unverified_context())
    else:
        line = http.client.HTTPConnection(host, port, timeout=_ANSWERS_S)
    try:
        line.request("GET", "/readyz")
        answer = line.getresponse()
        text = answer.read(4096).decode(errors="replace")
    except (OSError, ssl.SSLError, http.client.HTTPException) as err:
        return str(err)
    finally:
        line.close()
    return "" if answer.status == 200 else text
