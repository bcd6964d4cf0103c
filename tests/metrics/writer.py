"""Writes one block after another until it is killed. Started by test_blocks.py with a directory."""

import sys
from pathlib import Path

import numpy as np

from common.ids import new_id
from controller.metrics.block import Chunk
from controller.metrics.shelf import RAW, Keep, Shelf

HOSTS = 40

shelf = Shelf(Path(sys.argv[1]), Keep(raw_s=1e9, minute_s=1e9, hour_s=1e9, most_bytes=1 << 30))
shelf.load()
chance = np.random.default_rng(1)
hosts = [new_id("host") for _ in range(HOSTS)]
chunks = [
    Chunk(host, {host: 0, new_id("vm"): 8}, chance.integers(0, 600, (14, 60)).astype(np.uint16)) for host in hosts
]
print("ready", flush=True)
for number in range(100_000):
    shelf.write(RAW, 300 * number, chunks)
