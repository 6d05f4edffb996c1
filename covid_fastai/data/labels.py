"""The class of each row, from its label: one label, a list or a path of labels, or one column per finding."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from covid_fastai.data.custom_tasks import is_one_finding
from covid_fastai.data.problems import ProblemLog
from covid_fastai.data.tasks import OTHERS, Match, Task, canonical_finding, escape_wildcards, fold_label, fold_text
from covid_fastai.errors import DataError

__all__ = ["Meaning", "assign_labels", "combine", "note_labels", "read_labels", "suggest_exclusions", "suggest_labels"]

logger = logging.getLogger("covid_fastai")

SEPARATORS = ("|", ";", ",")  # of a list of labels
PATH = "/"  # Pneumonia/Viral/COVID-19
# The values of a column that holds one finding, in the form of `fold_label`: 1.0 and True are 1 already.
PRESENT, ABSENT, UNCERTAIN, BLANK, UNKNOWN = CODES = 1, 0, -1, -2, -3
VALUES = {"1": PRESENT, "yes": PRESENT, "y": PRESENT, "0": ABSENT, "no": ABSENT, "n": ABSENT, "-1": UNCERTAIN}
VALUES |= dict.fromkeys(("", "nan", "na", "n/a", "none", "null", "<na>"), BLANK)
SHOWN, MANY = 8, 20  # labels in a note, in an error
_NUMBER = re.compile(r"[-+]?\d+([.,]\d+)?")
_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'" r'|"((?:[^"\\]|\\.)*)"')
_QUOTED_LIST = re.compile(rf"(?:{_QUOTED.pattern.replace('*)', '*+)')}|[, \n\t])*+")


class Meaning(NamedTuple):
    """What the label of a row means for a task.

    Attributes:
        label: The class; "" if there is none.
        note: The reason to exclude the row; "" if there is none.
        finding: The label in this package's spelling; labels of a list are joined by a bar.
        unknown: The labels that the task does not know, if the row has neither a class nor a reason.
    """

    label: str
    note: str
    finding: str
    unknown: tuple[str, ...] = ()


def assign_labels(
    table: pd.DataFrame,
    columns: pd.DataFrame,
    task: Task,
    *,
    label_columns: Sequence[str] | None,
    positive: str | None,
    uncertain: str,
) -> pd.DataFrame:
    """Assign each row its class, or the reason of its exclusion.

    Args:
        table: One row per image; `finding` is the text of the label column.
        columns: The columns of the data, same index.
        task: The task.
        label_columns: The columns with one finding each; None if the labels are in `finding`.
        positive: The positive class, if the user stated one: 1 in a column of 0 and 1 then means this class.
        uncertain: `"exclude"`, `"positive"` or `"negative"`: the meaning of -1 where it decides the class.

    Returns:
        A copy of the table with `label`, `note` and `finding`; `unknown_label`, the labels that the task does not know,
        joined by a bar; and `unknown_value`, what is wrong with a value of `label_columns`. All are text, "" for none.

    Raises:
        DataError: A column does not exist.
        UsageError: Two patterns of the task give a label different classes.
    """
    faults = np.full(len(table), "", dtype=object)
    if label_columns:
        texts = pd.DataFrame({name: columns[_existing_column(name, columns)] for name in label_columns})
        meanings, rows, faults = _read_columns(texts, task, uncertain=uncertain)
    elif positive is not None and _is_binary(table["finding"], task):
        finding, absent = task.classes[::-1]
        logger.info("In the label column, 1 means %s and 0 means %s.", finding, absent)
        meanings, rows, _ = _read_columns(pd.DataFrame({finding: table["finding"]}), task, uncertain=uncertain)
    else:
        rows, texts = pd.factorize(table["finding"])
        meanings = list(read_labels(task, texts).values())
    values = {name: [getattr(meaning, name) for meaning in meanings] for name in ("label", "note", "finding")}
    values["unknown_label"] = ["|".join(meaning.unknown) for meaning in meanings]
    assigned = {name: np.array(texts, dtype=object)[rows] for name, texts in values.items()}
    return table.assign(**assigned, unknown_value=faults)


# labels as text


def read_labels(task: Task, texts: Iterable[str]) -> dict[str, Meaning]:
    """Return what each text of a label column means.

    A text is one label, a list of labels or a path of labels. Lists are `['A', 'B']`, or joined by a bar, a semicolon
    or a comma; these separate labels only where the column shows it: a part occurs as a label by itself, or the task
    names it (of a comma, all parts). In a path such as `Pneumonia/Viral/COVID-19`, the last part that the task names
    counts, unless all parts of all paths occur as labels by themselves, so that they are lists.

    Args:
        task: The task.
        texts: The different texts of the whole column.

    Returns:
        The meaning of each text. A list has the class of its labels; a list of two classes is excluded. Labels without
        a class do not exclude a list that has one.
    """
    column = _LabelColumn(task, texts)
    return {text: column.read(text) for text in column.texts}


class _LabelColumn:
    """The different texts of a label column, and how they are divided into labels."""

    def __init__(self, task: Task, texts: Iterable[str]):
        self.task, self.texts = task, list(texts)
        self._single = {  # labels that occur by themselves
            _usual(text) for text in self.texts if _quoted_list(text) is None and not set(text) & {*SEPARATORS, PATH}
        }
        self.separators = [separator for separator in SEPARATORS if self._separates(separator)]
        self.paths_are_lists = self._paths_are_lists()
        self._log()

    def read(self, text: str) -> Meaning:
        """Return the meaning of a text."""
        whole = self.task.match(text)
        parts = [text] if whole.rank == 3 else self._divide(text)
        matches = {part: self._match(part) for part in parts}
        return combine(matches, finding="|".join(map(canonical_finding, parts)))

    def _divide(self, text: str) -> list[str]:
        """Return the labels of a text: a list's, or the text itself."""
        labels = _quoted_list(text)
        if labels is not None:
            return labels or [""]
        for separator in self.separators:
            parts = _parts(text, separator)
            if len(parts) > 1 and not any(separator in pattern for pattern in self.task.patterns):
                if separator != "," or all(map(self._is_known, parts)):
                    return parts
        if self.paths_are_lists and PATH in text:
            return _parts(text, PATH)
        return [text]

    def _match(self, label: str) -> Match:
        """Return what the task says about a label; of a path, about its most specific part that the task names."""
        whole = self.task.match(label)
        parts = [] if whole.rank == 3 else _parts(label, PATH)
        if len(parts) < 2:
            return _without_numbers(label, whole, self.task)
        steps = [form for end in range(len(parts), 0, -1) for form in (parts[end - 1], PATH.join(parts[:end]))]
        matches = [self.task.match(step) for step in steps]
        exact = [match for match in matches if match.rank == 3]
        by_pattern = [match for match in (whole, *matches) if match.rank == 2]
        return next(iter([*exact, *by_pattern]), whole)

    def _is_known(self, label: str) -> bool:
        return _usual(label) in self._single or self._match(label).rank >= 2

    def _separates(self, separator: str) -> bool:
        """Return whether a separator joins labels in this column."""
        lists = [_parts(text, separator) for text in self.texts if separator in text and _quoted_list(text) is None]
        lists = [parts for parts in lists if len(parts) > 1]
        enough = all if separator == "," else any
        return any(enough(map(self._is_known, parts)) for parts in lists)

    def _paths_are_lists(self) -> bool:
        """Return whether all parts of all texts with a slash occur as labels by themselves."""
        paths = [_parts(text, PATH) for text in self.texts if PATH in text and self.task.match(text).rank < 3]
        return bool(paths) and all(len(parts) > 1 and {*map(_usual, parts)} <= self._single for parts in paths)

    def _log(self) -> None:
        """Say how labels are divided."""
        separators = [*self.separators, *([PATH] if self.paths_are_lists else [])]
        divided = [text for text in self.texts if len(self._divide(text)) > 1 and self.task.match(text).rank < 3]
        if divided:
            joined = f", joined by {' or '.join(map(repr, separators))}" if separators else ""
            logger.info(
                "Rows have lists of labels%s, such as %r; a row is of the class that its list contains.",
                joined,
                divided[0],
            )
        elif any(PATH in text and self._match(text) != self.task.match(text) for text in self.texts):
            example = next(text for text in self.texts if PATH in text)
            logger.info("Labels are paths, such as %r; the last part that the task names counts.", example)


