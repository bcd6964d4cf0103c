"""What holds for every test."""

import asyncio


def pytest_configure() -> None:
    """Say that the main thread has no event loop.

    Else pytest-asyncio asks for the current one before its first test, Python 3.11 makes one up for it, nobody closes
    that, and some later test fails with "unclosed event loop" when the garbage is collected.
    """
    asyncio.set_event_loop(None)
