"""Every failure that `skerry-controller doctor` claims to find is planted on a controller that is well, and found."""

import json
import socket
import sqlite3
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from complaints import assert_only, heard, possible

from common.checkup import Room
from controller import doctor, sight
from controller.config import parse
from controller.doctor import Database, Files, Port, Service, Sight, Standing, examine
from controller.main import main
from controller.pki.look import Pair, look

DAY = 86400.0
NOW = 1000 * DAY
PKI = "/var/lib/skerry-controller/pki"
NAMES = ("203.0.113.10", "skerry.example.org")

WELL = Sight(
    now=NOW,
    config=parse(f'[link]\nnames = ["{NAMES[0]}", "{NAMES[1]}"]', "test"),
    files=Files(path="/var/lib/skerry-controller", there=True, writable=True, open_to_others=False, strangers=()),
    database=Database(shown="sqlite:////x.db", revision="0011", newest="0011"),
    pairs=(
        Pair(key=f"{PKI}/ca.key", certificate=f"{PKI}/ca.pem", ends_at=NOW + 3000 * DAY),
        Pair(
            key=f"{PKI}/server.key",
            certificate=f"{PKI}/server.pem",
            ends_at=NOW + 300 * DAY,
            names=frozenset(NAMES),
        ),
    ),
    ports=(Port(key="api.listen", listen="127.0.0.1:8080"), Port(key="link.listen", listen="0.0.0.0:8443")),
    unresolved=(),
    service=Service(systemd=True, enabled=True, running=True),
    upgrade=Standing(),
    qemu_img=True,
    clock_kept=True,
    rooms=(Room(path="/var/lib/skerry-controller", free_gib=80, size_gib=100, free_files=-1),),
    open_files=65536,
)


def but(**changes: Any) -> Sight:
    return msgspec.structs.replace(WELL, **changes)


def part(name: str, **changes: Any) -> Sight:
    return but(**{name: msgspec.structs.replace(getattr(WELL, name), **changes)})


def pair(at: int, **changes: Any) -> Sight:
    pairs = list(WELL.pairs)
    pairs[at] = msgspec.structs.replace(pairs[at], **changes)
    return but(pairs=tuple(pairs))


LOCAL = parse('[link]\nnames = ["127.0.0.1", "localhost"]', "test")
TAKEN = (Port(key="link.listen", listen="0.0.0.0:8443", problem="Address already in use"),)
STOPPED = Service(systemd=True, enabled=True, running=False)

PLANTED: tuple[tuple[str, Sight, str, str], ...] = (
    ("state", part("files", there=False), "warn", "skerry-controller init"),
    ("state", part("files", writable=False), "fail", "chown -R skerry:skerry"),
    ("state", part("files", strangers=("/x/skerry.db",)), "fail", "/x/skerry.db"),
    ("state", part("files", open_to_others=True), "fail", "chmod 700 /var/lib/skerry-controller"),
    ("database", part("database", problem="Connection refused"), "fail", "[controller] database"),
    ("database", part("database", made=False), "warn", "made at the first start"),
    ("database", part("database", revision="0099", known=False), "fail", "install that one, or restore the backup"),
    ("database", part("database", revision="0007"), "warn", "take a backup"),
    ("certificates", but(pairs=()), "warn", "copy ca.key and ca.pem before that"),
    ("certificates", pair(0, problem="ca.key is not the key of ca.pem"), "fail", "restore the pair from one backup"),
    ("certificates", pair(0, open_to_others=True), "fail", f"chmod 600 {PKI}/ca.key"),
    ("certificates' end", pair(1, ends_at=NOW - DAY), "fail", "systemctl restart skerry-controller makes a new one"),
    ("certificates' end", pair(0, ends_at=NOW + 100 * DAY), "warn", "skerry ca rotate"),
    ("link names", but(config=LOCAL), "warn", "hosts on other machines can't join"),
    ("link names", but(unresolved=("skerry.example.org",)), "warn", "no resolver here knows skerry.example.org"),
    ("link names", pair(1, names=frozenset(NAMES[:1])), "warn", "is not for skerry.example.org yet"),
    ("service", part("service", enabled=False), "fail", "systemctl enable --now skerry-controller"),
    ("service", but(service=STOPPED), "fail", "systemctl start skerry-controller"),
    ("service", part("service", unready="the loop has not turned for 12 s"), "fail", "not ready: the loop"),
    ("upgrade", part("upgrade", pending=True), "fail", "skerry-controller upgrade finishes it"),
    ("upgrade", part("upgrade", held=True), "fail", "the controller may not be started"),
    ("qemu-img", but(qemu_img=False), "fail", "apt-get install qemu-utils"),
    ("clock", but(clock_kept=False), "warn", "apt-get install systemd-timesyncd"),
    ("open files", but(open_files=1024), "fail", "LimitNOFILE"),
    ("link.listen", but(ports=TAKEN), "fail", "nobody answers on 0.0.0.0:8443"),
)  # fmt: skip


def test_a_controller_that_is_well_has_nothing_to_do() -> None:
    found = examine(WELL)
    assert [one for one in found if one.level != "ok"] == []
    assert len(found) == len(doctor.CHECKS) + 3


