"""Counts what goes over the underlay inside VXLAN, until SIGTERM: `ip netns exec UNDERLAY python -m tests.lab.sniff`.

Prints one JSON object: frames to one machine, ARP frames, and frames to everybody (broadcast and multicast).
"""

import json
import signal
import socket
from types import FrameType

_EVERYTHING = 0x0003
_IPV4, _ARP, _UDP = 0x0800, 0x0806, 17
_VXLAN_PORT = 4789
_VXLAN_HEADER = 8


class Stopped(Exception):
    """SIGTERM came."""


def inner_frame(frame: bytes) -> bytes | None:
    """Return the frame inside a VXLAN packet (RFC 7348), None for whatever else it is."""
    if int.from_bytes(frame[12:14], "big") != _IPV4 or frame[23] != _UDP:
        return None
    udp = 14 + (frame[14] & 0x0F) * 4
    if int.from_bytes(frame[udp + 2 : udp + 4], "big") != _VXLAN_PORT:
        return None
    return frame[udp + 8 + _VXLAN_HEADER :]


def count(seen: dict[str, int], frame: bytes) -> None:
    """Take one frame of the underlay into account."""
    inner = inner_frame(frame)
    if inner is None:
        return
    if int.from_bytes(inner[12:14], "big") == _ARP:
        seen["arp"] += 1
    elif inner[0] & 1:
        seen["everybody"] += 1
    else:
        seen["unicast"] += 1


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise Stopped


def main() -> None:
    """Count until SIGTERM, then print."""
    seen = {"arp": 0, "everybody": 0, "unicast": 0}
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_EVERYTHING)) as wire:
        signal.signal(signal.SIGTERM, _stop)
        print("listening", flush=True)
        try:
            while True:
                count(seen, wire.recv(65536))
        except Stopped:
            print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main()
