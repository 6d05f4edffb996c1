"""The lungs of a cohort as tables: their quality by class and source, and how far their place separates the classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import pandas as pd
from scipy.stats import mannwhitneyu

from covid_fastai.data.lungs import LungQuality, measure_lungs

__all__ = [
    "LUNG_MEASURES",
    "STORED",
    "add_lungs",
    "compare_framing",
    "count_lungs",
    "framing_of_lungs",
    "sample_lungs",
]

LUNG_MEASURES = {  # of `framing_of_lungs`, and their axis labels
    "area": "lung area (% of the image)",
    "width": "width of the box around them (%)",
    "height": "height of the box around them (%)",
    "x": "centre of the box from the left (%)",
    "y": "centre of the box from the top (%)",
}
USABLE = ("fine", "cut off")
QUALITIES = (*get_args(LungQuality), "unreadable")
FEWEST_LUNGS = 10  # images of a group; below it an AUC says little
STORED = ["lung_quality", "lung_area", "lung_left", "lung_top", "lung_right", "lung_bottom"]  # columns of a cohort


def add_lungs(table: pd.DataFrame, *, workers: int | None = None) -> pd.DataFrame:
    """Return a table with quality, area and box of the lungs of its images.

    Args:
        table: With `path` and `split`; the images of excluded rows are not opened.
        workers: As in `measure_lungs`.

    Returns:
        The table with the columns `lung_quality` ("" for excluded rows, "unreadable" for files that cannot be read),
        `lung_area`, `lung_left`, `lung_top`, `lung_right` and `lung_bottom` (fractions; NaN where they are not known).
    """
    used = table["split"] != "excluded"
    measured = measure_lungs(table.loc[used, "path"], workers=workers).set_index(table.index[used])[STORED]
    added = measured.reindex(table.index)
    added["lung_quality"] = added["lung_quality"].fillna("")
    return table.assign(**{name: added[name] for name in STORED})


def sample_lungs(cohort: pd.DataFrame, *, most: int = 200, seed: int = 0) -> pd.DataFrame:
    """Return the lungs of a cohort that has them (`read_cohort(check_lungs=True)`), else those of a sample per class.

    Args:
        cohort: What `read_cohort` returned; excluded rows are omitted.
        most: Size of the random sample of each class, images.
        seed: Seed of the random sample.

    Returns:
        One row per image: `path`, `label`, `source`, and the lungs as in `add_lungs`.
    """
    rows = pd.DataFrame(cohort[cohort["split"] != "excluded"])
    about = ["path", "label", "source"]
    if not set(STORED) <= set(rows):
        rows = rows.sample(frac=1, random_state=seed).groupby("label", sort=True).head(most).sort_index()
        rows = add_lungs(rows[[*about, "split"]])
    return rows[[*about, *STORED]].reset_index(drop=True)


def framing_of_lungs(table: pd.DataFrame) -> pd.DataFrame:
    """Return `LUNG_MEASURES` of the images of a table, in % of the image; NaN unless the quality is usable.

    Args:
        table: With the columns of `add_lungs`.

    Returns:
        One row per image: `area`, `width`, `height`, `x` and `y`.
    """
    usable = table["lung_quality"].isin(USABLE)
    percent = table[STORED[1:]].astype(float).where(usable) * 100
    area, left, top, right, bottom = (percent[name] for name in STORED[1:])
    measures = {"area": area, "width": right - left, "height": bottom - top}
    return pd.DataFrame({**measures, "x": (left + right) / 2, "y": (top + bottom) / 2})


def count_lungs(table: pd.DataFrame) -> pd.DataFrame:
    """Count the images by class, source and quality of their lungs, with the mean framing of each group.

    Args:
        table: With `label`, `source` and the columns of `add_lungs`; excluded rows are omitted.

    Returns:
        One row per class and source: `label`, `source`, `images`, one column per quality that occurs, and the means of
        `LUNG_MEASURES`, in % of the image, rounded to whole numbers (missing without usable lungs).
    """
    table = pd.DataFrame(table)
    rows = table[table["lung_quality"] != ""].reset_index(drop=True)
    groups = [rows["label"], rows["source"]]
    counts = pd.crosstab(groups, rows["lung_quality"])
    counts = counts[[quality for quality in QUALITIES if quality in counts]]
    framing = framing_of_lungs(rows).groupby(groups).mean().round().astype("Int64")
    counts.insert(0, "images", counts.sum(axis=1))
    return counts.join(framing).reset_index().rename_axis(columns=None)


def compare_framing(table: pd.DataFrame, classes: Sequence[str]) -> str:
    """Say which measure of the lungs' size and place separates a class best from the others: a geometry shortcut.

    Args:
        table: With `label` and the columns of `add_lungs`.
        classes: The classes.

    Returns:
        One or two sentences.
    """
    framing, label = framing_of_lungs(table), table["label"]
    separations = {}
    for column, title in LUNG_MEASURES.items():
        for name in classes:
            groups = (framing.loc[label == name, column].dropna(), framing.loc[label != name, column].dropna())
            if min(map(len, groups)) >= FEWEST_LUNGS:
                auc = mannwhitneyu(*groups).statistic / (len(groups[0]) * len(groups[1]))
                separations[title, name] = max(auc, 1 - auc)
    if not separations:
        return f"There are too few images with lungs for a comparison of the classes (fewer than {FEWEST_LUNGS})."
    (title, name), auc = max(separations.items(), key=lambda item: item[1])
    return (
        f"The measure that differs most is the {title.split(' (')[0]}: alone it separates {name} from the other images "
        f"with AUC {auc:.2f} (0.5 is chance). The framing of an image can act as a shortcut."
    )
