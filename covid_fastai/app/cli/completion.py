"""Values that the shell completes: tasks, recipes, architectures, models and runs.

`covid-fastai --install-completion` installs it. Where no value fits, the shell completes the names of files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["COMPLETIONS", "complete_from", "complete_models", "complete_runs"]

# Heavy modules are imported inside the functions, so that help appears at once.

RUNS = Path("runs")  # where a training puts its run


def complete_from(values: Sequence[str]) -> Callable[[], list[str]] | None:
    """Return a function for typer's `autocompletion` that offers some values; None if there are none."""
    return (lambda: list(values)) if values else None


def complete_runs(incomplete: str) -> list[str]:
    """Return the folders of runs that begin with a text, those in `runs/` and those in the folder of the text."""
    from covid_fastai.run_folder import RunFolder

    folders = {RUNS, Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent}
    found = (path for folder in folders if folder.is_dir() for path in folder.iterdir() if path.is_dir())
    names = (str(path) for path in found if RunFolder(path).is_run())
    return sorted(name for name in names if name.startswith(incomplete))


def complete_models(incomplete: str) -> list[str]:
    """Return the models of the package and the runs that begin with a text."""
    from covid_fastai.model.package_models import package_models

    return [*(name for name in package_models() if name.startswith(incomplete)), *complete_runs(incomplete)]


def _tasks() -> list[str]:
    from covid_fastai.data.tasks import TASKS

    return list(TASKS)


def _recipes() -> list[str]:
    from covid_fastai.data.recipes import list_recipes

    return list(list_recipes()["recipe"])


def _presets() -> list[str]:
    from covid_fastai.config import PRESETS

    return list(PRESETS)


COMPLETIONS = {  # of options whose type does not name its values
    "preset": _presets,
    "recipe": _recipes,
    "task": _tasks,
    "weights": lambda: ["auto", "cxr", "imagenet", "none"],
}
