"""Tasks that are made from options: labels mapped to classes, classes, a positive class, one-hot columns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from covid_fastai.data.tasks import EXCLUDED_BY_OPTION, Task, canonical_finding, fold_label, get_task, is_pattern
from covid_fastai.errors import UsageError
from covid_fastai.options import ClassNames, ColumnNames, LabelClasses, checked

__all__ = ["is_one_finding", "make_task"]

DEFAULT = "covid"  # the task of all functions that are given none; other options can replace it
ABSENT = "No "  # of the negative class of a task of one finding
LONGEST_NAME = 60  # characters; the name is part of a folder's name
# Words that begin the name of a negative class: "No TB", "Negative for Pneumonia", "Non-COVID".
_NEGATIVE = re.compile(r"(no|non|not|negative|normal|healthy|control|without)(?![^\W_])", re.IGNORECASE)


@checked
def make_task(
    task: str | Task | Mapping[str, Any] = DEFAULT,
    *,
    labels: LabelClasses | None = None,
    classes: ClassNames | None = None,
    positive: str | None = None,
    label_columns: ColumnNames | None = None,
) -> Task:
    """Return the task of a name, with more labels, or a new task from labels, classes or a positive class.

    The classes are, in this order of precedence:

    - `classes`, which make a new task. The first is the negative one, unless `positive` says otherwise.
    - Those of a task other than the default one. `labels` add findings to it.
    - Those of the default task, if `labels` or `label_columns` name no other class. They add findings to it.
    - `positive` alone, or with labels of this class only: "No <positive>" and `positive`. Normal images are negative.
      Any other finding is excluded; `labels={"*": "No <positive>"}` makes all of them negative.
    - The classes that `labels` and `positive` name, else the columns in `label_columns`; a class that begins with a
      word such as normal or no comes first.

    Args:
        task: A task's name, a `Task`, or its fields.
        labels: The class of labels of the data. An empty class excludes a label. `*` and `?` are wildcards, `[*]` and
            `[?]` the characters themselves. A label that is named itself does not follow a pattern. The pattern `*`
            alone stands for all labels that nothing else names.
        classes: The classes of a new task.
        positive: The positive class of two.
        label_columns: The columns with one finding each, if the data have such columns.

    Returns:
        The task. The name of a new one consists of its classes.

    Raises:
        UsageError: The options contradict each other, or a class name is not allowed.

    Examples:
        >>> make_task(labels={"Lung_Opacity": "COVID-19"}).class_of("lung opacity")
        'COVID-19'
        >>> make_task(classes=("Normal", "Lung opacity", "COVID-19")).name
        'normal-vs-lung-opacity-vs-covid-19'
        >>> task = make_task(positive="Pneumonia")
        >>> task.class_of("No Finding"), task.class_of("Pneumonia"), task.reason_excluded("Hernia")
        ('No Pneumonia', 'Pneumonia', 'another finding than Pneumonia')
    """
    named = get_task(task)
    labels, columns = labels or {}, tuple(name for name in label_columns or () if (labels or {}).get(name) != "")
    finding = positive or (classes[1] if classes and len(classes) == 2 else None)
    if len(columns) == 1 and finding and columns[0] not in labels and not _means_absence(columns[0]):
        labels = {**labels, columns[0]: finding}  # the only column holds the finding, whatever its name
    wanted = list(dict.fromkeys(name for name in labels.values() if name))
    if classes is not None:
        if task != DEFAULT:
            raise UsageError(
                f"task={named.name!r} and classes={list(classes)} are mutually exclusive.",
                hint="Omit one of the two; `labels` add labels to a task.",
            )
        return _new_task(_order(classes, positive), labels, positive)
    if task != DEFAULT or _names_classes_of(named, wanted, positive, columns):
        return _extend(named, labels, positive)
    if not wanted and positive is None and len(columns) == 1:
        positive = columns[0]
    if positive is not None and set(wanted) <= {positive}:
        return _one_finding(positive, labels)
    if positive is None and not wanted:
        wanted = list(columns)
    return _new_task(_order_by_meaning([*wanted, *([positive] if positive else [])], positive), labels, positive)


def is_one_finding(task: Task) -> bool:
    """Return whether the negative class of a task means the absence of its positive class, as `make_task` makes it.

    Args:
        task: The task.
    """
    return len(task.classes) == 2 and task.positive is not None and task.classes[0] == ABSENT + task.positive


def _names_classes_of(task: Task, wanted: Sequence[str], positive: str | None, columns: Sequence[str]) -> bool:
    """Return whether options name classes of a task, and no other class."""
    if wanted:
        return {*wanted, *([positive] if positive else [])} <= set(task.classes) and set(wanted) != {positive}
    if positive is not None:
        return False
    if not columns:  # nothing, or labels that are excluded
        return True
    return all(task.match(name).label for name in columns)


def _extend(task: Task, labels: Mapping[str, str], positive: str | None) -> Task:
    """Return a task with more labels; a label of the options replaces the meaning that it has in the task."""
    unknown = [(theirs, ours) for theirs, ours in labels.items() if ours and ours not in task.classes]
    if unknown:
        theirs, ours = unknown[0]
        raise UsageError(
            f"labels: {theirs!r} has the class {ours!r}, which is not a class of the task {task.name!r}.",
            hint=f"Its classes: {', '.join(task.classes)}. Omit task= to make a new task, or give its classes=.",
        )
    if positive is not None:
        if positive not in task.classes or len(task.classes) > 2:
            raise _not_positive(positive, task.classes)
        task = replace(task, classes=_order(task.classes, positive), positive=positive)
    names, excluded, patterns = _sort_labels(labels)
    given = {fold_label(canonical_finding(name)) for name in (*names, *excluded)}

    def kept(meanings: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in meanings.items() if fold_label(canonical_finding(name)) not in given}

    return replace(
        task,
        labels=kept(task.labels) | names,
        excluded=kept(task.excluded) | excluded,
        patterns={**task.patterns, **patterns},
    )


def _new_task(classes: Sequence[str], labels: Mapping[str, str], positive: str | None) -> Task:
    if positive is not None and (positive not in classes or len(classes) > 2):
        raise _not_positive(positive, classes)
    if positive is None and len(classes) == 2:
        positive = classes[1]
    names, excluded, patterns = _sort_labels(labels)
    return Task(
        name=_slug(classes),
        classes=tuple(classes),
        positive=positive,
        labels=names,
        excluded=excluded,
        patterns=patterns,
    )


def _one_finding(positive: str, labels: Mapping[str, str]) -> Task:
    """Return the task of one finding: the images that have it, and the normal ones."""
    negative = f"{ABSENT}{positive}"
    names, excluded, patterns = _sort_labels(labels)
    if fold_label(canonical_finding(positive)) != fold_label("Normal"):
        names = {"Normal": negative, **names}
    task = _new_task((negative, positive), {}, positive)
    others = f"another finding than {positive}"
    return replace(task, labels=names, excluded=excluded, patterns=patterns, others="" if "*" in patterns else others)


def _not_positive(positive: str, classes: Sequence[str]) -> UsageError:
    if positive in classes:
        return UsageError(
            f"positive={positive!r} applies to two classes; these are {len(classes)}: {', '.join(classes)}.",
            hint="Omit positive: with more than two classes, each has its own metrics.",
        )
    return UsageError(f"positive={positive!r} is not a class.", hint=f"Classes: {', '.join(classes)}.")


def _sort_labels(labels: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Return the classes of labels, the reasons to exclude labels, and the classes of patterns."""
    patterns = {theirs: ours for theirs, ours in labels.items() if is_pattern(theirs)}
    names = {re.sub(r"\[([*?])\]", r"\1", theirs): labels[theirs] for theirs in labels if theirs not in patterns}
    excluded = {theirs: EXCLUDED_BY_OPTION for theirs, ours in names.items() if not ours}
    return {theirs: ours for theirs, ours in names.items() if ours}, excluded, patterns


