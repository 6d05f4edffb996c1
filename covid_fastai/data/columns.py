"""The columns that rows of images are made from: their usual names, and the choice among several of them."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence

import pandas as pd

from covid_fastai.data.image_files import has_image_suffix
from covid_fastai.data.left_out_columns import explain_left_out, left_out_of
from covid_fastai.data.projections import is_unstated
from covid_fastai.data.tasks import fold_label, fold_text
from covid_fastai.errors import DataError

__all__ = [
    "ROLES",
    "UNCERTAIN_PATHS",
    "choose_columns",
    "is_usual_name",
    "list_columns",
    "suggest_column",
    "usual_columns",
]

logger = logging.getLogger("covid_fastai")

# The columns that a cohort is made from, and their usual names; the first name that the data have is used. Case,
# spaces, hyphens and underscores do not count. The public sets that use a name: NIH ChestX-ray14 (Image Index, Finding
# Labels, Patient ID, View Position), CheXpert (Path), COVIDx and ieee8023 (filename), PadChest (ImageID, Projection),
# MIMIC-CXR (dicom_id, ViewPosition, subject_id), VinDr-CXR (image_id).
ROLES: dict[str, tuple[str, ...]] = {
    "path": (
        *("path", "x_ray_image_name", "image", "filename", "file", "image_path", "file_path", "image_name", "img"),
        *(
            "image_index",
            "image_file",
            "image_filename",
            "img_path",
            "img_name",
            "img_file",
            "relative_path",
            "rel_path",
        ),
        *(
            "dicom_path",
            "dcm_path",
            "png_path",
            "jpg_path",
            "dicom_file",
            "dcm_file",
            "image_file_path",
            "images",
            "files",
        ),
        *("image_id", "img_id", "file_id", "dicom_id", "sop_instance_uid"),
    ),
    "label": (
        *("label", "labels", "class", "finding", "diagnosis", "target", "findings", "finding_labels", "class_name"),
        *("ground_truth", "y_true", "disease", "pathology", "label_name"),
    ),
    "patient": (
        *("patient", "patient_id", "subject", "subject_id", "patient_number", "patient_no", "pid", "participant_id"),
        *("participant", "mrn", "anon_patient_id", "deid_patient_id"),
    ),
    "split": ("dataset_type", "split", "subset", "partition", "data_split", "dataset_split"),
    "source": ("source", "hospital", "site", "institution", "collection", "center", "centre", "hospital_id", "site_id"),
    "view": ("view", "projection", "view_position"),
    "modality": ("modality",),
}
# Identifiers that are the name of the file in some sets (RSNA's patientId). They are used for a path that is required,
# with a warning, if no column has a usual name.
UNCERTAIN_PATHS = ("uid", "id", "patientid", "name")
# The columns of a cohort that was saved; its label is made from its finding.
COHORT_MARKS = {"patient_known", "in_pretraining", "note"}
# Roles whose values decide what a model learns or where an image is used: two columns must not contradict each other.
CHECKED_ROLES = ("label", "patient", "split", "view")


def is_usual_name(text: object) -> bool:
    """Return whether a text is a usual name of any role's column."""
    return fold_text(text) in _USUAL_NAMES


def usual_columns(columns: Iterable[object], role: str) -> list[str]:
    """Return the columns that have a usual name of a role, in the order of `ROLES`.

    Args:
        columns: The names of all columns.
        role: A key of `ROLES`.
    """
    folded: dict[str, list[str]] = {}
    for column in columns:
        folded.setdefault(fold_text(column), []).append(str(column))
    return [column for name in ROLES[role] for column in folded.get(fold_text(name), ())]


def suggest_column(column: str, table: pd.DataFrame, where: str) -> str:
    """Return the hint for a column that a table does not have: a similar name, if any, and all names.

    Args:
        column: The missing column.
        table: The table.
        where: Its file; a run may have left the column out.
    """
    if reason := explain_left_out(column, left_out_of(where)):
        return f"{reason} {list_columns(table)}"
    folded = {fold_text(name): name for name in reversed(table.columns)}
    near = folded.get(fold_text(column)) or next(iter(difflib.get_close_matches(column, table.columns, n=1)), None)
    return f"{f'Did you mean {near!r}? ' if near else ''}{list_columns(table)}"


def list_columns(table: pd.DataFrame) -> str:
    """Return a sentence with the names of a table's columns."""
    return f"Its columns: {', '.join(map(repr, table.columns)) or 'none'}."


