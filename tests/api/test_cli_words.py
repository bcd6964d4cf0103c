"""The command's pure parts: flags and bodies, tables' words, context files, the growing log."""

from pathlib import Path

import pytest

from common.kinds import KINDS, kind_named
from common.kinds.kind import fields
from controller.cli import flags, settings
from controller.cli.answers import Shown
from controller.cli.failures import Failure
from controller.cli.render import age, amount, cell, said
from controller.cli.seriallog import added, last_lines

VM = kind_named("vm")


def test_what_is_not_given_is_left_to_the_api() -> None:
    given = {"image": "tiny", "size": "small", "networks": (), "keypairs": (), "nocloud": None, "user_data": None}
    assert flags.spec_of(flags.offered(VM, change=False), given) == {"image": "tiny", "size": "small"}


def test_an_empty_text_empties_what_may_be_empty() -> None:
    assert flags.spec_of(flags.offered(VM, change=False), {"keypairs": ("",), "host": ""}) == {
        "keypairs": [],
        "host": None,
    }
    assert flags.spec_of(flags.offered(VM, change=True), {"user_data": ""}) == {"user_data": ""}


def test_set_offers_neither_fixed_fields_nor_skerrys_own() -> None:
    offered = {field.name for field in flags.offered(VM, change=True)}
    assert offered >= {"keypairs", "user_data", "nocloud", "restart", "stop_grace_s", "cpu_weight", "protected"}
    assert not offered & {"image", "size", "networks", "host", "power", "rescue", "kept_disk_gib"}
    assert "power" not in {field.name for field in flags.offered(VM, change=False)}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_no_flag_stands_for_two_things(kind) -> None:
    taken = ["--label", "--wait", "--no-wait", "--timeout", "--project", "--context", "--output", "--help"]
    for field in flags.offered(kind, change=False):
        taken += [word for words in flags.words(field) for word in words.split("/")]
    assert len(taken) == len(set(taken))


def test_lists_are_given_one_by_one_under_their_singular() -> None:
    networks = next(field for field in fields(VM.spec) if field.name == "networks")
    assert flags.words(networks) == ("--network", "--networks")


@pytest.mark.parametrize(
    ("one_line", "read"), [(True, "ssh-ed25519 AAAA me@desk"), (False, "ssh-ed25519 AAAA me@desk\n")]
)
def test_the_newline_at_the_end_of_a_file_is_no_part_of_a_line(tmp_path: Path, one_line: bool, read: str) -> None:
    (tmp_path / "id.pub").write_text("ssh-ed25519 AAAA me@desk\n")
    text = flags.LongText(one_line=one_line)
    assert text.convert(f"@{tmp_path}/id.pub", None, None) == read
    assert text.convert("as it is\n", None, None) == "as it is\n"


def test_labels_are_added_replaced_and_taken_away() -> None:
    before = {"a": "1", "b": "2"}
    assert flags.labels_of((("a", "9"), ("b", None), ("c", "3")), before) == {"a": "9", "c": "3"}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59, "59s"), (60, "1m"), (185, "3m"), (3599, "59m"), (3600, "1h"), (90000, "25h"), (2 * 86400, "2d")],
)
def test_ages_have_one_unit(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_amounts_are_for_people() -> None:
    assert [amount(0), amount(1024), amount(3 * 1024**3)] == ["0 B", "1.0 KiB", "3.0 GiB"]


def test_cells_show_names_for_ids_and_dashes_for_nothing() -> None:
    names = {"size-1": "small", "net-1": "default", "net-2": "back"}
    row = Shown(
        id="vm-1", kind="vm", name="web", spec={"size": "size-1", "networks": ["net-1", "net-2"]}, created_at=10
    )
    assert cell(row, "spec.size", names, 70) == "small"
    assert cell(row, "spec.networks", names, 70) == "default, back"
    assert cell(row, "created_at", names, 70) == "1m"
    assert cell(row, "status.host", names, 70) == "-"
    assert said(False, "spec.public", {}, 0) == "no"


def test_a_thing_on_its_way_out_says_so() -> None:
    row = Shown(id="vm-1", kind="vm", name="web", status={"state": "running"}, deleted_at=5)
    assert cell(row, "status.state", {}, 70) == "running (deleting)"


def test_context_files_survive_a_round_trip(tmp_path: Path) -> None:
    kept = settings.Contexts(
        current="a b",
        contexts={
            "a b": settings.Context(url="https://x", token='s"\\', project="p", ca="/ca.pem"),
            "c": settings.Context(url="http://y", token="t"),
        },
    )
    settings.write(tmp_path / "d" / "cli.toml", kept)
    assert settings.read(tmp_path / "d" / "cli.toml") == kept


def test_a_missing_context_file_is_none_and_a_broken_one_is_named(tmp_path: Path) -> None:
    assert settings.read(tmp_path / "none") == settings.Contexts()
    broken = tmp_path / "cli.toml"
    broken.write_text("currant = 1")
    broken.chmod(0o600)
    with pytest.raises(Failure, match="is no context file"):
        settings.read(broken)


def test_the_environment_beats_the_current_context_and_a_named_one_beats_it() -> None:
    known = settings.Contexts(current="a", contexts={"a": settings.Context(url="http://a", token="ta", project="pa")})
    env = {"SKERRY_URL": "http://e/", "SKERRY_TOKEN": "te"}

    def chosen(environment: dict[str, str], context: str | None = None) -> tuple[str, str, str]:
        found = settings.connection_of(known, environment, context=context, project=None)
        return found.url, found.token.reveal(), found.project

    assert chosen({}) == ("http://a", "ta", "pa")
    assert chosen(env) == ("http://e", "te", "default")
    assert chosen(env, "a") == ("http://a", "ta", "pa")
    assert chosen({"SKERRY_PROJECT": "x"}) == ("http://a", "ta", "x")
    with pytest.raises(Failure, match="there is no context b; there is a"):
        chosen({}, "b")


def test_a_connection_does_not_print_its_token() -> None:
    known = settings.Contexts(current="a", contexts={"a": settings.Context(url="http://a", token="skt_secret")})
    assert "skt_secret" not in repr(settings.connection_of(known, {}, context=None, project=None))


@pytest.mark.parametrize(
    ("before", "now", "new"),
    [
        (b"", b"a\n", b"a\n"),
        (b"a\n", b"a\n", b""),
        (b"a\n", b"a\nb\n", b"b\n"),
        (b"aaab", b"aabc", b"c"),
        (b"old", b"new boot", b"new boot"),
        (b"xyx", b"xyxxy", b"xy"),
    ],
)
def test_only_what_is_new_in_a_log_is_shown(before: bytes, now: bytes, new: bytes) -> None:
    assert added(before, now) == new


def test_last_lines_count_an_unfinished_one() -> None:
    assert last_lines(b"a\nb\nc", 2) == b"b\nc"
    assert last_lines(b"a\n", 5) == b"a\n"
    assert last_lines(b"a\nb\n", 0) == b""
