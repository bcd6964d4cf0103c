"""A database of an earlier schema, with data in it, is brought to the newest one and loses nothing."""

from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect, text

from common.clock import system_clock
from common.codec import to_json
from common.errors import Conflict
from common.kinds.vm import VmSpec, VmStatus
from common.kinds.volume import VolumeSpec
from controller.store.database import MIGRATIONS, migrate
from controller.store.opening import run_store
from tests.store.desk import Clock, Desk

REVISIONS = [one.revision for one in reversed(list(ScriptDirectory(str(MIGRATIONS)).walk_revisions()))]

VM, VOLUME, HOST, NETWORK = "vm-00000000000a", "vol-00000000000a", "host-00000000000b", "net-00000000000c"
_VM_SPEC = to_json(VmSpec(image="img-00000000000d", size="size-00000000000e", networks=(NETWORK,))).decode()


def _resource(identity: str, kind: str, project: str, name: str, spec: str, **other: object) -> dict[str, object]:
    return {
        "id": identity, "kind": kind, "project": project, "name": name, "labels": '{"tier":"web"}', "generation": 3,
        "observed_generation": 2, "spec": spec, "status": "{}", "owner": None, "created_at": 1_700_000_000.25,
        "deleted_at": None, "revision": 41,
    } | other  # fmt: skip


DATA: dict[str, list[dict[str, object]]] = {
    "resource": [
        _resource("prj-00000000000f", "project", "", "shop", '{"description":"a shop"}'),
        _resource(HOST, "host", "", "h1", "{}"),
        _resource(NETWORK, "network", "shop", "default", '{"cidr":"10.20.0.0/24"}'),
        _resource(VM, "vm", "shop", "web", _VM_SPEC, status=to_json(VmStatus(state="running")).decode()),
        _resource(VOLUME, "volume", "shop", "web", to_json(VolumeSpec(size_gib=10, host=HOST)).decode(), owner=VM),
    ],
    "placement": [{"owner": VM, "host": HOST, "vcpus": 2, "memory_mib": 2048, "disk_gib": 10}],
    "capacity": [{"host": HOST, "vcpus": 8, "memory_mib": 8192, "disk_gib": 100, "vcpus_used": 2,
                  "memory_mib_used": 2048, "disk_gib_used": 10}],
    "address": [{"network": NETWORK, "offset": 2, "address": "10.20.0.2", "vm": VM, "index": 0,
                 "mac": "02:00:00:00:00:01"}],
    "vni": [{"network": NETWORK, "vni": 4096}],
    "document": [{"host": HOST, "key": f"volume/{VOLUME}", "owner": VOLUME, "gone": False, "revision": 40,
                  "body": f'{{"type":"volume","id":"{VOLUME}","size_gib":10,"image":null}}'}],
    "enrolment": [{"host": HOST, "join_digest": "", "body": f'{{"host":"{HOST}","join_digest":"",'
                   '"join_expires_at":1.0,"certificate_serial":"ab","vtep":"10.77.0.11"}'}],
    "event": [{"at": 1.0, "actor": "system/root", "request": "req-1", "action": "vm.create", "kind": "vm",
               "resource": VM, "project": "shop", "name": "web", "message": "ü 日本", "before": "", "after": _VM_SPEC}],
    "operation": [{"id": "op-00000000000g", "resource": VM, "finished_at": None, "revision": 41, "body":
                   '{"id":"op-00000000000g","verb":"create","kind":"vm","resource":"' + VM + '","project":"shop",'
                   '"name":"web","generation":3,"actor":"system/root","request":"req-1","state":"running",'
                   '"message":"accepted","progress":0.0,"why":null,"previous_spec":"","created_at":1.0,'
                   '"finished_at":null,"revision":41}'}],
    "token": [{"digest": "d" * 64, "resource": "tok-00000000000h", "project": "shop", "role": 2}],
    "queue": [{"resource": VM, "due_at": 0.0, "pokes": 3, "leased_by": "ctl-000000000000", "leased_until": 2e9}],
}  # fmt: skip
"""What revision 0001 can hold. A migration that changes a table's columns says here what is added to the row."""


DEFAULT = "dom-000000000000"


