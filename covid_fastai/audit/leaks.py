"""The leak audit: the same picture in two splits, under two labels, of two patients, in two data sets."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from covid_fastai.data.exploration import plot_pictures, shorten
from covid_fastai.data.fingerprints import connect_pairs, duplicate_pairs, fingerprint_images
from covid_fastai.data.image_facts import IMAGE_SUFFIXES
from covid_fastai.data.images import open_image
from covid_fastai.data.patients import patient_key
from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.formatting import ResultDisplay, format_metric
from covid_fastai.options import WorkerCount, checked

__all__ = ["LeakAudit", "find_leaks", "plot_leak_groups"]

SPLITS = ("train", "valid", "test")
FACTS = ["data_set", "path", "patient", "label", "split"]
LINKS = ["kind", "distance", "correlation"]
WITHIN = "within one split, label, patient and data set"
SHOWN = 256  # pixels of a picture's longer side in a figure
ROW = 4  # pictures of a group that are drawn
LISTED = 50  # rows in the page; all are in `groups`


@dataclass(frozen=True, eq=False)
class LeakAudit(ResultDisplay):
    """What shows the same picture, and what it crosses.

    Attributes:
        images: Images that were compared, by data set.
        groups: A row an image that has a copy, the groups that cross something graver first: `group` (from 1),
            `data_set, path, patient, label, split` ("" where not known), and how it was tied to an earlier image of its
            group: `kind` (exact, near, cropped, mirrored; "" for the first one), `distance` (bits of 256) and
            `correlation`, as `duplicate_pairs` has them; `crossing`, what the group crosses.
        crossings: A row a kind of crossing: `crossing`, `groups`, `images`. A group that crosses several things counts
            in each of them.
        unreadable: `data_set`, `path` and `error` of images that could not be compared.
    """

    images: Mapping[str, int]
    groups: pd.DataFrame
    crossings: pd.DataFrame
    unreadable: pd.DataFrame = field(repr=False)

    def __str__(self) -> str:
        compared = f"{sum(self.images.values()):,} images of {len(self.images)} data set(s)"
        found = f"{self.groups['group'].nunique():,} groups of {len(self.groups):,} images show the same picture."
        skipped = f" {len(self.unreadable):,} images could not be read." if len(self.unreadable) else ""
        counts = self.crossings.to_string(index=False) if len(self.crossings) else ""
        return f"Leak audit of {compared}: {found}{skipped}\n{counts}".strip()

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
    """Find the pictures that are there twice, within a cohort and between it and other data sets.

    Exact, re-encoded, resized, brightened, mirrored and slightly cropped copies are found, as `duplicate_pairs` says.
    Two images of one patient are no copy, unless they are as alike as one.

    Args:
        cohort: What `read_cohort` or a split returned; rows excluded are compared too. Only `path` is required.
        against: Other data sets: cohorts, or folders, all of whose images are read; of those in a folder only the
            patients are known that CoronaHack's file names tell. A mapping gives their names; a folder's own name, or
            `"other 1"`, are the names else.
        name: The name of the cohort in the tables.
        same_by_design: Pairs of names of data sets that hold the same pictures on purpose. What they share is counted
            apart.
        workers: Threads that open images; None for a number that fits the machine.

    Returns:
        The audit.

    Raises:
        DataError: A table has no column `path`, or a folder is missing or holds no image.
        UsageError: Two data sets have one name, or `same_by_design` names one that is not there.
    """
    sets: dict[str, pd.DataFrame | str | Path] = {name: cohort}
    for other_name, other in _named(against):
        if other_name in sets:
            raise UsageError(f"Two data sets are called {other_name!r}.", hint="Give `against` as a mapping of names.")
        sets[other_name] = other
    expected = {frozenset(pair) for pair in same_by_design}
    if strange := sorted(set().union(*expected) - set(sets)):
        raise UsageError(f"same_by_design names {strange[0]!r}.", hint=f"There are {', '.join(map(repr, sets))}.")
    images = pd.concat([_facts(data, of=one) for one, data in sets.items()], ignore_index=True)
    prints = fingerprint_images(images["path"].tolist(), workers=workers)
    unreadable = images[["data_set", "path"]].assign(error=prints["error"])[prints["error"] != ""]
    pairs = duplicate_pairs(prints)
    groups, crossings = _list_groups(images, pairs, connect_pairs(pairs, prints.index), expected)
    return LeakAudit(dict(Counter(images["data_set"])), groups, crossings, unreadable)


def plot_leak_groups(audit: LeakAudit, *, most: int = 12) -> Figure:
    """Plot the pictures of the groups side by side, a row a group, those that cross something graver first.

    Args:
        audit: What `find_leaks` returned.
        most: Groups that are drawn; four pictures of each at most.

    Returns:
        The figure. Above each picture: the group and how it was tied to it, the file's name, its label and split.

    Raises:
        UsageError: There is no group.
        ImageError: A file is no longer there.
    """
    if audit.groups.empty:
        raise UsageError("No two images show the same picture: there is nothing to plot.", hint="Look at audit.images.")
    pictures: list[np.ndarray | None] = []
    titles: list[str] = []
    columns = min(ROW, int(audit.groups.groupby("group").size().head(most).max()))
    for number, rows in itertools.islice(audit.groups.groupby("group", sort=False), most):
        for row in rows.head(ROW).to_dict("records"):
            image = open_image(row["path"])
            image.thumbnail((SHOWN, SHOWN))
            pictures.append(np.asarray(image))
            how = row["kind"] or (f"{len(rows)} images" if len(rows) > ROW else "first")
            meaning = ", ".join(value for value in (row["label"], row["split"]) if value) or row["data_set"]
            name = shorten(os.path.basename(row["path"]), 24)
            titles.append(f"{number}: {how}\n{name}\n{shorten(meaning, 24)}")
        gap = -len(pictures) % columns
        pictures += [None] * gap
        titles += [""] * gap
    return plot_pictures(pictures, titles, columns=columns)


def _named(against) -> Iterator[tuple[str, pd.DataFrame | str | Path]]:
    if isinstance(against, Mapping):
        yield from against.items()
        return
    against = [against] if isinstance(against, (str, Path, pd.DataFrame)) else list(against)
    for number, other in enumerate(against, start=1):
        yield (f"other {number}" if isinstance(other, pd.DataFrame) else Path(other).resolve().name), other


def _facts(data: pd.DataFrame | str | Path, *, of: str) -> pd.DataFrame:
    """Return data_set, path, patient, label and split of each image, "" where they are not known."""
    if isinstance(data, pd.DataFrame):
        if "path" not in data:
            raise DataError(f"The table {of!r} has no column 'path'.", hint="Make it with read_cohort.")
        columns = {name: data[name].fillna("").astype(str) for name in FACTS[1:] if name in data}
        if "patient" in columns and "patient_known" in data:  # else the image would be a patient of its own
            columns["patient"] = columns["patient"].where(data["patient_known"], "")
        return pd.DataFrame(columns).reindex(columns=FACTS, fill_value="").assign(data_set=of)
    paths = [str(path) for path in sorted(Path(data).rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
    if not paths:
        raise DataError(f"{data} holds no image.", hint="Name a folder of images, or a cohort.")
    patients = [patient_key(os.path.basename(path)) or "" for path in paths]
    return pd.DataFrame({"data_set": of, "path": paths, "patient": patients, "label": "", "split": ""})


def _list_groups(
    images: pd.DataFrame, pairs: pd.DataFrame, numbers: pd.Series, expected: set[frozenset[str]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    links = {}  # the later image of a pair, and how it is tied to the earliest one
    ends = np.sort(pairs[["first", "second"]].to_numpy(dtype=int).reshape(-1, 2), axis=1)
    for (first, second), facts in zip(ends.tolist(), pairs[LINKS].itertuples(index=False), strict=True):
        if second not in links or first < links[second][0]:
            links[second] = (first, *facts)
    listed = []
    for _, rows in images[numbers.duplicated(keep=False)].groupby(numbers, sort=False):
        tied = [links.get(row, (0, "", None, None))[1:] for row in rows.index]
        ties = pd.DataFrame(tied, columns=LINKS, index=rows.index).astype({"distance": "Int64", "correlation": float})
        crossed = _crossed(rows, expected)
        listed.append((min(rank for rank, _ in crossed), [text for _, text in crossed], rows.join(ties)))
    listed.sort(key=lambda group: group[0])  # stable: otherwise in the order of the images
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


def _crossed(rows: pd.DataFrame, expected: set[frozenset[str]]) -> list[tuple[int, str]]:
    """Return what a group crosses, each with its gravity, 0 the gravest."""
    of_set = {name: set(rows.loc[rows["data_set"] == name, "split"]) for name in rows["data_set"].unique()}
    found = []
    for one, other in itertools.combinations(SPLITS, 2):
        if any({one, other} <= splits for splits in of_set.values()):
            found.append((0, f"{one} and {other}"))
    for gravity, column, text in ((1, "label", "two labels"), (2, "patient", "two patients")):
        if any(rows.loc[rows["data_set"] == name, column].replace("", np.nan).nunique() > 1 for name in of_set):
            found.append((gravity, text))
    for one, other in itertools.combinations(of_set, 2):
        planned = frozenset((one, other)) in expected
        found.append((4, f"{one} and {other}, by design") if planned else (3, f"two data sets: {one} and {other}"))
    return sorted(found) or [(5, WITHIN)]
