"""Looking at this machine for `skerry-agent doctor`: everything is asked with a time limit, and nothing is changed."""

import asyncio
import email.utils
import http.client
import os
import resource
import ssl
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from agent import join
from agent.config import Config
from agent.doctor import UNIT, Controller, Devices, Identity, Pool, Service, Sight, Underlay, numbers
from agent.drivers import cpu_models, firmware, machine
from agent.drivers.lvm import volumes
from agent.inventory import mtu_of, try_all, virtualisation
from common import tls
from common.checkup import booted_by_systemd, is_held, rooms, synchronised
from common.codec import from_json
from common.errors import Problem, SkerryError
from common.firmware import ABILITIES, TPM
from common.protocol import Capability
from common.run import CommandFailed, run

_ANSWERS_S = 5.0
_LIBVIRT_STARTS_S = 30.0
"""The first who asks starts the daemon, which tries what its QEMUs can do."""
_VXLAN_PORT = 4789
_MOST_PACKET = 65535
_NO_IMAGE = "0" * 64
"""No image has this digest: asking for it, only the certificate is judged."""


async def look(config: Config, url: str | None) -> Sight:
    """Look at everything. `url`: the controller to ask where the machine has not joined one."""
    identity = _identity(config.identity_path)
    usable = identity is not None and not identity.problem
    asked = identity.url if identity and usable else url
    controller = await asyncio.to_thread(ask, asked, config.identity_path if usable else None) if asked else None
    cpu = machine.cpu()
    capabilities = await try_all()
    libvirt, libvirt_problem = await _virsh(config.libvirt.uri)
    unshared = machine.cpu_sharing()
    sharing = Capability(name="cpu-sharing", works=not unshared, detail=unshared)
    return Sight(
        now=time.time(),
        root=os.geteuid() == 0,
        flags=cpu.flags,
        devices=_devices(),
        capabilities=(*capabilities, sharing, *await guest_firmware(config.libvirt.uri)),
        versions=await _versions(capabilities, libvirt),
        libvirt_problem=libvirt_problem,
        underlay=await _underlay(config, asked),
        controller=controller,
        identity=identity,
        clock_kept=synchronised(),
        pool=await pool_at(config.pool.volume_group, config.pool.thin_pool),
        rooms=rooms((config.state_dir, config.pool_path)),
        closed=closed((config.state_dir, config.pool_path)),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        service=await _service(config.state_dir),
    )


def _devices() -> Devices:
    kvm = Path("/dev/kvm")
    return Devices(
        kvm=kvm.exists(), kvm_opens=os.access(kvm, os.R_OK | os.W_OK), vhost_net=Path("/dev/vhost-net").exists()
    )


def closed(directories: Sequence[Path]) -> tuple[str, ...]:
    """Return the directories, of these and those above them, that others than their owner may not enter."""
    ways = {step for directory in directories for step in (directory, *directory.parents)}
    return tuple(str(way) for way in sorted(ways) if way.exists() and not way.stat().st_mode & 0o001)


def _identity(path: Path) -> Identity | None:
    if not path.exists():
        return None
    try:
        found = join.load(path)
    except (SkerryError, OSError) as err:
        return Identity(path=str(path), problem=err.detail if isinstance(err, SkerryError) else str(err.strerror))
    return Identity(
        path=str(path),
        open_to_others=bool(path.stat().st_mode & 0o077),
        url=found.url,
        name=found.name,
        renew_at=found.renew_at,
        expires_at=found.expires_at,
    )


async def _service(state_dir: Path) -> Service:
    systemd = booted_by_systemd()
    enabled = systemd and await _said("systemctl", "is-enabled", UNIT) == "enabled"
    return Service(systemd=systemd, enabled=enabled, running=is_held(state_dir / "lock"))


async def _said(*argv: str) -> str:
    try:
        return (await run(argv, timeout_s=_ANSWERS_S)).strip()
    except CommandFailed:
        return ""


async def _virsh(uri: str) -> tuple[str, str]:
    """Return what libvirt says of its versions, or why it does not."""
    try:
        return await run(["virsh", "-q", "-c", uri, "version", "--daemon"], timeout_s=_LIBVIRT_STARTS_S), ""
    except CommandFailed as err:
        return "", _last_line(err).removeprefix("error: ")


async def guest_firmware(uri: str) -> tuple[Capability, ...]:
    """Return what guests can be started with here, by what libvirt says; nothing where it does not answer."""
    domain_type = cpu_models.TYPES[virtualisation(machine.cpu().flags)]
    virsh, where = ("virsh", "-q", "-c", uri), ("--machine", cpu_models.MACHINE, "--virttype", domain_type)
    try:
        emulated = firmware.emulates_tpm(await run([*virsh, "domcapabilities", *where], timeout_s=_LIBVIRT_STARTS_S))
    except CommandFailed:
        return ()
    found = {TPM: "" if emulated else "libvirt finds no swtpm"}
    for ability, probe in firmware.probes(domain_type).items():
        with tempfile.NamedTemporaryFile("w", prefix="skerry-probe-") as file:
            file.write(probe)
            file.flush()
            try:
                await run([*virsh, "domxml-to-native", "qemu-argv", "--xml", file.name], timeout_s=_LIBVIRT_STARTS_S)
            except CommandFailed as err:
                found[ability] = _last_line(err).removeprefix("error: ")
    return tuple(Capability(name=name, works=not found.get(name), detail=found.get(name, "")) for name in ABILITIES)