def _quoted_list(text: str) -> list[str] | None:
    """Return the labels of a list as Python, JSON and NumPy write it; None if the text is none."""
    if not (text[:1] in "[({" and text[-1:] in "])}" and len(text) > 1):
        return None
    inner = text[1:-1].strip()
    if not inner and text[0] == "[":
        return []
    if inner and _QUOTED_LIST.fullmatch(inner):  # guard: quoted_list
        quoted = [one or other for one, other in _QUOTED.findall(inner)]
        return [label.strip() for label in (re.sub(r"\\(.)", r"\1", part) for part in quoted) if label.strip()]
    return _parts(inner, ",") if text[0] == "[" and not re.search(r"['\"]", inner) else None


def _parts(text: str, separator: str) -> list[str]:
    return [part.strip() for part in text.split(separator) if part.strip()]


def _usual(label: str) -> str:
    return fold_label(canonical_finding(label))


def _without_numbers(label: str, match: Match, task: Task) -> Match:
    """Return no match for a number that would be excluded as any other finding: it can be a grade or a code."""
    if match.rank == 1 and match.reason == task.others and _NUMBER.fullmatch(label):  # guard: grades
        return Match()
    return match


def combine(matches: Mapping[str, Match], *, finding: str, unsure: Mapping[str, Match] | None = None) -> Meaning:
    """Return the meaning of a row from what a task says about each of its labels.

    Args:
        matches: The match of each label that the row has.
        finding: The labels, as text.
        unsure: The match of each label that the row may have.
    """
    rank = max((match.rank for match in matches.values() if match.label), default=0)
    counted = 2 if rank >= 2 else 1  # the pattern * counts only where no other label has a class
    classes = dict.fromkeys(match.label for match in matches.values() if match.label and match.rank >= counted)
    doubtful = [
        name
        for name, match in (unsure or {}).items()
        if match.label and match.rank >= counted and match.label not in classes
    ]
    if len(classes) > 1:  # guard: two_classes
        return Meaning("", f"two classes: {' and '.join(classes)}", finding)
    if doubtful:  # guard: uncertain
        return Meaning("", f"uncertain (-1): {', '.join(doubtful)}", finding)
    if classes:
        return Meaning(next(iter(classes)), "", finding)
    unknown = tuple(name for name, match in matches.items() if not match.rank)
    reasons = [match.reason for match in matches.values() if match.reason]
    return Meaning("", "" if unknown else reasons[0] if reasons else "", finding, unknown)


