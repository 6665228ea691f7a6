"""Ways to do the same, timed in alternating blocks of one process.

Machines are not steady: a block is compared only with its neighbours, so that what slows the
machine down slows all of them.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

Block = Callable[[int], Awaitable[None]]
"""Does the work so many times."""


@dataclass(frozen=True)
class Comparison:
    """The times of neighbouring blocks, in seconds for one call."""

    plain: list[float]
    ours: list[float]

    @property
    def ratios(self) -> tuple[float, float, float]:
        """The quartiles of ours / plain."""
        low, middle, high = statistics.quantiles(
            (b / a for a, b in zip(self.plain, self.ours, strict=True)), n=4
        )
        return low, middle, high

    @property
    def more(self) -> float:
        """The median of ours - plain, in seconds."""
        return statistics.median(b - a for a, b in zip(self.plain, self.ours, strict=True))

    def report(self, title: str) -> str:
        """The medians, and the ratio with the quartiles of all pairs."""
        plain, ours = statistics.median(self.plain), statistics.median(self.ours)
        low, middle, high = self.ratios
        return (
            f"{title}: {plain * 1e6:.2f} µs plain, {ours * 1e6:.2f} µs with it, "
            f"{self.more * 1e6:+.2f} µs; ratio {middle:.3f} ({low:.3f} to {high:.3f}, "
            f"{len(self.plain)} pairs)"
        )


async def alternate(
    blocks: Mapping[str, Block], *, rounds: int, calls: int
) -> dict[str, list[float]]:
    """Time the blocks in alternation; who goes first rotates.

    Args:
        blocks: by name.
        rounds: how often each block runs.
        calls: how often each block does its work.

    Returns:
        the times of each block, in seconds for one call.
    """
    times: dict[str, list[float]] = {name: [] for name in blocks}
    for block in blocks.values():
        await block(calls)  # warm
    gc.collect()
    gc.freeze()  # so that each collection below looks at what its block left alone
    order = list(blocks)
    for _ in range(rounds):
        order.append(order.pop(0))
        for name in order:
            gc.collect()
            gc.disable()
            started = time.perf_counter()
            await blocks[name](calls)
            times[name].append((time.perf_counter() - started) / calls)
            gc.enable()
    return times


async def compare(plain: Block, ours: Block, *, pairs: int, calls: int) -> Comparison:
    """Time two blocks in alternation.

    Args:
        plain: without the package.
        ours: with it.
        pairs: how many blocks of each.
        calls: how often each block does its work.
    """
    times = await alternate({"plain": plain, "ours": ours}, rounds=pairs, calls=calls)
    return Comparison(times["plain"], times["ours"])
