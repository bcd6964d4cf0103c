"""FDB and neighbour entries in packed batches, and quick dumps, over a bare rtnetlink socket.

Many messages travel in one `send`, with one acknowledgement per packet: some 50 times quicker than one call each.
Everything here blocks and speaks to the network namespace of the calling thread: call it in a lane.
Layouts: linux/netlink.h, linux/rtnetlink.h, linux/neighbour.h.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import NamedTuple, Self

from common.errors import Temporary

NTF_SELF = 0x02
NTF_MASTER = 0x04
NTF_STICKY = 0x40
NUD_REACHABLE = 0x02
NUD_NOARP = 0x40
NUD_PERMANENT = 0x80
STATIC = NUD_REACHABLE | NUD_NOARP
"""What `bridge fdb add … static` sets: a VXLAN device asks for one bit, a bridge for the other."""

_RTM_NEWLINK, _RTM_GETLINK = 16, 18
_RTM_NEWNEIGH, _RTM_DELNEIGH, _RTM_GETNEIGH = 28, 29, 30
_REQUEST, _ACK, _DUMP, _REPLACE, _CREATE = 0x1, 0x4, 0x300, 0x100, 0x400
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_SOL_NETLINK, _CAP_ACK, _STRICT_CHECK = 270, 10, 12
_NDA_DST, _NDA_LLADDR, _NDA_IFINDEX, _NDA_MASTER = 1, 2, 8, 9
_IFLA_IFNAME, _IFLA_MASTER = 3, 10

_HEADER = struct.Struct("=IHHII")
_NDMSG = struct.Struct("=BxxxiHBB")
_IFINFO = struct.Struct("=BxHiII")
_ATTR = struct.Struct("=HH")

_PACKET_BYTES = 64 * 1024
_RECEIVE_BYTES = 256 * 1024
_TIMEOUT_S = 10.0
_ALREADY_SO = {errno.EEXIST, errno.ENOENT}


class Change(NamedTuple):
    """One entry to add (or replace) or to delete."""

    add: bool
    family: int
    device: int
    """Index of the device it is on."""
    state: int
    flags: int
    mac: str
    address: str
    """Tunnel endpoint of an FDB entry, address of a neighbour; empty: none."""


class Entry(NamedTuple):
    """One FDB or neighbour entry as dumped."""

    device: int
    """Index of the device it is on."""
    state: int
    flags: int
    mac: str
    address: str


class Link(NamedTuple):
    """One network device as dumped."""

    device: int
    """Its index."""
    name: str
    master: int
    """The index of the device it is plugged into; 0: none."""


def add_fdb(index: int, mac: str, flags: int, vtep: str = "") -> Change:
    """Return the change that makes a static FDB entry exist, in place of another for the same MAC."""
    return Change(True, socket.AF_BRIDGE, index, STATIC, flags, mac, vtep)


def remove_fdb(index: int, mac: str, flags: int) -> Change:
    """Return the change that removes an FDB entry with all its destinations."""
    return Change(False, socket.AF_BRIDGE, index, 0, flags, mac, "")


def add_neighbour(index: int, address: str, mac: str) -> Change:
    """Return the change that makes a permanent neighbour exist, in place of another for the same address."""
    return Change(True, socket.AF_INET, index, NUD_PERMANENT, 0, mac, address)


def remove_neighbour(index: int, address: str) -> Change:
    """Return the change that removes a neighbour."""
    return Change(False, socket.AF_INET, index, 0, 0, "", address)


class Rtnetlink:
    """A rtnetlink socket in the network namespace of the thread that makes it."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.settimeout(_TIMEOUT_S)
        # Errors come back one by one: with the default buffer some 270 of them would be lost.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
        self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _STRICT_CHECK, 1)
        self._socket.bind((0, 0))
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def apply(self, changes: Iterable[Change]) -> None:
        """Carry out all changes, in order. An entry already there, or already gone, is success.

        Raises Temporary with the first failure; the others are carried out all the same.
        """
        packet, first, failures = bytearray(), self._sequence + 1, dict[int, Change]()
        pending: list[Change] = []
        for change in changes:
            if len(packet) > _PACKET_BYTES:
                failures |= self._send(packet, first, pending)
                packet, first, pending = bytearray(), self._sequence + 1, []
            self._sequence += 1
            pending.append(change)
            packet += _encode(change, self._sequence)
        if pending:
            failures |= self._send(packet, first, pending)
        for code, change in failures.items():
            verb = "added" if change.add else "removed"
            raise Temporary(f"entry {change.mac} {change.address} can't be {verb}: {os.strerror(code)}")

    def fdb(self, index: int) -> tuple[Entry, ...]:
        """Return the FDB entries of one device: its own, and its bridge's for that port."""
        return self._entries(socket.AF_BRIDGE, index)

    def neighbours(self, index: int) -> tuple[Entry, ...]:
        """Return the IPv4 neighbours of one device."""
        return self._entries(socket.AF_INET, index)

    def links(self, master: int | None = None) -> tuple[Link, ...]:
        """Return all devices, or those plugged into one bridge."""
        ask = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        if master is not None:
            ask += _attribute(_IFLA_MASTER, struct.pack("=I", master))
        found = []
        for payload in self._dump(_RTM_GETLINK, ask):
            _, _, index, _, _ = _IFINFO.unpack_from(payload)
            attributes = dict(_attributes(payload, _IFINFO.size))
            name = bytes(attributes[_IFLA_IFNAME]).rstrip(b"\0").decode()
            plugged = struct.unpack("=I", attributes[_IFLA_MASTER])[0] if _IFLA_MASTER in attributes else 0
            found.append(Link(index, name, plugged))
        return tuple(found)

    def _entries(self, family: int, index: int) -> tuple[Entry, ...]:
        ask = _NDMSG.pack(family, index if family == socket.AF_BRIDGE else 0, 0, 0, 0)
        if family != socket.AF_BRIDGE:
            ask += _attribute(_NDA_IFINDEX, struct.pack("=I", index))
        found = []
        for payload in self._dump(_RTM_GETNEIGH, ask):
            _, device, state, flags, _ = _NDMSG.unpack_from(payload)
            mac = address = ""
            for kind, value in _attributes(payload, _NDMSG.size):
                if kind == _NDA_LLADDR:
                    mac = value.hex(":")
                elif kind == _NDA_DST and len(value) == 4:
                    address = socket.inet_ntoa(value)
                elif kind == _NDA_MASTER:  # the bridge names itself; the flag is only for requests
                    flags |= NTF_MASTER
            if device == index:
                found.append(Entry(device, state, flags, mac, address))
        return tuple(found)

    def _send(self, packet: bytearray, first: int, changes: list[Change]) -> dict[int, Change]:
        """Send a packet of changes numbered from `first`; return failures by their errno."""
        last = self._sequence
        offset = len(packet) - _length_of_last(changes[-1])
        _HEADER_FLAGS.pack_into(packet, offset + 6, _HEADER_FLAGS.unpack_from(packet, offset + 6)[0] | _ACK)
        failures: dict[int, Change] = {}
        try:
            self._socket.send(packet)
            while True:
                for kind, sequence, payload in _messages(self._socket.recv(_RECEIVE_BYTES)):
                    if kind != _NLMSG_ERROR or not first <= sequence <= last:
                        continue
                    code = -struct.unpack_from("=i", payload)[0]
                    if code and code not in _ALREADY_SO:
                        failures.setdefault(code, changes[sequence - first])
                    if sequence == last:
                        return failures
        except OSError as err:
            raise Temporary(f"{len(changes)} FDB and neighbour entries could not be set: {err}") from err

    def _dump(self, kind: int, ask: bytes) -> Iterator[memoryview]:
        self._sequence += 1
        header = _HEADER.pack(_HEADER.size + len(ask), kind, _REQUEST | _DUMP, self._sequence, 0)
        try:
            self._socket.send(header + ask)
            while True:
                for answer, sequence, payload in _messages(self._socket.recv(_RECEIVE_BYTES)):
                    if sequence != self._sequence:
                        continue
                    if answer == _NLMSG_DONE:
                        return
                    if answer == _NLMSG_ERROR:
                        code = -struct.unpack_from("=i", payload)[0]
                        if code == errno.ENODEV:
                            return
                        raise Temporary(f"the kernel refused to list devices or entries: {os.strerror(code)}")
                    yield payload
        except OSError as err:
            raise Temporary(f"devices or entries could not be listed: {err}") from err


