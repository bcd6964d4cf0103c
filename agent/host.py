"""The host as others ask about it: its documents by guest and MAC, its inventory, and the orders it carries out."""

import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager

from agent.console import Consoles
from agent.drivers.hypervisor import Hypervisor
from agent.drivers.place import Place
from agent.drivers.pool import Pool
from agent.inventory import take_inventory
from agent.kinds.unit import AnyUnitKind, UnitKey
from agent.link import Console
from agent.memory import Memory
from agent.metadata import Guest, find_guest
from common.documents import Desired, DocKey, DomainDoc, PortDoc, VolumeDoc
from common.ids import HostId, Id
from common.protocol import Found, Inventory

INVENTORY_LASTS_S = 600.0
"""Taking it tries things out on the kernel, so it is not done anew at every dial."""


class Documents:
    """Questions to the documents on the agent's disk."""

    def __init__(self, memory: Memory, host: HostId) -> None:
        self._memory = memory
        self._host = host
        self._macs_of: Mapping[DocKey, Desired] | None = None
        self._macs: dict[str, Id] = {}

    def guest_at(self, network: Id, address: str) -> Guest | None:
        """Return the guest of this host that has an address in a network."""
        return find_guest(self._memory.items.values(), self._host, network, address)

    def address_of(self, vm: Id, network: Id) -> str | None:
        """Return the address of a machine in a network."""
        docs = (item.doc for item in self._memory.items.values() if not item.gone)
        return next(
            (doc.address for doc in docs if isinstance(doc, PortDoc) and (doc.vm, doc.network) == (vm, network)), None
        )

    def owner_of_mac(self, mac: str) -> Id | None:
        """Return the VM whose port has this MAC."""
        items = self._memory.items
        if items is not self._macs_of:  # the memory replaces the mapping whenever a document changes
            docs = (item.doc for item in items.values())
            self._macs = {doc.mac: doc.vm for doc in docs if isinstance(doc, PortDoc)}
            self._macs_of = items
        return self._macs.get(mac)

    def guests(self) -> set[Id]:
        """Return the machines that are wanted on this host."""
        live = (item.doc for item in self._memory.items.values() if not item.gone)
        return {doc.id for doc in live if isinstance(doc, DomainDoc)}

    def images(self) -> set[str]:
        """Return the digests that a document names."""
        found = set()
        for item in self._memory.items.values():
            match item.doc:
                case VolumeDoc(image=image) if image is not None:
                    found.add(image.digest)
                case DomainDoc(kernel=kernel) if kernel is not None:
                    found.add(kernel.digest)
        return found

    def units_of_machine(self, vm: Id) -> tuple[UnitKey, ...]:
        """Return the units that an event of a machine concerns: its domain, and the networks its taps are in."""
        item = self._memory.items.get(DocKey(f"domain/{vm}"))
        nics = item.doc.nics if item is not None and isinstance(item.doc, DomainDoc) else ()
        return (UnitKey(f"domain/{vm}"), *(UnitKey(f"network/{nic.network}") for nic in nics))


class CachedInventory:
    """The host's inventory, taken anew when it is old."""

    def __init__(self, place: Place, pool: Pool, vtep: str, hypervisor: Hypervisor) -> None:
        self._place = place
        self._pool = pool
        self._vtep = vtep
        self._hypervisor = hypervisor
        self._taken: tuple[float, Inventory] | None = None

    async def take(self) -> Inventory:
        """Return it. Raises Invalid where no interface has the tunnel's address."""
        if self._taken is None or time.monotonic() - self._taken[0] > INVENTORY_LASTS_S:
            self._taken = (time.monotonic(), await self._look())
        return self._taken[1]

    async def _look(self) -> Inventory:
        return await take_inventory(self._place, self._pool, self._vtep, self._hypervisor)


class HostOrders:
    """What the controller can ask of the host at once (`agent.link.Orders`)."""

    def __init__(self, consoles: Consoles, kinds: Iterable[AnyUnitKind]) -> None:
        self._consoles = consoles
        self._kinds = tuple(kinds)

    def attach(self, vm: Id) -> AbstractAsyncContextManager[Console]:
        """Attach to a guest's console."""
        return self._consoles.attach(vm)

    async def read_log(self, vm: Id, tail_bytes: int) -> bytes:
        """Return the end of a guest's serial log."""
        return await self._consoles.read_log(vm, tail_bytes)

    async def survey(self) -> tuple[Found, ...]:
        """List everything on the host that Skerry could have made, kind by kind."""
        return tuple([found for kind in self._kinds for found in await kind.survey()])
