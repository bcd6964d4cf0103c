"""A crowd: many creates sent at once, of every shape, in groups and under quotas, and what must be so whatever came."""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import aiohttp
import msgspec

from sim.controller import Process
from sim.fleet import Fleet
from sim.machine import Hardware

HARDWARE = Hardware(threads=8, memory_mib=16_896, disk_gib=400)
RESERVED_MIB = 512
CPU_OVERCOMMIT = 4

PROJECTS = ("shop", "lab")
SMALL = {"vcpus": 1, "memory_mib": 512, "disk_gib": 10}
FLEX = {
    "vcpus": 1, "vcpus_max": 4, "memory_mib": 512, "memory_mib_max": 4096, "memory_mib_step": 256, "disk_gib": 10,
    "disk_gib_max": 30,
}  # fmt: skip
GROUPS = {
    "apart": {"policy": "anti-affinity"},
    "together": {"policy": "affinity"},
    "spread": {"policy": "anti-affinity", "hard": False},
}


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One create, and how it was answered."""

    project: str
    name: str
    spec: dict[str, Any]
    shape: tuple[int, int, int]
    """vCPUs, MiB, GiB."""
    good: bool
    """Within the bounds of its size."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came back."""

    request: Request
    status: int
    body: Any


def draw(count: int, networks: int, seed: int) -> list[Request]:
    """Draw so many requests."""
    chance = random.Random(seed)
    found = []
    for number in range(count):
        spec: dict[str, Any] = {"image": "tiny", "networks": [f"net-{chance.randrange(networks)}"]}
        shape, good = (SMALL["vcpus"], SMALL["memory_mib"], SMALL["disk_gib"]), True
        if chance.random() < 0.5:
            shape, good = _custom(chance)
            spec |= {"size": "flex", "vcpus": shape[0], "memory_mib": shape[1], "disk_gib": shape[2]}
        else:
            spec["size"] = "small"
        if chance.random() < 0.15:
            spec["groups"] = [chance.choice(sorted(GROUPS))]
        project = PROJECTS[chance.random() < 0.3]
        found.append(Request(project=project, name=f"vm-{number}", spec=spec, shape=shape, good=good))
    return found


def _custom(chance: random.Random) -> tuple[tuple[int, int, int], bool]:
    vcpus, steps, disk = chance.randint(1, 4), chance.randrange(15), chance.randint(10, 30)
    if chance.random() < 0.9:
        return (vcpus, 512 + 256 * steps, disk), True
    return chance.choice([(5, 1024, 10), (2, 1000, 10), (2, 8192, 10), (2, 1024, 31)]), False