# one column per finding


def _existing_column(name: str, columns: pd.DataFrame) -> str:
    if name in columns:
        return name
    folded = {fold_text(column): str(column) for column in reversed(columns.columns)}
    near = folded.get(fold_text(name)) or next(iter(difflib.get_close_matches(name, columns.columns, n=1)), None)
    meant = f"Did you mean {near!r}? " if near else ""
    raise DataError(
        f"The data have no column {name!r} (label_columns).",
        hint=f"{meant}Columns: {', '.join(map(repr, columns.columns)) or 'none'}.",
    )


def _is_binary(texts: pd.Series, task: Task) -> bool:
    """Return whether a label column holds only 0, 1, -1 and blanks, which the task does not name."""
    values = {fold_label(text) for text in texts.unique()}
    codes = {VALUES.get(value, UNKNOWN) for value in values}
    named = any(task.match(value).rank >= 2 for value in values)
    return not named and len(task.classes) == 2 and UNKNOWN not in codes and bool(codes & {PRESENT, ABSENT})


def _read_columns(texts: pd.DataFrame, task: Task, *, uncertain: str) -> tuple[list[Meaning], np.ndarray, np.ndarray]:
    """Read columns that hold one finding each.

    Returns:
        The meanings, the number of each row's meaning, and what is wrong with a value of each row, "" for nothing.
    """
    codes = np.empty(texts.shape, dtype=np.int8)
    faults = np.full(len(texts), "", dtype=object)
    for number, name in enumerate(texts):
        values = texts[name].astype(object).where(texts[name].notna(), "")
        known = {value: VALUES.get(fold_label(value), UNKNOWN) for value in values.unique()}
        codes[:, number] = values.map(known)
        for row in np.flatnonzero(codes[:, number] == UNKNOWN):  # guard: unknown_value
            faults[row] = f"the column {name!r} holds {str(values.iloc[row])!r}, which is not 1, 0, -1 or blank"
    matches = {str(name): task.match(str(name)) for name in texts}
    other = np.array([not match.label for match in matches.values()])  # of these, only presence counts
    codes[:, other] = np.where(codes[:, other] == PRESENT, PRESENT, BLANK)
    rows = np.zeros(len(codes), dtype=np.int64)
    for column in codes.T:  # np.unique(axis=0) takes a minute for a million rows
        rows = pd.factorize(rows * len(CODES) + column - min(CODES))[0]
    first = np.unique(rows, return_index=True)[1]
    spellings = {name: canonical_finding(name) for name in matches}
    meanings = [
        _read_codes(dict(zip(matches, row, strict=True)), matches, spellings, task, uncertain)
        for row in codes[first].tolist()
    ]
    return meanings, rows, faults


