"""Make the path of each image from the columns of its row."""

from __future__ import annotations

import re
import string

import pandas as pd

from covid_fastai.data.columns import suggest_column
from covid_fastai.errors import UsageError

__all__ = ["fill_template"]

# What a value of text can be formatted by: fill and alignment, width, and the number of characters. A width of more
# than three digits would only fill the memory; with a leading zero, Python fills text on the wrong side.
SPECIFICATION = re.compile(r"(.?[<>^])?([1-9]\d{0,2})?(\.\d{1,3})?s?")
EXAMPLE = "files/p{subject_id:.2}/p{subject_id}/s{study_id}/{dicom_id}.jpg"


def fill_template(template: str, table: pd.DataFrame, *, where: str) -> list[str]:
    """Return the path that a template gives for each row.

    A field in braces is a column of the table, nothing else: `{subject_id}` is its value, `{subject_id:.2}` the first
    two characters, `{number:0>8}` the value with leading zeros to eight characters. `{{` and `}}` are braces.

    Args:
        template: The template.
        table: The rows, values of text.
        where: The table's name, for messages.

    Returns:
        The paths, `""` where a value is empty.

    Raises:
        UsageError: The template cannot be read, has no field, or a field is no column.
    """
    values: list[list[str]] = []
    used = None  # whether each row has all values
    for text, column, specification in _parse(template):
        values.append([text] * len(table))
        if column is None:
            continue
        if column not in table:
            raise UsageError(
                f"path_template={template!r}: {where} has no column {column!r}.",
                hint=suggest_column(column, table, where),
            )
        texts = table[column].str.strip().tolist()
        values.append([format(value, specification) if value else "" for value in texts])
        used = [bool(value) and known for value, known in zip(texts, used or [True] * len(texts), strict=True)]
    if used is None:
        raise UsageError(f"path_template={template!r} has no column in braces.", hint=f"Such as {EXAMPLE!r}.")
    return ["".join(parts) if complete else "" for complete, parts in zip(used, zip(*values, strict=True), strict=True)]


def _parse(template: str) -> list[tuple[str, str | None, str]]:
    """Return the parts of a template: text, and the column and its format that follow, if any."""
    parts: list[tuple[str, str | None, str]] = []
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UsageError(
            f"path_template={template!r} cannot be read: {error}.", hint=f"Write columns in braces: {EXAMPLE!r}."
        ) from None
    for text, column, specification, conversion in fields:
        if column is not None and (not column or conversion):  # guard: template_field
            field = f"{{{column}{f'!{conversion}' if conversion else ''}}}"
            raise UsageError(
                f"path_template={template!r}: the field {field} is not allowed.", hint=f"Name a column: {EXAMPLE!r}."
            )
        if specification and not SPECIFICATION.fullmatch(specification):  # guard: template_format
            zeros = re.fullmatch(r"0(\d{1,3})d?", specification)
            hint = "Values are text: {column:.2} are two characters, {column:0>8} adds zeros."
            hint = f"Values are text. Write {{{column}:0>{zeros[1]}}}." if zeros else hint
            raise UsageError(f"path_template={template!r}: the format {specification!r} is not allowed.", hint=hint)
        parts.append((text, column, specification or ""))
    return parts
