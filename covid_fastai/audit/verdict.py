"""The verdict: one sentence, by stated rules, on whether a model has been shown to see disease."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from covid_fastai.audit.baselines import ShortcutAudit
from covid_fastai.data.tables import as_rows
from covid_fastai.evaluation.formatting import SIGNED, ResultDisplay, format_estimate, format_interval, format_metric

__all__ = ["Condition", "Verdict", "give_verdict"]

MET, FAILED, NO_ROOM, OPEN, NOT_APPLICABLE = "met", "failed", "no room", "not shown", "does not apply"
MOST_NEGATIVE_CONTROLS = (
    0.25  # of the negatives of the positive class's own source, called positive: 3 of CoronaHack's 12
)


@dataclass(frozen=True)
class Condition:
    """One thing that has to hold before a model is said to see disease.

    Attributes:
        name: What has to hold.
        outcome: `"met"`, `"failed"`, `"no room"` (a simple baseline is so good that these data cannot tell),
            `"not shown"` (it was not tried) or `"does not apply"`.
        text: What was found, or what would show it.
    """

    name: str
    outcome: str
    text: str


@dataclass(frozen=True)
class Verdict(ResultDisplay):
    """What has been shown of a model.

    Attributes:
        level: `"shown"` (every condition was tried and holds), `"not shown"` (nothing speaks against it, but something
            was not tried) or `"refuted"` (a condition fails: what the model has learnt may not be disease).
        sentence: The same in words.
        conditions: Each condition with its outcome.
    """

    level: str
    sentence: str
    conditions: tuple[Condition, ...]

    def table(self) -> pd.DataFrame:
        """Return the conditions, a row each."""
        return pd.DataFrame([vars(condition) for condition in self.conditions], columns=["name", "outcome", "text"])

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        conditions = [vars(condition) for condition in self.conditions]
        return {"level": self.level, "sentence": self.sentence, "conditions": conditions}

    def __str__(self) -> str:
        return "\n".join([self.sentence, *(f"- {one.name}: {one.outcome}. {one.text}" for one in self.conditions)])

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
    """Judge by stated rules whether a model has been shown to see disease.

    All must hold: (1) no lung-free baseline is flagged; (2) the network is better than the 16 x 16 thumbnail, its
    paired 95% interval above 0; (3) it is better than one that was trained and judged with the lungs' region black, in
    the same way; (4) at another hospital, on images of both classes from that one source, the whole interval of
    its AUC lies above 0.5, and the AUC above the thumbnail's; (5) of negatives from the positive class's own source it
    calls no more than a quarter positive, where there are such images.

    Args:
        shortcuts: What `find_shortcuts` returned.
        network: The network's AUC on held-out patients: `value`, `low`, `high`, `n`.
        versus: A row a baseline: `baseline`, `difference` (network less baseline), `low`, `high`, and
            `errorless_low`, the lower bound of the difference if the network made no error.
        blind: The same of the network that was trained without the lungs; None where none was.
        external: Of each source with both classes: `source`, `value`, `low`, `high`, `n` and `thumbnail` (its AUC
            there; None or NaN where it could not be tried).
        negative_controls: `images`, `called` (how many were called positive) and `share`; None where there are none.

    Returns:
        The verdict.
    """
    conditions = (
        _no_flag(shortcuts),
        _beats_thumbnail(shortcuts, network, versus),
        _needs_lungs(blind),
        _holds_elsewhere(external),
        _same_source(negative_controls),
    )
    outcomes = {condition.outcome for condition in conditions}
    if outcomes <= {MET, NOT_APPLICABLE}:
        sentence = "Evidence of disease signal: every condition that was stated holds on these data."
        return Verdict("shown", sentence, conditions)
    n, thumbnail = int(_of_thumbnail(versus)["n"]), shortcuts.row("thumbnail")["auc"]
    room = (
        f" The data cannot tell: on {n} patients not even a model without an error would be shown to be better than a "
    )
    room += f"16 × 16 thumbnail (AUC {format_metric(thumbnail)})."
    if FAILED in outcomes:
        apart = "Separates sources" if "source" in shortcuts.flags else "A shortcut is open"
        apart = apart if shortcuts.flags else "A condition fails"
        sentence = f"{apart}; disease signal not shown." + (room if NO_ROOM in outcomes else "")
        return Verdict("refuted", sentence, conditions)
    if NO_ROOM in outcomes:
        return Verdict("not shown", f"Disease signal not shown.{room}", conditions)
    missing = "; ".join(_lower(condition.text) for condition in conditions if condition.outcome == OPEN)
    return Verdict("not shown", f"No shortcut was found; disease signal not shown: {missing}.", conditions)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".")


def _no_flag(shortcuts: ShortcutAudit) -> Condition:
    name = "Nothing without a lung tells the classes apart"
    if shortcuts.flags:
        listed = ", ".join(f"{flag} (AUC {format_metric(shortcuts.row(flag)['auc'])})" for flag in shortcuts.flags)
        return Condition(name, FAILED, f"They can be told apart by: {listed}.")
    return Condition(name, MET, "No lung-free baseline is better than chance.")


def _beats_thumbnail(shortcuts: ShortcutAudit, network: Mapping[str, Any], versus: pd.DataFrame) -> Condition:
    name = "Better than a 16 × 16 thumbnail"
    row = _of_thumbnail(versus)
    own, thumbnail = format_metric(network["value"]), format_metric(shortcuts.row("thumbnail")["auc"])
    difference = format_estimate(row["difference"], row["low"], row["high"], spec=SIGNED)
    found = f"Its AUC is {own}, the thumbnail's {thumbnail}; on the same {int(row['n'])} "
    found += f"patients the difference is {difference}."
    if row["low"] > 0:
        return Condition(name, MET, found)
    if row["errorless_low"] <= 0:
        return Condition(name, NO_ROOM, f"{found} Not even a model without an error would be shown to be.")
    return Condition(name, FAILED, found)


def _of_thumbnail(versus: pd.DataFrame) -> dict[str, Any]:
    return as_rows(versus[versus["baseline"] == "thumbnail"])[0]


def _needs_lungs(blind: Mapping[str, Any] | None) -> Condition:
    name = "Worse when trained without the lungs"
    if blind is None:
        return Condition(name, OPEN, "No network was trained with the lungs' region black (audit --full).")
    difference = format_estimate(blind["difference"], blind["low"], blind["high"])
    found = f"Paired difference to the network that saw no lungs {difference}."
    return Condition(name, MET if blind["low"] > 0 else FAILED, found)


def _holds_elsewhere(external: Sequence[Mapping[str, Any]]) -> Condition:
    name = "Holds at another hospital, within one source"
    if not external:
        return Condition(name, OPEN, "No external set with both classes from one source (validate).")
    texts, held = [], True
    for one in external:
        tried = one["thumbnail"] is not None and one["thumbnail"] == one["thumbnail"]
        thumbnail = f", the thumbnail {format_metric(one['thumbnail'])}" if tried else ""
        interval = f"{format_interval(one['low'], one['high'])}, n = {one['n']}"
        texts.append(f"{one['source']}: AUC {format_metric(one['value'])} ({interval}){thumbnail}")
        held &= one["low"] > 0.5 and not (tried and one["value"] <= one["thumbnail"])
    return Condition(name, MET if held else FAILED, f"{'; '.join(texts)}.")


def _same_source(negative_controls: Mapping[str, Any] | None) -> Condition:
    name = "Negatives of the positive class's own source are called negative"
    if negative_controls is None:
        return Condition(name, NOT_APPLICABLE, "There are no such images beside those that were trained on.")
    found = f"{negative_controls['called']} of {negative_controls['images']} are called positive."
    return Condition(name, MET if negative_controls["fraction"] <= MOST_NEGATIVE_CONTROLS else FAILED, found)
