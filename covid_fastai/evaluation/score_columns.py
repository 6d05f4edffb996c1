"""Make the probability of each class from the columns that other systems write: one score, or other prefixes."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from covid_fastai.data.columns import suggest_column
from covid_fastai.data.tasks import canonical_finding, fold_label, fold_text
from covid_fastai.errors import DataError, UsageError

__all__ = ["PROBABILITY", "add_class_columns", "as_label"]

logger = logging.getLogger("covid_fastai")

PROBABILITY = "p_"  # prefix of a class name: the column of its probability
PREFIXES = ("prob_", "probability_", "proba_", "score_", "pred_prob_", "prob ", "probability ", "score ")
SCORES = ("score", "probability", "prob", "proba", "y_score", "y_prob", "y_proba", "prediction_score", "risk", "p")
SCORES += ("predicted_probability", "probability_positive", "positive_probability", "confidence", "output")
# labels, folded, that say that there is no finding
NEGATIVE = {"0", "false", "no", "n", "negative", "neg", "-", "normal", "absent", "control", "healthy"}
POSITIVE = {"1", "true", "yes", "y", "positive", "pos", "+", "present"}


def add_class_columns(
    table: pd.DataFrame, *, score_column: str | None, positive: str | None, where: str
) -> pd.DataFrame:
    """Return a predictions table with one column `p_<class>` per class, the negative class first.

    A table that has such columns is returned as it is, unless `score_column` is given. Columns `prob_<class>`,
    `score_<class>` and the like are renamed. One score is the probability of the positive class: that of the label 1,
    True, yes or positive, of the only label that is not negative or normal, or of `positive`.

    Args:
        table: The rows, with `label`.
        score_column: The column with the probability of the positive class; None to find columns by their names.
        positive: The positive class, None to derive it. If labels are 0 and 1, any name for 1.
        where: The table's name, for messages.

    Raises:
        DataError: The column does not exist, or labels do not show which class is positive.
        UsageError: `positive` is no label.
    """
    table = table.assign(label=_as_labels(table["label"]))
    if score_column is not None:
        if score_column not in table:
            raise DataError(
                f"{where} has no column {score_column!r} (score_column).",
                hint=suggest_column(score_column, table, where),
            )
        return _from_score(table, score_column, name=None, positive=positive, where=where)
    if any(str(name).startswith(PROBABILITY) for name in table):
        return table
    prefix, prefixed = next(
        ((prefix, names) for prefix in PREFIXES if (names := _with_prefix(table, prefix))), ("", [])
    )
    if len(prefixed) > 1:
        return _rename(table, {name: name[len(prefix) :].strip() for name in prefixed}, positive, where)
    if prefixed:
        name = prefixed[0][len(prefix) :].strip()
        if _is_negative(name) and positive is None:
            raise DataError(
                f"{where}: {prefixed[0]!r} is the probability of the negative class.",
                hint="Give a column with the probability of the positive class, and name it with `score_column`.",
            )
        return _from_score(table, prefixed[0], name=name, positive=positive, where=where)
    usual = {fold_text(name) for name in SCORES}
    scores = [str(name) for name in table if fold_text(name) in usual]
    if len(scores) == 1:
        logger.info("%s: the score is the column %r.", where, scores[0])
        return _from_score(table, scores[0], name=None, positive=positive, where=where)
    if scores:
        raise DataError(
            f"{where} has several columns that may be the score: {', '.join(map(repr, scores))}.",
            hint="Name the probability of the positive class with `score_column`.",
        )
    return table


def _as_labels(values: pd.Series) -> pd.Series:
    """Return labels as text; `as_label` of each value."""
    if (
        pd.api.types.infer_dtype(values, skipna=False) == "string"
    ):  # equal numbers, such as 1 and True, are other labels
        return values.map({text: as_label(text) for text in values.unique()})
    return pd.Series([as_label(value) for value in values], index=values.index)


def as_label(value: Any) -> str:
    """Return a label as text: whole numbers without a decimal point, `""` for a missing one.

    Args:
        value: A cell.
    """
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value == int(value):
        return str(int(value))
    text = str(value).strip()
    return text[: text.index(".")] if re.fullmatch(r"-?\d+\.0+", text) else text


def _with_prefix(table: pd.DataFrame, prefix: str) -> list[str]:
    names = [str(name) for name in table]
    return [name for name in names if name.lower().startswith(prefix) and len(name.strip()) > len(prefix)]


def _rename(table: pd.DataFrame, classes: dict[str, str], positive: str | None, where: str) -> pd.DataFrame:
    """Return the table with the columns of classes renamed and in order, the negative class first."""
    names = list(classes)
    if len(names) == 2 and positive not in classes.values():
        negative = [name for name in names if _is_negative(classes[name])]
        if len(negative) != 1:
            raise DataError(
                f"{where}: which of {' and '.join(map(repr, classes.values()))} is the positive class is not known.",
                hint=f"Name it with `positive`, such as {classes[names[1]]!r}.",
            )
        names.sort(key=lambda name: name not in negative)
    elif len(names) == 2:
        names.sort(key=lambda name: classes[name] == positive)
    logger.info(
        "%s: probabilities of the classes, in this order: %s.", where, ", ".join(f"{classes[n]} = {n!r}" for n in names)
    )
    renamed = table[names].rename(columns={name: PROBABILITY + classes[name] for name in names})
    return pd.concat([table.drop(columns=names), renamed], axis=1)


def _is_negative(label: str) -> bool:
    return fold_label(label) in NEGATIVE or canonical_finding(label) == "Normal"


def _from_score(
    table: pd.DataFrame, column: str, *, name: str | None, positive: str | None, where: str
) -> pd.DataFrame:
    """Return the table with the probabilities of two classes from one score."""
    labels = [label for label in table["label"].unique() if label]
    truth, positive = _positive_label(labels, name=name, positive=positive, where=where)
    others = [label for label in labels if label != truth]
    negative = others[0] if len(others) == 1 and truth == positive else f"not {positive}"
    renamed = {truth: positive, **dict.fromkeys(others, negative), "": ""}
    logger.info("%s: %r is the probability of %r; %r is the negative class.", where, column, positive, negative)
    if len(others) > 1:
        logger.warning("%s: the labels %s count as %r.", where, ", ".join(map(repr, others)), negative)
    scores = pd.to_numeric(table[column], errors="coerce").astype(float)
    table = table.drop(columns=[c for c in table if str(c).startswith(PROBABILITY) and c != column])
    columns = {f"{PROBABILITY}{negative}": 1 - scores, f"{PROBABILITY}{positive}": scores}
    return table.assign(label=table["label"].map(renamed), **columns)


def _positive_label(labels: Sequence[str], *, name: str | None, positive: str | None, where: str) -> tuple[str, str]:
    """Return the label that a score is the probability of, and the name of its class.

    Args:
        labels: The different labels of the table.
        name: The class that the column's name states, or None.
        positive: The class that the user states, or None.
        where: The table's name, for messages.
    """
    stated = positive if positive is not None else name
    if stated is not None:
        same = [label for label in labels if label == stated] or [
            label for label in labels if fold_label(canonical_finding(label)) == fold_label(canonical_finding(stated))
        ]
        if same:
            return same[0], same[0]
    folded = {label: fold_label(label) for label in labels}
    ones = [label for label in labels if folded[label] in POSITIVE]
    zeros = [label for label in labels if _is_negative(label)]
    if len(labels) <= 2 and len(ones) <= 1 and len(ones) + len(zeros) == len(labels) and labels:
        one = ones[0] if ones else {"0": "1", "false": "true", "no": "yes"}.get(folded[labels[0]], "positive")
        return one, stated or one
    if stated is None and len(labels) == 2 and len(zeros) == 1:
        (truth,) = [label for label in labels if label not in zeros]
        return truth, truth
    listed = ", ".join(map(repr, labels)) or "none"
    if stated is None:
        raise DataError(
            f"{where}: which label the score is the probability of is not known; the labels are {listed}.",
            hint=f"Name it with `positive`{f', such as {labels[-1]!r}' if labels else ''}.",
        )
    raise UsageError(f"positive={stated!r} is no label of {where}.", hint=f"Its labels: {listed}.")
