"""`learn.export` of fastai, which fails with some callbacks and then leaves the learner without its data."""

from __future__ import annotations

from contextlib import contextmanager
from io import IOBase
from typing import TYPE_CHECKING, Any

from fastai.learner import Learner

from covid_fastai.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["export_learner"]


def export_learner(learn: Learner, *args: Any, **kwargs: Any) -> None:
    """Export a learner as fastai does, and leave it as it was if that fails.

    Closed files of callbacks, such as that of `CSVLogger` after a training, are left out; they cannot be pickled.

    Args:
        learn: The learner.
        *args: As in fastai's `Learner.export`: the file's name, below `learn.path`.
        **kwargs: As in fastai's `Learner.export`.

    Raises:
        UsageError: A part of the learner cannot be pickled, such as a callback with an open file or connection.
    """
    dls, opt = learn.dls, learn.opt
    with _without_closed_files(learn):
        try:
            Learner.export(learn, *args, **kwargs)
        except OSError:  # the file cannot be written
            learn.dls, learn.opt = dls, opt
            raise
        except Exception as error:  # pickle raises anything
            learn.dls, learn.opt = dls, opt
            added = ", ".join(type(callback).__name__ for callback in learn.cbs)
            raise UsageError(
                f"The learner cannot be exported: {error}.",
                hint="Remove the callback that cannot be pickled, such as learn.remove_cb(NAME), where the learner has "
                f"{added}; or use save_model, which saves the model alone.",
            ) from error


@contextmanager
def _without_closed_files(learn: Learner) -> Iterator[None]:
    taken = []
    for callback in learn.cbs:
        for name, value in list(vars(callback).items()):
            if isinstance(value, IOBase) and value.closed:
                delattr(callback, name)
                taken.append((callback, name, value))
    try:
        yield
    finally:
        for callback, name, value in taken:
            setattr(callback, name, value)
