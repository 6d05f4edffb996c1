"""Tasks: the class of each finding, and the reasons to exclude images."""

from __future__ import annotations

import dataclasses
import difflib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from covid_fastai.errors import UsageError

__all__ = [
    "Match",
    "TASKS",
    "Task",
    "canonical_finding",
    "escape_wildcards",
    "fold_label",
    "fold_text",
    "get_task",
    "is_pattern",
]

# The spellings of findings in data sets, compared by `fold_label`: "Covid_19" and "COVID 19" need no entry.
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


# Spaces, underscores and hyphens between letters, or between a letter and a digit; a hyphen after a space is a sign.
_RUN = r"[-‐‑–_\s]+(?<!\s[-‐‑–])"
_JOINTS = re.compile(rf"(?<=[^\W\d_]){_RUN}(?=[^\W_])|(?<=\d){_RUN}(?=[^\W\d_])")
# A whole number, as floats and booleans are written too: 1, 1.0 and True are one label; -1, 1.5 and 01 are others.
_WHOLE_FLOAT = re.compile(r"([-+]?\d+)\.0+")
_BOOLEANS = {"true": "1", "false": "0"}
_WILDCARDS = re.compile(r"\[([*?])\]|([*?])")  # [*] and [?] stand for the characters themselves
OTHERS = "*"  # the pattern of every label that nothing else names
EXCLUDED_BY_OPTION = "excluded by the option labels"
MOST_CLASSES = 100  # every one has its metrics and curves; a thousand take minutes, and no page shows them
LONGEST_CLASS = 100  # characters; the limit of a saved model's config.json


def fold_text(text: object) -> str:
    """Return `text` in the form in which columns, splits and sources are compared.

    The result is case-folded, without spaces, hyphens and underscores.
    """
    return re.sub(r"[-_\s]+", "", str(text).casefold())


def fold_label(text: object) -> str:
    """Return `text` in the form in which labels are compared.

    The result is case-folded, without spaces, hyphens and underscores inside words. Signs and numbers do
    not change: `-1` is not `1`, `COVID-` is not `COVID`, and `1-5` is not `15`. `1`, `1.0` and `True` are the same
    label, and so are `0`, `0.0` and `False`.
    """
    label = _JOINTS.sub("", _plain(text))  # guard: fold_label
    number = _WHOLE_FLOAT.fullmatch(label)
    return number[1] if number else _BOOLEANS.get(label, label)


def is_pattern(text: str) -> bool:
    """Return whether a text has a wildcard, `*` or `?`, outside of brackets."""
    return any(match[2] for match in _WILDCARDS.finditer(text))


def escape_wildcards(text: str) -> str:
    """Return the pattern that matches a text only: `[?]` for `?`, `[*]` for `*`."""
    return re.sub(r"([*?])", r"[\1]", text)


def _plain(text: object) -> str:
    return unicodedata.normalize("NFC", str(text)).casefold().strip()


