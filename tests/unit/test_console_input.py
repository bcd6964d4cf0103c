"""What is typed into `skerry console` is read without ever holding up what the machine prints."""

import asyncio
import os

import pytest

from controller.cli.console import _input


async def test_waiting_for_the_next_key_holds_up_nothing() -> None:
    reading, writing = os.pipe()
    typed = _input(reading)
    os.write(writing, b"root\n")
    assert await anext(typed) == b"root\n"

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await anext(typed)

    os.close(writing)
    os.close(reading)


async def test_the_end_of_the_input_ends_it() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"a")
    os.close(writing)
    assert [part async for part in _input(reading)] == [b"a"]
    os.close(reading)
