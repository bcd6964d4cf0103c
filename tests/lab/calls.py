"""The cloud as the acceptance runs use it: calls that outlive a controller, and waits that say what they saw."""

import http.client
import json
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

from lab.cloud import IMAGE, KEYPAIR, PROJECT, SIZE, Lab
from lab.host import Host

PATIENCE_S = 60.0
"""How long a call is tried again while nobody answers: longer than a killed controller is away."""

BOOT_MARK = "skerry-tiny: Linux"
"""What the guest image `tiny` writes first of all."""

Seen = dict[str, Any]
T = TypeVar("T")


class Answer:
    """One answer of the API."""

    def __init__(self, status: int, content: bytes) -> None:
        self.status = status
        self.text = content.decode(errors="replace")

    @property
    def body(self) -> Seen:
        """Return the JSON body."""
        found: Seen = json.loads(self.text)
        return found


class Cloud:
    """One lab's API, in one project."""

    def __init__(self, lab: Lab, project: str = PROJECT) -> None:
        self.lab = lab
        self.project = project
        self.vms = f"/v1/projects/{project}/vms"

    def once(self, method: str, path: str, body: object = None) -> Answer:
        """Send one request. Raises OSError or HTTPException where nobody answers."""
        place = urlsplit(self.lab.url)
        headers = {"Authorization": f"Bearer {self.lab.token}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=70)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return Answer(answer.status, answer.read())
        finally:
            connection.close()

    def call(self, method: str, path: str, body: object = None) -> Answer:
        """Send a request until somebody answers it, as a patient script does."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                answer = self.once(method, path, body)
                if answer.status != 503 or time.monotonic() > deadline:
                    return answer
            except (OSError, http.client.HTTPException) as err:
                if time.monotonic() > deadline:
                    raise AssertionError(f"{method} {path}: nobody answers") from err
            time.sleep(0.1)

    def must(self, method: str, path: str, body: object = None) -> Seen:
        """Send a request that has to be accepted, and return what it answers."""
        answer = self.call(method, path, body)
        assert answer.status < 300, f"{method} {path}: {answer.status} {answer.text}"
        return answer.body

    # --- things ---------------------------------------------------------------------------------------------------

    def create(self, name: str, **spec: object) -> Seen:
        """Create a VM of the lab's image, size and key unless `spec` says otherwise; return it as accepted.

        A request whose answer was lost may have been accepted: then the name is taken, and that is success.
        """
        path, wanted = self.vms, {"image": IMAGE, "size": SIZE, "keypairs": [KEYPAIR], **spec}
        return self.make(path, name, wanted)

    def make(self, collection: str, name: str, spec: object) -> Seen:
        """Create a thing; one of that name which is there already is success."""
        answer = self.call("POST", collection, {"name": name, "spec": spec})
        if answer.status == 409 and self.call("GET", f"{collection}/{name}").status == 200:
            return self.must("GET", f"{collection}/{name}")
        assert answer.status == 202, f"POST {collection} {name}: {answer.status} {answer.text}"
        return answer.body

    def vm(self, name: str) -> Seen | None:
        """Return a VM; None where there is none."""
        return self.find(f"{self.vms}/{name}")

    def find(self, path: str) -> Seen | None:
        """Return a thing; None where there is none."""
        answer = self.call("GET", path)
        if answer.status == 404:
            return None
        assert answer.status == 200, f"GET {path}: {answer.status} {answer.text}"
        resource: Seen = answer.body["resource"]
        return resource

    def id(self, name: str) -> str:
        """Return a VM's id."""
        found = self.vm(name)
        assert found is not None, f"there is no vm {name}"
        return str(found["id"])

    def address(self, name: str) -> str:
        """Return a VM's first address."""
        found = self.vm(name)
        assert found is not None
        assert found["status"]["addresses"], f"vm {name} has no address: {found['status']}"
        return str(found["status"]["addresses"][0])

    def delete(self, path: str) -> None:
        """Delete a thing; one that is gone already is success."""
        answer = self.call("DELETE", path)
        assert answer.status in (202, 404), f"DELETE {path}: {answer.status} {answer.text}"

    def delete_vms(self, *names: str, timeout_s: float = 90) -> None:
        """Delete VMs and wait until they are gone."""
        for name in names:
            self.delete(f"{self.vms}/{name}")
        for name in names:
            self.gone(f"{self.vms}/{name}", timeout_s=timeout_s)

    def tidy(self) -> None:
        """Delete all VMs of the project."""
        page = self.must("GET", f"{self.vms}?limit=1000")
        self.delete_vms(*(one["name"] for one in page["items"]))

    # --- waiting --------------------------------------------------------------------------------------------------

    def until_state(self, name: str, state: str, *, timeout_s: float = 60) -> Seen:
        """Wait until a VM shows a state; return it."""
        return until(
            lambda: self._in_state(name, state), lambda: f"vm {name} to be {state}: {self.said(name)}", timeout_s
        )

    def _in_state(self, name: str, state: str) -> Seen | None:
        found = self.vm(name)
        return found if found and found["status"]["state"] == state else None

    def gone(self, path: str, *, timeout_s: float = 90) -> None:
        """Wait until a thing is gone."""
        until(lambda: self.find(path) is None, lambda: f"{path} to be gone: {self.find(path)}", timeout_s)

    def until_logged(self, name: str, so: Callable[[str], bool], what: str, *, timeout_s: float = 90) -> str:
        """Wait until what a VM has written on its serial console is as wished; return it."""
        return until(
            lambda: log if so(log := self.serial_log(name)) else None,
            lambda: f"{what} on the console of {name}: {self.serial_log(name)[-2000:]!r}, {self.said(name)}",
            timeout_s,
        )

    def until_up(self, name: str, *, boots: int = 1, timeout_s: float = 90) -> str:
        """Wait for the login prompt of a VM's nth boot, or a later one; return its serial log."""

        def is_up(log: str) -> bool:
            return boots_in(log) >= boots and " login:" in log.rpartition(BOOT_MARK)[2]

        return self.until_logged(name, is_up, f"login prompt of boot {boots}", timeout_s=timeout_s)

    def serial_log(self, name: str) -> str:
        """Return what a VM wrote on its serial console; empty where there is none yet."""
        answer = self.call("GET", f"{self.vms}/{name}/log?tail_bytes=262144")
        return answer.text.replace("\r", "") if answer.status == 200 else ""

    def said(self, name: str) -> str:
        """Return all that is known of why a VM is as it is, for a failure's message."""
        return self.call("GET", f"{self.vms}/{name}/why").text

    def until_done(self, operation: str, *, timeout_s: float = 90) -> Seen:
        """Wait until an operation has ended; return it."""
        path = f"/v1/operations/{operation}"
        return until(
            lambda: found if (found := self.must("GET", path))["finished_at"] else None,
            lambda: f"operation to end: {self.must('GET', path)}",
            timeout_s,
        )

    def operations(self, **query: str) -> list[Seen]:
        """Return all operations that a query finds."""
        found: list[Seen] = []
        after = ""
        while True:
            words = {"limit": "1000", **query, **({"after": after} if after else {})}
            page = self.must("GET", f"/v1/operations?{urlencode(words)}")
            found += page["items"]
            after = page["next"] or ""
            if not after:
                return found

    # --- proof ----------------------------------------------------------------------------------------------------

    def audit(self, host: str) -> list[Seen]:
        """Return every difference that Skerry itself finds between wish and reality on a host."""
        items: list[Seen] = self.must("GET", f"/v1/hosts/{host}/audit")["items"]
        return items

    def until_clean(self, *, timeout_s: float = 60) -> None:
        """Wait until the audits of all hosts find nothing: what is being removed just now needs a moment."""
        for host in self.lab.hosts():
            until(
                lambda host=host: not self.audit(host.name),  # type: ignore[misc]
                lambda host=host: f"a clean audit of {host.name}: {json.dumps(self.audit(host.name), indent=1)}",  # type: ignore[misc]
                timeout_s,
            )

    def ids(self) -> set[str]:
        """Return the ids of all VMs, volumes and networks there are, in all projects."""
        found: set[str] = set()
        for project in self.must("GET", "/v1/projects?limit=1000")["items"]:
            for plural in ("vms", "volumes", "networks"):
                page = self.must("GET", f"/v1/projects/{project['name']}/{plural}?limit=1000")
                found |= {one["id"] for one in page["items"]}
        return found


def until(so: Callable[[], T | None], what: Callable[[], str], timeout_s: float = 60, every_s: float = 0.1) -> T:
    """Wait until something is so and return what it gave. Fails with what was waited for."""
    deadline = time.monotonic() + timeout_s
    while True:
        if found := so():
            return found
        if time.monotonic() > deadline:
            break
        time.sleep(every_s)
    raise AssertionError(f"waited {timeout_s:.0f} s in vain for {what()}")


def boots_in(log: str) -> int:
    """Return how often the guest image `tiny` has booted, as its serial log tells."""
    return log.count(BOOT_MARK)


def qemu_of(host: Host, vm: str) -> int:
    """Return the process number, inside the host, of a VM's QEMU. Fails where there is none."""
    return int(host.run(["cat", f"/run/libvirt/qemu/{vm}.pid"]))
