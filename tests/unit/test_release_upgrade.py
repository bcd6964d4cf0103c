"""A newer release of the controller that becomes ready stays; one that does not gives way to the one from before.

dpkg and systemd are played: what they leave when they, or we, die half-way is what counts here.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from common.errors import Conflict, Invalid, Temporary
from common.run import CommandFailed, run
from controller import upgrade
from controller.packages import Debian, Package, State, control_of, last_words
from controller.upgrade import Database, Kept, Settings, Upgrade, judge, refuse_misfits

OLD, NEW = "0.1.0-1", "0.2.0-1"
NAMES = ("skerry-common", "skerry-controller", "skerry-cli")
SCHEMAS = {OLD: "0011", NEW: "0012"}


class Killed(BaseException):
    """The process ends here, and nothing behind it is done."""


class Played:
    """A machine with the release OLD on it, whose NEW one is `good`, or has a fault."""

    def __init__(self, folder: Path, new: str = "good", database: str = "sqlite") -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.new = folder, new
        self.there = dict.fromkeys(NAMES, OLD)
        self.file = folder / "skerry.db"
        self.file.write_text("old;")
        self.shared = database == "postgresql"
        self.said: list[str] = []
        self.up, self.ended, self.writes, self.epochs = True, 0, 0, 0
        self.steps, self.dies_at = 0, 0
        self.give_back_fails = False
        self.user_writes()

    # --- what happens around it ----------------------------------------------------------------------------------

    def step(self) -> None:
        """Die here, if it is the step to die at."""
        self.steps += 1
        if self.steps == self.dies_at:
            raise Killed

    def user_writes(self) -> None:
        """A controller that is ready takes wishes, and answers that they are kept."""
        if self.up:
            self.writes += 1
            self.file.write_text(self.file.read_text() + f"user {self.writes};")

    def boot(self) -> None:
        """Have the power back: what systemd may start is started."""
        self.up = False
        self._started()
        self.user_writes()

    @property
    def runs(self) -> str:
        """Return the release that is ready; empty: none."""
        return max(self.there.values()) if self.up else ""

    def _started(self) -> None:
        self.ended = 0
        if self.up or (self.folder / "kept" / "hold").exists():
            return
        code = max(self.there.values())
        if code == NEW:
            self.file.write_text(self.file.read_text() + "new;")
        readable = code == NEW or "new;" not in self.file.read_text()
        self.up = (self.new in {"good", "uninstallable"} or code == OLD) and readable
        self.ended = 0 if self.up or self.new == "hung" else 3

    # --- controller.upgrade.Machine ------------------------------------------------------------------------------

    async def read(self, file: Path) -> Package:
        name, version = file.stem.split("_")
        return Package(file=file, name=name, version=version)

    async def schema_in(self, file: Path) -> str:
        return SCHEMAS[file.stem.split("_")[1]]

    async def is_newer(self, version: str, than: str) -> bool:
        return version > than

    async def installed(self) -> dict[str, str]:
        return dict(self.there)

    async def repack(self, name: str, into: Path) -> None:
        self.step()
        (into / f"{name}.deb").write_text(self.there[name])

    async def install(self, files: Sequence[Path]) -> None:
        for file in files:
            self.step()
            self.there[file.stem.split("_")[0]] = ""
            if self.new == "uninstallable":
                raise CommandFailed(["apt-get", "install"], 100, "unmet dependencies")
        self.there = dict.fromkeys(NAMES, NEW)
        self.step()

    async def put_back(self, files: Sequence[Path]) -> None:
        for file in files:
            self.step()
            self.there[file.stem] = file.read_text()
        self._started()  # as a package does
        if self.give_back_fails:
            self.file.write_text("new;")
        self.step()

    async def restored(self) -> None:
        self.step()
        assert not self.up
        self.epochs += 1

    async def stop(self) -> None:
        self.step()
        self.up = False
        self.step()

    async def start(self) -> None:
        self.step()
        self._started()
        self.user_writes()
        self.step()

    async def state(self) -> State:
        return State(active="active" if self.up else "activating", ended=self.ended)

    async def journal(self, since: float, lines: int) -> tuple[str, ...]:
        return ("Traceback (most recent call last):", "ZeroDivisionError: division by zero")[:lines]

    # --- the command ---------------------------------------------------------------------------------------------

    async def upgrade(self, *files: str, dumped: bool = False) -> bool:
        database = Database(
            file=None if self.shared else self.file,
            schema=lambda: "0012" if "new;" in self.file.read_text() else "0011",
        )
        settings = Settings(wait_s=0.01 if self.new == "hung" else 60, dumped=dumped)
        one = Upgrade(self, database, settings, self.said.append, self.folder / "kept")
        return await one.run([Path(file) for file in files or [f"{name}_{NEW}.deb" for name in NAMES]])

    @property
    def shown(self) -> str:
        return "\n".join(self.said)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look again without a pause."""
    monkeypatch.setattr(upgrade, "_LOOK_S", 0)


