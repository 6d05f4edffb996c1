"""The walk-throughs, copied to where a user can change them."""

from __future__ import annotations

import shutil
from pathlib import Path

import covid_fastai
from covid_fastai.errors import ResourceError, UnavailableError
from covid_fastai.files import make_folder

__all__ = ["copy_notebooks", "notebook_folder"]


def notebook_folder() -> Path:
    """Return the folder of the walk-throughs: in the installed package, or in the checkout it is run from.

    Raises:
        UnavailableError: Neither has them.
    """
    package = Path(covid_fastai.__file__).parent
    for folder in (package / "notebooks", package.parent / "nbs"):
        if any(folder.glob("[0-9]*.ipynb")):
            return folder
    raise UnavailableError("The walk-throughs are not installed.", hint="Install covid_fastai from its wheel anew.")


def copy_notebooks(target: str | Path) -> list[Path]:
    """Copy the walk-throughs into a folder; what is there already is left alone.

    Args:
        target: The folder, made if needed.

    Returns:
        The copies.

    Raises:
        ResourceError: A notebook of that name is there already, or the folder cannot be written; nothing is copied.
        UnavailableError: The walk-throughs are not installed.
    """
    target = Path(target).expanduser()
    sources = sorted(notebook_folder().glob("[0-9]*.ipynb"))
    present = [path.name for path in sources if (target / path.name).exists()]
    if present:
        raise ResourceError(f"{target} holds {present[0]} already.", hint="Name another folder; yours is not changed.")
    make_folder(target)
    try:
        return [Path(shutil.copyfile(path, target / path.name)) for path in sources]
    except OSError as error:
        raise ResourceError(f"{target} cannot be written: {error}.", hint="Name another folder.") from error
