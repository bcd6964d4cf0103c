"""Vouchers for the guests of this host: a certificate each, fetched from the controller, kept on disk, renewed in time.

They are good for days, so that guests can prove who they are with the controller gone.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog

from agent.dial import Dialer
from common.attestation import Key, Voucher, key_pem, load_key, new_key, request_for
from common.clock import Clock, system_clock
from common.errors import Invalid, SkerryError
from common.ids import Id, is_id
from common.joining import VouchRequest
from common.secret import write_private

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 5.0
REFUSED_PAUSE_S = 60.0
"""A machine that the controller does not vouch for is asked for again after so long."""

MOST = 256
"""Machines in one request."""


class Vouchers:
    """The vouchers of one host. `guests` names the machines that are wanted on it."""

    def __init__(
        self, directory: Path, dialer: Dialer, guests: Callable[[], set[Id]], clock: Clock = system_clock
    ) -> None:
        self._directory = directory
        self._dialer = dialer
        self._guests = guests
        self._clock = clock
        self._asked: dict[Id, float] = {}
        self._problem = ""
        self._key = _ensure_key(directory)
        self._held = _load(directory, self._key)

    def of(self, vm: Id) -> Voucher | None:
        """Return the voucher of a machine that is good now."""
        found = self._held.get(vm)
        return found if found is not None and found.ends_at > self._clock() else None

    async def run(self) -> None:
        """Keep a fresh voucher for every guest, until cancelled."""
        while True:
            try:
                await self.refresh()
                self._problem = ""
            except SkerryError as err:
                if err.detail != self._problem:
                    log.warning("machines not vouched for", problem=err.detail)
                self._problem = err.detail
            await asyncio.sleep(LOOK_EVERY_S)

    async def refresh(self) -> None:
        """Fetch what is missing or half over, and forget the vouchers of machines that are gone."""
        wanted, now = set(self._guests()), self._clock()
        for vm in set(self._held) - wanted:
            del self._held[vm]
            (self._directory / f"{vm}.pem").unlink(missing_ok=True)
        trusted = self._dialer.identity.ca_pem
        stale = [
            vm
            for vm in sorted(wanted)
            if not ((held := self._held.get(vm)) and held.is_fresh(trusted, now))
            and now - self._asked.get(vm, 0.0) > REFUSED_PAUSE_S
        ][:MOST]
        if not stale:
            return
        answer = await self._dialer.vouch(VouchRequest(csr=request_for(self._key), machines=tuple(stale)))
        self._asked = {vm: at for vm, at in self._asked.items() if vm in wanted} | dict.fromkeys(stale, now)
        for vm, pem in answer.certificates.items():
            if vm in stale and vm in self._guests():  # else it went meanwhile, and its files with it
                self._held[vm] = Voucher(pem, self._key)
                await asyncio.to_thread(write_private, self._directory / f"{vm}.pem", pem.encode())
                self._asked.pop(vm, None)


def _ensure_key(directory: Path) -> Key:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = directory / "key.pem"
    if not path.exists():
        write_private(path, key_pem(new_key()))
    return load_key(path.read_bytes())


def _load(directory: Path, key: Key) -> dict[Id, Voucher]:
    found = {}
    for path in directory.glob("vm-*.pem"):
        if not is_id(path.stem, "vm"):
            continue
        try:
            found[Id(path.stem)] = Voucher(path.read_text(), key)
        except (ValueError, Invalid) as err:
            log.warning("voucher on disk passed over", path=str(path), problem=str(err))
    return found