async def test_a_release_that_becomes_ready_stays_and_the_one_before_is_kept(tmp_path: Path) -> None:
    machine = Played(tmp_path)
    assert await machine.upgrade()
    assert (machine.runs, machine.file.read_text()) == (NEW, "old;user 1;new;user 2;")
    assert machine.said[-1].startswith(f"{NEW} runs and is ready")
    former = tmp_path / "kept" / "former"
    assert sorted(one.name for one in (former / "packages").iterdir()) == sorted(f"{name}.deb" for name in NAMES)
    assert (former / "database" / "skerry.db").read_text() == "old;user 1;"
    assert {one.name for one in (tmp_path / "kept").iterdir()} == {"lock", "former"}


@pytest.mark.parametrize(
    ("new", "why"),
    [
        ("broken", "it ended 3 times before it was ready; its journal:\n  | Traceback"),
        ("hung", "it was not ready after 0 s"),
        ("uninstallable", "unmet dependencies"),
    ],
)
async def test_a_release_that_does_not_become_ready_gives_way_to_the_one_before(
    tmp_path: Path, new: str, why: str
) -> None:
    machine = Played(tmp_path, new)
    assert not await machine.upgrade()
    assert (machine.runs, machine.there) == (OLD, dict.fromkeys(NAMES, OLD))
    assert machine.file.read_text() == "old;user 1;user 2;"
    assert machine.epochs == (0 if new == "uninstallable" else 1)
    assert why in machine.shown
    assert machine.said[-1] == f"rolled back: {OLD} runs and is ready; {NEW} did not become ready (see above)"
    assert {one.name for one in (tmp_path / "kept").iterdir()} == {"lock"}


@pytest.mark.parametrize("new", ["good", "broken", "uninstallable"])
@pytest.mark.parametrize("power", [True, False], ids=["power-cut", "killed"])
async def test_an_upgrade_that_died_anywhere_is_finished_by_the_next_and_no_wish_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: str, power: bool
) -> None:
    for step in range(1, 40):
        machine = Played(tmp_path / str(step), new)
        machine.dies_at = step
        with monkeypatch.context() as planted:
            _dies_between_files(machine, planted)
            try:
                await machine.upgrade()
            except Killed:
                await _is_finished(machine, power=power)
            else:
                assert step > 14, "it does more than that"
                break
    else:
        pytest.fail("it never came to its end")


async def _is_finished(machine: Played, *, power: bool) -> None:
    machine.dies_at = 0
    if power:
        machine.boot()
    with suppress(Conflict, Invalid):  # where nothing was begun
        await machine.upgrade("skerry-cli_0.deb")
    assert machine.runs in ((NEW, OLD) if machine.new == "good" else (OLD,))
    assert len(set(machine.there.values())) == 1
    text = machine.file.read_text()
    assert all(f"user {number};" in text for number in range(1, machine.writes + 1)), text
    assert machine.runs == NEW or "new;" not in text
    assert not {"hold", "pending"} & {one.name for one in (machine.folder / "kept").iterdir()}


def _dies_between_files(machine: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    copy: Callable[[Path, Path], None] = upgrade.copy_owned

    def dying_copy(source: Path, target: Path) -> None:
        machine.step()
        copy(source, target)
        machine.step()

    monkeypatch.setattr(upgrade, "copy_owned", dying_copy)
    monkeypatch.setattr("os.sync", machine.step)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (("skerry-controller_0.2.0-1.deb",), "skerry-cli, skerry-common is installed here, and no newer package"),
        (("skerry-common_0.2.0-1.deb", "skerry-controller_0.2.0-1.deb", "skerry-cli_0.3.0-1.deb"), "not one release"),
        (tuple(f"{name}_{OLD}.deb" for name in NAMES), "0.1.0-1 is not newer than 0.1.0-1"),
    ],
)
async def test_packages_that_make_no_newer_release_are_refused(
    tmp_path: Path, files: tuple[str, ...], says: str
) -> None:
    machine = Played(tmp_path)
    with pytest.raises((Conflict, Invalid), match=says):
        await machine.upgrade(*files)
    assert machine.runs == OLD


async def test_a_package_of_what_is_not_installed_is_left_out(tmp_path: Path) -> None:
    machine = Played(tmp_path)
    assert await machine.upgrade(*(f"{name}_{NEW}.deb" for name in (*NAMES, "skerry-agent")))
    assert machine.said[0] == "skerry-agent is not installed here, and is left out"
    assert machine.there.keys() == set(NAMES)


async def test_a_controller_that_is_not_ready_is_not_upgraded(tmp_path: Path) -> None:
    machine = Played(tmp_path)
    machine.up = False
    with pytest.raises(Conflict, match="not ready now"):
        await machine.upgrade()