_HEADER_FLAGS = struct.Struct("=H")


def _encode(change: Change, sequence: int) -> bytes:
    body = _NDMSG.pack(change.family, change.device, change.state, change.flags, 0)
    if change.address:
        body += _attribute(_NDA_DST, socket.inet_aton(change.address))
    if change.mac:
        body += _attribute(_NDA_LLADDR, bytes.fromhex(change.mac.replace(":", "")))
    kind, flags = (_RTM_NEWNEIGH, _REQUEST | _CREATE | _REPLACE) if change.add else (_RTM_DELNEIGH, _REQUEST)
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def _length_of_last(change: Change) -> int:
    return _HEADER.size + _NDMSG.size + (8 if change.address else 0) + (12 if change.mac else 0)


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTR.pack(_ATTR.size + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _attributes(payload: memoryview, offset: int) -> Iterator[tuple[int, memoryview]]:
    while offset + _ATTR.size <= len(payload):
        length, kind = _ATTR.unpack_from(payload, offset)
        if length < _ATTR.size:
            return
        yield kind & 0x3FFF, payload[offset + _ATTR.size : offset + length]
        offset += (length + 3) & ~3


def _messages(raw: bytes) -> Iterator[tuple[int, int, memoryview]]:
    view, offset = memoryview(raw), 0
    while offset + _HEADER.size <= len(view):
        length, kind, _, sequence, _ = _HEADER.unpack_from(view, offset)
        if length < _HEADER.size:
            return
        yield kind, sequence, view[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3
