r"""Read the patient of an image from its path: by a pattern of the user, or by the forms of published data sets.

A form is recognised where every path has it, such as CheXpert's `patient00001/study1`, and where it gives no number to
two people. A number is never read from a path that has another form.
"""

from __future__ import annotations

import logging

import pandas as pd

from covid_fastai.data.problems import ProblemLog
from covid_fastai.data.split_names import SPLITS
from covid_fastai.data.tasks import fold_text
from covid_fastai.errors import DataError

__all__ = ["join_patients", "patients_from_paths", "patients_of_pattern"]

logger = logging.getLogger("covid_fastai")

# Each form: its name, as data sets write it, and its pattern: what precedes the patient's folder, and that folder.
FORMS = {
    "patient<number>/study<number>": r"^(.*?)(patient[-_]?\d+)/study[-_]?\d+/",  # CheXpert
    "sub-<label>/ses-<label>": r"^(.*?)(sub-[A-Za-z0-9]+)/ses-[A-Za-z0-9]+/",  # BIDS: BIMCV, PadChest's successors
    "p<two digits>/p<number>/s<number>": r"^(.*?)p\d\d/(p\d{8})/s\d{8}[/.]",  # MIMIC-CXR
}
FIRST = 100  # paths that are compared with a form before all are


def patients_of_pattern(names: pd.Series, pattern: str, problems: ProblemLog) -> pd.Series:
    r"""Return the patients that a pattern finds in paths.

    Args:
        names: The paths as the data write them.
        pattern: A regular expression with a group, such as `patient(\d+)`; the first match counts. Several groups are
            joined by a slash.
        problems: Receives the number of paths that do not match.

    Returns:
        The patient of each path, `""` where the pattern does not match.

    Raises:
        DataError: The pattern matches no path.
    """
    patients = _join_groups(names.astype(str).str.extract(pattern))
    missing = patients == ""
    if missing.all() and len(names):  # guard: pattern_matches
        raise DataError(
            f"patient_pattern={pattern!r} matches none of the {len(names):,} paths, such as {names.iloc[0]!r}.",
            hint="Write it for the paths as the data give them, such as 'patient(\\d+)': the group is the patient.",
        )
    if missing.any():
        example = names[missing].iloc[0]
        reason = f"patient_pattern={pattern!r} does not match {int(missing.sum()):,} of {len(names):,} paths, such as "
        reason += f"{example!r}: their patients are not known"
        remedy = "Extend the pattern, if the paths name the patient."
        problems.add("patient_not_matched", severity="warning", reason=reason, remedy=remedy)
    return patients


def patients_from_paths(names: pd.Series) -> pd.Series:
    """Return the patients of paths that all have one of the published forms.

    A form counts only if the same patient's folder lies below one folder alone, apart from the folders of a split: in
    `a/sub-1/ses-1` and `b/sub-1/ses-1`, number 1 may be two people.

    Args:
        names: The paths as the data write them.

    Returns:
        The patient of each path; `""` for all paths where no form is recognised.
    """
    paths = names.astype(str).str.replace("\\", "/", regex=False)
    for form, pattern in FORMS.items():
        if paths.empty or not paths.iloc[:FIRST].str.match(pattern).all():
            continue
        parts = paths.str.extract(pattern)
        if parts[1].isna().any():
            continue
        above = parts[0].map({text: _without_splits(text) for text in parts[0].unique()})
        if (above.groupby(parts[1]).nunique() > 1).any():  # guard: one_folder_above
            logger.warning(
                "Paths have the form %s, but the same patient's folder lies below several folders, such as %s: the "
                "patients are not known. If it is one person, set `patient_pattern`.",
                *(form, ", ".join(repr(text) for text in sorted(above.unique())[:2])),
            )
            continue
        logger.info("Patients are read from the paths, which have the form %s.", form)
        return parts[1]
    return pd.Series("", index=names.index)


def join_patients(stated: pd.Series, named: pd.Series, problems: ProblemLog) -> pd.Series:
    """Return the patients that a column states, and where it states none those that the paths name.

    Args:
        stated: The patients of the column, `""` for unknown ones.
        named: The patients of the paths, `""` for unknown ones.
        problems: Receives the number of rows in which the two group the images differently.

    Returns:
        The patients, `""` for unknown ones.
    """
    both = (stated != "") & (named != "")
    if both.any():
        several = [
            one.groupby(other).transform("nunique") > 1
            for one, other in ((stated[both], named[both]), (named[both], stated[both]))
        ]
        contradictory = several[0] | several[1]
        if contradictory.any():  # guard: column_wins
            reason = f"the column of the patient and the paths group {int(contradictory.sum()):,} images differently; "
            reason += "the column counts"
            remedy = "Correct the pattern, or the column."
            problems.add("patients_differ", severity="warning", reason=reason, remedy=remedy)
    return stated.where(stated != "", named)


def _join_groups(groups: pd.DataFrame) -> pd.Series:
    """Return the groups of a match joined by a slash; `""` if the pattern, or each of its groups, does not match."""
    texts = groups.fillna("")
    first, *others = (texts.iloc[:, number] for number in range(texts.shape[1]))
    joined = first
    for other in others:
        joined = joined + "/" + other
    return joined.where((texts != "").any(axis=1), "")


def _without_splits(folder: str) -> str:
    """Return a folder without its parts that name a split: `train/` and `valid/` have the same patients' numbers."""
    return "/".join(part for part in folder.split("/") if fold_text(part) not in SPLITS)
