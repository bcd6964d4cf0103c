"""What a load balancer, a scraper and an init system ask: does it run, is it ready, what are its figures."""

from aiohttp import web

from controller.api.call import Door
from controller.api.metrics import CONTENT_TYPE, Metrics
from controller.api.ports import Readiness
from controller.api.render import answer
from controller.auth.caller import require_everywhere


class Health:
    """The handlers that need no token."""

    def __init__(self, readiness: Readiness, metrics: Metrics, door: Door, *, metrics_open: bool) -> None:
        self._readiness = readiness
        self._metrics = metrics
        self._door = door
        self._metrics_open = metrics_open

    async def health(self, _request: web.Request) -> web.Response:
        """Answer that the process runs and its event loop turns."""
        return answer({"status": "ok"})

    async def ready(self, _request: web.Request) -> web.Response:
        """Answer 200 once the store and the loop run, else 503 with the reasons."""
        reasons = self._readiness()
        return answer({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)

    async def metrics(self, request: web.Request) -> web.Response:
        """Answer all figures in Prometheus' text format."""
        if not self._metrics_open:
            require_everywhere(self._door.caller(request), "project.read", "reading the metrics")
        return web.Response(body=self._metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})
