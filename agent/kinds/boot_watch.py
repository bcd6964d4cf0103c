"""Looks at machines on their way up: their lease, what they asked of the metadata service, their SSH port."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from agent.drivers.hypervisor import LiveDomain
from agent.drivers.place import Place
from agent.kinds import first_boot
from agent.kinds.first_boot import Sight
from agent.metadata import AskedAt
from common.boots import FirstBoot
from common.clock import Clock
from common.documents import DomainDoc
from common.ids import Id

SSH_PORT = 22
LOG_LINES = 12
_LOG_BYTES = 2000


class Reach(Protocol):
    """What networks know of a machine."""

    async def leased_at(self, network: Id, mac: str) -> float | None:
        """Return when an address was last given to a MAC."""
        ...

    def asked(self, vm: Id) -> AskedAt:
        """Return when a machine first asked the metadata service."""
        ...

    async def unreachable(self, network: Id, address: str, port: int) -> str:
        """Try a TCP connection from a network's gateway. Return why there is none; empty: there was one."""
        ...


class BootWatch:
    """Gives what is seen of a machine's first boot."""

    def __init__(self, networks: Reach, address_of: Callable[[Id, Id], str | None], place: Place, clock: Clock) -> None:
        self._networks, self._address_of, self._place, self._clock = networks, address_of, place, clock

    async def __call__(self, doc: DomainDoc, domain: LiveDomain, before: FirstBoot | None) -> Sight:
        """Look once. What was reached before is not looked at again."""
        reached = {leg.name for leg in before.legs if leg.state == "reached"} if before else set()
        nic, asked = doc.nics[0], self._networks.asked(doc.id)
        leased_at = await self._networks.leased_at(nic.network, nic.mac)
        ssh, ssh_at = "", None
        wanted = "ssh" not in reached and "ssh" not in first_boot.not_asked(doc)
        address = self._address_of(doc.id, nic.network)
        if wanted and address and (leased_at is not None or "address" in reached):
            ssh = await self._networks.unreachable(nic.network, address, SSH_PORT)
            ssh_at = None if ssh else self._clock()
        over = self._clock() >= domain.started_at + first_boot.LIMIT_S
        log = await asyncio.to_thread(_last_lines, self._place.serial_log(doc.id)) if over else ""
        return Sight(
            leased_at=leased_at,
            metadata_at=asked.first,
            key_at=asked.key,
            ssh_at=ssh_at,
            ssh=ssh,
            log=log,
        )


def _last_lines(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _LOG_BYTES))
            text = file.read(_LOG_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return ""
    lines = [line.rstrip() for line in text.replace("\r", "").splitlines()]
    return "\n".join([line for line in lines if line][-LOG_LINES:])
