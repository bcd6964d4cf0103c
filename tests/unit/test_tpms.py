"""What a guest's TPM holds: it goes with a disk, is begun anew with another one, and leaves nothing behind."""

from pathlib import Path

import pytest

from agent.drivers import files
from agent.drivers.tpms import Tpms
from agent.kinds.domain_plan import DomainView, RenewTpm, Start, plan
from agent.kinds.unit import Do
from common import names
from common.documents import DomainDoc
from common.ids import Id
from tests.unit.test_domain_plan import NOW, VM, doc, live, step_of, view, wish

ROOT, RESCUE, ANEW = Id("vol-000000000000"), Id("vol-111111111111"), Id("vol-222222222222")


@pytest.fixture
def tpms(tmp_path: Path) -> Tpms:
    return Tpms(tmp_path / "held", tmp_path / "logs")


def holds(tpms: Tpms, text: str) -> Path:
    """Have swtpm write something."""
    (folder,) = tpms.left_of(VM)
    state = folder / "tpm2" / "tpm2-00.permall"
    state.parent.mkdir(exist_ok=True)
    state.write_text(text)
    return state


def test_one_that_is_begun_anew_holds_nothing_and_goes_with_its_disk(tpms: Tpms) -> None:
    assert (tpms.left_of(VM), tpms.disk_of(VM)) == ((), None)
    tpms.renew(VM, ROOT)
    state = holds(tpms, "keys")
    assert tpms.disk_of(VM) == ROOT
    tpms.renew(VM, ANEW)
    assert (state.exists(), tpms.disk_of(VM)) == (False, ANEW)


def test_a_death_while_one_is_begun_anew_leaves_it_known_to_be_old(tpms: Tpms, monkeypatch: pytest.MonkeyPatch) -> None:
    tpms.renew(VM, ROOT)
    state = holds(tpms, "keys")

    def dies(_part: Path, _final: Path) -> None:
        raise InterruptedError

    monkeypatch.setattr(files, "publish", dies)
    with pytest.raises(InterruptedError):
        tpms.renew(VM, ANEW)
    assert tpms.disk_of(VM) == ROOT
    monkeypatch.undo()
    tpms.renew(VM, ANEW)
    assert (state.exists(), tpms.disk_of(VM)) == (False, ANEW)


def test_a_survey_names_its_machine_and_passes_over_what_is_nobodys(tpms: Tpms, tmp_path: Path) -> None:
    tpms.renew(VM, ROOT)
    (tmp_path / "held" / "someone").mkdir()
    (tmp_path / "logs").mkdir()
    for name in (VM, "web"):
        (tmp_path / "logs" / f"{name}-swtpm.log").touch()
    found = {one.name: one.owner for one in tpms.survey()}
    logs = {f"{VM}-swtpm.log": VM, "web-swtpm.log": None}
    assert found == {names.domain_uuid(VM): VM, "someone": None, **logs}
    assert {path.name for path in tpms.left_of(VM)} == {names.domain_uuid(VM), f"{VM}-swtpm.log"}


def next_step(of: DomainDoc, holds: Id | None) -> object:
    seen: DomainView = view(live(of, "off", "unknown"), tpm_disk=holds)
    return step_of(plan(wish(of), seen, NOW))


def test_a_first_start_begins_a_tpm_and_the_next_ones_keep_it() -> None:
    wanted = doc(tpm=True, volumes=(ROOT,))
    assert next_step(wanted, None) == RenewTpm(vm=VM, disk=ROOT)
    assert next_step(wanted, ROOT) == Start(vm=VM, revives="")


def test_in_rescue_it_is_kept_and_one_that_begins_there_goes_with_the_machines_own_disk() -> None:
    wanted = doc(tpm=True, volumes=(RESCUE, ROOT))
    assert next_step(wanted, ROOT) == Start(vm=VM, revives="")
    assert next_step(wanted, None) == RenewTpm(vm=VM, disk=ROOT)


def test_a_disk_made_anew_gets_one_that_holds_nothing_of_before() -> None:
    assert next_step(doc(tpm=True, volumes=(ANEW,)), ROOT) == RenewTpm(vm=VM, disk=ANEW)


def test_without_a_tpm_none_is_looked_for() -> None:
    assert next_step(doc(volumes=(ROOT,)), None) == Start(vm=VM, revives="")


def test_one_that_runs_is_left_alone() -> None:
    wanted = doc(tpm=True, volumes=(ROOT,))
    assert not isinstance(plan(wish(wanted), view(live(wanted), tpm_disk=None), NOW), Do)
