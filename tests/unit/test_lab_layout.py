"""The names of labs never meet, and what can't be a lab is refused with the way out."""

from pathlib import Path

import pytest

from common.errors import Invalid
from lab.layout import Layout, address, host_names


def test_a_lab_owns_its_namespaces_and_no_other_lab_s() -> None:
    one, two = Layout(name="a"), Layout(name="a-h1")
    assert one.owns(one.underlay)
    assert one.owns(one.namespace("h12"))
    assert not one.owns(two.underlay)
    assert not one.owns(two.namespace("h1"))
    assert not two.owns(one.namespace("h1"))
    assert not one.owns("skerry-a-h1-inner")


def test_long_names_stay_short_and_apart() -> None:
    first, second = (Layout(name=f"a-very-long-name-of-a-lab-{number}") for number in (1, 2))
    assert first.underlay != second.underlay
    assert len(first.namespace("h64")) <= 32


@pytest.mark.parametrize("name", ["", "Default", "a/b", "../x", "1st", "a b", "a\n"])
def test_a_name_that_can_t_be_a_path_is_refused(name: str) -> None:
    with pytest.raises(Invalid, match="lower-case letters"):
        Layout(name=name)


def test_everything_of_a_lab_lies_in_the_project(tmp_path: Path) -> None:
    layout = Layout(name="x", root=tmp_path)
    for path in (layout.logs, layout.controller, layout.cli_config, layout.skerry, layout.host("h1")):
        assert path.is_relative_to(tmp_path / "build" / "lab" / "x")


@pytest.mark.parametrize("count", [0, -1, 65])
def test_a_number_of_hosts_that_can_t_be_is_refused(count: int) -> None:
    with pytest.raises(Invalid, match="1 to 64 hosts"):
        host_names(count)


def test_every_host_has_an_address_of_its_own() -> None:
    addresses = {address(name) for name in host_names(64)}
    assert len(addresses) == 64
    assert address("h1") == "10.77.0.11"
    assert "10.77.0.1" not in addresses