def _order(classes: Sequence[str], positive: str | None) -> tuple[str, ...]:
    """Return two classes with the positive one last."""
    return tuple(classes[::-1] if len(classes) == 2 and positive == classes[0] else classes)


def _order_by_meaning(names: Sequence[str], positive: str | None) -> tuple[str, ...]:
    """Return classes that were not listed in order: first the one that means the absence of a finding."""
    names = list(dict.fromkeys(names))
    if len(names) < 2:
        raise UsageError(
            f"The options name only the class {names[0]!r}.",
            hint=f"A task has two classes or more. Give positive={names[0]!r} to separate it from normal "
            "images, or `classes`.",
        )
    if positive is not None and len(names) == 2:
        return _order(names, positive)
    absent = [name for name in names if _means_absence(name)]
    if len(names) == 2 and len(absent) != 1:
        raise UsageError(
            f"The classes are {names[0]!r} and {names[1]!r}; which is positive is not stated.",
            hint=f"Give positive={names[1]!r} or positive={names[0]!r}.",
        )
    return tuple(sorted(names, key=lambda name: name not in absent[:1]))


def _means_absence(name: str) -> bool:
    return canonical_finding(name) == "Normal" or _NEGATIVE.match(name) is not None


def _slug(classes: Sequence[str]) -> str:
    """Return the name of a task from its classes, for folders."""
    words = (re.sub(r"[^a-z0-9]+", "-", name.casefold()).strip("-") or "class" for name in classes)
    return "-vs-".join(words)[:LONGEST_NAME].rstrip("-")