def choose_columns(
    table: pd.DataFrame,
    given: Mapping[str, str | None],
    *,
    where: str,
    required: Collection[str] = ("path", "label"),
    roles: Sequence[str] = tuple(ROLES),
) -> dict[str, str | None]:
    """Choose the column of each role: the given one, else the first of its usual names that the table has.

    The log names the columns that were found by their names. Where several columns have usual names of one role, a
    warning names the one that is used and the others.

    Args:
        table: The rows, values of text.
        given: The columns that were named by the user, by role; None or absent to find them.
        where: The table's name, for messages.
        required: Roles that must have a column.
        roles: The roles to choose columns for.

    Returns:
        The column of each role, None if the table has none.

    Raises:
        DataError: A given column does not exist, a required role has no column, or two columns of one role contradict
            each other: neither of them determines the other, or two columns of patients do not correspond one to one.
    """
    chosen: dict[str, str | None] = {}
    for role in roles:
        column = given.get(role)
        if column is not None and column not in table:
            raise _unknown_column(table, column, role, where)
        chosen[role] = column or _find_column(table, role, chosen, where=where)
        if chosen[role] is None and role == "path" and role in required:
            chosen[role] = _uncertain_path(table, where=where)
        if chosen[role] is None and role in required:  # guard: no_label
            content = {"path": "the image files", "label": "the labels"}.get(role, f"the {role}")
            named = any(map(is_usual_name, table.columns))
            advice = "" if named else " If these are values, write a first line with the names of the columns."
            if role == "label" and (findings := _finding_columns(table)):  # guard: finding_columns
                listed = ", ".join(map(repr, findings))
                advice += f" Each of these has 1, 0, -1 or blanks: {listed}. If they are findings, name those of the "
                advice += "task with `label_columns`."
            raise DataError(
                f"{where} has no column that is known to hold {content}.",
                hint=f"Name it with `{role}_column`. {list_columns(table)}{advice}",
            )
    guessed = [f"{role} = {name!r}" for role, name in chosen.items() if name is not None and given.get(role) is None]
    if guessed:
        logger.info("Columns of %s, found by their names: %s.", where, ", ".join(guessed))
    return chosen


def _finding_columns(table: pd.DataFrame) -> list[str]:
    """Return the columns that say of each row whether it has a finding."""
    values = {str(name): {fold_label(value) for value in column.unique()} for name, column in table.items()}
    return [name for name, found in values.items() if "1" in found and found <= {"1", "0", "-1", ""}]


def _find_column(table: pd.DataFrame, role: str, chosen: Mapping[str, str | None], *, where: str) -> str | None:
    """Return the column of a role by its usual names; warn if others have such names too."""
    # RSNA's patientId is the name of the image: a column that names the files does not identify patients as well
    candidates = [name for name in usual_columns(table.columns, role) if role == "path" or name != chosen.get("path")]
    if role == "path" and len(candidates) > 1:
        candidates = [name for name in candidates if _names_images(table[name])] or candidates
    if not candidates:
        return None
    first, *others = candidates
    if others and role in CHECKED_ROLES and not COHORT_MARKS <= set(table.columns):
        for other in others:
            _check_agreement(table, first, other, role=role, where=where)
    if others and (role != "path" or _names_images(table[first])):
        logger.warning(
            "%s: the column %r is used for the %s; %s has such a name too. Choose with `%s_column`.",
            *(where, first, role, " and ".join(map(repr, others)), role),
        )
    return first


def _names_images(values: pd.Series) -> bool:
    """Return whether the first values end as the names of images do."""
    return any(has_image_suffix(value.strip()) for value in values[values != ""].head(20))


def _uncertain_path(table: pd.DataFrame, *, where: str) -> str | None:
    folded = {fold_text(name): str(name) for name in reversed(table.columns)}
    column = next((folded[fold_text(name)] for name in UNCERTAIN_PATHS if fold_text(name) in folded), None)
    if column is not None:
        logger.warning(
            "%s: the column %r is used for the names of the image files; no column has a usual name. "
            "Choose with `path_column`, or give `path_template`.",
            *(where, column),
        )
    return column


def _check_agreement(table: pd.DataFrame, first: str, other: str, *, role: str, where: str) -> None:
    """Raise if two columns of a role contradict each other. Values that are not stated contradict nothing."""
    pairs = table[[first, other]].apply(lambda values: values.str.strip()).drop_duplicates()
    for name in (first, other):
        pairs = pairs[~pairs[name].map({text: is_unstated(text) for text in pairs[name].unique()}).astype(bool)]
    # a value that goes with several values of the other column, by column
    several = {name: pairs[name].duplicated(keep=False) for name in (first, other)}
    unclear = [name for name in (first, other) if several[name].any()]
    # a column that determines the other is only the finer description of the two, except for patients
    if len(unclear) == 2 or (unclear and role == "patient"):  # guard: columns_contradict
        raise _contradiction(pairs, unclear[0], several[unclear[0]], names=(first, other), role=role, where=where)


def _contradiction(
    pairs: pd.DataFrame, name: str, several: pd.Series, *, names: tuple[str, str], role: str, where: str
) -> DataError:
    """Return the error for two columns, with a value of one that goes with several values of the other."""
    value = pairs.loc[several, name].iloc[0]
    partner = names[1] if name == names[0] else names[0]
    rows = pairs.loc[pairs[name] == value, partner].iloc[:2]
    return DataError(
        f"{where} has two columns for the {role} that contradict each other: where {name!r} is {value!r}, {partner!r} "
        f"is {' and '.join(f'{text!r} (line {row})' for row, text in rows.items())}.",
        hint=f"Name the right one with `{role}_column`: {names[0]!r} or {names[1]!r}.",
    )


def _unknown_column(table: pd.DataFrame, column: str, role: str, where: str) -> DataError:
    hint = suggest_column(column, table, where)
    return DataError(f"{where} has no column {column!r} ({role}_column).", hint=hint)


_USUAL_NAMES = {fold_text(name) for names in (*ROLES.values(), UNCERTAIN_PATHS) for name in names}
