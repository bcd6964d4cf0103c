"""Writes docs/reference from the code: `make docs`. A gate test compares what lies there with what this makes."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from controller.api import reference as api
from controller.cli import reference as cli

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"

PAGES: Mapping[str, Callable[[], str]] = {
    "cli.md": cli.cli_page,
    "kinds.md": cli.kinds_page,
    "api.md": api.api_page,
    "actions.md": api.actions_page,
    "errors.md": api.errors_page,
    "config.md": api.config_page,
    "metrics.md": api.metrics_page,
}
"""The pages by their file's name."""


def main() -> None:
    """Write every page, below the directory that is given or in docs/reference."""
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else REFERENCE
    directory.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (directory / name).write_text(page())


if __name__ == "__main__":
    main()
