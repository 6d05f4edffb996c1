"""Import large libraries without the garbage collector, which would search each of their objects several times."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["importing"]


@contextmanager
def importing(*, keep: bool = False) -> Iterator[None]:
    """Pause Python's garbage collector in a `with` block of imports.

    Imports make hundreds of thousands of objects that stay until the process ends. The collector searches all of them
    whenever their number has grown by a quarter, which takes a good part of the time of an import.

    Args:
        keep: Exempt all objects that exist at the end of the block from later searches (`gc.freeze`): for programs,
            which begin with their imports, and not for libraries.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if keep:
            gc.freeze()
        if running:
            gc.enable()
