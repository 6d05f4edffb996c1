"""The verdict of an audit: one sentence, by fixed rules, on whether the model was shown to detect disease."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from covid_fastai.audit.baselines import ShortcutAudit
from covid_fastai.data.tables import as_rows
from covid_fastai.evaluation.formatting import SIGNED, ResultDisplay, format_estimate, format_interval, format_metric

__all__ = ["Condition", "NOT_TESTED", "Verdict", "give_verdict"]

MET, FAILED, INCONCLUSIVE = "met", "failed", "inconclusive"
NOT_TESTED, NOT_APPLICABLE = "not tested", "not applicable"
MOST_FALSE_POSITIVES = 0.25  # of the negative controls: 3 of CoronaHack's 12


@dataclass(frozen=True)
class Condition:
    """One condition that a model has to meet before disease signal counts as shown.

    Attributes:
        name: What has to hold.
        outcome: `"met"`, `"failed"`, `"inconclusive"` (the thumbnail baseline is so good that these data cannot
            decide), `"not tested"` or `"not applicable"`.
        text: The result, or what was not tested.
    """

    name: str
    outcome: str
    text: str


@dataclass(frozen=True)
class Verdict(ResultDisplay):
    """Whether a model was shown to detect disease.

    Attributes:
        level: `"shown"` (every condition that applies is met), `"not shown"` (no condition failed, but one is
            inconclusive or was not tested) or `"failed"` (a condition failed: the model may have learnt something
            other than disease).
        sentence: The level and its reason as text.
        conditions: The conditions with their outcomes.
    """

    level: str
    sentence: str
    conditions: tuple[Condition, ...]

    def table(self) -> pd.DataFrame:
        """Return the conditions as a table, one row per condition."""
        return pd.DataFrame([vars(condition) for condition in self.conditions], columns=["name", "outcome", "text"])

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as plain values."""
        conditions = [vars(condition) for condition in self.conditions]
        return {"level": self.level, "sentence": self.sentence, "conditions": conditions}

    def __str__(self) -> str:
        lines = [f"- {condition.name}: {condition.outcome}. {condition.text}" for condition in self.conditions]
        return "\n".join([self.sentence, *lines])

    def _display_parts(self) -> Iterator[pd.DataFrame | str]:
        yield from (self.sentence, self.table())


def give_verdict(
    shortcuts: ShortcutAudit,
    *,
    network: Mapping[str, Any],
    versus: pd.DataFrame,
    blind: Mapping[str, Any] | None = None,
    external: Sequence[Mapping[str, Any]] = (),
    negative_controls: Mapping[str, Any] | None = None,
) -> Verdict:
    """Decide by fixed rules whether a model was shown to detect disease.

    Five conditions have to be met:

    1. No lung-free baseline is flagged.
    2. The network is better than the 16 x 16 thumbnail: the 95% interval of the paired difference lies above 0.
    3. The network is better, by the same rule, than a network that was trained and evaluated with the lung region
       black.
    4. At another hospital, on images of both classes from one source, the 95% interval of the AUC lies above 0.5, and
       the AUC is higher than the thumbnail's.
    5. The network classifies at most a quarter of the negative controls as positive. Negative controls are negative
       images from the source of the positive class; without such images the condition does not apply.

    Args:
        shortcuts: What `find_shortcuts` returned.
        network: AUC of the network on held-out patients: `value`, `low`, `high`, `n`.
        versus: One row per baseline: `baseline`, `difference` (network minus baseline), `low`, `high`, and
            `errorless_low`, the lower bound of the difference if the network made no error.
        blind: `difference`, `low` and `high` to the network that was trained without the lung region; None if there is
            no such network.
        external: One mapping per external source with both classes: `source`, `value`, `low`, `high`, `n` and
            `thumbnail` (the thumbnail's AUC there; None or NaN if it was not evaluated).
        negative_controls: `images`, `called` (number classified as positive) and `fraction`; None if there are none.

    Returns:
        The verdict.
    """
    conditions = (
        _no_shortcut(shortcuts),
        _better_than_thumbnail(shortcuts, network, versus),
        _worse_without_lungs(blind),
        _generalises(external),
        _rejects_negative_controls(negative_controls),
    )
    outcomes = {condition.outcome for condition in conditions}
    if outcomes <= {MET, NOT_APPLICABLE}:
        sentence = "Evidence of disease signal: every condition that applies is met on these data."
        return Verdict("shown", sentence, conditions)
    undecided = ""
    if INCONCLUSIVE in outcomes:
        n, thumbnail = int(_thumbnail_row(versus)["n"]), format_metric(shortcuts.row("thumbnail")["auc"])
        undecided = f" These data cannot decide: with {n} patients, even a model without errors would not be shown to "
        undecided += f"be better than a 16 × 16 thumbnail (AUC {thumbnail})."
    if FAILED in outcomes:
        return Verdict("failed", f"Disease signal not shown: {_failure(shortcuts, conditions)}.{undecided}", conditions)
    if INCONCLUSIVE in outcomes:
        return Verdict("not shown", f"Disease signal not shown.{undecided}", conditions)
    untested = "; ".join(_as_clause(condition.text) for condition in conditions if condition.outcome == NOT_TESTED)
    sentence = f"Disease signal not shown. No shortcut was found, but the tests are incomplete: {untested}."
    return Verdict("not shown", sentence, conditions)


