"""The guard that a script needs when the package starts processes: each of them imports the script first."""

from __future__ import annotations

import multiprocessing

from covid_fastai.errors import UsageError

__all__ = ["MAIN_GUARD", "check_main_guard"]

MAIN_GUARD = (
    'In a script, write `if __name__ == "__main__":` and make the call in the block below it, since each process that '
    "the call starts imports the script."
)


def check_main_guard(function: str) -> None:
    """Raise in a process that is still importing the script which has started it.

    Such a process would repeat the script, and start processes in turn. The process that started it reports the same
    fault, since the new one ends with this error.

    Args:
        function: The name of the function that the script calls, for the message.

    Raises:
        UsageError: A script without the guard called the function.
    """
    # the attribute by which multiprocessing itself recognises this state; there is no public one
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # guard: main_guard
        raise UsageError(f"{function} was called while a new process imports the script.", hint=MAIN_GUARD)
