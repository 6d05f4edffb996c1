"""What DICOM headers state about the rows of a data set: views that no column states, and reasons to exclude a row."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from covid_fastai.data.dicom_facts import BURNED_IN, OTHER_PART
from covid_fastai.data.projections import not_frontal, not_radiograph

__all__ = ["HEADER", "apply_headers"]

HEADER = "DICOM header"
REASONS = (OTHER_PART, BURNED_IN)  # notes of an image that are reasons to exclude it


def apply_headers(
    table: pd.DataFrame, headers: pd.DataFrame, *, frontal_only: bool, report: Callable[..., None]
) -> pd.DataFrame:
    """Fill the views that no column states, report contradictions, and exclude the images that headers exclude.

    Args:
        table: One row per image: `view` (as `read_projection` gives it), `modality` (as written), `note`, `split`.
        headers: For the rows whose image was opened: `view`, `notes` (joined by "; ") and `not_radiograph`, the reason
            why a header's modality excludes the image, else "".
        frontal_only: Whether the task takes only frontal radiographs of the chest.
        report: `RowChecker.report`.

    Returns:
        The table. A view of a column stands, also where the header contradicts it.
    """
    reasons: dict[int, str] = {}
    for index, view, notes, unfit in headers.itertuples(name=None):
        column, modality = str(table.at[index, "view"]), str(table.at[index, "modality"])
        if column and view and _differ(column, view):
            report(
                index,
                "view_contradicted",
                severity="warning",
                reason=f"the data state the view {column!r}, its DICOM header {view!r}; that of the data counts",
                remedy="Look at the image, and correct the one that is wrong.",
            )
        if unfit:
            if modality and not not_radiograph(modality):
                report(
                    index,
                    "modality_contradicted",
                    severity="warning",
                    reason=f"the data state the modality {modality!r}; its DICOM header: {unfit}",
                    remedy="Correct the modality, or replace the image.",
                )
            reasons[index] = unfit
        elif frontal_only:
            reason = not_frontal(view) if not column else ""
            reason = reason or next((reason for reason in REASONS if reason in notes.split("; ")), "")
            if reason:
                reasons[index] = reason
    views = headers.loc[table.loc[headers.index, "view"] == "", "view"]
    table.loc[views.index, "view"] = views  # guard: header_view
    excluded = pd.Series(reasons, dtype=object)
    excluded = excluded[table.loc[excluded.index, "note"] == ""]
    table.loc[excluded.index, "note"] = excluded + f" ({HEADER})"
    table.loc[excluded.index, "split"] = "excluded"  # guard: header_excluded
    return table


def _differ(column: str, header: str) -> bool:
    """Return whether two projections contradict each other; `frontal` is any of PA and AP."""
    one, other = column.partition(" ")[0], header.partition(" ")[0]
    frontal = {"PA", "AP", "frontal"}
    return one != other and not ("frontal" in (one, other) and {one, other} <= frontal)
