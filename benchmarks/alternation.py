"""Two ways to do the same, timed in alternating blocks of one process.

Machines are not steady: a block is compared only with its neighbour, so that what slows the
machine down slows both.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

Block = Callable[[int], Awaitable[None]]
"""Does the work so many times."""


@dataclass(frozen=True)
class Comparison:
    """The times of each pair of blocks, in seconds for one call."""

    plain: list[float]
    ours: list[float]

    def report(self, title: str) -> str:
        """The medians, and the ratio with the quartiles of all pairs."""
        plain, ours = statistics.median(self.plain), statistics.median(self.ours)
        more = statistics.median(b - a for a, b in zip(self.plain, self.ours, strict=True))
        ratios = [b / a for a, b in zip(self.plain, self.ours, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        return (
            f"{title}: {plain * 1e6:.2f} µs plain, {ours * 1e6:.2f} µs with it, "
            f"{more * 1e6:+.2f} µs; ratio {middle:.3f} ({low:.3f} to {high:.3f}, "
            f"{len(ratios)} pairs)"
        )


async def compare(plain: Block, ours: Block, *, pairs: int, calls: int) -> Comparison:
    """Time the blocks in alternation; who goes first alternates, too.

    Args:
        plain: without the package.
        ours: with it.
        pairs: how many blocks of each.
        calls: how often each block does its work.
    """
    times: dict[Block, list[float]] = {plain: [], ours: []}
    for block in (plain, ours):
        await block(calls)  # warm
    gc.collect()
    gc.freeze()  # so that each collection below looks at what its block left alone
    for number in range(pairs):
        for block in (plain, ours) if number % 2 else (ours, plain):
            gc.collect()
            gc.disable()
            started = time.perf_counter()
            await block(calls)
            times[block].append((time.perf_counter() - started) / calls)
            gc.enable()
    return Comparison(times[plain], times[ours])
