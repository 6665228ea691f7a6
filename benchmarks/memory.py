"""What requests keep: one that waits, and a hundred thousand that are over."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path

PAGE = 4096


async def of_waiting(request: Callable[[], Awaitable[None]], let_go: asyncio.Event) -> float:
    """The bytes of one of a thousand requests that wait in their endpoints."""
    count = 1000
    let_go.clear()
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tasks = [asyncio.ensure_future(request()) for _ in range(count)]
    for _ in range(20):  # more turns than a request needs to arrive in its endpoint
        await asyncio.sleep(0)
    gc.collect()
    size = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    let_go.set()
    await asyncio.gather(*tasks)
    return size / count


def resident() -> int:
    """The bytes of this process that are in memory (Linux)."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