def test_what_is_half_installed_is_named() -> None:
    with pytest.raises(Conflict, match="skerry-cli is only half installed"):
        refuse_misfits({"skerry-controller": OLD, "skerry-cli": ""}, [])
    with pytest.raises(Conflict, match="not installed here"):
        refuse_misfits({"skerry-agent": OLD}, [])


async def test_two_upgrades_at_a_time_are_refused(tmp_path: Path) -> None:
    machine = Played(tmp_path)
    with Kept(tmp_path / "kept").alone(), pytest.raises(Conflict, match="an upgrade is under way"):
        await machine.upgrade()


async def test_a_disk_with_no_room_for_the_way_back_stops_it_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Played(tmp_path)
    monkeypatch.setattr("controller.upgrade._SPARE_BYTES", 1 << 60)
    with pytest.raises(Conflict, match="MiB free; keeping the way back takes"):
        await machine.upgrade()
    assert machine.runs == OLD


async def test_packages_that_can_not_be_kept_stop_it_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(name: str, into: Path) -> None:
        raise OSError(28, "No space left on device", str(into))

    machine = Played(tmp_path)
    monkeypatch.setattr(machine, "repack", full)
    with pytest.raises(Conflict, match=r"the packages from before can't be kept: .*No space left"):
        await machine.upgrade()
    assert machine.runs == OLD


async def test_a_database_that_can_not_be_copied_leaves_the_controller_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    machine = Played(tmp_path)
    monkeypatch.setattr(upgrade, "copy_owned", full)
    assert not await machine.upgrade()
    assert "No space left on device" in machine.shown
    assert machine.runs == OLD


async def test_postgresql_with_a_newer_schema_needs_a_dump(tmp_path: Path) -> None:
    machine = Played(tmp_path, "broken", "postgresql")
    with pytest.raises(Conflict, match="from schema 0011 to 0012, and the only way back on PostgreSQL is a dump"):
        await machine.upgrade()
    assert machine.runs == OLD
    with pytest.raises(Conflict, match="installed again and stopped: the database has schema 0012") as caught:
        await machine.upgrade(dumped=True)
    assert "restore the dump" in caught.value.fix
    assert set(machine.there.values()) == {OLD}


async def test_a_release_from_before_that_does_not_come_up_again_is_told_with_both_journals(tmp_path: Path) -> None:
    machine = Played(tmp_path, "broken")
    machine.give_back_fails = True
    with pytest.raises(Temporary, match="installed again, and does not come up either: it ended 3 times"):
        await machine.upgrade()
    assert "did not come up: it ended 3 times before it was ready" in machine.shown


def test_a_start_is_judged_by_what_systemd_says() -> None:
    assert judge(State(active="active", ended=1), 500, 300) == ""
    assert judge(State(active="activating", ended=2), 299, 300) is None
    assert judge(State(active="activating", ended=3), 1, 300) == "it ended 3 times before it was ready; its journal:"
    assert judge(State(active="failed", ended=0), 300, 300) == "it was not ready after 300 s; its journal:"


STATUS = """Package: tini
Status: install ok installed
Version: 1
Conffiles:
 /etc/tini 0123
Description: init
 .
 for containers
"""


def test_a_control_file_is_what_dpkg_knows_less_its_own_notes() -> None:
    assert control_of(STATUS) == "Package: tini\nVersion: 1\nDescription: init\n .\n for containers\n"


async def test_a_package_is_made_again_from_what_is_installed(tmp_path: Path) -> None:
    """Of this machine's own dpkg; a package with links and a configuration file, if it has one."""
    await Debian().repack("bash", tmp_path)
    made = tmp_path / "bash.deb"
    found = await Debian().read(made)
    assert found.name == "bash"
    assert (await run(["dpkg-query", "-W", "-f", "${Version}", "bash"])) == found.version
    listed = {line.split()[5].removeprefix(".") for line in (await run(["dpkg-deb", "-c", str(made)])).splitlines()}
    there = (await run(["dpkg-query", "-L", "bash"])).splitlines()
    assert {"/bin/bash", "/etc/bash.bashrc", "/usr/share/man/man1/bash.1.gz"} & set(there) <= listed
    assert (await run(["dpkg-deb", "--info", str(made), "postinst"])).startswith("#!")
    assert await Debian().is_newer("99", than=found.version)
    assert not await Debian().is_newer(found.version, than=found.version)


def test_the_last_words_are_of_the_process_that_ended_last() -> None:
    ended = "skerry-controller.service: Main process exited, code=exited, status=1/FAILURE"
    journal = ["Starting", "first fault", ended, "restart", "Starting", "Traceback", "last fault", ended, "restart"]

    assert last_words([*journal, "Starting", "Traceback"], 3) == ("Traceback", "last fault", ended)
    assert last_words(["Starting", "waits", "waits on"], 2) == ("waits", "waits on")
    assert last_words([], 2) == ()
