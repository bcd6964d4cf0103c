"""The reference pages name everything there is."""

import msgspec

from common.errors import ERRORS
from common.kinds import KINDS
from controller import config
from controller.api.metrics import METRICS
from controller.api.reference import api_page, config_page, errors_page, metrics_page
from controller.api.routes import ROUTES


def test_every_config_key_has_a_line_that_says_what_it_does() -> None:
    page = config_page()

    for name, section in config.sections():
        assert f"## [{name}]" in page
        for field in msgspec.structs.fields(section):
            line = next(line for line in page.splitlines() if line.startswith(f"| `{field.name}` |"))
            assert all(cell.strip() for cell in line.strip("|").split(" | ")), line


def test_every_route_error_and_metric_is_on_its_page() -> None:
    for route in ROUTES:
        if route.kind is None or route.need is not None:
            assert f"| {route.method} | `{route.path}` |" in api_page()
    for kind in KINDS:
        assert f"## {kind.name}" in api_page()
    for error in ERRORS:
        assert f"| `{error.code}` | {error.status} | " in errors_page()
    for shown in METRICS:
        assert f"| `{shown.name}" in metrics_page()


def test_pages_are_the_same_each_time() -> None:
    for page in (config_page, api_page, errors_page, metrics_page):
        assert page() == page()
        assert page().startswith("# ")
        assert page().endswith("|\n")
