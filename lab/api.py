"""The API as the lab uses it: a small synchronous client for setting up what `make up` and the tests need."""

import http.client
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from common.errors import NotFound, Problem, SkerryError, Temporary

_TIMEOUT_S = 60.0


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """A resource, as far as the lab looks at it."""

    id: str
    name: str
    spec: dict[str, Any] = {}
    status: dict[str, Any] = {}

    @property
    def state(self) -> str:
        """Return the word that says how it is."""
        return str(self.status.get("state", ""))

    @property
    def message(self) -> str:
        """Return the sentence that says why."""
        return str(self.status.get("message", ""))


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a read or a change of one resource answers."""

    resource: Resource
    revealed: str = ""


class Refusal(SkerryError):
    """The API refused; the problem document is told as it came."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail, fix=problem.fix)
        self.given = problem


class Api:
    """One controller's API with one token."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self._token = token

    def get(self, path: str) -> Resource:
        """Return a resource. Raises NotFound, Refusal, Temporary when the API can't be reached."""
        return msgspec.json.decode(self._call("GET", path), type=Answer).resource

    def find(self, path: str) -> Resource | None:
        """Return a resource, or None where there is none."""
        try:
            return self.get(path)
        except NotFound:
            return None

    def create(self, collection: str, name: str, spec: dict[str, object]) -> Answer:
        """Create a resource and return it as accepted."""
        body = json.dumps({"name": name, "spec": spec}).encode()
        return msgspec.json.decode(self._call("POST", collection, body), type=Answer)

    def ensure(self, collection: str, name: str, spec: dict[str, object]) -> Resource:
        """Create a resource unless one of this name exists."""
        return self.find(f"{collection}/{name}") or self.create(collection, name, spec).resource

    def do(self, path: str) -> None:
        """Ask for a one-shot verb, such as `…/vms/web/start`."""
        self._call("POST", path, b"{}")

    def reveal(self, path: str) -> str:
        """Ask for a secret that is shown once, such as a new join token."""
        return str(json.loads(self._call("POST", path, b"{}"))["revealed"])

    def upload(self, path: str, file: Path) -> None:
        """Put a file's bytes."""
        with file.open("rb") as body:
            self._call("PUT", path, body, kind="application/octet-stream", size=file.stat().st_size)

    def text(self, path: str) -> str:
        """Return a plain text, such as a VM's serial log; empty where there is none yet or it can't be had now."""
        try:
            return self._call("GET", path).decode(errors="replace")
        except (NotFound, Refusal):
            return ""

    def answers(self) -> bool:
        """Tell whether the API is ready to serve."""
        try:
            self._call("GET", "/readyz")
        except SkerryError:
            return False
        return True

    def wait(self, path: str, so: Callable[[Resource], bool], what: str, *, timeout_s: float) -> Resource:
        """Look at a resource until it is as wished. Raises Temporary with what it says of itself."""
        last: Resource | None = None
        for last in self._looks(path, timeout_s):
            if last is not None and so(last):
                return last
        told = f"{last.state}: {last.message}" if last else "it does not exist"
        raise Temporary(f"{path} is not {what} after {timeout_s:.0f} s ({told})")

    def _looks(self, path: str, timeout_s: float) -> Iterator[Resource | None]:
        deadline = time.monotonic() + timeout_s
        yield self.find(path)
        while time.monotonic() < deadline:
            time.sleep(0.1)
            yield self.find(path)

    def _call(
        self, method: str, path: str, body: object = None, *, kind: str = "application/json", size: int | None = None
    ) -> bytes:
        headers = {"Authorization": f"Bearer {self._token}"}
        if body is not None:
            headers["Content-Type"] = kind
        if size is not None:
            headers["Content-Length"] = str(size)
        place = urlsplit(self.url)
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=_TIMEOUT_S)
        try:
            connection.request(method, path, body=body, headers=headers)  # type: ignore[arg-type]
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as err:
            raise Temporary(
                f"{method} {self.url}{path}: {type(err).__name__} {err}", fix="is it up? `make up`"
            ) from err
        finally:
            connection.close()
        if answer.status >= 400:
            raise _error(answer.status, content, f"{method} {path}")
        return content


def _error(status: int, content: bytes, line: str) -> SkerryError:
    try:
        problem = msgspec.json.decode(content, type=Problem)
    except msgspec.MsgspecError:
        return Temporary(f"{line}: HTTP {status}: {content[:500].decode(errors='replace')}")
    if status == 404:
        return NotFound(problem.detail, fix=problem.fix)
    return Refusal(problem)