class Crowd:
    """Clients of one or several controllers. A client whose controller died asks the next one, with the same key."""

    def __init__(self, fleet: Fleet, controllers: Sequence[Process], token: str, http: aiohttp.ClientSession) -> None:
        self.fleet = fleet
        self._controllers = controllers
        self._http = http
        self._headers = {"Authorization": f"Bearer {token}"}

    async def call(self, method: str, path: str, body: object = None, key: str = "") -> tuple[int, Any]:
        """Ask once, or, where there are several controllers, until one answers."""
        for turn in range(400):
            at = self._controllers[(turn + len(key)) % len(self._controllers)].api
            headers = self._headers | ({"Idempotency-Key": key} if key else {})
            try:
                async with self._http.request(method, at + path, json=body, headers=headers) as answer:
                    found = await answer.json()
                    if answer.status != 503 or len(self._controllers) == 1:
                        return answer.status, found
            except aiohttp.ClientError:
                if len(self._controllers) == 1:
                    raise
            await asyncio.sleep(0.05)
        raise AssertionError(f"nobody answers {method} {path}")

    async def furnish(self, networks: int, lab_quota: dict[str, int]) -> None:
        """Make what the requests name."""
        wanted: list[tuple[str, str, dict[str, Any]]] = [("/v1/sizes", "small", SMALL), ("/v1/sizes", "flex", FLEX)]
        wanted += [("/v1/projects", name, {"quota": lab_quota} if name == "lab" else {}) for name in PROJECTS]
        for project in PROJECTS:
            base = f"/v1/projects/{project}"
            wanted.append((f"{base}/images", "tiny", {"format": "raw"}))
            wanted += [(f"{base}/groups", name, spec) for name, spec in GROUPS.items()]
            wanted += [(f"{base}/networks", f"net-{number}", {}) for number in range(networks)]
        for path, name, spec in wanted:
            status, body = await self.call(
                "POST", path, {"name": name, "spec": spec}, key=f"{path} {name}"[-200:].replace(" ", "-")
            )
            assert status == 202, body
        for project in PROJECTS:
            at = f"{self._controllers[0].api}/v1/projects/{project}/images/tiny/content"
            async with self._http.put(at, data=b"\x01" * 4096, headers=self._headers) as answer:
                assert answer.status == 202, await answer.text()

    async def create(self, requests: Sequence[Request]) -> list[Answer]:
        """Send all of them at once."""

        async def one(request: Request) -> Answer:
            path, body = f"/v1/projects/{request.project}/vms", {"name": request.name, "spec": request.spec}
            status, found = await self.call("POST", path, body, key=f"{request.project}-{request.name}")
            return Answer(request=request, status=status, body=found)

        return list(await asyncio.gather(*[one(request) for request in requests]))

    async def settled(self, *, limit_s: float) -> dict[tuple[str, str], dict[str, Any]]:
        """Wait until every machine runs or says why not; return them by project and name."""
        async with asyncio.timeout(limit_s):
            while True:
                found = await self.machines()
                if all(vm["status"]["state"] in ("running", "blocked") for vm in found.values()):
                    return found
                await asyncio.sleep(0.3)

    async def machines(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Return every machine."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for project in PROJECTS:
            after = ""
            while True:
                query = f"?limit=1000{f'&after={after}' if after else ''}"
                status, page = await self.call("GET", f"/v1/projects/{project}/vms{query}")
                assert status == 200, page
                found |= {(project, item["name"]): item for item in page["items"]}
                after = page["next"]
                if not after:
                    break
        return found


# --- what must be so ----------------------------------------------------------------------------------------------


def check_answers(answers: Sequence[Answer], lab_quota: dict[str, int]) -> None:
    """Every answer is a yes, or a no that says what was asked, what the limit is, and the way out."""
    for one in answers:
        if not one.request.good:
            assert one.status in (400, 422), one.body
            (error,) = one.body["errors"]
            assert error["field"] in ("spec.vcpus", "spec.memory_mib", "spec.disk_gib"), one.body
            assert "size flex has" in one.body["detail"], one.body
            assert one.body["fix"], one.body
        elif one.status == 403:
            _check_quota_refusal(one, lab_quota)
        else:
            assert one.status == 202, one.body


def _check_quota_refusal(one: Answer, lab_quota: dict[str, int]) -> None:
    assert one.body["code"] == "quota-exceeded", one.body
    assert one.request.project == "lab", one.body
    assert one.body["fix"], one.body
    for short in one.body["shortfalls"]:
        assert short["limit"] == lab_quota[short["counter"]], short
        assert short["used"] + short["asked"] > short["limit"], short


def check_quota(answers: Sequence[Answer], lab_quota: dict[str, int]) -> None:
    """Of what was accepted no limit is broken; what was refused would still break one, since nothing was given back."""
    used: Counter[str] = Counter()
    for one in answers:
        if one.request.project == "lab" and one.status == 202:
            used += Counter(_counts(one.request))
    for counter, limit in lab_quota.items():
        assert used[counter] <= limit, f"{counter}: {used[counter]} of {limit}"
    for one in answers:
        if one.status == 403:
            would = used + Counter(_counts(one.request))
            assert any(would[counter] > limit for counter, limit in lab_quota.items()), (one.request, used)


def _counts(request: Request) -> dict[str, int]:
    vcpus, memory, _ = request.shape
    return {"vms": 1, "vcpus": vcpus, "memory_mib": memory}


def check_machines(answers: Sequence[Answer], found: dict[tuple[str, str], dict[str, Any]], fleet: Fleet) -> None:
    """What was accepted is there, and runs or says why not; nothing is sold twice; every group's rule holds."""
    accepted = {(one.request.project, one.request.name): one.request for one in answers if one.status == 202}
    assert set(found) == set(accepted)
    sold: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for key, vm in found.items():
        request, status = accepted[key], vm["status"]
        if status["state"] == "running":
            assert (status["vcpus"], status["memory_mib"]) == request.shape[:2], (status, request)
            sold[status["host"]].append(request.shape)
            for group in request.spec.get("groups", ()):
                places[request.project, group].append(status["host"])
        else:
            why = status["why"]
            assert why["summary"], vm
            assert why["costs"], vm
            assert why["smallest_change"], vm
    for (_, group), hosts in places.items():
        if group == "apart":
            assert max(Counter(hosts).values()) == 1, Counter(hosts).most_common(3)
        if group == "together":
            assert len(set(hosts)) == 1, hosts
    _check_hosts(sold, fleet)
    _check_no_room(found, accepted, sold, len(fleet.agents))


def _check_hosts(sold: dict[str, list[tuple[int, int, int]]], fleet: Fleet) -> None:
    """No host has more than it has; and what runs on it is what was sold."""
    for agent in fleet.agents:
        shapes = sold.get(agent.identity.name, [])
        vcpus, memory, disk = (sum(shape[index] for shape in shapes) for index in range(3))
        assert vcpus <= HARDWARE.threads * CPU_OVERCOMMIT, (agent.identity.name, vcpus)
        assert memory <= HARDWARE.memory_mib - RESERVED_MIB, (agent.identity.name, memory)
        assert disk <= HARDWARE.disk_gib, (agent.identity.name, disk)
        runs = agent.machine.guests.runs.values()
        assert sorted((run.vcpus, run.memory_mib) for run in runs) == sorted(shape[:2] for shape in shapes)


def _check_no_room(
    found: dict[tuple[str, str], dict[str, Any]],
    accepted: dict[tuple[str, str], Request],
    sold: dict[str, list[tuple[int, int, int]]],
    hosts: int,
) -> None:
    """Where a machine waits for room alone, no host has it."""
    limits = (HARDWARE.threads * CPU_OVERCOMMIT, HARDWARE.memory_mib - RESERVED_MIB, HARDWARE.disk_gib)
    left = [
        tuple(limit - sum(shape[index] for shape in shapes) for index, limit in enumerate(limits))
        for shapes in sold.values()
    ]
    left += [limits] * (hosts - len(sold))
    for key, vm in found.items():
        request = accepted[key]
        if vm["status"]["state"] == "blocked" and not set(request.spec.get("groups", ())) & {"apart", "together"}:
            fits = [one for one in left if all(has >= asks for has, asks in zip(one, request.shape, strict=True))]
            assert not fits, f"{key} of {request.shape} waits, though a host has {fits[0]} left: {vm['status']}"
