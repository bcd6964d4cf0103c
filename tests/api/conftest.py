"""One controller per test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from api_world import World, world


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[World]:
    """Give a controller with projects a and b, and tokens: root, and an admin, a member and a reader of each."""
    async with world(tmp_path) as made:
        for project in ("a", "b"):
            await made.make("/v1/projects", project)
            for role in ("admin", "member", "reader"):
                await made.token(f"{project}-{role}", project, role)
        yield made
