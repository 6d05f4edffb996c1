"""The leak audit: copies of an image in two splits, under two labels, of two patients or in two data sets."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from covid_fastai.data.exploration import plot_pictures, shorten
from covid_fastai.data.fingerprints import connect_pairs, duplicate_pairs, fingerprint_images
from covid_fastai.data.image_files import FolderReader
from covid_fastai.data.images import open_image
from covid_fastai.data.patients import patient_key
from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.formatting import ResultDisplay, format_metric
from covid_fastai.figures import Figure
from covid_fastai.options import WorkerCount, checked

__all__ = ["LeakAudit", "find_leaks", "name_others", "plot_leak_groups"]

SPLITS = ("train", "valid", "test")
FACTS = ["data_set", "path", "patient", "label", "split"]
LINKS = ["kind", "distance", "correlation"]
WITHIN = "within one split, label, patient and data set"
SHOWN = 256  # pixels of an image's longer side in a figure
ROW = 4  # images of a group in a figure
LISTED = 50  # rows in a notebook; all rows are in `groups`


@dataclass(frozen=True, eq=False)
class LeakAudit(ResultDisplay):
    """Groups of copies of the same image, and the boundaries that they cross.

    Attributes:
        images: Number of compared images, by data set.
        groups: One row per image that has a copy, the most serious groups first: `group` (from 1), `data_set`, `path`,
            `patient`, `label` and `split` ("" if unknown), and its match with an earlier image of the group: `kind`
            (exact, near, cropped, turned, inverted, mirrored; "" for the first image), `distance` (bits of 256) and
            `correlation`, as in `duplicate_pairs`; `crossing` lists the boundaries that the group crosses.
        crossings: One row per kind of crossing: `crossing`, `groups`, `images`. A group that crosses several boundaries
            counts for each of them.
        unreadable: `data_set`, `path` and `error` of images that could not be compared.
    """

    images: Mapping[str, int]
    groups: pd.DataFrame
    crossings: pd.DataFrame
    unreadable: pd.DataFrame = field(repr=False)

    def __str__(self) -> str:
        compared = f"{sum(self.images.values()):,} images of {len(self.images)} data set(s)"
        copies = f"{self.groups['group'].nunique():,} groups of copies with {len(self.groups):,} images."
        skipped = f" {len(self.unreadable):,} images could not be read." if len(self.unreadable) else ""
        counts = self.crossings.to_string(index=False) if len(self.crossings) else ""
        return f"Leak audit of {compared}: {copies}{skipped}\n{counts}".strip()

    def _display_parts(self) -> Iterator[pd.DataFrame | str]:
        yield str(self).partition("\n")[0]
        if self.groups.empty:
            return
        rows = self.groups.head(LISTED)
        yield self.crossings
        yield rows.assign(
            path=rows["path"].map(os.path.basename),
            distance=[format_metric(bits, spec=".0f") for bits in rows["distance"].astype(float)],
            correlation=[format_metric(value) for value in rows["correlation"].astype(float)],
        )
        if len(self.groups) > LISTED:
            yield f"{len(self.groups) - LISTED:,} more rows are in `groups`."


@checked
def find_leaks(
    cohort: pd.DataFrame,
    *,
    against: Mapping[str, pd.DataFrame | str | Path] | Iterable[pd.DataFrame | str | Path] = (),
    name: str = "cohort",
    same_by_design: Iterable[tuple[str, str]] = (),
    workers: WorkerCount | None = None,
) -> LeakAudit:
    """Find copies of images within a cohort, and between the cohort and other data sets.

    Copies are found when they were re-encoded, resized, brightened, framed, cropped, turned, inverted, mirrored or
    written on; `python -m benchmarks.copies` measures the fraction of each kind. Two different images of one patient
    are not copies.

    Args:
        cohort: Result of `read_cohort` or of a split; excluded rows are compared too. Only `path` is required.
        against: Other data sets: cohorts, or folders whose images are all read. Patients of images in a folder are
            known only from file names in the style of CoronaHack. A mapping names the data sets; otherwise a folder
            has its own name, or its path where that name is taken, and a table is called `"other 1"` and so on.
        name: Name of the cohort in the tables.
        same_by_design: Pairs of names of data sets that hold the same images on purpose. Their common images are
            counted separately.
        workers: Number of threads that open images; None for a number that fits the machine.

    Returns:
        The audit.

    Raises:
        DataError: A table has no column `path`, or a folder is missing or holds no image.
        UsageError: Two data sets have the same name, or `same_by_design` names an unknown data set.

    Examples:
        >>> leaks = find_leaks(cohort)
        >>> len(leaks.groups), len(leaks.crossings)
        (0, 0)
    """
    sets: dict[str, pd.DataFrame | str | Path] = {name: cohort, **name_others(against, name=name)}
    expected = {frozenset(pair) for pair in same_by_design}
    if unknown := sorted(set().union(*expected) - set(sets)):
        raise UsageError(
            f"same_by_design names the unknown data set {unknown[0]!r}.",
            hint=f"The data sets are {', '.join(map(repr, sets))}.",
        )
    images = pd.concat([_image_table(data, name=set_name) for set_name, data in sets.items()], ignore_index=True)
    fingerprints = fingerprint_images(images["path"].tolist(), workers=workers)
    unreadable = images[["data_set", "path"]].assign(error=fingerprints["error"])[fingerprints["error"] != ""]
    pairs = duplicate_pairs(fingerprints)
    groups, crossings = _list_groups(images, pairs, connect_pairs(pairs, fingerprints.index), expected)
    return LeakAudit(dict(Counter(images["data_set"])), groups, crossings, unreadable)


def plot_leak_groups(audit: LeakAudit, *, most: int = 12) -> Figure:
    """Plot the images of each group side by side, one group per row, the most serious groups first.

    Args:
        audit: Result of `find_leaks`.
        most: Largest number of groups; at most four images of each are shown.

    Returns:
        The figure. The title of an image gives its group, the kind of match, the file name, the label and the split.

    Raises:
        UsageError: There is no group.
        ImageError: A file cannot be read.
    """
    if audit.groups.empty:
        raise UsageError(
            "There is nothing to plot: no image has a copy.", hint="audit.images counts the compared images."
        )
    pictures: list[np.ndarray | None] = []
    titles: list[str] = []
    columns = min(ROW, int(audit.groups.groupby("group").size().head(most).max()))
    for number, rows in itertools.islice(audit.groups.groupby("group", sort=False), most):
        for row in rows.head(ROW).to_dict("records"):
            image = open_image(row["path"])
            image.thumbnail((SHOWN, SHOWN))
            pictures.append(np.asarray(image))
            kind = row["kind"] or (f"{len(rows)} images" if len(rows) > ROW else "first")
            facts = ", ".join(value for value in (row["label"], row["split"]) if value) or row["data_set"]
            name = shorten(os.path.basename(row["path"]), 24)
            titles.append(f"{number}: {kind}\n{name}\n{shorten(facts, 24)}")
        gap = -len(pictures) % columns
        pictures += [None] * gap
        titles += [""] * gap
    return plot_pictures(pictures, titles, columns=columns)


def name_others(
    against: Mapping[str, pd.DataFrame | str | Path] | Iterable[pd.DataFrame | str | Path], *, name: str
) -> dict[str, pd.DataFrame | str | Path]:
    """Return the other data sets of `find_leaks` by their names, before anything is read.

    Args:
        against: As in `find_leaks`. A folder whose name is taken is called by its path.
        name: The name of the cohort.

    Raises:
        DataError: A folder does not exist.
        UsageError: Two data sets have the same name, or a folder is given twice.
    """
    if isinstance(against, Mapping):
        named: dict[str, pd.DataFrame | str | Path] = {str(key): other for key, other in against.items()}
        if name in named:
            raise UsageError(f"Two data sets have the name {name!r}.", hint="Name one of them otherwise.")
    else:
        named, folders = {}, set()
        others = [against] if isinstance(against, (str, Path, pd.DataFrame)) else list(against)
        for number, other in enumerate(others, start=1):
            if isinstance(other, pd.DataFrame):
                named[f"other {number}"] = other
                continue
            folder = Path(other).resolve()
            if folder in folders:
                raise UsageError(f"The folder {other} is given twice.", hint="Give each folder once.")
            folders.add(folder)
            named[folder.name if folder.name not in {name, *named} else str(folder)] = other
    for other in named.values():
        if not isinstance(other, pd.DataFrame) and not Path(other).is_dir():
            raise DataError(f"{other} is not a folder.", hint="Give a folder that holds images.")
    return named


def _image_table(data: pd.DataFrame | str | Path, *, name: str) -> pd.DataFrame:
    """Return data_set, path, patient, label and split of each image, "" if unknown."""
    if isinstance(data, pd.DataFrame):
        if "path" not in data:
            raise DataError(f"The table {name!r} has no column 'path'.", hint="Read the data with read_cohort.")
        columns = {column: data[column].fillna("").astype(str) for column in FACTS[1:] if column in data}
        if "patient" in columns and "patient_known" in data:  # an unknown patient is no different patient
            columns["patient"] = columns["patient"].where(data["patient_known"], "")
        return pd.DataFrame(columns).reindex(columns=FACTS, fill_value="").assign(data_set=name)
    reader = FolderReader()
    paths = list(reader.images(data))
    reader.log_left_out(data)
    if not paths:
        raise DataError(f"{data} holds no image.", hint="Give a folder that holds images.")
    patients = [patient_key(os.path.basename(path)) or "" for path in paths]
    return pd.DataFrame({"data_set": name, "path": paths, "patient": patients, "label": "", "split": ""})


def _list_groups(
    images: pd.DataFrame, pairs: pd.DataFrame, numbers: pd.Series, expected: set[frozenset[str]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return `LeakAudit.groups` and `LeakAudit.crossings`.

    Args:
        images: Result of `_image_table` for all data sets.
        pairs: Result of `duplicate_pairs`.
        numbers: The group of each image; an image without a copy has a group of its own.
        expected: Pairs of data sets that hold the same images on purpose.
    """
    links = {}  # the match of each image with the earliest image that it is a copy of
    ends = np.sort(pairs[["first", "second"]].to_numpy(dtype=int).reshape(-1, 2), axis=1)
    for (first, second), facts in zip(ends.tolist(), pairs[LINKS].itertuples(index=False), strict=True):
        if second not in links or first < links[second][0]:
            links[second] = (first, *facts)
    listed = []
    for _, rows in images[numbers.duplicated(keep=False)].groupby(numbers, sort=False):
        matches = [links.get(row, (0, "", None, None))[1:] for row in rows.index]
        match_table = pd.DataFrame(matches, columns=LINKS, index=rows.index)
        match_table = match_table.astype({"distance": "Int64", "correlation": float})
        crossed = _find_crossings(rows, expected)
        listed.append((min(rank for rank, _ in crossed), [text for _, text in crossed], rows.join(match_table)))
    listed.sort(key=lambda group: group[0])  # stable: equally serious groups stay in the order of the images
    counted: dict[str, list[int]] = {}
    tables = []
    for number, (_, texts, rows) in enumerate(listed, start=1):
        rows.insert(0, "group", number)
        tables.append(rows.assign(crossing="; ".join(texts)))
        for text in texts:
            counted.setdefault(text, []).append(len(rows))
    columns = ["group", *FACTS, *LINKS, "crossing"]
    groups = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)
    crossings = [(text, len(sizes), sum(sizes)) for text, sizes in counted.items()]
    return groups, pd.DataFrame(crossings, columns=["crossing", "groups", "images"])


def _find_crossings(rows: pd.DataFrame, expected: set[frozenset[str]]) -> list[tuple[int, str]]:
    """Return the boundaries that a group crosses with their ranks; rank 0 is the most serious.

    Splits, labels and patients are compared within a data set only, since their names may mean something else in
    another one.
    """
    splits_of = {name: set(rows.loc[rows["data_set"] == name, "split"]) for name in rows["data_set"].unique()}
    crossings = []
    for first, second in itertools.combinations(SPLITS, 2):
        if any({first, second} <= splits for splits in splits_of.values()):
            crossings.append((0, f"{first} and {second}"))
    for rank, column, text in ((1, "label", "two labels"), (2, "patient", "two patients")):
        if any(rows.loc[rows["data_set"] == name, column].replace("", np.nan).nunique() > 1 for name in splits_of):
            crossings.append((rank, text))
    for first, second in itertools.combinations(splits_of, 2):
        by_design = frozenset((first, second)) in expected
        text = f"{first} and {second}, by design" if by_design else f"two data sets: {first} and {second}"
        crossings.append((4 if by_design else 3, text))
    return sorted(crossings) or [(5, WITHIN)]