def _failure(shortcuts: ShortcutAudit, conditions: Sequence[Condition]) -> str:
    """Return why a verdict is `"failed"`, as a clause."""
    if "source" in shortcuts.flags:
        return "the image source alone separates the classes"
    if shortcuts.flags:
        return "a shortcut separates the classes without the lungs"
    names = [f'"{condition.name}"' for condition in conditions if condition.outcome == FAILED]
    return f"the condition{'s' if names[1:] else ''} {' and '.join(names)} {'are' if names[1:] else 'is'} not met"


def _as_clause(text: str) -> str:
    """Return a sentence without its capital letter and full stop."""
    return text[:1].lower() + text[1:].rstrip(".")


def _no_shortcut(shortcuts: ShortcutAudit) -> Condition:
    name = "No lung-free baseline separates the classes"
    if shortcuts.flags:
        listed = ", ".join(f"{flag} (AUC {format_metric(shortcuts.row(flag)['auc'])})" for flag in shortcuts.flags)
        return Condition(name, FAILED, f"Better than chance: {listed}.")
    return Condition(name, MET, "None is better than chance.")


def _better_than_thumbnail(shortcuts: ShortcutAudit, network: Mapping[str, Any], versus: pd.DataFrame) -> Condition:
    name = "Better than a 16 × 16 thumbnail"
    row = _thumbnail_row(versus)
    thumbnail = shortcuts.row("thumbnail")
    difference = format_estimate(row["difference"], row["low"], row["high"], spec=SIGNED)
    text = (
        f"The AUC of the network is {format_metric(network['value'])} (n = {int(network['n'])} patients), that of the "
    )
    text += f"thumbnail {format_metric(thumbnail['auc'])} (n = {int(thumbnail['n'])}). The paired difference on the "
    text += f"{int(row['n'])} patients of both is {difference}."
    if row["low"] > 0:
        return Condition(name, MET, text)
    if row["errorless_low"] <= 0:  # the interval of a perfect model would reach 0 too
        text += " Even a model without errors would not be shown to be better."
        return Condition(name, INCONCLUSIVE, text)
    return Condition(name, FAILED, text)


def _thumbnail_row(versus: pd.DataFrame) -> dict[str, Any]:
    return as_rows(versus[versus["baseline"] == "thumbnail"])[0]


def _worse_without_lungs(blind: Mapping[str, Any] | None) -> Condition:
    name = "Worse when trained without the lungs"
    if blind is None:
        text = "No network was trained with the lung region black (covid-fastai audit RUN --full)."
        return Condition(name, NOT_TESTED, text)
    difference = format_estimate(blind["difference"], blind["low"], blind["high"], spec=SIGNED)
    text = f"The paired AUC difference to the network trained without the lung region is {difference}."
    return Condition(name, MET if blind["low"] > 0 else FAILED, text)


def _generalises(external: Sequence[Mapping[str, Any]]) -> Condition:
    name = "Generalises to another hospital, within one source"
    if not external:
        text = (
            "No external data with both classes from one stated source were evaluated (covid-fastai validate RUN DATA)."
        )
        return Condition(name, NOT_TESTED, text)
    texts, all_met = [], True
    for result in external:
        has_thumbnail = result["thumbnail"] is not None and result["thumbnail"] == result["thumbnail"]  # not NaN
        thumbnail = f"; thumbnail {format_metric(result['thumbnail'])}" if has_thumbnail else ""
        interval = f"{format_interval(result['low'], result['high'])}, n = {result['n']}"
        texts.append(f"{result['source']}: AUC {format_metric(result['value'])} ({interval}){thumbnail}.")
        all_met &= result["low"] > 0.5 and not (has_thumbnail and result["value"] <= result["thumbnail"])
    return Condition(name, MET if all_met else FAILED, " ".join(texts))


def _rejects_negative_controls(negative_controls: Mapping[str, Any] | None) -> Condition:
    name = "Negative controls are classified as negative"
    if negative_controls is None:
        text = "There are no unused negative images from the source of the positive class."
        return Condition(name, NOT_APPLICABLE, text)
    positives, images = negative_controls["called"], negative_controls["images"]
    text = f"{positives} of {images} negative images from the source of the positive class are classified as positive."
    return Condition(name, MET if negative_controls["fraction"] <= MOST_FALSE_POSITIVES else FAILED, text)
