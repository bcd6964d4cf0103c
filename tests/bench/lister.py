"""Reads a whole list page after page, as a program of its own: what whoever lists waits for, without what else the
benchmark's process holds. `python -P -m tests.bench.lister HOST:PORT PATH`, the token in SKERRY_TOKEN; prints JSON."""

import http.client
import os
import sys
import time
from collections.abc import Callable
from urllib.parse import urlencode

import msgspec

from common.codec import to_json

TIMES = 5


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """How long the whole list took, in seconds, the best of a few times."""

    read: float
    """Every page received, and of each only the cursor looked at."""
    decoded: float
    """Every page turned into Python's dicts and lists before the next one was asked for."""
    things: int
    mib: float


class Cursor(msgspec.Struct, frozen=True):
    """Of a page only where it goes on."""

    next: str | None


def listed(address: str, path: str, token: str) -> Listed:
    """Read the list a few times each way."""
    connection = http.client.HTTPConnection(address, timeout=60)
    headers = {"Authorization": f"Bearer {token}"}

    def page(after: str) -> bytes:
        query = {"limit": "1000"} | ({"after": after} if after else {})
        connection.request("GET", f"{path}?{urlencode(query)}", headers=headers)
        answer = connection.getresponse()
        raw = answer.read()
        if answer.status != http.HTTPStatus.OK:
            raise RuntimeError(f"{path} was answered with {answer.status}: {raw[:200]!r}")
        return raw

    def read() -> tuple[int, int]:
        size, after = 0, ""
        while True:
            raw = page(after)
            size += len(raw)
            after = msgspec.json.decode(raw, type=Cursor).next or ""
            if not after:
                return 0, size

    def decoded() -> tuple[int, int]:
        things, size, after = 0, 0, ""
        while True:
            raw = page(after)
            found = msgspec.json.decode(raw)
            things, size = things + len(found["items"]), size + len(raw)
            after = found["next"] or ""
            if not after:
                return things, size

    with_all, (things, size) = _best(decoded)
    return Listed(read=_best(read)[0], decoded=with_all, things=things, mib=size / (1 << 20))


def _best(work: Callable[[], tuple[int, int]]) -> tuple[float, tuple[int, int]]:
    took = list[float]()
    for _ in range(TIMES):
        began = time.perf_counter()
        found = work()
        took.append(time.perf_counter() - began)
    return min(took), found


if __name__ == "__main__":
    sys.stdout.buffer.write(to_json(listed(sys.argv[1], sys.argv[2], os.environ["SKERRY_TOKEN"])))
