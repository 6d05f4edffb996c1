"""The verdict in plain words: what a result does and does not show, for readers who know no statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from covid_fastai.notices import DRAWINGS

__all__ = ["PlainVerdict", "say_plainly"]

REASONS = {  # by the level of the verdict; None without an audit
    "shown": "All checks that apply were passed; none found another explanation of the results. Other hospitals and "
    "patients may differ.",
    "not shown": "No check failed, but some were not made or have no clear answer, for example with too few patients. "
    "The model may still rely on something other than the disease.",
    "failed": "The model may rely on something other than the disease, such as differences between hospitals: at least "
    "one check points to that.",
    None: "Nobody has checked yet whether the model looks at the disease or at something else in the images.",
}


@dataclass(frozen=True)
class PlainVerdict:
    """A verdict in two sentences.

    Attributes:
        headline: What the result shows or does not show, one sentence.
        reason: Why, in a sentence or two.
    """

    headline: str
    reason: str

    def __str__(self) -> str:
        return f"{self.headline} {self.reason}"


def say_plainly(
    level: str | None, classes: Sequence[str], positive: str | None = None, *, synthetic: bool = False
) -> PlainVerdict:
    """Return what a result shows in plain words.

    Args:
        level: `Verdict.level`; None without an audit.
        classes: The classes of the model.
        positive: The positive class; None if there is none.
        synthetic: Whether all images are synthetic. They show nothing about patients, whatever the level.

    Returns:
        The headline and its reason.

    Raises:
        KeyError: The level does not exist.

    Examples:
        >>> say_plainly("failed", ["Normal", "COVID-19"], "COVID-19").headline
        'This does not show that the model recognises COVID-19.'
    """
    subject = positive or f"the classes {', '.join(classes[:-1])} and {classes[-1]}"
    if synthetic:  # guard: drawings_said
        return PlainVerdict(f"This shows nothing about {subject} in patients.", DRAWINGS)
    reason = REASONS[level]
    if level == "shown":
        return PlainVerdict(f"On these images, the checks support that the model recognises {subject}.", reason)
    return PlainVerdict(f"This does not show that the model recognises {subject}.", reason)