def _expression(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a pattern with wildcards."""
    parts = _WILDCARDS.split(pattern)  # text, bracketed character, wildcard, text, ...
    wildcards = {None: "", "*": ".*", "?": "."}
    return re.compile(
        "".join(
            re.escape(text) + re.escape(character or "") + wildcards[wildcard]
            for text, character, wildcard in zip(parts[::3], [*parts[1::3], ""], [*parts[2::3], None], strict=True)
        ),
        re.DOTALL,
    )


_CANONICAL = {fold_label(spelling): name for name, others in SPELLINGS.items() for spelling in (name, *others)}


def canonical_finding(text: str) -> str:
    """Return the usual spelling of a finding, e.g. `COVID-19` for `covid`; an unknown finding is only stripped."""
    return _CANONICAL.get(fold_label(text), str(text).strip())


class Match(NamedTuple):
    """What a task says about one label: its class, or the reason to exclude it.

    Attributes:
        label: The class; "" if the label has none.
        reason: The reason to exclude the label; "" if it is not excluded.
        rank: How the label is named: 3 by itself, 2 by a pattern, 1 as one of all others, 0 not at all.
    """

    label: str = ""
    reason: str = ""
    rank: int = 0


@dataclass(frozen=True)
class Task:
    """A classification task: its classes, the class of each finding, and the reasons to exclude images.

    Findings are compared by `fold_label`, in all spellings that `canonical_finding` knows. Case, and spaces, hyphens
    and underscores inside words, are ignored; signs and numbers are not. The name of a class is always one of its
    findings.

    Args:
        name: One word, for folders and the command line.
        title: A line for plots and reports.
        classes: The classes in the order of the vocabulary, the negative one first.
        positive: The class that sensitivity refers to; None for more than two classes.
        labels: The class of each finding.
        excluded: The reason to exclude a finding, for known findings that are not part of the task. A finding that is
            neither here nor in `labels` or `patterns` is an unknown label, which is an error.
        patterns: The class of all findings that match a shell pattern, such as `{"Pneumonia/Viral*": "Viral"}`; an
            empty class excludes them. `*` stands for any text and `?` for any character, `[*]` and `[?]` for these
            characters. A finding in `labels` or `excluded` keeps its own meaning. The pattern `*` alone stands for all
            findings that nothing else names.
        others: The reason to exclude all findings that nothing names; "" if such a finding is an unknown label.
        excluded_sources: The reason to exclude a whole collection, by the `source` of its images.
        frontal_only: Whether lateral views are excluded, if the view is known.
        official_test: Whether the rows that the data name TEST are always a test set of this task. If False, they are a
            test set only if they have every class, and are excluded otherwise.

    Raises:
        UsageError: A field is not allowed, or fields contradict each other.

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
    patterns: Mapping[str, str] = field(default_factory=dict)
    others: str = ""
    excluded_sources: Mapping[str, str] = field(default_factory=dict)
    frontal_only: bool = True
    official_test: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.classes, str):
            raise UsageError(f"classes={self.classes!r} is a string.", hint='Give a tuple: ("Normal", "COVID-19").')
        object.__setattr__(self, "classes", tuple(self.classes))  # JSON gives lists
        for name in ("labels", "excluded", "patterns", "excluded_sources"):
            object.__setattr__(self, name, dict(getattr(self, name)))
        object.__setattr__(self, "title", self.title or " or ".join(self.classes))
        self._check()

    def _check(self) -> None:
        where = f"Task {self.name!r}"
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name):
            raise UsageError(f"{where}: the name cannot be used in folder names.", hint="Use letters, digits, - and _.")
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes) or not all(self.classes):
            raise UsageError(
                f"{where}: classes={list(self.classes)} are not two or more different names.",
                hint="Name two classes or more, each once.",
            )
        if len(self.classes) > MOST_CLASSES:  # guard: most_classes
            raise UsageError(
                f"{where} has {len(self.classes):,} classes, more than {MOST_CLASSES}.",
                hint='Join rare labels in one class, such as labels={"rare*": "Other"}, or exclude them.',
            )
        for name in self.classes:
            if len(name) > LONGEST_CLASS or not name.isprintable() or name != name.strip() or "$" in name:
                raise UsageError(
                    f"{where}: the class name {name[:60]!r} ({len(name)} characters) is not allowed.",
                    hint=f"Use up to {LONGEST_CLASS} printable characters without '$' and outer spaces.",
                )
        if self.positive is not None and self.positive not in self.classes:
            raise UsageError(
                f"{where}: positive={self.positive!r} is not a class.", hint=f"Classes: {', '.join(self.classes)}."
            )
        patterns = {finding: label for finding, label in self.patterns.items() if label}
        for finding, label in {**self.labels, **patterns}.items():
            if label not in self.classes:
                raise UsageError(
                    f"{where}: {finding!r} has the class {label!r}, which is not a class of the task.",
                    hint=f"Classes: {', '.join(self.classes)}.",
                )
        self._check_findings(where)

    def _check_findings(self, where: str) -> None:
        """Raise if a finding, in any spelling, has two classes, or a class and a reason for exclusion."""
        classes: dict[str, str] = {}
        for finding, label in [*((name, name) for name in self.classes), *self.labels.items()]:
            other = classes.setdefault(_usual(finding), label)
            if other != label:
                raise UsageError(
                    f"{where}: {finding!r} has the classes {other!r} and {label!r}.", hint="Keep one of the two."
                )
        conflicts = [finding for finding in self.excluded if _usual(finding) in classes]
        if conflicts:
            raise UsageError(
                f"{where}: {', '.join(map(repr, conflicts))} has a class and is excluded.", hint="Keep one of the two."
            )

    def class_of(self, finding: str) -> str | None:
        """Return the class of a finding, None if it has no class."""
        return self.match(finding).label or None

    def reason_excluded(self, finding: str) -> str | None:
        """Return the reason to exclude a finding, None if it is not excluded or not known."""
        return self.match(finding).reason or None

    def match(self, finding: str) -> Match:
        """Return the class of a finding or the reason to exclude it, and how the task names the finding.

        Args:
            finding: One label of the data, in any spelling.

        Raises:
            UsageError: Two patterns give the finding different classes.
        """
        named = self._by_finding.get(_usual(finding))
        if named is not None or not finding.strip():  # no pattern stands for an empty label
            return named or Match()
        forms = (_plain(finding), fold_label(finding))
        matching = {
            pattern: self.patterns[pattern]
            for pattern, expressions in self._expressions.items()
            if any(expression.fullmatch(form) for expression, form in zip(expressions, forms, strict=True))
        }
        if len(set(matching.values())) > 1:  # guard: two_patterns
            meanings = " and ".join(f"{pattern!r} ({label or 'excluded'})" for pattern, label in matching.items())
            raise UsageError(
                f"The label {finding!r} matches the patterns {meanings}.",
                hint="Name the label itself in `labels`, or make the patterns narrower.",
            )
        rank = 2 if matching else 1
        if not matching and OTHERS in self.patterns:
            matching = {OTHERS: self.patterns[OTHERS]}
        for pattern, label in matching.items():
            return Match(label, "" if label else f"{EXCLUDED_BY_OPTION} ({pattern})", rank)
        return Match("", self.others, 1) if self.others else Match()

    @cached_property
    def _by_finding(self) -> dict[str, Match]:
        labels = {**{name: name for name in self.classes}, **self.labels}
        excluded = {_usual(finding): Match("", reason, 3) for finding, reason in self.excluded.items()}
        return excluded | {_usual(finding): Match(label, "", 3) for finding, label in labels.items()}

    @cached_property
    def _expressions(self) -> dict[str, tuple[re.Pattern[str], re.Pattern[str]]]:
        """The regular expressions of each pattern, for a finding as it is written and for its folded form."""
        return {
            pattern: (_expression(_plain(pattern)), _expression(fold_label(pattern)))
            for pattern in self.patterns
            if pattern != OTHERS
        }

    def known_findings(self) -> list[str]:
        """Return the findings that the task knows: those of its classes first, then the excluded ones."""
        return list(dict.fromkeys([*self.classes, *self.labels, *self.excluded]))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values; `Task(**fields)` makes the same task."""
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        copies = {name: dict(value) for name, value in values.items() if isinstance(value, dict)}
        return {**values, **copies, "classes": list(self.classes)}


def _usual(finding: str) -> str:
    """Return the form that is the same for all spellings of a finding."""
    return fold_label(canonical_finding(finding))


def _not_of_this_task(*findings: str) -> dict[str, str]:
    return {finding: f"not of this task: {finding}" for finding in findings}


# Cohen's images are of adults from many hospitals, all other images of CoronaHack are of children of one hospital. The
# source would identify a class with Cohen's images, without any use of the lungs.
_EXCLUDE_COHEN = {"cohen": "adults of other hospitals (Cohen): class and source would be confounded"}

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
        excluded_sources=_EXCLUDE_COHEN,
    ),
    "etiology": Task(
        name="etiology",
        title="Normal, bacterial or viral pneumonia, children",
        classes=("Normal", "Bacterial", "Viral"),
        labels={"Normal": "Normal", "bacteria": "Bacterial", "virus": "Viral"},
        excluded=_not_of_this_task("pneumonia", "COVID-19", "Streptococcus", "SARS", "ARDS"),
        excluded_sources=_EXCLUDE_COHEN,
    ),
}


def get_task(task: str | Task | Mapping[str, Any]) -> Task:
    """Return the task of a name, a task itself, or a task from its fields.

    Args:
        task: `"covid"`, `"pneumonia"`, `"etiology"`, a `Task`, or the fields of one, as `Task.to_dict` returns them.

    Raises:
        UsageError: The name or a field is not known, or the name is missing.
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
    listed = ", ".join(TASKS)
    raise UsageError(f"There is no task {task!r}.", hint=f"{meant}Tasks: {listed}. Make another one with `classes`.")
