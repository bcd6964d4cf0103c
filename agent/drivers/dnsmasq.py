"""One dnsmasq per network, inside its router namespace: started, told, adopted after a restart, and stopped.

It is a daemon of its own and outlives the agent. Its directory `<run_dir>/networks/<network>/` holds the files it
reads, its leases, its pid file, and `loaded`: what the running process was last told, so that an agent that died
between writing a file and the SIGHUP is found out. A process is ours if its command line names our file, and of use
if it lives in the network's present namespace: a pid alone proves nothing.
"""

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent.drivers import netns, service
from agent.drivers.dhcp import LEASE_S, DnsmasqFiles, Lease, Served, digest
from common import names
from common.codec import from_json, to_json
from common.errors import Invalid, Temporary
from common.ids import Id
from common.run import run

_STOP_S = 3.0
_STARTS_S = 10.0


class _Process(msgspec.Struct, frozen=True, kw_only=True):
    pid: int
    started: int
    """Clock ticks after boot: with the pid it names a process for good."""
    present: bool
    """It lives in the network's present namespace."""


class _Loaded(msgspec.Struct, frozen=True, kw_only=True):
    pid: int
    started: int
    conf: str
    hosts: str
    device: int


class Dnsmasq:
    """The dnsmasq daemons below one directory."""

    def __init__(self, run_dir: Path) -> None:
        self._root = run_dir / "networks"

    def directory(self, network: Id) -> Path:
        """Return the directory of a network's dnsmasq."""
        return self._root / network

    def see(self, network: Id) -> Served:
        """Look at a network's dnsmasq. Blocks for small files only."""
        directory = self.directory(network)
        process = self._process(network)
        leases = frozenset(lease for _, lease, _ in _leases(directory))
        leftovers = directory.exists() or process is not None
        if process is None or not process.present:
            return Served(leases=leases, leftovers=leftovers)
        loaded = _loaded(directory)
        if loaded is None or (loaded.pid, loaded.started) != (process.pid, process.started):
            return Served(running=True, pid=process.pid, leases=leases, leftovers=leftovers)
        conf = digest(_text(directory / "dnsmasq.conf"))
        hosts = digest(_text(directory / "dhcp-hosts"), _text(directory / "hosts"))
        return Served(
            running=True,
            pid=process.pid,
            conf=conf if conf == loaded.conf else "",
            hosts=hosts if hosts == loaded.hosts else "",
            device=loaded.device,
            leases=leases,
            leftovers=leftovers,
        )

    def leased_at(self, network: Id, mac: str) -> float | None:
        """Return when a MAC was last given its address, None where it has none. Blocks for a small file."""
        ends = [end for end, lease, _ in _leases(self.directory(network)) if lease.mac == mac.lower()]
        return max(ends) - LEASE_S if ends else None

    def networks(self) -> tuple[Id, ...]:
        """Return the networks that have a directory or a process here, orphans included."""
        found = {entry.name for entry in self._root.iterdir()} if self._root.exists() else set()
        mark = f"--conf-file={self._root}/"
        for proc in _processes():
            found |= {Path(word).parent.name for word in _words(proc) if word.startswith(mark)}
        owners = (names.owner_of(name) for name in sorted(found))
        return tuple(owner for owner in owners if owner is not None)

    async def ensure(self, network: Id, files: DnsmasqFiles, device: int) -> None:
        """Make a dnsmasq run on these files and this device: by SIGHUP where that is enough, or by a restart."""
        seen = await asyncio.to_thread(self.see, network)
        if seen.running and seen.conf == files.conf_digest and seen.device == device:
            await asyncio.to_thread(self._tell, network, files, device)
        else:
            await self._stop(network)
            await asyncio.to_thread(self._write, network, files)
            await self._start(network, device)

    async def release(self, network: Id, leases: frozenset[Lease]) -> None:
        """Make these leases not exist. dnsmasq keeps them in memory: it is stopped, and started if it ran."""
        directory = self.directory(network)
        seen = await asyncio.to_thread(self.see, network)
        await self._stop(network)
        kept = "".join(f"{line}\n" for _, lease, line in _leases(directory) if lease not in leases)
        _replace(directory / "leases", kept)
        if seen.running:
            await self._start(network, seen.device)

    async def remove(self, network: Id) -> None:
        """Make the network's dnsmasq and all its files not exist."""
        await self._stop(network)
        await asyncio.to_thread(shutil.rmtree, self.directory(network), ignore_errors=True)

    async def _start(self, network: Id, device: int) -> None:
        """Start it on the files as they are, and write down what it was told."""
        directory = self.directory(network)
        self._open_to_dnsmasq(directory)
        space = netns.DIRECTORY / names.router_namespace(network)
        outside = service.outliving(f"DHCP and DNS of {network}")
        await run([*outside, "nsenter", f"--net={space}", "dnsmasq", self._mark(network)], timeout_s=_STARTS_S)
        conf = digest(_text(directory / "dnsmasq.conf"))
        hosts = digest(_text(directory / "dhcp-hosts"), _text(directory / "hosts"))
        await asyncio.to_thread(self._remember, network, conf, hosts, device)

    def _tell(self, network: Id, files: DnsmasqFiles, device: int) -> None:
        self._write(network, files)
        process = self._process(network)
        if process is not None and _signal(process, self._mark(network), signal.SIGHUP):
            self._remember(network, files.conf_digest, files.hosts_digest, device)

    async def _stop(self, network: Id) -> None:
        """Stop every process of this network, whichever namespace it lives in."""
        for order in (signal.SIGTERM, signal.SIGKILL):
            deadline = asyncio.get_running_loop().time() + _STOP_S
            while (process := await asyncio.to_thread(self._process, network)) is not None:
                if asyncio.get_running_loop().time() > deadline:
                    break
                _signal(process, self._mark(network), order)
                await asyncio.sleep(0.01)
            else:
                return
        raise Temporary(f"dnsmasq of {network} does not end, though it was killed: the kernel holds it")

    def _write(self, network: Id, files: DnsmasqFiles) -> None:
        directory = self.directory(network)
        directory.mkdir(parents=True, exist_ok=True)
        _replace(directory / "dnsmasq.conf", files.conf)
        _replace(directory / "dhcp-hosts", files.dhcp_hosts)
        _replace(directory / "hosts", files.hosts)

    def _open_to_dnsmasq(self, directory: Path) -> None:
        """Let dnsmasq's own user reach its files: it reads them anew long after it gave up root."""
        for path in (directory, self._root, self._root.parent):
            path.chmod(path.stat().st_mode | 0o001)
        for path in self._root.parent.parents:
            if not path.stat().st_mode & 0o001:
                raise Temporary(
                    f"dnsmasq runs as the user dnsmasq and can't reach {directory}: {path} is closed to it; "
                    f"`chmod o+x {path}`, or set another [agent] run_dir"
                )

    def _remember(self, network: Id, conf: str, hosts: str, device: int) -> None:
        process = self._process(network)
        if process is not None:
            loaded = _Loaded(pid=process.pid, started=process.started, conf=conf, hosts=hosts, device=device)
            _replace(self.directory(network) / "loaded", to_json(loaded).decode())

    def _mark(self, network: Id) -> str:
        """Return the argument by which a process is known as ours."""
        return f"--conf-file={self.directory(network) / 'dnsmasq.conf'}"

    def _process(self, network: Id) -> _Process | None:
        """Find the network's process: by its pid file, or else among all (its file may be gone, or not yet there)."""
        space = netns.inode(names.router_namespace(network))
        mark = self._mark(network)
        recorded = _text(self.directory(network) / "dnsmasq.pid").strip()
        if recorded.isdigit() and (found := _examine(int(recorded), mark, space)) is not None:
            return found
        examined = (_examine(int(proc.name), mark, space) for proc in _processes())
        return next((found for found in examined if found is not None), None)


