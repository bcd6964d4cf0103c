"""Disks of real machines that fill up, and are empty again: what is refused says so, and goes on by itself."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab.metal import CONTROLLER
from tests.lab.operator import PATIENCE_S, Operator

pytestmark = [pytest.mark.lab, pytest.mark.timeout(3600)]

FILLER = "/var/tmp/filler"
FILLED = "dd if=/dev/zero of=/dev/skerry/filler bs=1M oflag=direct status=none"


def test_a_full_controller_refuses_changes_in_words(operator: Operator) -> None:
    with _full(operator, CONTROLLER):
        words = operator.refused("skerry network create full")
        assert "the store can't be written" in words, words
        assert operator.type("skerry vm list")
        operator.until_reached()
    operator.until("skerry network create full --wait")
    operator.type("skerry network delete full --wait")
    operator.until_clean()


def test_a_full_host_makes_machines_once_there_is_room(operator: Operator) -> None:
    before = operator.processes("h1")
    with _full(operator, "h1"):
        operator.type("skerry vm create d --image tiny --size small --host h1")
        operator.until("skerry events --kind host --name h1 --since 10m | grep -q 'could not be saved: .*full'")
        assert operator.processes("h1") == before
        operator.until_reached()
    operator.until("skerry vm list | grep -q '^d *running'")
    operator.type("skerry vm delete d --wait")
    operator.until_clean()


def test_a_pool_at_its_watermark_takes_no_more_until_there_is_room(operator: Operator) -> None:
    seen = operator.show("host", "h2")["status"]
    stop = max(seen["pool_percent"], seen["pool_metadata_percent"]) + 10
    operator.type(f"skerry host set h2 --pool-watermark-percent {stop}")
    operator.metal.run("h2", "lvcreate -q -y -V 2G --thinpool skerry -n filler skerry")
    try:
        filled = f"{FILLED} count=$((7350 * {stop + 2} / 100))"
        operator.metal.run("h2", filled, timeout_s=PATIENCE_S)
        operator.until("skerry events --kind host --name h2 --since 1h | grep -q pool-closed")
        operator.type("skerry volume create more --size-gib 1 --vm b")
        operator.until(f"skerry volume list | grep -q '^more *blocked.*sales stop at {stop} %'")
    finally:
        operator.metal.run("h2", "lvremove -q -y skerry/filler")
        operator.until("skerry events --kind host --name h2 --since 1h | grep pool- | tail -n 1 | grep -q pool-opened")
        operator.type(
            "skerry volume detach more --wait || true",
            "skerry volume delete more --wait || true",
            "skerry host set h2 --pool-watermark-percent 85",
        )
    operator.until_clean()


@contextmanager
def _full(operator: Operator, machine: str) -> Iterator[None]:
    """Have the file system of a machine full, root's reserve included."""
    room = "$(($(stat -f -c '%a * %S' /) - (64 << 20)))"
    try:
        operator.metal.run(machine, f"fallocate -l {room} {FILLER}; cat /dev/zero >>{FILLER} 2>/dev/null || true")
        yield
    finally:
        operator.metal.run(machine, f"rm -f {FILLER}")
