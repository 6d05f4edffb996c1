"""The top of a report: what the result shows in one sentence, and three pieces of evidence beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from covid_fastai.audit.audit import Audit
from covid_fastai.audit.baselines import SMALLEST_EFFECT
from covid_fastai.audit.plain_words import say_plainly
from covid_fastai.data.tables import as_rows
from covid_fastai.evaluation.formatting import format_metric, quote_source
from covid_fastai.evaluation.metrics import Evaluation

__all__ = ["CONDITIONS", "Evidence", "describe_conclusion"]

AGAINST, UNKNOWN, UNTESTED, FOR = "evidence against", "undecided", "not tested", "evidence for"
OF_DRAWINGS = "about drawings only"  # where no side would be one on patients
CONDITIONS = {  # how the names of the conditions begin that the evidence belongs to
    "shortcut": "No lung-free baseline",
    "hospital": "Generalises to another hospital",
    "controls": "Negative controls",
}
NOT_PIXELS = (
    "source",
    "projection",
    "headers",
)  # a program that sees a part of the image is easier to imagine, and is preferred
IN_PLAIN_WORDS = {  # what the baselines without a lung see
    "source": "the name of the image source",
    "projection": "the direction of the X-rays, as the table names it",
    "headers": "the format and size of the file",
    "intensity mean and SD": "the brightness and contrast outside of the lungs",
    "border ring": "the outermost edge of the image",
    "frame": "the image around the lungs, without the edge",
    "frame texture": "the sharpness and noise of the outer part of the image",
    "non-linear": "the edge, the sharpness and the brightness of the image outside of the lungs",
}
SIDES = {"met": FOR, "failed": AGAINST}  # any other outcome is undecided
LEVELS = {"shown": "good", "not shown": "caution", "failed": "alarm", None: "caution"}


@dataclass(frozen=True)
class Evidence:
    """One piece of evidence, as a card at the top of a report.

    Attributes:
        title: The question that it answers.
        side: `"evidence for"`, `"evidence against"`, `"undecided"`, `"not tested"` or `"about drawings only"`.
        value: The result as a short text that is shown large, such as `"98%"` or `"6 of 12"`; empty if there is
            none, or if it is not the model's.
        text: What was measured, in plain words.
    """

    title: str
    side: str
    value: str
    text: str

    @property
    def level(self) -> str:
        """The class of the card's colours."""
        return {AGAINST: "alarm", FOR: "good"}.get(self.side, "caution")


def describe_conclusion(
    result: Evaluation,
    audit: Audit | None,
    *,
    synthetic: bool = False,
    external: Sequence[Mapping[str, Any]] | None = None,
    outdated: bool = False,
) -> dict[str, Any]:
    """Return the variables of `conclusion.html`.

    Args:
        result: The evaluation of the held-out patients.
        audit: The audit; None if there is none.
        synthetic: Whether all images are synthetic.
        external: Results of `validate` with both classes from one source; None for those of the audit.
        outdated: Whether external data were evaluated after the audit.

    Returns:
        The headline, its reason, the level of the verdict and the evidence, by name.
    """
    level = audit.verdict.level if audit else None
    plain = say_plainly(level, result.classes, result.positive, synthetic=synthetic)
    external = (audit.external if audit else ()) if external is None else external
    evidence = (_without_lungs(audit, result), _elsewhere(audit, external, result), _other_diseases(audit, result))
    if synthetic:
        evidence = tuple(one if one.side in (UNKNOWN, UNTESTED) else replace(one, side=OF_DRAWINGS) for one in evidence)
    return {
        "conclusion": {
            "level": "caution" if synthetic else LEVELS[level],
            "headline": plain.headline,
            "reason": plain.reason,
            "evidence": evidence,
            "percentages": _explain_percent(result),
            "outdated": outdated,
        }
    }


def _outcome(audit: Audit | None, name: str) -> str:
    """Return the side that a condition of the verdict is on."""
    conditions = audit.verdict.conditions if audit else ()
    return next((SIDES.get(each.outcome, UNKNOWN) for each in conditions if each.name.startswith(name)), UNKNOWN)


def _percent(value: float) -> str:
    """Return an AUC as a percentage of pairs; one below 1 never as 100%."""
    text = format_metric(value, spec="z.0%")
    return ">99%" if text == "100%" and value < 1 else text


