"""Tasks: which findings are which class, and which images are excluded."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from covid_fastai.errors import UsageError

__all__ = ["TASKS", "Task", "canonical_finding", "fold_label", "fold_text", "get_task"]

# How data sets spell the findings; `fold_label` compares them, so that "Covid_19" and "COVID 19" need no entry.
SPELLINGS = {
    "Normal": ("no finding", "no findings", "healthy"),
    "pneumonia": ("Pnemonia",),  # CoronaHack's spelling
    "bacteria": ("bacterial", "bacterial pneumonia"),
    "virus": ("viral", "viral pneumonia"),
    "COVID-19": ("covid", "covid-19 pneumonia", "sars-cov-2"),
    "SARS": (),
    "ARDS": (),
    "Streptococcus": ("streptococcus pneumoniae",),
}


# Spaces, underscores and hyphens between letters, or between a letter and a digit; a hyphen behind a space is a sign.
_RUN = r"[-‐‑–_\s]+(?<!\s[-‐‑–])"
_JOINTS = re.compile(rf"(?<=[^\W\d_]){_RUN}(?=[^\W_])|(?<=\d){_RUN}(?=[^\W\d_])")
LONGEST_CLASS = 100  # characters; a saved model's config.json allows no more


def fold_text(text: object) -> str:
    """Return `text` as columns, splits and sources are compared: without case, spaces, hyphens and underscores."""
    return re.sub(r"[-_\s]+", "", str(text).casefold())


def fold_label(text: object) -> str:
    """Return `text` as labels are compared: lower case, without the spaces, hyphens and underscores inside of words.

    Signs and numbers stay as they are: `-1` is not `1`, `COVID-` is not `COVID`, and `1-5` is not `15`.
    """
    return _JOINTS.sub("", unicodedata.normalize("NFC", str(text)).casefold().strip())  # guard: fold_label


_CANONICAL = {fold_label(spelling): name for name, others in SPELLINGS.items() for spelling in (name, *others)}


def canonical_finding(text: str) -> str:
    """Return the usual spelling of a finding, e.g. `COVID-19` for `covid`; one that is not known only stripped."""
    return _CANONICAL.get(fold_label(text), str(text).strip())


@dataclass(frozen=True)
class Task:
    """Say which findings make which class, in one small object.

    Findings are compared by `fold_label` (case, and spaces, hyphens and underscores inside words, do not count; signs
    and numbers do), in all spellings that `canonical_finding` knows. The name of a class is always one of its findings.

    Args:
        name: One word, for folders and the command line.
        title: A line for plots and reports.
        classes: The classes in the order of the vocabulary, the negative one first.
        positive: The class that sensitivity is about; None where there are more than two.
        labels: The class of each finding.
        excluded: The reason why a finding takes no part, for findings that are known and not asked about. A finding
            that is neither here nor in `labels` is an unknown label, and an error.
        excluded_sources: The reason why a whole collection takes no part, by the `source` of its images.
        frontal_only: Whether lateral views are excluded, where the view is known.
        official_test: Whether the rows that the data call TEST are a test set of this task in any case; if not, they
            are one only where every class is among them, and are excluded otherwise.

    Raises:
        UsageError: The parts contradict each other.

    Examples:
        >>> labels = {"Normal": "clear", "Pnemonia": "opacity"}
        >>> task = Task(name="opacity", classes=("clear", "opacity"), labels=labels, positive="opacity")
        >>> task.class_of("Pnemonia")
        'opacity'
    """

    name: str
    title: str = ""
    classes: tuple[str, ...] = ()
    positive: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    excluded: Mapping[str, str] = field(default_factory=dict)
    excluded_sources: Mapping[str, str] = field(default_factory=dict)
    frontal_only: bool = True
    official_test: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.classes, str):
            raise UsageError(f"classes={self.classes!r} is one text.", hint='Give a tuple: ("Normal", "COVID-19").')
        object.__setattr__(self, "classes", tuple(self.classes))  # JSON gives lists
        for name in ("labels", "excluded", "excluded_sources"):
            object.__setattr__(self, name, dict(getattr(self, name)))
        object.__setattr__(self, "title", self.title or " or ".join(self.classes))
        self._check()

    def _check(self) -> None:
        where = f"Task {self.name!r}"
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name):
            raise UsageError(f"{where}: the name stands in folder names.", hint="Use letters, digits, - and _.")
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes) or not all(self.classes):
            raise UsageError(f"{where}: classes={list(self.classes)}.", hint="Name two or more different classes.")
        for name in self.classes:
            if len(name) > LONGEST_CLASS or not name.isprintable() or name != name.strip() or "$" in name:
                raise UsageError(
                    f"{where}: the class name {name[:60]!r} ({len(name)} characters) fits no table, plot or file.",
                    hint=f"Use up to {LONGEST_CLASS} printable characters without '$' and without outer spaces.",
                )
        if self.positive is not None and self.positive not in self.classes:
            raise UsageError(
                f"{where}: positive={self.positive!r} is no class.", hint=f"Classes: {', '.join(self.classes)}."
            )
        for finding, label in self.labels.items():
            if label not in self.classes:
                raise UsageError(
                    f"{where}: {finding!r} is given the class {label!r}.", hint=f"Classes: {', '.join(self.classes)}."
                )
        self._check_findings(where)

    def _check_findings(self, where: str) -> None:
        """Refuse a finding that has two classes, or a class and a reason for exclusion, in any of its spellings."""
        classes: dict[str, str] = {}
        for finding, label in [*((name, name) for name in self.classes), *self.labels.items()]:
            other = classes.setdefault(_usual(finding), label)
            if other != label:
                raise UsageError(
                    f"{where}: {finding!r} has the classes {other!r} and {label!r}.", hint="Name it in one of both."
                )
        both = [finding for finding in self.excluded if _usual(finding) in classes]
        if both:
            raise UsageError(
                f"{where}: {', '.join(map(repr, both))} has a class and is excluded.", hint="Name it in one of both."
            )

    def class_of(self, finding: str) -> str | None:
        """Return the class of a finding, None where it has none."""
        return _look_up({**{name: name for name in self.classes}, **self.labels}, finding)

    def reason_excluded(self, finding: str) -> str | None:
        """Return why a finding takes no part, None where it does or is not known."""
        return None if self.class_of(finding) else _look_up(self.excluded, finding)

    def known_findings(self) -> list[str]:
        """Return the findings that the task can place: those of its classes first, then those that are excluded."""
        return list(dict.fromkeys([*self.classes, *self.labels, *self.excluded]))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, from which `Task(**fields)` makes the same task."""
        copies = {name: dict(value) for name, value in vars(self).items() if isinstance(value, dict)}
        return {**vars(self), **copies, "classes": list(self.classes)}


