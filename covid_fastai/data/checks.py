"""Checks of a cohort's rows: labels, files, images, and conflicts between rows."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from covid_fastai.data.fingerprints import duplicate_groups, fingerprint_images
from covid_fastai.data.labels import MANY, suggest_exclusions, suggest_labels
from covid_fastai.data.path_suggestions import NearbyFiles
from covid_fastai.data.problems import ProblemLog, printable
from covid_fastai.data.reach import Reach, is_url
from covid_fastai.data.tasks import Task

__all__ = ["RowChecker"]

logger = logging.getLogger("covid_fastai")


class RowChecker:
    """Check the rows of one data set in one pass, and record every fault.

    A fault in a row that is already excluded is a warning; any other fault is an error.

    Args:
        table: One row per image: `row`, `name`, `path`, `finding`, `label` ("" without a class), `patient`, `split`,
            `note` (reason of the exclusion, else ""), `conflict`, `unknown_label`, `unknown_value`. Its index must be
            unique.
        problems: The log to which faults are added.

    Attributes:
        faulty: The index of the rows that cannot be used.
        repeated: The index of rows that repeat an earlier row.
        hashes: The `hashes` of each row's image, as `fingerprint_images` returns them; empty if it was not or could not
            be opened.
        headers: For the rows whose file was opened, what `apply_headers` needs.
    """

    def __init__(self, table: pd.DataFrame, problems: ProblemLog):
        self.table, self.problems = table, problems
        self.faulty: set[int] = set()
        self.repeated: set[int] = set()
        self.hashes = self.keypoints = pd.Series(b"", index=table.index)
        self.headers = pd.DataFrame(columns=["view", "notes", "not_radiograph"], dtype=str)
        self._unopened: set[int] = set()  # rows without a file that could be opened
        # in one conversion a column: iterating over pandas' strings takes twenty times as long
        names = ("row", "path", "name", "note")
        self._columns = {name: dict(zip(table.index, table[name].to_numpy(object), strict=True)) for name in names}

    def report(self, index: int, kind: str, *, reason: str, remedy: str, severity: str = "") -> None:
        """Record a fault of one row; the default severity is error, or warning if the row is excluded."""
        severity = severity or ("warning" if self._columns["note"][index] else "error")
        row = self._columns["row"][index]
        path = self._columns["path"][index] or self._columns["name"][index]
        self.problems.add(
            kind, row=None if pd.isna(row) else row, path=path, severity=severity, reason=reason, remedy=remedy
        )
        if severity == "error":
            self.faulty.add(index)

    def check_labels(self, task: Task) -> None:
        """Record empty, contradictory and unknown labels."""
        names = ("finding", "unknown_label", "unknown_value", "conflict")
        meant = (self.table["label"] != "") | (self.table["note"] != "")
        suspects = self.table.loc[~meant | (self.table["conflict"] != "") | (self.table["unknown_value"] != ""), names]
        counts = suspects.loc[suspects["unknown_label"] != "", "unknown_label"].value_counts()
        suggest = cache(lambda label: suggest_labels(task, label, similar=len(counts) <= MANY))
        for index, finding, unknown, value, conflict in suspects.itertuples(name=None):
            if conflict:
                self.report(index, "conflicting_label", reason=conflict, remedy="Correct one of the two in the data.")
            elif value:
                remedy = "Correct it; a column with the names of labels is a `label_column`."
                self.report(index, "unknown_value", reason=value, remedy=remedy)
            elif not finding or not unknown:  # guard: empty_label
                self.report(index, "empty_label", reason="it has no label", remedy=suggest(""))
            else:
                n = counts[unknown]
                reason = f"the task {task.name!r} does not know the label {finding!r} ({n} row{'s' if n > 1 else ''})"
                self.report(index, "unknown_label", reason=reason, remedy=suggest(unknown.split("|")[0]))
        if len(counts):
            self.problems.hints.append(suggest_exclusions(counts))

    def check_files(self, root: Path | None) -> None:
        """Record names that are empty or not valid text, and files that are missing, not regular or outside `root`."""
        nearby = NearbyFiles(root)
        reach = Reach(root, self.table["path"])
        for index, (path, name) in self._rows("path", "name"):
            fault = _name_fault(path) or reach.path_fault(path) or _file_fault(path, name, nearby)
            if fault is not None:
                kind, reason, remedy = fault
                # in an excluded row a missing file is only a warning; all other faults remain errors
                severity = "" if kind in ("missing_file", "ambiguous_file") else "error"
                self.report(index, kind, severity=severity, reason=reason, remedy=remedy)
                self._unopened.add(index)

    def check_repeats(self) -> None:
        """Record files that several rows name: contradictions and repeated rows."""
        named = self.table[(self.table["path"] != "") & self.table["path"].duplicated(keep=False)]
        if named.empty:
            return
        meaning = named["label"].where(named["label"] != "", named["finding"])
        clashing = pd.Series(False, index=named.index)
        for kind, values in (("label", meaning), ("split", named["split"]), ("patient", named["patient"])):
            differing = (values.groupby(named["path"]).transform("nunique") > 1) & ~clashing  # guard: clash
            for _, same in values[differing].groupby(named["path"], sort=False):
                self._report_clash(kind, same)
            clashing |= differing
        repeats = named[~clashing & named["path"].duplicated()]
        first = named.drop_duplicates("path").set_index("path")["row"]
        for index, path in zip(repeats.index, repeats["path"], strict=True):
            earlier = "an earlier row" if pd.isna(first[path]) else f"row {first[path]}"
            reason = f"it repeats {earlier}; the image is counted once"
            self.report(index, "duplicate_row", severity="note", reason=reason, remedy="Nothing, or remove it.")
            self.repeated.add(index)
        if len(repeats):
            logger.info(
                "%d rows repeat the image and label of an earlier row; each image is counted once.", len(repeats)
            )

    def _report_clash(self, kind: str, values: pd.Series) -> None:
        """Record all rows of a file as contradictory."""
        severity = "error" if (self.table.loc[values.index, "note"] == "").any() else "warning"
        remedy = "Keep the right row and remove the others"
        if kind == "label":
            remedy += "; for several readers of an image, set readers='agreement' or readers='majority'"
        for index in values.index:
            self.report(
                index,
                f"conflicting_{kind}",
                severity=severity,
                reason=f"{len(values)} rows name this file, with {kind} {' and '.join(map(repr, values.unique()))}",
                remedy=f"{remedy}.",
            )

    def check_images(self, *, workers: int | None, most: int | None = None, seed: int = 0) -> pd.Series:
        """Open every image once, and record unreadable images and duplicates.

        Args:
            most: Size of a random sample of images to open; None for all.
            seed: Seed of that sample.
            workers: Threads that open images; None for a number that fits the machine.

        Returns:
            The number of each row's group of duplicates; an image without a duplicate has a number of its own.
        """
        openable = ~self.table.index.isin(self._unopened | self.repeated)
        table = self.table[openable]
        if most is not None and most < len(table):
            table = table.sample(most, random_state=seed).sort_index()
        prints = fingerprint_images(table["path"].tolist(), workers=workers)
        prints.index = table.index
        self.hashes, self.keypoints = (
            prints[name].reindex(self.table.index, fill_value=b"") for name in ("hashes", "keypoints")
        )
        opened = (prints["error"] == "") | (prints["not_radiograph"] != "")
        self.headers = prints.loc[opened, ["view", "notes", "not_radiograph"]]
        for index, error, hint in prints.loc[~opened, ["error", "hint"]].itertuples(name=None):
            self.report(
                index,
                "unreadable",
                reason=error.removesuffix("."),
                remedy=hint or "Replace the file, or remove the row.",
            )
        readable = prints[prints["error"] == ""]
        groups = pd.Series(
            np.arange(-len(self.table), 0), index=self.table.index
        )  # negative numbers: rows that were not opened, each a group of its own
        groups[readable.index] = np.asarray(duplicate_groups(readable))  # guard: duplicates
        for _, same in self.table.loc[readable.index].groupby(groups[readable.index], sort=False):
            if len(same) > 1:
                self._report_duplicates(same)
        return groups

    def _report_duplicates(self, same: pd.DataFrame) -> None:
        """Record the rows of a group of duplicates, as a conflict if their labels differ."""
        meaning = same["label"].where(same["label"] != "", same["finding"])
        names = same["path"].map(os.path.basename)
        labels = " and ".join(map(repr, meaning.unique()))
        conflict = meaning.nunique() > 1
        for index in same.index[0 if conflict else 1 :]:
            other = names[same.index[0] if index != same.index[0] else same.index[1]]
            if conflict:
                severity = "error" if (same["note"] == "").any() else "warning"
                self.report(
                    index,
                    "conflicting_picture",
                    severity=severity,
                    reason=f"it is a duplicate of {other}; they are labelled {labels}",
                    remedy="Find out which label is right and remove the other row.",
                )
            else:
                several = "" if same["patient"].nunique() == 1 else "; its patients are kept on one side of any split"
                self.report(
                    index,
                    "same_picture",
                    severity="note",
                    reason=f"it is a duplicate of {other}{several}",
                    remedy="Nothing to do: a split keeps them together.",
                )

    def _rows(self, *names: str) -> Iterator[tuple[int, tuple[Any, ...]]]:
        values = zip(*(self.table[name] for name in names), strict=True)
        return zip(self.table.index, values, strict=True)


def _name_fault(path: str) -> tuple[str, str, str] | None:
    """Return kind, reason and remedy if a row names no file, or one that is not valid text; else None."""
    if not path:  # guard: empty_name
        return "empty_name", "it names no file", "Name its image, or remove the row."
    if "\0" in path or "\ufffd" in path or printable(path) != path:  # guard: bad_name
        return "bad_name", "its name is not valid text", "Rename the file."
    return None


def _file_fault(path: str, name: str, nearby: NearbyFiles) -> tuple[str, str, str] | None:
    """Return kind, reason and remedy if there is no regular file (reading a pipe would block); else None."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        if link := _broken_link(path):  # guard: broken_link
            return "missing_file", f"{link} is a link to {os.readlink(link)}, which does not exist", _link_remedy(link)
        if is_url(name):
            return "missing_file", "it is an address, and only files are read here", "Download it, and name the file."
        files = nearby.find_all(path)
        if len(files) > 1:  # guard: ambiguous
            reason = f"{len(files)} files have its name: {' and '.join(files[:3])}"
            return "ambiguous_file", reason, "Write the folder before the name, or give image_root one of the folders."
        remedy = nearby.remedy(path)  # guard: missing
        return "missing_file", "there is no such file", remedy
    except OSError as error:  # no permission, a loop of links, a name too long
        return "missing_file", error.strerror or str(error), "Check the name and the permissions."
    if stat.S_ISREG(mode):  # guard: row_fifo
        return None
    return "not_a_file", "it is a folder" if stat.S_ISDIR(mode) else "it is not a regular file", "Name an image file."


def _broken_link(path: str) -> str:
    """Return the link to nothing that a missing path is or goes through; "" if there is none."""
    while path != os.path.dirname(path):
        if os.path.islink(path) and not os.path.exists(path):
            return path
        path = os.path.dirname(path)
    return ""


def _link_remedy(link: str) -> str:
    """Return how to fetch the content that a link stands for, by the tool that made the link."""
    target = os.readlink(link).replace(os.sep, "/")
    if ".git/annex/" in target:
        return "Fetch the content with git-annex or DataLad: datalad get ."
    if "/.dvc/" in target or "/dvc/" in target:
        return "Fetch the content with DVC: dvc pull."
    if "/blobs/" in target:
        return "Download the snapshot from the Hugging Face Hub again."
    return "Restore what it leads to, or remove the row or link."