def _explain_percent(result: Evaluation) -> str:
    """Explain the percentages of the cards."""
    if result.positive is None:
        pair, higher = "two patients of different classes", "the one who has the class gets the higher score for it"
    else:
        (negative,) = (name for name in result.classes if name != result.positive)
        pair, higher = (
            f"a {result.positive} and a {negative} patient",
            f"the {result.positive} patient gets the higher score",
        )
    return (
        f"Pairs: {pair}. A pair is ranked correctly if {higher}; guessing ranks 50% correctly. This percentage is the "
        "AUC. It is not the share of patients who are classified correctly."
    )


def _place_of_guessing(low: float, high: float) -> str:
    """Return where guessing lies with regard to a 95% interval of an AUC."""
    if low <= 0.5 <= high:
        return "which includes guessing, 50%"
    return f"{'above' if low > 0.5 else 'below'} guessing, 50%"


def _without_lungs(audit: Audit | None, result: Evaluation) -> Evidence:
    title = "A program that sees no lung"
    if audit is None:
        return Evidence(title, UNTESTED, "", "Whether the classes differ in anything but the lungs was not tested.")
    rows = [row for row in as_rows(audit.shortcuts.table) if row["lung_free"] and row["auc"] == row["auc"]]
    side = _outcome(audit, CONDITIONS["shortcut"])
    if not rows:
        return Evidence(title, side, "", "No program without the lungs could be evaluated.")
    candidates = [row for row in rows if row["flagged"]] or rows
    visible = [row for row in candidates if row["baseline"] not in NOT_PIXELS and row["auc"] >= SMALLEST_EFFECT]
    best = max(visible or candidates, key=lambda row: row["auc"])
    seen = IN_PLAIN_WORDS.get(best["baseline"], best["sees"])
    only = "only " if side == FOR else ""
    # in running text: a large number here would be read as praise of the model
    text = (
        f"On the same patients, a simple program that sees {seen}, and nothing else, ranks {only}"
        f"{_percent(best['auc'])} of pairs correctly; the model {_percent(audit.network['value'])}; guessing 50%."
    )
    if side == AGAINST:
        text += " So the images differ in something that is not the disease, and the model may have learnt that."
    elif side == UNKNOWN:
        text += " It is not excluded that the classes differ in something that is not the disease."
    return Evidence(title, side, "", text)


def _elsewhere(audit: Audit | None, external: Sequence[Mapping[str, Any]], result: Evaluation) -> Evidence:
    title = "Another hospital"
    side = _outcome(audit, CONDITIONS["hospital"])
    if not external:
        return Evidence(title, UNTESTED, "", "No images of another hospital with both classes were given.")
    first, *others = sorted(external, key=lambda source: -source["n"])
    if first["low"] is None or first["high"] is None:  # a class with one patient; guard: no_interval
        interval, link = "too few of one class for an interval", "and"
    else:
        bounds = f"{_percent(first['low'])} to {_percent(first['high'])}"
        interval = f"95% interval {bounds}, {_place_of_guessing(first['low'], first['high'])}"
        link = "and" if result.value("auc") <= first["high"] else "but"
    text = (
        f"of pairs ranked correctly at a hospital or collection that the model was not trained on, "
        f"{quote_source(first['source'])} ({first['n']} patients; {interval}), {link} "
        f"{_percent(result.value('auc'))} of pairs at those that it was trained on."
    )
    if others:
        text += f" {len(others)} more are listed below."
    return Evidence(title, side, _percent(first["value"]), text)


def _other_diseases(audit: Audit | None, result: Evaluation) -> Evidence:
    positive = result.positive
    title = "Images of other findings"
    controls = audit.negative_controls if audit else None
    if controls is None:
        text = "The data have no images of other findings from the source of the positive class."
        return Evidence(title, UNTESTED, "", text)
    text = (
        f"images of other findings than {positive}, from the source of the {positive} images, were called {positive}. "
        "A model that recognises the disease calls none of them so."
    )
    side = _outcome(audit, CONDITIONS["controls"])
    return Evidence(title, side, f"{controls['called']} of {controls['images']}", text)
