"""What holds for every test."""

import asyncio

import structlog


def pytest_configure() -> None:
    """Say that the main thread has no event loop, and have logs written plainly.

    Without the first, pytest-asyncio asks for the current loop before its first test, Python 3.11 makes one up for
    it, nobody closes that, and some later test fails with "unclosed event loop" when the garbage is collected.
    As to the second: structlog's default draws tracebacks with all their variables, seconds on a busy machine.
    """
    asyncio.set_event_loop(None)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["level", "event"]),
        ]
    )
