"""Lives that once failed, as short as they did: each is found by its seed and kept by its acts.

Once there are other acts to draw from, a seed draws others: so those that `tests.sim.faults --seed N` told are kept.
"""

import pytest

from tests.sim.faults import Act, live

FOUND: dict[str, tuple[int, tuple[Act, ...]]] = {
    "a rescue that is taken back before its guest is off, on a host whose clock is set forth": (
        40373,
        (
            Act("alter_vm", {"number": 1, "verb": "rescue"}),
            Act("a_moment_passes", {"seconds": 0.03}),
            Act("cancel", {"number": 3}),
            Act("clock_is_set", {"process": "h1", "seconds": 900.0}),
        ),
    ),
    "a stop that is taken back when its guest is off": (
        40120,
        (
            Act("use_vm", {"number": 2, "verb": "stop"}),
            Act("time_passes", {"seconds": 3.0}),
            Act("cancel", {"number": 6}),
        ),
    ),
    "a machine that is deleted, and kept, between its resize up and the one down again": (
        201235,
        (
            Act("resize_vm", {"number": 6, "size": "big", "restart": True}),
            Act("a_moment_passes", {"seconds": 0.5}),
            Act("resize_vm", {"number": 0, "size": "small", "restart": False}),
            Act("a_moment_passes", {"seconds": 0.5}),
            Act("delete_vm", {"number": 0, "keep": True}),
        ),
    ),
    "a snapshot of a volume whose machine goes before either had a host": (
        300286,
        (
            Act("use_volume", {"number": 1, "what": "make"}),
            Act("use_volume", {"number": 7, "what": "snapshot"}),
            Act("govern", {"project": "shop", "vms": 3, "vcpus": 7, "keep_s": 0}),
            Act("delete_vm", {"number": 7, "keep": True}),
        ),
    ),
    "a host that is lost while a volume on it is being reverted": (
        508337,
        (
            Act("host_lies", {"name": "h1", "what": "I am as you wish"}),
            Act("use_volume", {"number": 3, "what": "make"}),
            Act("use_volume", {"number": 7, "what": "snapshot"}),
            Act("use_volume", {"number": 0, "what": "stop and revert"}),
        ),
    ),
    "a volume of a machine that is deleted, and kept, before it had a host": (
        804551,
        (
            Act("delete_vm", {"number": 1, "keep": False}),
            Act("a_moment_passes", {"seconds": 0.03}),
            Act(
                "make_vm",
                {
                    "vm": "web",
                    "size": "small",
                    "number": 2,
                    "pinned": False,
                    "restart": "on-crash",
                    "grace": 0,
                    "group": "apart",
                },
            ),
            Act("use_volume", {"number": 5, "what": "make"}),
            Act("delete_vm", {"number": 7, "keep": True}),
        ),
    ),
    "a volume of a machine that is deleted, and kept, before its host made it": (
        908335,
        (
            Act("use_volume", {"number": 1, "what": "make"}),
            Act("delete_vm", {"number": 7, "keep": True}),
        ),
    ),
}


@pytest.mark.parametrize("what", FOUND)
def test_what_failed_once_holds(what: str) -> None:
    live(*FOUND[what])