def _last_line(err: CommandFailed) -> str:
    return (err.output.strip().splitlines() or [err.detail])[-1].strip()


async def _versions(capabilities: Sequence[Capability], libvirt: str) -> dict[str, str]:
    tried = {one.name: one.detail for one in capabilities if one.works}
    daemon = [line for line in libvirt.splitlines() if "daemon" in line]
    found = {
        "kernel": machine.kernel(),
        "libvirt": daemon[0] if daemon else await _said("libvirtd", "--version"),
        "qemu": tried.get("qemu", ""),
        "dnsmasq": tried.get("dnsmasq", ""),
        "nft": await _said("nft", "--version"),
    }
    return {name: ".".join(str(part) for part in numbers(text)) for name, text in found.items()}


async def _underlay(config: Config, url: str | None) -> Underlay:
    strict, held = machine.rp_filter_of_all() != 2, held_by_process(_VXLAN_PORT, _udp_sockets())
    try:
        address = config.underlay.address or (machine.address_towards(url) if url else "")
        if not address:
            return Underlay(address="", mtu=0, strict=strict, port_held_by_process=held)
        mtu = mtu_of(address, machine.nics(with_loopback=True))
    except SkerryError as err:
        return Underlay(address="", mtu=0, problem=err.detail, strict=strict, port_held_by_process=held)
    host = urlsplit(url).hostname if url else None
    fits = await _fits(host, mtu) if host else None
    return Underlay(address=address, mtu=mtu, fits=fits, strict=strict, port_held_by_process=held)


async def _fits(host: str, mtu: int) -> bool | None:
    """Say whether a packet of the interface's full size reaches a machine in one piece; None: not even a small one."""
    headers = 48 if ":" in host else 28
    sizes = (56, min(mtu, _MOST_PACKET) - headers)
    small, large = [bool(await _said("ping", "-c1", "-W2", "-Mdo", f"-s{size}", host)) for size in sizes]
    return large if small else None


async def pool_at(group: str, thin_pool: str) -> Pool:
    """Look at the thin pool in which volumes lie; without a group they are files."""
    if not group:
        return Pool()
    try:
        found = await volumes(group, timeout_s=_ANSWERS_S)
    except CommandFailed as err:
        return Pool(group=group, thin_pool=thin_pool, problem=_last_line(err))
    if thin_pool not in found:
        return Pool(group=group, thin_pool=thin_pool, missing=True)
    there = found[thin_pool]
    return Pool(
        group=group,
        thin_pool=thin_pool,
        data_percent=float(there.data_percent or 0),
        metadata_percent=float(there.metadata_percent or 0),
    )


def _udp_sockets() -> str:
    paths = (Path("/proc/net/udp"), Path("/proc/net/udp6"))
    return "".join(path.read_text() for path in paths if path.exists())


def held_by_process(port: int, table: str, processes: Path = Path("/proc")) -> bool:
    """Say whether a program's socket is on a UDP port, by the kernel's table: no process has the kernel's own open."""
    rows = (line.split() for line in table.splitlines())
    inodes = {row[9] for row in rows if len(row) > 9 and row[1].endswith(f":{port:04X}")}
    wanted = {f"socket:[{inode}]" for inode in inodes}
    return bool(wanted) and any(_target(fd) in wanted for fd in processes.glob("[0-9]*/fd/*"))


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:  # the process has ended, or closed it
        return ""


def ask(url: str, identity: Path | None) -> Controller:
    """Ask the controller for something that tells whether it takes our certificate, and what time it has."""
    parts = urlsplit(url)
    try:
        context = _context(identity)
        line = http.client.HTTPSConnection(parts.hostname or "", parts.port or 443, timeout=_ANSWERS_S, context=context)
        line.connect()
        before = time.time()
        line.request("GET", f"/images/{_NO_IMAGE}" if identity else "/ca")
        answer = line.getresponse()
        body = answer.read(_MOST_PACKET)
        after = time.time()
        line.close()
    except ssl.SSLCertVerificationError as err:
        return Controller(url=url, untrusted=err.verify_message)
    except (OSError, ValueError, http.client.HTTPException) as err:
        return Controller(url=url, problem=join.network_words(err))
    refuses = from_json(body, Problem, "its answer").detail if answer.status == 403 else ""
    return Controller(url=url, refuses=refuses, skew_s=_skew(answer.headers["Date"], (before + after) / 2))


def _context(identity: Path | None) -> ssl.SSLContext:
    if identity is None:
        return tls.unverified_context()
    return tls.client_context(ca_pem=join.load(identity).ca_pem, identity=identity)


def _skew(date: str | None, now: float) -> float | None:
    """Return how far this clock is ahead of one that says its time in whole seconds."""
    try:
        return now - (email.utils.parsedate_to_datetime(date or "").timestamp() + 0.5)
    except ValueError:
        return None