@pytest.mark.parametrize(("check", "seen", "level", "words"), PLANTED, ids=[f"{p[0]}: {p[3]}" for p in PLANTED])
def test_what_is_planted_is_found_with_a_way_out(check: str, seen: Sight, level: str, words: str) -> None:
    assert_only(examine(seen), check, level, words)


def test_a_port_that_another_has_is_found_before_the_start() -> None:
    wrong = [one for one in examine(but(ports=TAKEN, service=STOPPED)) if one.level != "ok"]
    assert [one.check for one in wrong] == ["service", "link.listen"]
    assert "ss -tlnp says who has it" in wrong[1].fix


def test_every_complaint_there_is_was_planted(monkeypatch: pytest.MonkeyPatch) -> None:
    uttered = heard(monkeypatch, doctor)
    for _, seen, _, _ in PLANTED:
        examine(seen)
    examine(but(ports=TAKEN, service=STOPPED))
    doctor.unreadable("no section [links]", "")
    assert uttered == possible(doctor)


# --- on a real state directory -----------------------------------------------------------------------------------


def typed(tmp_path: Path, *words: str, more: str = "") -> Result:
    config = tmp_path / "controller.toml"
    config.write_text(f'[controller]\nstate_dir = "{tmp_path}/state"\n[api]\nlisten = "127.0.0.1:0"\n{more}')
    return CliRunner().invoke(main, ["--config", str(config), *words])


def found(tmp_path: Path, more: str = "") -> dict[str, dict[str, str]]:
    done = typed(tmp_path, "doctor", "-o", "json", more=more)
    return {one["check"]: one for one in json.loads(done.stdout)["findings"]}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A state directory as `init` makes it."""
    assert typed(tmp_path, "init").exit_code == 0
    return tmp_path / "state"


def test_what_init_made_is_well(tmp_path: Path, made: Path) -> None:
    seen = found(tmp_path)
    assert {name: seen[name]["level"] for name in ("configuration", "state", "database", "certificates")} == {
        "configuration": "ok", "state": "ok", "database": "ok", "certificates": "ok",
    }  # fmt: skip
    assert seen["service"]["level"] == "fail"
    assert typed(tmp_path, "doctor").exit_code == 1


def test_looking_makes_nothing(tmp_path: Path) -> None:
    assert found(tmp_path)["database"]["level"] == "warn"
    assert not (tmp_path / "state").exists()


def test_a_key_that_others_may_read_is_found(tmp_path: Path, made: Path) -> None:
    (made / "pki" / "ca.key").chmod(0o640)
    assert found(tmp_path)["certificates"]["fix"].startswith(f"chmod 600 {made}/pki/ca.key")


def test_keys_that_were_swapped_or_lost_are_found(tmp_path: Path, made: Path) -> None:
    (made / "pki" / "ca.key").write_bytes((made / "pki" / "server.key").read_bytes())
    assert "is not the key of" in found(tmp_path)["certificates"]["says"]
    (made / "pki" / "ca.key").unlink()
    assert "No such file" in found(tmp_path)["certificates"]["says"]
    (made / "pki" / "ca.key").write_text("nonsense")
    assert "can't be read" in found(tmp_path)["certificates"]["says"]


def test_a_database_of_a_newer_release_and_a_broken_one_are_found(tmp_path: Path, made: Path) -> None:
    with sqlite3.connect(made / "skerry.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    assert "schema 9999, which this release does not know" in found(tmp_path)["database"]["says"]
    for name in ("skerry.db-wal", "skerry.db-shm"):
        (made / name).unlink(missing_ok=True)
    (made / "skerry.db").write_text("this is no database, and never was one" * 100)
    assert "not a database" in found(tmp_path)["database"]["says"]


def test_a_configuration_that_can_not_be_used_is_a_finding(tmp_path: Path) -> None:
    done = typed(tmp_path, "doctor", more="[links]\n")
    assert done.exit_code == 1
    assert "there is no" in done.stdout or "has no section [links]" in done.stdout
    assert "fix: did you mean link?" in done.stdout


def test_a_postgresql_that_is_away_is_told_without_its_password(tmp_path: Path) -> None:
    with socket.socket() as silent:  # bound, and does not listen
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        config = parse(f'[controller]\ndatabase = "postgresql://skerry:hidden@127.0.0.1:{port}/skerry"', "test")
        there = sight._database(config)
    assert there.problem
    assert "hidden" not in there.shown + there.problem


def test_a_taken_port_is_told_from_a_free_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        assert sight.free(listen) == "Address already in use"
        assert sight.answers(listen) == ""
    assert sight.free("127.0.0.1:0") == ""
    with socket.socket() as silent:  # bound, and does not listen
        silent.bind(("127.0.0.1", 0))
        assert sight.answers(f"127.0.0.1:{silent.getsockname()[1]}") == "Connection refused"


def test_how_long_certificates_are_good_is_read_from_them(made: Path) -> None:
    authority, server = look(made / "pki")
    assert (authority.ends_at - time.time()) / DAY > 3000
    assert server.names == {"127.0.0.1", "localhost"}
