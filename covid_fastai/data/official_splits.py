"""Read the official split of a data set: from a column, truth values, list files beside the table, or folders.

Each source states for every row which parts are possible: `is_valid=False` leaves train and test, a row of NIH's
`train_val_list.txt` is not in the test set. The parts that all sources allow are the answer, and sources that leave no
part contradict each other, which is an error. A column that the caller names is the only source.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from covid_fastai.data.problems import ProblemLog
from covid_fastai.data.split_lists import find_split_lists, is_listed
from covid_fastai.data.split_names import (
    FLAG_COLUMNS,
    FOLD_COLUMNS,
    SPLIT_COLUMNS,
    SPLIT_FOLDERS,
    SPLITS,
    TRUTHS,
)
from covid_fastai.data.tasks import fold_text
from covid_fastai.errors import DataError, UsageError

__all__ = ["IN_NO_LIST", "find_fold_column", "read_fold_numbers", "read_official_split"]

logger = logging.getLogger("covid_fastai")

PARTS = {"train": 1, "valid": 2, "test": 4, "excluded": 8}  # bits, so that a row's possible parts are one number
ANY = sum(PARTS.values())
# The part of a row for which several are possible: a row that is neither valid nor test is in training, and a row that
# is not in training is held out as test, the part that is never trained on nor chosen by.
PREFERRED = ("train", "test", "valid", "excluded")
IN_NO_LIST = "in none of the lists of the official split"


@dataclass
class _Source:
    """One statement of the split.

    Attributes:
        name: Where it stands, for messages.
        possible: The possible parts of each row, as bits of `PARTS`; 0 for a value that is not known.
        unlisted: Rows that complete lists do not have.
    """

    name: str
    possible: pd.Series
    unlisted: pd.Series | None = None


def read_official_split(
    table: pd.DataFrame, extras: pd.DataFrame, *, file: Path | None, column: str | None, problems: ProblemLog
) -> pd.DataFrame:
    """Return the official split of each row.

    Args:
        table: The rows, with `row`, `name` and `split` (as written; `""` where no column states it).
        extras: The columns of the data, same index.
        file: The file of the table, beside which lists of the split may be; None for data without one.
        column: The split column that the caller named, which is then the only source; None to use every source.
        problems: Receives rows whose split is unknown or contradictory, and notes.

    Returns:
        `split` (train, valid, test or excluded), `note` (the reason for a row that is excluded) and `unknown` (whether
        the row's split is not known), same index.

    Raises:
        UsageError: The named column holds fold numbers.
    """
    if column is not None:
        written = _named_column(table["split"], column)
    else:
        written = _Source("the split column", _possible(table["split"], SPLITS))
    sources = [written]
    if column is None and "patient_known" not in extras:  # a saved cohort's split may be later than its other columns
        sources += [*_other_columns(extras), *_lists(table["name"], file, problems)]
        divided = any((source.possible != ANY).any() for source in sources)
        sources += _folders(table["name"], divided=divided)
        _note_folds(extras, problems)
    sources = [source for source in sources if source.unlisted is not None or (source.possible != ANY).any()]
    possible = pd.Series(ANY, index=table.index, dtype=np.uint8)
    for source in sources:
        possible &= source.possible
    unknown = possible == 0
    for index in table.index[unknown]:
        _add_fault(table.loc[index], index, sources, problems)
    split = _choose_parts(possible)
    note = pd.Series("", index=table.index)
    for source in sources:
        if source.unlisted is not None:
            split, note = split.mask(source.unlisted, "excluded"), note.mask(source.unlisted, IN_NO_LIST)
    others = [source.name for source in sources if source is not written]
    if others:
        counts = ", ".join(f"{name} {n:,}" for name, n in split.value_counts().items())
        logger.info("The official split is that of %s: %s.", " and ".join(others), counts)
    return pd.DataFrame({"split": split, "note": note, "unknown": unknown})


def find_fold_column(table: pd.DataFrame) -> str | None:
    """Return the column of fold numbers, 0 to k - 1 or 1 to k; None if there is none.

    Args:
        table: Rows with the columns of the data.

    Raises:
        DataError: Several columns hold fold numbers.
    """
    names = [str(name) for name in table.columns if fold_text(name) in FOLD_COLUMNS and _fold_count(table[name])]
    if len(names) > 1:
        raise DataError(f"Several columns hold fold numbers: {', '.join(names)}.", hint="Remove all but one.")
    return names[0] if names else None


def read_fold_numbers(values: pd.Series) -> pd.Series:
    """Return the fold of each value, from 0 on; -1 where none is stated, and everywhere if the column is none of folds.

    Args:
        values: The column, whose numbers begin with 0 or 1.
    """
    texts = values.astype(str).str.strip()
    read = {text: int(float(text)) for text in texts.unique() if re.fullmatch(r"\d+(\.0+)?", text)}
    others = set(texts.unique()) - set(read) - {"", "nan", "None", "<NA>", "-1", "-1.0"}
    numbers = sorted(set(read.values()))
    if others or len(numbers) < 2 or numbers[0] > 1 or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        return pd.Series(-1, index=values.index)
    return texts.map({text: number - numbers[0] for text, number in read.items()}).fillna(-1).astype(int)


def _fold_count(values: pd.Series) -> int:
    return int(read_fold_numbers(values).max()) + 1


def _possible(values: pd.Series, parts: dict[str, str]) -> pd.Series:
    """Return the possible parts of each value: one part, any for an empty value, 0 for an unknown one."""
    bits = {text: PARTS[parts[fold_text(text)]] if fold_text(text) in parts else 0 for text in values.unique()}
    return values.map(bits | {"": ANY}).astype(np.uint8)


def _other_columns(extras: pd.DataFrame) -> list[_Source]:
    """Return the sources among the other columns: truth values, and columns of split words under another name."""
    sources = []
    for name in map(str, extras.columns):
        folded = fold_text(name)
        if folded not in FLAG_COLUMNS and folded not in SPLIT_COLUMNS:
            continue
        texts = extras[name].astype(str).str.strip().str.casefold().replace(dict.fromkeys(("nan", "none", "<na>"), ""))
        stated = texts[texts != ""].unique()
        if folded in FLAG_COLUMNS and any(text in TRUTHS for text in stated):
            sources.append(_Source(f"the column {name!r}", _flags(texts, FLAG_COLUMNS[folded])))
        elif folded in SPLIT_COLUMNS and len(stated) and all(fold_text(text) in SPLITS for text in stated):
            sources.append(_Source(f"the column {name!r}", _possible(texts, SPLITS)))
    return sources


def _flags(texts: pd.Series, part: str) -> pd.Series:
    """Return the possible parts of truth values: the part, or all others; any for `""`, 0 for a text that is none."""
    bits = {True: PARTS[part], False: ANY & ~PARTS[part], None: 0}
    values = {text: ANY if text == "" else bits[TRUTHS.get(text.casefold())] for text in texts.unique()}
    return texts.map(values).astype(np.uint8)


def _named_column(values: pd.Series, column: str) -> _Source:
    """Return the source of the column that the caller named: words of a split, or the truth of its name's part."""
    stated, name = values[values != ""], fold_text(column)
    part = FLAG_COLUMNS.get(name) or SPLITS.get(name)
    if part is not None and len(stated) and stated.str.casefold().isin(TRUTHS).all():
        return _Source(f"the column {column!r}", _flags(values, part))
    if k := _fold_count(stated):
        raise UsageError(
            f"split_column={column!r} holds the numbers of {k} folds, which are no split into training and test.",
            hint=f"Leave it out; to cross-validate on these folds, set split='official' and folds={k}.",
        )
    return _Source(f"the column {column!r}", _possible(values, SPLITS))


def _lists(names: pd.Series, table: Path | None, problems: ProblemLog) -> list[_Source]:
    """Return the source of the lists of images beside the table; an image in train_val_list.txt may be in either."""
    bits, used = pd.Series(ANY, index=names.index, dtype=np.uint8), {}
    listed = pd.Series(False, index=names.index)
    texts = names.to_numpy(dtype=object)
    for file, part in find_split_lists(table).items() if table is not None else ():
        here = is_listed(texts, file)
        if here.any():
            used[file.name] = part
            allowed = PARTS[part] | (PARTS["valid"] if fold_text(file.stem).startswith("trainval") else 0)
            bits, listed = bits.mask(here, bits & allowed), listed | here
        elif file.suffix.lower() != ".csv":  # such as CheXpert's valid.csv, a table of other images
            reason, remedy = f"{file} lists no image of the data; it is not used", "Nothing, if it is of other data."
            problems.add("list_not_used", severity="note", reason=reason, remedy=remedy)
    if not used:
        return []
    name = f"the lists {', '.join(used)}"
    if (contradictory := listed & (bits == 0)).any():  # guard: two_lists
        raise DataError(
            f"{names[contradictory].iloc[0]!r} is in two lists of the split ({', '.join(used)}).",
            hint="Remove it from one of the lists.",
        )
    complete = "train" in used.values()  # an image that is in no list belongs to no part
    rest = ANY if complete else ANY & ~sum(PARTS[part] for part in set(used.values()))
    return [_Source(name, bits.where(listed, rest).astype(np.uint8), unlisted=~listed if complete else None)]


def _folders(names: pd.Series, *, divided: bool) -> list[_Source]:
    """Return the source of folders in the paths that are named after a part, such as CheXpert's `train/` and `valid/`.

    A folder above all images of absolute paths states nothing. An image in train/ may be of the validation part, which
    a column or list then says. One folder of all images, such as validation/, divides nothing: it counts only if
    nothing else states the split (`divided`).
    """
    texts = [text.replace("\\", "/").rpartition("/")[0] for text in names.to_numpy(dtype=object)]
    codes, folders = pd.factorize(np.array(texts, dtype=object))
    above = _common_folder(list(folders)) if any(re.match(r"/|[A-Za-z]:", folder) for folder in folders) else ""
    bits = np.array([_folder_bits(folder.removeprefix(above)) for folder in folders], dtype=np.uint8)
    if divided and len(set(bits)) == 1:
        return []
    return [_Source("the folders", pd.Series(bits[codes], index=names.index))] if len(names) else []


def _common_folder(folders: list[str]) -> str:
    """Return the folder that contains all folders; the folder itself if there is only one."""
    if len(folders) == 1:
        return folders[0]
    return os.path.commonprefix([f"{folder}/" for folder in folders]).rpartition("/")[0]


def _folder_bits(folder: str) -> int:
    parts = {SPLIT_FOLDERS[word] for word in map(fold_text, folder.split("/")) if word in SPLIT_FOLDERS}
    if len(parts) != 1:  # train/val: a folder of both, or of neither
        return ANY
    part = parts.pop()
    return PARTS["train"] | PARTS["valid"] | PARTS["excluded"] if part == "train" else PARTS[part] | PARTS["excluded"]


def _choose_parts(possible: pd.Series) -> pd.Series:
    """Return the part of each row: the only possible one, or the first of `PREFERRED`."""
    chosen = {bits: next((part for part in PREFERRED if bits & PARTS[part]), "train") for bits in range(ANY + 1)}
    return possible.map(chosen)


def _add_fault(row: pd.Series, index: Any, sources: list[_Source], problems: ProblemLog) -> None:
    """Record that the split of a row is not known, or that its sources contradict each other."""
    values = [source for source in sources if source.possible[index] == 0]
    if values:
        value = f" {row['split']!r}" if values[0] is sources[0] and row["split"] else f" in {values[0].name}"
        kind, reason, remedy = "unknown_split", f"the split{value} is not known", "Name it train, valid or test."
    else:
        stated = [f"{source.name} says {_describe(source.possible[index])}" for source in sources]
        stated = [text for text, source in zip(stated, sources, strict=True) if source.possible[index] != ANY]
        kind, reason = "conflicting_split_sources", f"two sources of the split disagree: {'; '.join(stated)}"
        remedy = "Correct one of them, or name the column that counts with `split_column`."
    problems.add(kind, row=row["row"], path=row["path"] or row["name"], reason=reason, remedy=remedy)


def _describe(bits: int) -> str:
    return " or ".join(part for part in ("train", "valid", "test") if bits & PARTS[part])


def _note_folds(extras: pd.DataFrame, problems: ProblemLog) -> None:
    """Note a column of fold numbers, which a split into training and validation does not use."""
    column = find_fold_column(extras)
    if column is not None:
        k = _fold_count(extras[column])
        reason = f"the column {column!r} holds the numbers of {k} folds, which are not used"
        remedy = f"Nothing; split='official' with folds={k} cross-validates on them."
        logger.info("%s%s.", reason[0].upper(), reason[1:])
        problems.add("folds_not_used", severity="note", reason=reason, remedy=remedy)