def _upgraded() -> dict[str, list[dict[str, object]]]:
    """Return what the newest revision makes of it: the projects are in a domain."""
    shop, *rest = DATA["resource"]
    token = {"digest": "d" * 64, "resource": "tok-00000000000h", "expires_at": 0.0}
    return DATA | {
        "token": [token],
        "resource": [shop | {"spec": f'{{"description":"a shop","domain":"{DEFAULT}"}}', "revision": 42}, *rest],
    }


def _fill(engine: Engine) -> None:
    preparer = engine.dialect.identifier_preparer
    with engine.begin() as connection:
        for table, rows in DATA.items():
            for row in rows:
                columns = ", ".join(preparer.quote(name) for name in row)
                values = ", ".join(f":{name}" for name in row)
                connection.execute(text(f"INSERT INTO {table} ({columns}) VALUES ({values})"), row)
        connection.execute(text("UPDATE sequence SET value = 41 WHERE name = 'revision'"))


def _dump(engine: Engine) -> dict[str, list[dict[str, object]]]:
    preparer = engine.dialect.identifier_preparer
    found: dict[str, list[dict[str, object]]] = {}
    with engine.connect() as connection:
        for table, rows in _upgraded().items():
            columns = ", ".join(preparer.quote(name) for name in rows[0])
            found[table] = [dict(row) for row in connection.execute(text(f"SELECT {columns} FROM {table}")).mappings()]
    (domain,) = [row for row in found["resource"] if row["kind"] == "domain"] or [None]
    if domain:
        assert (domain["id"], domain["name"], domain["project"], domain["revision"]) == (DEFAULT, "default", "", 42)
        found["resource"].remove(domain)
        found["queue"] = [row for row in found["queue"] if row["resource"] != DEFAULT]
    for row in found["document"]:
        row["gone"] = bool(row["gone"])  # SQLite has numbers for it
    return found


def test_revisions_form_one_line() -> None:
    files = sorted(path.name for path in Path(MIGRATIONS, "versions").glob("[0-9]*.py"))
    assert [name.split("_")[0] for name in files] == REVISIONS
    assert all(name.startswith(f"{number:04d}_") for number, name in enumerate(files, start=1))


@pytest.mark.parametrize("revision", REVISIONS)
def test_data_of_every_earlier_state_outlives_the_upgrade(empty_database: Engine, revision: str) -> None:
    migrate(empty_database, REVISIONS[0])
    _fill(empty_database)
    migrate(empty_database, revision)
    migrate(empty_database)
    found = _dump(empty_database)
    for table, rows in _upgraded().items():
        assert sorted(map(str, found[table])) == sorted(map(str, rows)), table


async def test_a_store_goes_on_with_what_was_upgraded(empty_database: Engine) -> None:
    migrate(empty_database, REVISIONS[0])
    _fill(empty_database)
    migrate(empty_database)
    async with run_store(empty_database, system_clock) as store:
        queued = await store.load(alone=not store.shared)
        assert {one.resource for one in queued} == {VM, DEFAULT}
        vm = store.seen.named("vm", "shop", "web")
        assert vm is not None
        assert (vm.id, vm.labels, vm.generation, vm.status.state) == (VM, {"tier": "web"}, 3, "running")
        assert [child.id for child in store.seen.children(vm.id)] == [VOLUME]
        assert [one.address for one in store.seen.addresses(vm.id)] == ["10.20.0.2"]
        assert len(store.seen.open_operations(vm.id)) == 1
        made = await Desk(store, Clock()).create("network", "shop", "back")
        assert made.revision == 43
        events = await store.events(0, 10, None)
        assert [one.seq for one in events] == [1, 2]
        assert events[0].message == "ü 日本"


def test_an_upgrade_that_fails_leaves_the_database_as_it_was(
    empty_database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(empty_database, REVISIONS[0])
    _fill(empty_database)
    before = set(inspect(empty_database).get_table_names())
    monkeypatch.setattr("alembic.op.create_index", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        migrate(empty_database)
    assert set(inspect(empty_database).get_table_names()) == before
    monkeypatch.undo()
    migrate(empty_database)
    assert sorted(map(str, _dump(empty_database)["resource"])) == sorted(map(str, _upgraded()["resource"]))


def test_a_database_of_a_newer_release_is_left_as_it_is(empty_database: Engine) -> None:
    migrate(empty_database)
    with empty_database.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(Conflict, match="has schema 9999, which this release does not know") as caught:
        migrate(empty_database)
    assert "restore the backup" in caught.value.fix
    with empty_database.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "9999"