def _read_codes(
    codes: Mapping[str, int], matches: Mapping[str, Match], spellings: Mapping[str, str], task: Task, uncertain: str
) -> Meaning:
    """Return the meaning of one combination of values."""
    if UNKNOWN in codes.values():  # the row is faulty
        return Meaning("", "", "")
    if uncertain == "positive":  # guard: minus_one
        codes = {name: PRESENT if code == UNCERTAIN else code for name, code in codes.items()}
    if uncertain != "exclude":  # a finding that is not mentioned is absent, if anything is stated about the others
        codes = {name: ABSENT if code in (UNCERTAIN, BLANK) else code for name, code in codes.items()}
    present = {name: matches[name] for name, code in codes.items() if code == PRESENT}
    unsure = {name: matches[name] for name, code in codes.items() if code == UNCERTAIN}
    finding = "|".join(spellings[name] for name in present) or "none"
    if present or any(match.label for match in unsure.values()):
        return combine(present, finding=finding, unsure=unsure)
    if is_one_finding(task) or not any(
        match.label == task.classes[0] and match.rank >= 2 for match in matches.values()
    ):
        decisive = [name for name, match in matches.items() if match.label and match.label != task.classes[0]]
        blank = [name for name in decisive if codes[name] == BLANK]
        if decisive and not blank:  # no column names the negative class: 0 in the others does
            return Meaning(task.classes[0], "", finding)
        if blank:
            return Meaning("", f"not stated (blank): {', '.join(blank)}", finding)
    return Meaning("", "no label column is 1", finding)


# messages


def note_labels(
    table: pd.DataFrame, task: Task, problems: ProblemLog, *, label_columns: Sequence[str] | None, uncertain: str
) -> None:
    """Note how many rows are excluded as other findings, and how -1 and blank were counted; warn of absent classes.

    Args:
        table: What `assign_labels` returned.
        task: The task.
        problems: Receives the notes.
        label_columns: The columns with one finding each, None for none.
        uncertain: What -1 and blank mean.
    """
    other = table.loc[(table["label"] == "") & (table["note"] == task.others), "finding"]
    if task.others and len(other):
        rest = _option(OTHERS, task.classes[0], pattern=True)
        reason = f"{len(other)} rows are excluded: {task.others} ({_count(other)})"
        problems.add("other_finding", severity="note", reason=reason, remedy=f"{rest} makes them {task.classes[0]!r}.")
        logger.info("%s; %s makes them %r.", reason, rest, task.classes[0])
    if label_columns and uncertain != "exclude":
        reason = f"uncertain={uncertain!r}: -1 counts as {int(uncertain == 'positive')}, and blank as 0"
        problems.add("uncertain", severity="note", reason=reason, remedy="uncertain='exclude' excludes such rows.")
        logger.info("%s.", reason)
    absent = [name for name in task.classes if not (table["label"] == name).any()]
    if absent:
        found = _count(table["finding"])
        logger.warning("No row has the class %s. The labels: %s.", " or ".join(map(repr, absent)), found)


def _count(labels: pd.Series) -> str:
    """Return the most frequent labels with their numbers of rows, as text."""
    counts = labels.value_counts()
    shown = ", ".join(f"{label!r} {n}" for label, n in counts.iloc[:SHOWN].items())
    return f"{shown} and {len(counts) - SHOWN} other labels" if len(counts) > SHOWN else shown


def suggest_labels(task: Task, label: str, *, similar: bool = True) -> str:
    """Return the options that give an unknown label a class or exclude it.

    Args:
        task: The task.
        label: The label.
        similar: Whether to search for a known label of similar spelling.
    """
    if label == "":
        return f"Give it one, or remove the row; {_option('', '')} excludes rows without a label."
    if fold_label(label) in ("0", "1") and len(task.classes) == 2:
        return f"State what the numbers mean, such as {_options(dict(zip('01', task.classes, strict=True)))}."
    ways = " or ".join(_option(label, name) for name in task.classes[:4])
    remedy = f"Name its class with {ways}, or exclude it with {_option(label, '')}."
    if not similar or _NUMBER.fullmatch(label):  # -1 is not 1
        return remedy
    spellings = {name.casefold(): name for name in task.known_findings()}
    close = difflib.get_close_matches(label.casefold(), spellings, n=1)
    if not close:
        return remedy
    meant = spellings[close[0]]
    way = _option(label, task.class_of(meant) or "")
    return f"Did you mean {meant!r}? Then correct it or add {way}. Otherwise: {remedy}"


def suggest_exclusions(counts: pd.Series) -> str:
    """Return a sentence with the labels that a task does not know, and the options that exclude all of them.

    Args:
        counts: The number of rows by label; the labels of a list are joined by a bar.
    """
    listed = ", ".join(f"{label!r} ({n})" for label, n in counts.iloc[:MANY].items())
    labels = dict.fromkeys(label for text in counts.index for label in str(text).split("|"))
    if len(labels) > MANY:
        return f"Unknown labels (rows): {listed} and others. {_option(OTHERS, '', pattern=True)} excludes all of them."
    return f"Unknown labels (rows): {listed}. To exclude them: {_options(dict.fromkeys(labels, ''))}"


def _option(label: str, name: str, *, pattern: bool = False) -> str:
    """Return the option that gives a label or pattern a class."""
    return f"labels={ {label: name} }" if pattern else _options({label: name})


def _options(names: Mapping[str, str]) -> str:
    """Return the option that gives each label a class."""
    return f"labels={ {escape_wildcards(label): name for label, name in names.items()} }"
