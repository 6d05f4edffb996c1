"""Two ways to do the same work, timed in turns in one run: medians, spread, and the ratio of each pair."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Measurement", "compare", "data_folder", "fresh_cache", "note", "timed"]


@dataclass(frozen=True)
class Measurement:
    """What one comparison came to.

    Attributes:
        name: The work.
        peer: What it is compared with; empty for a figure without a peer.
        ours: Median seconds.
        ours_spread: Half the distance of the quartiles, seconds.
        theirs: Median seconds of the peer.
        theirs_spread: As `ours_spread`.
        ratio: Median over the pairs of the peer's seconds by ours: above 1 we are faster.
        low: The smallest ratio of a pair.
        high: The largest.
        target: The ratio (or, without a peer, the seconds) that is asked for; None where none is.
        repeats: Pairs.
        remark: What the reader must know, such as accuracies.
        size: How much work it was (images, rows), where the same is measured for several sizes; else None.
    """

    name: str
    peer: str
    ours: float
    ours_spread: float
    theirs: float | None
    theirs_spread: float | None
    ratio: float | None
    low: float | None
    high: float | None
    target: float | None
    repeats: int
    remark: str = ""
    size: int | None = None

    def to_dict(self) -> dict:
        """Return the fields."""
        return asdict(self)


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that some work takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def compare(
    name: str,
    ours: Callable[[], object],
    theirs: Callable[[], object] | None = None,
    *,
    peer: str = "",
    target: float | None = None,
    repeats: int = 5,
    warm: bool = True,
    remark: str | Callable[[], str] = "",
    size: int | None = None,
) -> Measurement:
    """Time two ways in turns, A B A B.

    Args:
        name: The work.
        ours: Does it our way; returns the seconds that count, or anything else to have the whole call timed.
        theirs: Does it the peer's way.
        peer: Who that is.
        target: See `Measurement`.
        repeats: Pairs that count.
        warm: Run each once before, uncounted.
        remark: See `Measurement`; called at the end if it is a function.
        size: See `Measurement`.

    Returns:
        The measurement.
    """
    ways = [ours] if theirs is None else [ours, theirs]
    if warm:
        for way in ways:
            way()
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(repeats):
        for number, way in enumerate(ways):
            begun = time.perf_counter()
            said = way()
            seconds[number].append(said if isinstance(said, float) else time.perf_counter() - begun)
    text = remark() if callable(remark) else remark
    own = statistics.median(seconds[0]), _spread(seconds[0])
    if theirs is None:
        return Measurement(name, "", *own, None, None, None, None, None, target, repeats, text, size)
    ratios = [b / a for a, b in zip(*seconds, strict=True)]
    other = statistics.median(seconds[1]), _spread(seconds[1])
    middle = statistics.median(ratios), min(ratios), max(ratios)
    return Measurement(name, peer, *own, *other, *middle, target, repeats, text, size)


def _spread(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2


def data_folder() -> Path:
    """Return CoronaHack at full resolution, or a drawn stand-in of 160 images where COVID_FASTAI_DATA has none."""
    named = os.environ.get("COVID_FASTAI_DATA", "")
    if named and (Path(named) / "coronahack-full").is_dir():
        return Path(named).resolve() / "coronahack-full"
    folder = Path(tempfile.gettempdir()) / "covid_fastai-benchmarks" / "phantoms"
    if not folder.is_dir():
        from covid_fastai.data.phantom import write_phantom

        write_phantom(folder, patients={"COVID-19": 54, "Normal": 61}, image_size=1024, seed=0)
    return folder


def note() -> str:
    """Say which images are used."""
    return "" if os.environ.get("COVID_FASTAI_DATA") else "on drawings"


@contextmanager
def fresh_cache() -> Iterator[Path]:
    """Keep decoded images in a new folder for the time of a `with` block."""
    before = os.environ.get("COVID_FASTAI_CACHE")
    with tempfile.TemporaryDirectory(prefix="covid_fastai-bench-") as folder:
        os.environ["COVID_FASTAI_CACHE"] = folder
        try:
            yield Path(folder)
        finally:
            os.environ.pop("COVID_FASTAI_CACHE")
            if before is not None:
                os.environ["COVID_FASTAI_CACHE"] = before
