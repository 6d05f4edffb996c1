"""Time two ways to do the same work in alternation: medians, interquartile ranges, and the ratio of each pair."""

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
    """The result of a comparison.

    Attributes:
        name: The work.
        peer: The alternative that it is compared with; empty for a time without a comparison.
        ours: Median time of this package, seconds.
        ours_half_iqr: Half of the interquartile range, seconds.
        theirs: Median time of the alternative, seconds.
        theirs_half_iqr: Half of its interquartile range, seconds.
        ratio: Median over the pairs of the alternative's time divided by ours; above 1, this package is faster.
        low: The smallest ratio of a pair.
        high: The largest ratio of a pair.
        target: The target ratio (or, without an alternative, the target time in seconds); None for no target.
        repeats: Number of pairs.
        remark: Remarks for the reader, such as accuracies.
        size: The amount of work (images, rows), if it is measured for several amounts; otherwise None.
    """

    name: str
    peer: str
    ours: float
    ours_half_iqr: float
    theirs: float | None
    theirs_half_iqr: float | None
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
    """Time two ways to do the same work in alternation (A B A B).

    Args:
        name: The work.
        ours: Does the work with this package. A float that it returns is taken as its time in seconds; otherwise the
            whole call is timed.
        theirs: Does the work with the alternative.
        peer: The name of the alternative.
        target: See `Measurement`.
        repeats: Number of measured pairs.
        warm: Whether to run each once before, without measuring.
        remark: See `Measurement`; a function is called at the end.
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
            result = way()
            seconds[number].append(result if isinstance(result, float) else time.perf_counter() - begun)
    text = remark() if callable(remark) else remark
    our_time = statistics.median(seconds[0]), _half_iqr(seconds[0])
    if theirs is None:
        return Measurement(name, "", *our_time, None, None, None, None, None, target, repeats, text, size)
    ratios = [b / a for a, b in zip(*seconds, strict=True)]
    their_time = statistics.median(seconds[1]), _half_iqr(seconds[1])
    ratio = statistics.median(ratios), min(ratios), max(ratios)
    return Measurement(name, peer, *our_time, *their_time, *ratio, target, repeats, text, size)


def _half_iqr(values: list[float]) -> float:
    """Return half of the interquartile range; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2


def data_folder() -> Path:
    """Return CoronaHack at full resolution, or 160 synthetic images if COVID_FASTAI_DATA does not have it."""
    data = os.environ.get("COVID_FASTAI_DATA", "")
    if data and (Path(data) / "coronahack-full").is_dir():
        return Path(data).resolve() / "coronahack-full"
    folder = Path(tempfile.gettempdir()) / "covid_fastai-benchmarks" / "phantoms"
    if not folder.is_dir():
        from covid_fastai.data.phantom import write_phantom

        write_phantom(folder, patients={"COVID-19": 54, "Normal": 61}, image_size=1024, seed=0)
    return folder


def note() -> str:
    """Return a remark if the images are synthetic."""
    return "" if os.environ.get("COVID_FASTAI_DATA") else "on drawings"


@contextmanager
def fresh_cache() -> Iterator[Path]:
    """Use an empty cache of decoded images during a `with` block."""
    before = os.environ.get("COVID_FASTAI_CACHE")
    with tempfile.TemporaryDirectory(prefix="covid_fastai-bench-") as folder:
        os.environ["COVID_FASTAI_CACHE"] = folder
        try:
            yield Path(folder)
        finally:
            os.environ.pop("COVID_FASTAI_CACHE")
            if before is not None:
                os.environ["COVID_FASTAI_CACHE"] = before
