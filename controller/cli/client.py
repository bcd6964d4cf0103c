"""The HTTP client: one session for one command, typed answers, problem documents and lost connections as failures."""

import asyncio
import os
import random
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType, TracebackType
from typing import Self, TypeVar
from urllib.parse import quote
from uuid import uuid4

import aiohttp
import click
import msgspec

from common.errors import Problem
from common.kinds.kind import AnyKind, Scope
from controller.cli.answers import Accepted, Many, One
from controller.cli.failures import Failure, Lost, Refused, Unreachable
from controller.cli.settings import Connection

T = TypeVar("T")
Query = Mapping[str, str | int] | tuple[tuple[str, str | int], ...]

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 60.0
PAGE = 1000

REPEAT_FOR_S = 30.0
"""A mutation whose connection broke is sent again for so long: a controller that restarts is back by then."""

REPEAT_PAUSE_S = 1.0

BACK_OFF_FOR_S = 60.0
"""A request that was one too many is sent again for so long."""


class Client:
    """Speaks to one controller. An async context manager."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connection = self.connection
        verify = (
            ssl.create_default_context(cafile=connection.ca or None) if connection.url.startswith("https") else True
        )
        self._http = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {token}"} if (token := connection.token.reveal()) else {},
            connector=aiohttp.TCPConnector(ssl=verify),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=ANSWER_TIMEOUT_S),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._http:
            await self._http.close()

    @property
    def http(self) -> aiohttp.ClientSession:
        """Return the open session."""
        assert self._http, "the client is used outside its context"
        return self._http

    def url(self, path: str) -> str:
        """Return the full URL of a path."""
        return self.connection.url + path

    def path(self, kind: AnyKind, name: str = "", tail: str = "", *, project: str = "") -> str:
        """Return the path of a kind's collection, of one thing, or of something under one thing."""
        base = (
            f"/v1/projects/{quote(project or self.connection.project, safe='')}"
            if kind.scope is Scope.PROJECT
            else "/v1"
        )
        parts = [base, kind.plural, *([quote(name, safe="")] if name else []), *([tail] if tail else [])]
        return "/".join(parts)

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        *,
        query: Query = (),
        body: object = None,
        headers: Mapping[str, str] | None = None,
        data: object = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request and give its answer while it is read.

        Raises Refused for a problem document and Unreachable where no answer comes.
        """
        sent = dict(headers or {})
        if body is not None:
            data, sent["Content-Type"] = msgspec.json.encode(body), "application/json"
        pairs = [(key, str(value)) for key, value in (query.items() if isinstance(query, Mapping) else query)]
        try:
            async with self.http.request(method, self.url(path), params=pairs, data=data, headers=sent) as response:
                if response.status >= 400:
                    raise await refused(response)
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError) as err:
            raise unreachable(self.connection, err) from err

    async def read(
        self,
        method: str,
        path: str,
        of: type[T],
        *,
        query: Query = (),
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> T:
        """Send a request and decode its JSON answer."""
        raw, _ = await self._read(method, path, query=query, body=body, headers=headers)
        return self.decode(raw, of)

    async def raw(self, method: str, path: str, *, query: Query = ()) -> bytes:
        """Send a request and return the answer's bytes."""
        return (await self._read(method, path, query=query))[0]

    async def one(self, kind: AnyKind, name: str, *, project: str = "") -> tuple[One, str]:
        """Return one thing and its ETag."""
        raw, etag = await self._read("GET", self.path(kind, name, project=project))
        return self.decode(raw, One), etag

    async def change(
        self, method: str, path: str, *, query: Query = (), body: object = None, etag: str = ""
    ) -> Accepted:
        """Send a mutation and return it as accepted. Raises like `change_raw`."""
        return self.decode(await self.change_raw(method, path, query=query, body=body, etag=etag), Accepted)

    async def change_raw(
        self, method: str, path: str, *, query: Query = (), body: object = None, etag: str = ""
    ) -> bytes:
        """Send a mutation and return the answer's bytes. Where the connection breaks it is sent again under the same
        key, so that it is carried out once.

        Raises Failure where the answer that was lost held a secret.
        """
        headers = {"Idempotency-Key": str(uuid4())} | ({"If-Match": etag} if etag else {})
        raw = await self._until_answered(method, path, query, body, headers)
        accepted = self.decode(raw, Accepted)
        if accepted.revealed_before:
            done = f"{accepted.operation.subject}: {accepted.operation.verb}"
            raise Failure(
                f"{done} is accepted, but the connection broke before its secret came", fix=accepted.revealed_before
            )
        return raw

    async def rehearse(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] = MappingProxyType({}),
        body: object = None,
        etag: str = "",
    ) -> bytes:
        """Send a mutation as a dry run and return the answer's bytes."""
        headers = {"If-Match": etag} if etag else None
        asked = {**query, "dry_run": "true"}
        return (await self._read(method, path, query=asked, body=body, headers=headers))[0]

    async def _until_answered(
        self, method: str, path: str, query: Query, body: object, headers: Mapping[str, str]
    ) -> bytes:
        """Send a request with a key until it is answered. One that never went out is not repeated."""
        ends = time.monotonic() + REPEAT_FOR_S
        sent = False
        while True:
            try:
                return (await self._read(method, path, query=query, body=body, headers=headers))[0]
            except Unreachable as err:
                sent = sent or isinstance(err, Lost)
                if not sent or time.monotonic() > ends:
                    raise
                click.echo(f"[{err.detail}; sending the same request again]", err=True)
            await asyncio.sleep(REPEAT_PAUSE_S)

    async def pages(self, path: str, query: Query = (), *, limit: int | None = None) -> AsyncIterator[Many]:
        """Give a list page by page, up to `limit` items."""
        fixed = tuple(query.items()) if isinstance(query, Mapping) else query
        after: str | int | None = None
        left = limit
        while left is None or left > 0:
            size = PAGE if left is None else min(PAGE, left)
            more = (("limit", size), *((("after", after),) if after is not None else ()))
            page = await self.read("GET", path, Many, query=(*fixed, *more))
            yield page
            left = None if left is None else left - len(page.items)
            after = page.next
            if after is None or not page.items:
                return

    async def _read(
        self,
        method: str,
        path: str,
        *,
        query: Query = (),
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[bytes, str]:
        """Send a request and read the answer; where there were too many, send it again when it is time."""
        ends = time.monotonic() + BACK_OFF_FOR_S
        while True:
            try:
                async with self.open(method, path, query=query, body=body, headers=headers) as response:
                    return await response.read(), response.headers.get("ETag", "")
            except Refused as err:
                if err.problem.status != 429 or time.monotonic() + err.retry_after_s > ends:
                    raise
                pause_s = err.retry_after_s * (1 + random.random())  # noqa: S311 - so that not all come back at once
            await asyncio.sleep(pause_s)

    def decode(self, raw: bytes, of: type[T]) -> T:
        """Decode an answer's JSON. Raises Failure where it is not what this version knows."""
        try:
            return msgspec.json.decode(raw, type=of)
        except msgspec.DecodeError as err:
            raise Failure(
                f"{self.connection.where} gave an answer that this skerry does not understand: {err}",
                fix="is it a Skerry controller, and of this version? See skerry --version",
            ) from err


async def refused(response: aiohttp.ClientResponse) -> Failure:
    """Return the failure that an answer with an error status stands for."""
    raw = await response.read()
    try:
        after = response.headers.get("Retry-After", "")
        return Refused(msgspec.json.decode(raw, type=Problem), retry_after_s=int(after) if after.isdecimal() else 1)
    except msgspec.DecodeError:
        said = raw.decode(errors="replace").strip()[:200] or "(nothing)"
        return Failure(
            f"{response.method} {response.url} was answered with {response.status} {response.reason}: {said}",
            fix="is this the URL of a Skerry controller's API?",
        )


def unreachable(connection: Connection, err: BaseException) -> Unreachable:
    """Return the failure for a connection that did not come about or broke."""
    if isinstance(err, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
        return Unreachable(
            f"{connection.where} has a certificate that can't be trusted: {err}",
            fix="name its CA: skerry context add … --ca FILE, or SKERRY_CA",
        )
    fix = f"is it running? try: curl {connection.url}/healthz; for another one: skerry context list"
    if isinstance(err, aiohttp.ClientConnectorError):
        what = os.strerror(err.os_error.errno) if err.os_error.errno else str(err.os_error)
        return Unreachable(f"can't reach the controller at {connection.where}: {what}", fix=fix)
    if isinstance(err, aiohttp.ConnectionTimeoutError):
        return Unreachable(f"can't reach the controller at {connection.where}: it does not answer in time", fix=fix)
    if isinstance(err, asyncio.TimeoutError | aiohttp.ServerTimeoutError):
        return Lost(f"can't reach the controller at {connection.where}: it does not answer in time", fix=fix)
    return Lost(f"lost the connection to {connection.where}: {str(err) or type(err).__name__}", fix=fix)
