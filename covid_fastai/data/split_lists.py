"""Lists of the images of one part of an official split, which lie beside the table: NIH's `test_list.txt`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from covid_fastai.data.image_files import IMAGE_SUFFIXES
from covid_fastai.data.split_names import SPLIT_LISTS
from covid_fastai.data.tasks import fold_text
from covid_fastai.errors import DataError

__all__ = ["find_split_lists", "is_listed"]

SUFFIXES = (".txt", ".lst", ".list", ".csv")
_ENDING = re.compile(rf"({'|'.join(map(re.escape, sorted(IMAGE_SUFFIXES, key=len, reverse=True)))})$")


def find_split_lists(table: Path) -> dict[Path, str]:
    """Return the lists beside a table, known by their names, and the part that each stands for.

    Args:
        table: The file of the table, which is no list itself.
    """
    files = (file for file in sorted(table.parent.iterdir()) if file.suffix.lower() in SUFFIXES and file.is_file())
    parts = {file: SPLIT_LISTS.get(fold_text(file.stem), "") for file in files if file.name != table.name}
    return {file: part for file, part in parts.items() if part}


def is_listed(names: Sequence[str], file: Path) -> np.ndarray:
    """Return for each image whether a list has it: by its path, or by the end of it that both write.

    Letter case and the endings of images do not count. A line can hold further values after the name, in a CSV also
    before it.

    Args:
        names: The paths of the images, as the table writes them.
        file: The list.

    Raises:
        DataError: The list has a name that stands for several images.
    """
    entries = {_fold(text) for text in _read_entries(file)}
    ends = {end for entry in entries for end in _ends(entry)}
    image_of: dict[str, str] = {}
    listed = np.zeros(len(names), dtype=bool)
    for number, name in enumerate(map(_fold, names)):
        entry = next((end for end in _ends(name) if end in entries), "")
        if entry and image_of.setdefault(entry, name) != name:  # guard: ambiguous_list
            raise DataError(
                f"{file} lists {entry!r}, a name that several images have, such as {names[number]!r}.",
                hint="Name the column with `split_column`, or write paths in the list, or remove it.",
            )
        listed[number] = bool(entry) or name in ends
    return listed


def _read_entries(file: Path) -> list[str]:
    """Return the lines of a list, the first word of each line, and every value that names an image file."""
    lines = [line.strip() for line in file.read_text(encoding="utf-8-sig", errors="replace").splitlines()]
    lines = [line for line in lines if line]
    values = [value.strip(" \"'") for line in lines for value in re.split(r"[,;\t]", line)]
    return [*lines, *(line.split()[0] for line in lines), *(value for value in values if _ENDING.search(value.lower()))]


def _fold(path: str) -> str:
    """Return a path as lists and tables are compared: with `/`, in lower case and without the ending of an image."""
    return _ENDING.sub("", path.replace("\\", "/").casefold().removeprefix("./"))


def _ends(path: str) -> list[str]:
    """Return a path and the ends of it that begin with a folder or the file: `a/b/c`, `b/c` and `c`."""
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts)) if parts[start]]
