"""A caller of the API: what the simulator asks a controller for."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import msgspec

from common.errors import Temporary


class Refused(Exception):
    """The API did not accept a request."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"{status}: {body.get('detail', body) if isinstance(body, dict) else body}")
        self.status = status
        self.body = body


class Client:
    """A caller of the API, at any controller (a base URL)."""

    def __init__(self, http: aiohttp.ClientSession, token: str) -> None:
        self._http = http
        self.token = token
        self._headers = {"Authorization": f"Bearer {token}"}

    async def call(
        self, at: str, method: str, path: str, body: object = None, *, data: bytes | None = None
    ) -> tuple[int, Any]:
        """Ask; return status and body (JSON where it is, else text)."""
        headers = dict(self._headers)
        if body is not None:
            data, headers["Content-Type"] = msgspec.json.encode(body), "application/json"
        elif data is not None:
            headers["Content-Type"] = "application/octet-stream"
        async with self._http.request(method, at + path, data=data, headers=headers) as answer:
            raw = await answer.read()
            return answer.status, msgspec.json.decode(raw) if "json" in answer.content_type else raw.decode()

    async def make(self, at: str, path: str, name: str, **spec: Any) -> Any:
        """Make something."""
        status, body = await self.call(at, "POST", path, {"name": name, "spec": spec})
        if status != 202:
            raise Refused(status, body)
        return body

    async def until(
        self, at: str, path: str, there: Callable[[int, Any], object], *, limit_s: float = 20.0
    ) -> tuple[int, Any]:
        """Ask until the answer is as wished."""
        end = time.monotonic() + limit_s
        while True:
            status, body = await self.call(at, "GET", path)
            if there(status, body):
                return status, body
            if time.monotonic() > end:
                raise Temporary(f"GET {path} is not as awaited after {limit_s:g} s: {status} {body}")
            await asyncio.sleep(0.02)

    async def console(self, at: str, path: str) -> aiohttp.ClientWebSocketResponse:
        """Open a console."""
        return await self._http.ws_connect(at + path, headers=self._headers)

    async def watch(self, at: str, query: str) -> AsyncIterator[tuple[str, Any]]:
        """Watch: (event, body) as they come, until the connection ends."""
        forever = aiohttp.ClientTimeout(total=None, sock_read=120)
        async with self._http.get(f"{at}/v1/watch?{query}", headers=self._headers, timeout=forever) as answer:
            event = ""
            while line := await answer.content.readline():
                word, _, text = line.decode().rstrip("\n").partition(": ")
                if word == "event":
                    event = text
                elif word == "data":
                    yield event, msgspec.json.decode(text)