def _look_up(table: Mapping[str, str], finding: str) -> str | None:
    """Return the entry of a finding, in whichever spelling it stands there."""
    return {_usual(name): value for name, value in table.items()}.get(_usual(finding))


def _usual(finding: str) -> str:
    """Return what all spellings of a finding have in common."""
    return fold_label(canonical_finding(finding))


def _not_of_this_task(*findings: str) -> dict[str, str]:
    return {finding: f"not of this task: {finding}" for finding in findings}


# Cohen's images are of adults from many hospitals, all others in CoronaHack of children of one hospital: a class that
# held Cohen's images could be told by where they come from, without looking at a lung.
_COHEN_ASIDE = {"cohen": "adults of other hospitals (Cohen): class and source would be one"}

TASKS: dict[str, Task] = {
    "covid": Task(
        name="covid",
        title="COVID-19 or normal chest radiograph, frontal views",
        classes=("Normal", "COVID-19"),
        positive="COVID-19",
        labels={"Normal": "Normal", "COVID-19": "COVID-19"},
        excluded=_not_of_this_task("bacteria", "virus", "pneumonia", "Streptococcus", "SARS", "ARDS"),
        official_test=False,  # CoronaHack's TEST holds no COVID-19
    ),
    "pneumonia": Task(
        name="pneumonia",
        title="Pneumonia or normal chest radiograph, children",
        classes=("Normal", "Pneumonia"),
        positive="Pneumonia",
        labels={"Normal": "Normal", **dict.fromkeys(("bacteria", "virus", "pneumonia"), "Pneumonia")},
        excluded=_not_of_this_task("COVID-19", "Streptococcus", "SARS", "ARDS"),
        excluded_sources=_COHEN_ASIDE,
    ),
    "etiology": Task(
        name="etiology",
        title="Normal, bacterial or viral pneumonia, children",
        classes=("Normal", "Bacterial", "Viral"),
        labels={"Normal": "Normal", "bacteria": "Bacterial", "virus": "Viral"},
        excluded=_not_of_this_task("pneumonia", "COVID-19", "Streptococcus", "SARS", "ARDS"),
        excluded_sources=_COHEN_ASIDE,
    ),
}


def get_task(task: str | Task | Mapping[str, Any]) -> Task:
    """Return the task of that name, or the task itself.

    Args:
        task: `"covid"`, `"pneumonia"`, `"etiology"`, a `Task`, or the fields of one, as `Task.to_dict` returns them.

    Raises:
        UsageError: There is no such task, or a `Task` has no such field.
    """
    if isinstance(task, Task):
        return task
    if isinstance(task, Mapping):
        if unknown := [name for name in task if name not in Task.__dataclass_fields__]:
            raise UsageError(
                f"A task has no field {unknown[0]!r}.", hint=f"Fields: {', '.join(Task.__dataclass_fields__)}."
            )
        if "name" not in task:
            raise UsageError(f"task={dict(task)} has no name.", hint='Give one: {"name": "covid", ...}.')
        return Task(**task)
    if isinstance(task, str) and task in TASKS:
        return TASKS[task]
    near = difflib.get_close_matches(str(task).casefold(), TASKS, n=1)
    meant = f"Did you mean {near[0]!r}? " if near else ""
    raise UsageError(
        f"There is no task {task!r}.", hint=f"{meant}Tasks: {', '.join(TASKS)}; or give a Task of your own."
    )
