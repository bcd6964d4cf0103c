"""Volumes on real hosts: what a guest was told is safe is found again, whatever became of the disk meanwhile."""

from pathlib import Path

import pytest

from tests.lab.operator import BOOT, Operator, acknowledged, found, wait

pytestmark = [pytest.mark.lab, pytest.mark.timeout(3600)]


def test_a_guest_finds_every_acknowledged_record(operator: Operator, tmp_path: Path) -> None:
    """On a thin pool, through attach, detach, another guest, growth, snapshot, revert and its host's power cut."""
    operator.type("skerry volume create data --size-gib 1 --vm a --wait")
    try:
        _attached_and_grown(operator)
        _to_another_guest(operator)
        _reverted(operator)
        _power_cut(operator, tmp_path / "said")
        operator.until_clean()
    finally:
        operator.type(
            "skerry volume detach data --wait || true",
            "skerry snapshot delete before --wait || true",
            "skerry volume delete data --wait",
        )
    operator.until_clean()


def _attached_and_grown(operator: Operator) -> None:
    seen = operator.until_says("a", "acked 3 ")
    assert "has 1024 MiB" in seen
    assert operator.show("volume", "data")["status"]["host"] == "h1"
    assert "vol-" in operator.metal.run("h1", "lvs --noheadings -o lv_name skerry")
    at = len(operator.console("a"))
    operator.type("skerry volume set data --size-gib 2 --wait")
    operator.until_says("a", "has 2048 MiB", at)


def _to_another_guest(operator: Operator) -> None:
    operator.type("skerry volume detach data --wait")
    safe = acknowledged(operator.console("a"))
    at = len(operator.console("c"))
    operator.type("skerry volume attach data --vm c --wait")
    seen = operator.until_says("c", r"found \d+ records.*acked", at)
    assert found(seen) >= safe > 3
    assert "has 2048 MiB" in seen
    assert "is attached to vm c" in operator.refused("skerry volume attach data --vm a --wait")


def _reverted(operator: Operator) -> None:
    before = acknowledged(operator.console("c"))
    operator.type("skerry snapshot create before --volume data --wait")
    after = acknowledged(operator.console("c"))
    operator.until_says("c", f"acked {after + 3} ")
    assert "is attached to vm c" in operator.refused("skerry volume revert data --snapshot before --wait")
    operator.type("skerry volume detach data --wait", "skerry volume revert data --snapshot before --wait")
    at = len(operator.console("a"))
    operator.type("skerry volume attach data --vm a --wait")
    seen = operator.until_says("a", r"found \d+ records.*acked", at)
    assert before <= found(seen) <= after + 1, (before, after)
    assert "has 2048 MiB" in seen


def _power_cut(operator: Operator, said: Path) -> None:
    boot, log = operator.metal.boot("h1"), operator.console("a")
    with operator.listening("a", said):
        wait(lambda: acknowledged(said.read_text(errors="replace")) > acknowledged(log) + 3, lambda: "a says nothing")
        operator.metal.pull_plug("h1")
    safe = acknowledged(said.read_text(errors="replace"))
    operator.metal.plug_in("h1")
    operator.until_booted("h1", boot)
    seen = operator.until_boots("a", log.count(BOOT), r"found \d+ records")
    assert found(seen) >= safe
    operator.until_reached()
    assert "gave no sign of life" in operator.happened("--kind host", "--name h1")
