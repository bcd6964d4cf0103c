"""Create/delete cycles while controller and agents are killed at random moments, by a seed that can be given again."""

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec

from common.errors import NotFound, SkerryError
from tests.lab.calls import Cloud, until
from tests.lab.look import strangers

_OWN_NETWORK_EVERY = 5
_PAUSES_S = (0.5, 4.0)
_LINGERS_S = (0.0, 3.0)
_DELETED_S = 150.0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a run does."""

    cycles: int
    seed: int
    at_once: int = 3
    prefix: str = "cycle"


class Killer:
    """Kills the controller or an agent every few seconds until told to stop."""

    def __init__(self, cloud: Cloud, seed: int) -> None:
        self._cloud = cloud
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="killer")
        self.deaths: dict[str, int] = {}

    def __enter__(self) -> "Killer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        lab = self._cloud.lab
        victims: dict[str, Callable[[], int]] = {"controller": lab.controller.kill}
        victims |= {f"agent of {host.name}": host.kill_agent for host in lab.hosts()}
        while not self._stop.wait(self._random.uniform(*_PAUSES_S)):
            name = self._random.choice(["controller", *list(victims)[1:]])
            try:
                victims[name]()
            except NotFound:
                continue  # not up again yet
            except SkerryError as err:
                print(f"kill -9 of the {name} failed: {err}")
                continue
            self.deaths[name] = self.deaths.get(name, 0) + 1


def run_cycles(cloud: Cloud, plan: Plan) -> dict[str, int]:
    """Run the cycles under fire, then prove that nothing is stuck or left. Returns how often each was killed."""
    print(f"{plan.cycles} cycles, {plan.at_once} at once, seed {plan.seed}")
    began = time.time()
    with Killer(cloud, plan.seed) as killer, ThreadPoolExecutor(plan.at_once) as pool:
        started = time.monotonic()
        for done in [pool.submit(_cycle, cloud, plan, number) for number in range(plan.cycles)]:
            done.result()
    print(f"{plan.cycles} cycles in {time.monotonic() - started:.0f} s; killed with -9: {killer.deaths}")
    prove(cloud, began)
    return killer.deaths


def _cycle(cloud: Cloud, plan: Plan, number: int) -> None:
    """One VM's life; every fifth has a network of its own, which goes with it."""
    chance = random.Random(f"{plan.seed}.{number}")
    name = f"{plan.prefix}-{number}"
    network = f"/v1/projects/{cloud.project}/networks/{name}" if number % _OWN_NETWORK_EVERY == 0 else ""
    more: dict[str, object] = {}
    if network:
        cloud.make(network.rpartition("/")[0], name, {"cidr": f"10.99.{number % 250}.0/24"})
        more = {"networks": [name]}
    cloud.create(name, **more)
    if chance.random() < 0.5:
        cloud.until_state(name, "running", timeout_s=_DELETED_S)
    time.sleep(chance.uniform(*_LINGERS_S))
    cloud.delete_vms(name, timeout_s=_DELETED_S)
    if network:
        cloud.delete(network)
        cloud.gone(network, timeout_s=_DELETED_S)


def prove(cloud: Cloud, began: float) -> None:
    """Show that all operations since then have ended, that audits are clean, and that an own look finds nothing."""
    cloud.lab.wait_for_api()
    cloud.lab.wait_for_hosts()
    until(
        lambda: not cloud.operations(state="open"),
        lambda: f"all operations to end: {cloud.operations(state='open')}",
        60,
    )
    failed = [one for one in cloud.operations(state="failed") if one["created_at"] >= began]
    assert failed == []
    cloud.until_clean()
    for host in cloud.lab.hosts():
        until(
            lambda host=host: not strangers(host, cloud.ids()),  # type: ignore[misc]
            lambda host=host: f"nothing to be left on {host.name}: {strangers(host, cloud.ids())}",  # type: ignore[misc]
            30,
            every_s=1,
        )
