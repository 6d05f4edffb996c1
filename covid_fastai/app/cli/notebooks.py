"""Copy the tutorial notebooks to a folder of the user."""

from __future__ import annotations

import shutil
from pathlib import Path

import covid_fastai
from covid_fastai.errors import ResourceError, UnavailableError
from covid_fastai.files import make_folder

__all__ = ["copy_notebooks", "notebook_folder"]


def notebook_folder() -> Path:
    """Return the folder of the notebooks, in the installed package or in the checkout.

    Raises:
        UnavailableError: Neither has them.
    """
    package = Path(covid_fastai.__file__).parent
    for folder in (package / "notebooks", package.parent / "nbs"):
        if any(folder.glob("[0-9]*.ipynb")):
            return folder
    raise UnavailableError("The tutorial notebooks are not installed.", hint="Reinstall covid_fastai from its wheel.")


def copy_notebooks(target: str | Path) -> list[Path]:
    """Copy the tutorial notebooks into a folder, without overwriting any file.

    Args:
        target: The folder, created if needed.

    Returns:
        The paths of the copies.

    Raises:
        ResourceError: The folder already holds a notebook of the same name (nothing is copied), or it is not writable.
        UnavailableError: The notebooks are not installed.
    """
    target = Path(target).expanduser()
    sources = sorted(notebook_folder().glob("[0-9]*.ipynb"))
    present = [path.name for path in sources if (target / path.name).exists()]
    if present:
        raise ResourceError(
            f"{target} already holds {present[0]}.", hint="Choose another folder. Nothing was copied or changed."
        )
    make_folder(target)
    try:
        return [Path(shutil.copyfile(path, target / path.name)) for path in sources]
    except OSError as error:
        raise ResourceError(f"{target} cannot be written: {error}.", hint="Choose another folder.") from error
