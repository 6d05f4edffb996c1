"""The key of a pseudonymised run or page: what its files hide, in a folder beside it that is not shared.

Beside the run `first` lies `first.key`, and beside the page `page.html` lies `page.html.key`, which only its owner can
read. `images/` has a link for each image, named by a number that no other run has; a run opens its images through these
links. `key.csv` has the file and the patient of each number, and `private.json` the options of the run that name files.
Text that is written into the run has no folder in it: the path of a link becomes its number, and folders that
`private.json` lists become the words beside them. A key that belongs to another user than its run is none: it would
decide what is written there.
"""

from __future__ import annotations

import html
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "IMAGES",
    "KEY_SUFFIX",
    "KEY_TABLE",
    "NUMBERED",
    "PRIVATE",
    "SYNTHETIC",
    "find_key",
    "hide_names",
    "key_beside",
]
__all__ += ["read_private", "restore_paths"]

KEY_SUFFIX = ".key"
IMAGES, KEY_TABLE, PRIVATE = "images", "key.csv", "private.json"
SYNTHETIC = "-synthetic"  # in the name of a link to a synthetic image, so that a report can say so without the key
NUMBERED = re.compile(rf"\d{{6}}-\d{{6,}}({SYNTHETIC})?(\.\w+)?")  # the name of a link
PATH_COLUMNS = ("path", "original")


def key_beside(run: str | Path) -> Path:
    """Return the folder of the key of a run, whether it exists or not."""
    folder = os.path.realpath(run)
    return Path(f"{folder}{KEY_SUFFIX}")


def find_key(file: str | Path) -> Path | None:
    """Return the folder of the key of the pseudonymised run that a file lies in, or of the page that it is; else None.

    Args:
        file: The file, which may not exist yet.
    """
    folder, name = os.path.split(os.path.abspath(file))
    place = os.path.join(os.path.realpath(folder), name)
    while place != os.path.dirname(place):
        key = f"{place}{KEY_SUFFIX}"
        if os.path.isfile(os.path.join(key, PRIVATE)) and _has_same_owner(place, key):
            return Path(key)
        place = os.path.dirname(place)
    return None


def _has_same_owner(place: str, key: str) -> bool:
    """Return whether a key belongs to the owner of the run; one who may write beside a run must not change it."""
    if os.path.islink(key):
        return False
    # a page is not there before it is written
    owner = os.stat(place).st_uid if os.path.exists(place) else os.geteuid() if hasattr(os, "geteuid") else 0
    return os.stat(key).st_uid == owner  # guard: foreign_key


def read_private(run: str | Path) -> dict[str, Any]:
    """Return what the key of a run says: `data`, `config`, `root` and `hidden`; empty without a key."""
    key = key_beside(run)
    if not (key / PRIVATE).is_file() or not _has_same_owner(os.path.realpath(run), str(key)):
        return {}
    return json.loads((key / PRIVATE).read_text(encoding="utf-8"))


def hide_names(text: str, key: Path) -> str:
    """Return text without the folders that a run hides, as it is written into the run.

    Args:
        text: A table, a page, JSON or Markdown.
        key: The folder of the run's key.
    """
    links = os.path.join(key, IMAGES, "")
    for spelled in _spellings(links):
        text = text.replace(spelled, "")
    hidden = json.loads((key / PRIVATE).read_text(encoding="utf-8"))["hidden"]
    for folder, word in sorted(hidden.items(), key=lambda item: -len(item[0])):
        for spelled in _spellings(folder):
            # a name that ends there, and no part of base64
            text = re.sub(rf"(?<![A-Za-z0-9+]){re.escape(spelled)}(?![\w-])", lambda _, word=word: word, text)
    return text


def _spellings(text: str) -> set[str]:
    """Return a text as it stands in a table, in JSON and Python, and in HTML."""
    in_page = html.escape(text)
    return {text, json.dumps(text, ensure_ascii=False)[1:-1], in_page, in_page.replace("&#x27;", "&#39;")}


def restore_paths(table: pd.DataFrame, file: str | Path) -> pd.DataFrame:
    """Return a table of a pseudonymised run with paths that can be opened, if the run's key lies beside it.

    Args:
        table: The table as read; it is changed.
        file: The file that it was read from.
    """
    names = [name for name in PATH_COLUMNS if name in table]
    key = find_key(file) if names else None
    if key is None:
        return table
    for name in names:
        table[name] = [
            os.path.join(key, IMAGES, value) if isinstance(value, str) and NUMBERED.fullmatch(value) else value
            for value in table[name].tolist()
        ]
    return table
