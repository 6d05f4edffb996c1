"""Rows of one image that label it differently, such as those of several readers."""

from __future__ import annotations

import logging

import pandas as pd

__all__ = ["settle_readers"]

logger = logging.getLogger("covid_fastai")


def settle_readers(table: pd.DataFrame, readers: str) -> pd.DataFrame:
    """Give all rows of an image the same label where they differ, or exclude the image.

    Args:
        table: One row per reading: `path`, `label`, `finding` and `note`. A row without label and note has an unknown
            label, and is no reading.
        readers: `"error"` changes nothing: `RowChecker` reports the differences. `"agreement"` excludes images whose
            readings differ. `"majority"` takes the most frequent reading, and excludes images without a single one.

    Returns:
        The table, in which all readings of an image are equal, unless `readers` is `"error"`.
    """
    if readers == "error":
        return table
    stated = (table["path"] != "") & ((table["label"] != "") | (table["note"] != ""))
    rows = table.loc[stated & table["path"].duplicated(keep=False), ["path", "label", "finding", "note"]]
    rows["reading"] = rows["label"].where(rows["label"] != "", rows["finding"])
    rows = rows[rows.groupby("path")["reading"].transform("nunique") > 1]
    if rows.empty:
        return table
    votes = rows.groupby(["path", "reading"], sort=False).size().rename("votes").reset_index()
    most = votes["votes"] == votes.groupby("path")["votes"].transform("max")
    winners = votes[most & ~votes["path"].where(most).duplicated(keep=False)].set_index("path")["reading"]
    if readers == "agreement":  # guard: agreement
        winners = winners.iloc[:0]
    settled = rows[rows["reading"] == rows["path"].map(winners)].drop_duplicates("path").set_index("path")
    names = votes.groupby("path")["reading"].agg(lambda readings: " and ".join(sorted(readings)))
    undecided = pd.DataFrame({"label": "", "finding": names, "note": "readers disagree: " + names})
    settled = pd.concat([settled, undecided.drop(index=settled.index)])
    table = table.copy()
    for name in ("label", "finding", "note"):
        table.loc[rows.index, name] = rows["path"].map(settled[name])
    logger.info(
        "%d images have rows with different labels: %d are excluded, %d have the most frequent label.",
        *(len(settled), len(settled) - len(winners), len(winners)),
    )
    return table