def _processes() -> Iterator[Path]:
    return (entry for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _words(proc: Path) -> list[str]:
    """Return the command line of a process; empty for a zombie and for one that has gone."""
    try:
        return (proc / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _examine(pid: int, mark: str, space: int | None) -> _Process | None:
    """Return the process if it is a living dnsmasq with our mark. A zombie has no command line left."""
    proc = Path("/proc") / str(pid)
    try:
        words = _words(proc)
        if mark not in words or Path(words[0]).name != "dnsmasq":
            return None
        started = int((proc / "stat").read_text().rpartition(")")[2].split()[19])
        return _Process(pid=pid, started=started, present=(proc / "ns" / "net").stat().st_ino == space)
    except OSError:
        return None


def _signal(process: _Process, mark: str, order: signal.Signals) -> bool:
    """Send a signal to this very process: it is held by a pidfd, then looked at once more. False: it has gone."""
    try:
        held = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        again = _examine(process.pid, mark, None)
        if again is None or again.started != process.started:
            return False
        signal.pidfd_send_signal(held, order)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(held)


def _leases(directory: Path) -> list[tuple[float, Lease, str]]:
    """Return when each lease ends, the lease, and its line: `<expiry> <mac> <address> <name> <client id>`."""
    found = []
    for line in _text(directory / "leases").splitlines():
        words = line.split()
        if len(words) >= 4 and words[0].isdigit():
            found.append((float(words[0]), Lease(mac=words[1].lower(), address=words[2]), line))
    return found


def _loaded(directory: Path) -> _Loaded | None:
    try:
        return from_json(_text(directory / "loaded"), _Loaded, "loaded")
    except Invalid:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _replace(path: Path, text: str) -> None:
    """Write a file under another name, then rename it: whoever reads finds the old or the new one."""
    part = path.with_name(names.part(path.name))
    part.write_text(text)
    part.chmod(0o644)
    part.replace(path)
