"""The verdict of an audit: one sentence, by fixed rules, on whether the model was shown to detect disease."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from covid_fastai.audit.baselines import HIDDEN_ABOUT, OF_TABLE, SMALLEST_EFFECT, ShortcutAudit
from covid_fastai.audit.fixed_spots import CELLS, describe_box
from covid_fastai.data.projections import fold_source
from covid_fastai.data.tables import as_rows
from covid_fastai.evaluation.formatting import SIGNED, ResultDisplay, format_estimate, format_metric, quote_source
from covid_fastai.evaluation.intervals import Z
from covid_fastai.evaluation.pooling import PooledEstimate, pool_aucs, pool_random_effects

__all__ = ["Condition", "NEAR_CHANCE", "NOT_TESTED", "Verdict", "give_verdict"]

MET, FAILED, INCONCLUSIVE = "met", "failed", "inconclusive"
NOT_TESTED, NOT_APPLICABLE = "not tested", "not applicable"
# An AUC counts as close to chance if its 95% interval lies below this margin (an equivalence test, Wellek 2010): a
# marker of 0.65 separates as weakly as two normal distributions 0.54 standard deviations apart.
NEAR_CHANCE = 0.65
SIGNIFICANT = 0.05  # the p-value below which a baseline that may see some of the lungs is mentioned
# Of what the AUC exceeds 0.5 by, a mark may explain less than this fraction. Covered places hide some of the lungs,
# too: of drawings with streaks in both lungs, the most telling cells hide 0.20 of it (0.14 to 0.30).
MOST_EXPLAINED = 0.5
TELLING, SHARPEST = "the most telling cells", "the sharpest edges in the lungs"  # what is covered
MOST_UNSTATED = 0.1  # of the images; sources that separate the classes within 10% of them give an AUC of 0.6
MOST_FALSE_POSITIVES = 0.25  # of the negative controls: 3 of CoronaHack's 12
# Baselines that do not see what is in the lungs, but may depend on it, and what the verdict says of them.
PARTLY_BLIND = {
    "black centre": (
        "the image without its centre separates the classes",
        "some of the lungs may lie outside the centre",
    ),
    "lung geometry": (
        "size and place of the lungs in the image separate the classes",
        "the framing of the image or the disease itself may change them",
    ),
    "sharp edges": (
        "the sharpest edges of the image separate the classes",
        "letters, wires or clips have them",
    ),
}


@dataclass(frozen=True)
class Condition:
    """One condition that a model has to meet before disease signal counts as shown.

    Attributes:
        name: What has to hold.
        outcome: `"met"`, `"failed"`, `"inconclusive"` (these data cannot decide, such as too few patients),
            `"not tested"` or `"not applicable"`.
        text: The result, or what was not tested.
        reason: Why the condition failed or is open, as a clause; empty if it is met or does not apply.
    """

    name: str
    outcome: str
    text: str
    reason: str = ""


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
    unstated: Sequence[Mapping[str, Any]] = (),
    negative_controls: Mapping[str, Any] | None = None,
    covered: Mapping[str, Any] | None = None,
    marks: Mapping[str, Any] | None = None,
    unstated_fraction: float = 0.0,
) -> Verdict:
    """Decide by fixed rules whether a model was shown to detect disease.

    Seven conditions have to be met. Each of them is judged by 95% intervals and has three results: it is met, it
    failed, or the data cannot decide. Close to chance means that the upper bound of an AUC is below 0.65.

    1. No lung-free baseline separates the classes: each is close to chance, and none is flagged with an AUC of 0.6 or
       more, which fails the condition. It stays open if the 16 x 16 thumbnail without its centre, the geometry of
       the lungs or the sharpest edges separate the classes, if the sources of 10% of the images or more are not
       stated, if the lungs are not found in so many images of a class that a shortcut in these is not excluded, or if
       the AUC of the network is not shown to exceed 0.65, up to which a shortcut is not excluded.
    2. The network is better than the 16 x 16 thumbnail: the interval of the paired difference lies above 0.
    3. A network that was trained and evaluated without the lungs (their convex hull with a margin is black; a central
       box where they were not found) is close to chance, and worse than the network. The condition failed if the AUC of
       the network without the lungs lies above 0.5, and above what the images with a box can give alone.
    4. At another hospital, on images of both classes from one source, the AUC lies above 0.5 and not entirely below
       0.65, and the paired difference to the thumbnail lies above 0. The condition failed if the AUC is close to
       chance, if its interval includes 0.5 and excludes the AUC on held-out patients, or if the thumbnail is better.
       Several hospitals are pooled unless all of them meet the condition or one of them fails it.
    5. The network classifies at most a quarter of the negative controls as positive, by the upper bound of the
       interval. Negative controls are negative images from the source of the positive class; without such images the
       condition does not apply.
    6. No mark at a fixed place, such as a letter in the lungs, explains the predictions. The condition is met if no
       cell of a 32 x 32 grid separates the classes, or if these cells, when covered, lower the AUC of the network by
       less than half of what it exceeds 0.5 by. It failed if the network is not better than chance then.
    7. No letter, wire or other sharp mark in the lungs explains the predictions: the same with the sharpest edges in
       the lungs of each image covered.

    Args:
        shortcuts: What `find_shortcuts` returned.
        network: AUC of the network on held-out patients: `value`, `low`, `high`, `n`.
        versus: One row per baseline: `baseline`, `network_auc` and `baseline_auc` on the same patients, their
            `difference` (network minus baseline), `low`, `high`, `n`, and `errorless_low`, the lower bound of the
            difference if the network made no error.
        blind: The network that was trained without the lungs: its `auc` with `auc_low` and `auc_high`, the
            `network_auc` on the same patients, their `difference` with `low` and `high`, `n`, and the number of
            `images` and of those with a box in place of the lungs, `boxes`, and the largest AUC that these can give
            alone, `boxes_auc`; None if there is no such network.
        external: One mapping per external source with both classes: `source`, `value`, `low`, `high`, `n`,
            `thumbnail` (the thumbnail's AUC there) and the paired `difference` to it with `difference_low` and
            `difference_high` (these four None or NaN if the thumbnail was not evaluated).
        unstated: Such mappings for external images of both classes whose source is not stated. They decide nothing.
        negative_controls: `images`, `patients`, `called` (number of images classified as positive), `fraction`, `low`
            and `high`; None if there are none.
        covered: The network on images whose telling cells are covered: its `auc` with `auc_low` and `auc_high`, the
            `network_auc` on the same patients, their `difference` with `low` and `high`, and `n`; None if it was not
            evaluated on such images.
        marks: The same as `covered` for images whose sharpest edges in the lungs are covered.
        unstated_fraction: Fraction of the images that the baselines use whose source is not stated.

    Returns:
        The verdict.
    """
    conditions = (
        _no_shortcut(shortcuts, network, unstated_fraction=unstated_fraction),
        _better_than_thumbnail(versus),
        _near_chance_without_lungs(blind),
        _generalises(external, unstated, network),
        _rejects_negative_controls(negative_controls),
        _needs_no_spot(shortcuts, covered),
        _needs_no_mark(marks),
    )
    outcomes = {condition.outcome for condition in conditions}
    if outcomes <= {MET, NOT_APPLICABLE}:
        sentence = "Evidence of disease signal: every condition that applies is met on these data."
        for what, result in ((TELLING, covered), (SHARPEST, marks)):
            if result is not None and result["low"] > 0:
                estimate = format_estimate(result["auc"], result["auc_low"], result["auc_high"])
                sentence += f" Where {what} are covered, the AUC is {estimate}."
        if shortcuts.flags:
            sentence += f" Shortcuts that are too weak to explain it: {_list_aucs(shortcuts, shortcuts.flags)}."
        return Verdict("shown", sentence, conditions)
    open_reasons = [each.reason for each in conditions if each.outcome in (INCONCLUSIVE, NOT_TESTED)]
    if FAILED in outcomes:
        failures = "; ".join(condition.reason for condition in conditions if condition.outcome == FAILED)
        sentence = f"Disease signal not shown: {failures}."
        # of what is open, only what more data could decide: a refuted model needs no further tests
        undecided = [condition.reason for condition in conditions if condition.outcome == INCONCLUSIVE]
        if undecided:
            sentence += f" These data cannot decide: {'; '.join(undecided)}."
        return Verdict("failed", sentence, conditions)
    shortcut = "a shortcut is neither found nor excluded"
    if shortcuts.flags:  # weak ones, or the condition had failed
        shortcut = "a weak shortcut is found, and a stronger one is not excluded"
    sentence = f"Disease signal not shown: {shortcut}. Open: {'; '.join(open_reasons)}."
    return Verdict("not shown", sentence, conditions)


def _no_shortcut(shortcuts: ShortcutAudit, network: Mapping[str, Any], *, unstated_fraction: float) -> Condition:
    name = "No lung-free baseline separates the classes"
    rows = [row for row in as_rows(shortcuts.table) if row["lung_free"] and row["auc"] == row["auc"]]  # not NaN
    flagged = {row["baseline"]: row for row in rows if row["flagged"]}
    decisive = [flag for flag in shortcuts.flags if flagged[flag]["auc"] >= SMALLEST_EFFECT]
    weak = [flag for flag in shortcuts.flags if flag not in decisive]
    sentences = []
    if decisive:
        sentences.append(f"Better than chance: {_list_aucs(shortcuts, decisive)}.")
    if weak:
        sentences.append(f"Better than chance, but below an AUC of {SMALLEST_EFFECT:g}: {_list_aucs(shortcuts, weak)}.")
    wide = [row["baseline"] for row in rows if not row["high"] < NEAR_CHANCE and row["baseline"] not in decisive]
    # Images whose lungs are not found are ties to these baselines. If they are the fraction h of a class, a shortcut
    # with the AUC a in the others has 0.5 + (1 - h) (a - 0.5) in all of them.
    limit = 0.5 + (1 - shortcuts.hidden) * (NEAR_CHANCE - 0.5)
    unseen = [row["baseline"] for row in rows if row["baseline"] in HIDDEN_ABOUT and limit <= row["high"] < NEAR_CHANCE]
    unseen = [baseline for baseline in unseen if baseline not in decisive]
    if wide:
        listed = _list_aucs(shortcuts, wide)
        sentences.append(f"Too few patients to bound by an AUC of {NEAR_CHANCE:g}: {listed}.")
    elif rows and not decisive:
        highest = max(rows, key=lambda row: row["high"])
        estimate = format_estimate(highest["auc"], highest["low"], highest["high"])
        sentences.append(
            f"The AUC of every lung-free baseline that could be tested is below {NEAR_CHANCE:g} by its 95% interval; "
            f"the highest upper bound is that of {highest['baseline']}, {estimate}."
        )
    open_reasons = []
    hidden = [row["baseline"] for row in as_rows(shortcuts.table) if row["lung_free"] and row["auc"] != row["auc"]]
    if hidden := [baseline for baseline in hidden if baseline not in OF_TABLE]:  # guard: hidden_baseline
        text = "the lungs fill most images or were not found, so that what lies outside of them could not be tested"
        sentences.append(f"{text[:1].upper()}{text[1:]}: {', '.join(hidden)}.")
        open_reasons.append(text)
    if unseen:  # guard: lungs_not_found
        text = (
            f"the lungs were not found in {shortcuts.hidden:.0%} of the images of a class, so that a shortcut in these "
            "is not excluded"
        )
        sentences.append(f"{text[:1].upper()}{text[1:]}: {_list_aucs(shortcuts, unseen)}.")
        open_reasons.append(text)
    if wide:  # guard: shortcut_power
        bounds = {baseline: shortcuts.row(baseline)["high"] for baseline in wide}
        most = max(wide, key=lambda baseline: bounds[baseline] if math.isfinite(bounds[baseline]) else 1.0)
        may = f"may be {format_metric(bounds[most])}" if math.isfinite(bounds[most]) else "has no interval"
        open_reasons.append(f"too few patients to exclude a shortcut (the AUC of the baseline {most} {may})")
    if not network["low"] > NEAR_CHANCE:  # guard: weak_network
        text = (
            f"a shortcut with an AUC of up to {NEAR_CHANCE:g} is not excluded, and the network (AUC "
            f"{format_estimate(network['value'], network['low'], network['high'])}) is not shown to be better than that"
        )
        sentences.append(f"{text[:1].upper()}{text[1:]}.")
        open_reasons.append(text)
    for baseline, (separates, but) in PARTLY_BLIND.items():
        row = shortcuts.row(baseline)
        if row["p_holm"] < SIGNIFICANT and row["auc"] >= SMALLEST_EFFECT:
            text = f"{separates} (AUC {format_metric(row['auc'])})"
            sentences.append(f"{text[:1].upper()}{text[1:]}; {but}.")
            open_reasons.append(text)
    if unstated_fraction >= MOST_UNSTATED:
        of_images = "the images" if unstated_fraction == 1 else f"{unstated_fraction:.0%} of the images"
        text = f"the sources of {of_images} are not stated, so that a source may separate the classes"
        sentences.append(f"{text[:1].upper()}{text[1:]}.")
        open_reasons.append(text)
    if decisive:
        reason = "the image source alone separates the classes"
        if "source" not in decisive:
            reason = f"a shortcut separates the classes without the lungs: {_list_aucs(shortcuts, decisive)}"
        return Condition(name, FAILED, " ".join(sentences), reason)
    outcome = INCONCLUSIVE if open_reasons else MET
    return Condition(name, outcome, " ".join(sentences), "; ".join(open_reasons))


def _list_aucs(shortcuts: ShortcutAudit, baselines: Sequence[str]) -> str:
    """Return baselines with their AUCs and intervals, as text."""
    rows = {baseline: shortcuts.row(baseline) for baseline in baselines}
    return ", ".join(
        f"{baseline} (AUC {format_metric(row['auc'])}, 95% interval {format_metric(row['low'])} to "
        f"{format_metric(row['high'])})"
        for baseline, row in rows.items()
    )


def _better_than_thumbnail(versus: pd.DataFrame) -> Condition:
    name = "Better than a 16 × 16 thumbnail"
    row = as_rows(versus[versus["baseline"] == "thumbnail"])[0]
    difference = format_estimate(row["difference"], row["low"], row["high"], spec=SIGNED)
    n, thumbnail = int(row["n"]), format_metric(row["baseline_auc"])
    text = (
        f"On the same {n} patients, the AUC of the network is {format_metric(row['network_auc'])} and that of the "
        f"thumbnail {thumbnail}; the paired difference is {difference}."
    )
    if row["low"] > 0:
        return Condition(name, MET, text)
    if not row["errorless_low"] > 0:  # the interval of a perfect model would reach 0 too
        text += " Even a model without errors would not be shown to be better."
        reason = f"with {n} patients, even a model without errors would not be shown to be better than a 16 × 16 "
        return Condition(name, INCONCLUSIVE, text, f"{reason}thumbnail (AUC {thumbnail})")
    return Condition(name, FAILED, text, "the network is not shown to be better than a 16 × 16 thumbnail")


def _near_chance_without_lungs(blind: Mapping[str, Any] | None) -> Condition:
    name = "Close to chance, and worse, when trained without the lungs"
    if blind is None:
        text = "No network was trained on images without the lungs (covid-fastai audit RUN --full)."
        reason = "no network was trained on images without the lungs (covid-fastai audit RUN --full)"
        return Condition(name, NOT_TESTED, text, reason)
    estimate = format_estimate(blind["auc"], blind["auc_low"], blind["auc_high"])
    difference = format_estimate(blind["difference"], blind["low"], blind["high"], spec=SIGNED)
    text = (
        f"On the same {int(blind['n'])} patients, the AUC of a network trained without the lungs is {estimate} "
        f"and that of the network {format_metric(blind['network_auc'])}; the paired difference is {difference}. "
        f"{_describe_region(blind)}"
    )
    if blind["auc_low"] > 0.5:  # guard: blind_network
        reason = f"a network trained without the lungs separates the classes (AUC {estimate})"
        if not blind["auc_low"] > blind["boxes_auc"]:  # guard: boxed_lungs
            but = (
                "but a central box leaves some of the lungs where they were not found, and these images alone can "
                f"give an AUC of {format_metric(blind['boxes_auc'])}"
            )
            text += f" It separates the classes, {but}."
            return Condition(name, INCONCLUSIVE, text, f"{reason}, {but}")
        return Condition(name, FAILED, text, reason)
    if not blind["auc_high"] < NEAR_CHANCE:
        text += f" There are too few patients to bound the first by {NEAR_CHANCE:g}."
        reason = "too few patients to show that a network trained without the lungs is close to chance "
        return Condition(name, INCONCLUSIVE, text, f"{reason}(AUC {estimate})")
    if not blind["low"] > 0:
        return Condition(name, FAILED, text, "the network is not shown to be better than one trained without the lungs")
    return Condition(name, MET, text)


def _describe_region(blind: Mapping[str, Any]) -> str:
    """Say what was removed from the images: the segmented lungs, or a box."""
    images, boxes = blind["images"], blind["boxes"]
    if not (math.isfinite(images) and math.isfinite(boxes)):
        return "The predictions do not say what was removed from the images."
    text = "The segmented lungs were removed, as their convex hull with a margin"
    if boxes == images:
        return f"The lungs were found in none of {int(images)} images: a central box was removed."
    if boxes:
        return f"{text}; on {int(boxes)} of {int(images)} images they were not found, and a central box was removed."
    return f"{text}, in all {int(images)} images."


def _generalises(
    external: Sequence[Mapping[str, Any]], unstated: Sequence[Mapping[str, Any]], network: Mapping[str, Any]
) -> Condition:
    name = "Generalises to another hospital, within one source"
    not_stated = " ".join(
        f"Of {result['n']} patients of both classes ({format_estimate(*_auc_of(result))}) the source is not stated, so "
        "that they may come from different hospitals."
        for result in unstated
    )
    if not external:
        text = (
            "No external data with both classes from another, stated source were evaluated (covid-fastai validate RUN "
        )
        reason = f"{text[:1].lower()}{text[1:]}DATA)"
        return Condition(name, NOT_TESTED, f"{text}DATA). {not_stated}".strip(), reason)
    texts = [_describe_hospital(result) for result in external]
    judged = [(result, *_judge_hospital(_auc_of(result), _difference_of(result), network)) for result in external]
    outcomes = {outcome for _, outcome, _ in judged}
    # the first of these that occurs, in whatever order the hospitals stand; guard: mixed_hospitals
    outcome = next(outcome for outcome in (FAILED, INCONCLUSIVE, NOT_TESTED, MET) if outcome in outcomes)
    reasons = [f"{_at(result)}, {reason}" for result, of_result, reason in judged if of_result == outcome]
    pooled = _one_a_source(external)
    if len(pooled) > 1:
        auc, difference = _pool(pooled)
        texts.append(_describe_pooled(auc, difference))
        if outcome not in (MET, FAILED):
            bounds = None if difference is None else (difference.value, difference.low, difference.high)
            outcome, reason = _judge_hospital((auc.value, auc.low, auc.high), bounds, network)
            reasons = [f"pooled over {auc.count} hospitals, {reason}"]
    if not_stated:
        texts.append(not_stated)
    return Condition(name, outcome, " ".join(texts), "; ".join(reasons) if outcome != MET else "")


def _one_a_source(results: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return one result of each source that has an interval, that of most patients: they are pooled as independent."""
    largest: dict[str, Mapping[str, Any]] = {}
    for result in sorted(results, key=lambda result: -result["n"]):
        if all(map(math.isfinite, _auc_of(result))):
            largest.setdefault(fold_source(result["source"]), result)
    return list(largest.values())


def _at(result: Mapping[str, Any]) -> str:
    return f"at the image source {quote_source(result['source'])}"


def _judge_hospital(
    auc: tuple[float, float, float], difference: tuple[float, float, float] | None, network: Mapping[str, Any]
) -> tuple[str, str]:
    """Return the outcome at another hospital and its reason as a clause; "" if the condition is met.

    Args:
        auc: The AUC there and the bounds of its 95% interval.
        difference: The paired difference to the thumbnail there, with bounds; None if it is not known.
        network: As in `give_verdict`.
    """
    estimate = f"AUC {format_estimate(*auc)}"
    _, low, high = auc
    if not (math.isfinite(low) and math.isfinite(high)):
        return INCONCLUSIVE, f"there are too few patients for an interval of the AUC ({format_metric(auc[0])})"
    if high < NEAR_CHANCE:
        return FAILED, f"the network is close to chance ({estimate})"
    if low <= 0.5 and high < network["low"]:
        return FAILED, f"the network is below its held-out AUC and not better than chance ({estimate})"
    if not low > 0.5:  # guard: external_power
        return INCONCLUSIVE, f"there are too few patients to exclude chance ({estimate})"
    if difference is None:
        return NOT_TESTED, "the thumbnail was not evaluated"
    if difference[2] < 0:
        return FAILED, "a 16 × 16 thumbnail is better than the network"
    if not difference[1] > 0:
        text = format_estimate(*difference, spec=SIGNED)
        return INCONCLUSIVE, f"the network is not shown to be better than a 16 × 16 thumbnail (difference {text})"
    return MET, ""


def _auc_of(result: Mapping[str, Any]) -> tuple[float, float, float]:
    """Return the AUC and its bounds; NaN for what is missing, which a file holds as null."""
    value, low, high = (math.nan if result[key] is None else float(result[key]) for key in ("value", "low", "high"))
    return value, low, high


def _difference_of(result: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """Return the paired difference to the thumbnail with its bounds; None if one of them is missing."""
    values = [result.get(key) for key in ("difference", "difference_low", "difference_high")]
    numbers = [float(value) for value in values if value is not None and math.isfinite(value)]
    return (numbers[0], numbers[1], numbers[2]) if len(numbers) == 3 else None


def _describe_hospital(result: Mapping[str, Any]) -> str:
    text = f"Image source {quote_source(result['source'])}: AUC {format_estimate(*_auc_of(result))}, n = {result['n']}"
    difference = _difference_of(result)
    if difference is None:
        return f"{text}; the thumbnail was not evaluated."
    paired = format_estimate(*difference, spec=SIGNED)
    return f"{text}; thumbnail {format_metric(result['thumbnail'])}, paired difference {paired}."


def _pool(external: Sequence[Mapping[str, Any]]) -> tuple[PooledEstimate, PooledEstimate | None]:
    """Return the pooled AUC, and the pooled difference to the thumbnail; None if one of them is missing."""
    auc = pool_aucs(*zip(*map(_auc_of, external), strict=True))
    differences = [each for result in external if (each := _difference_of(result)) is not None]
    if len(differences) < len(external):
        return auc, None
    variances = [((high - low) / (2 * Z)) ** 2 for _, low, high in differences]
    if min(variances) <= 0:  # the same ranking: a difference of exactly 0 has no variance to weight by
        return auc, None
    return auc, pool_random_effects([value for value, _, _ in differences], variances)


def _describe_pooled(auc: PooledEstimate, difference: PooledEstimate | None) -> str:
    text = f"Pooled over {auc.count} hospitals (random effects): AUC {format_estimate(auc.value, auc.low, auc.high)}"
    if difference is not None:
        paired = (difference.value, difference.low, difference.high)
        text += f", difference to the thumbnail {format_estimate(*paired, spec=SIGNED)}"
    if math.isnan(auc.predicted_low):
        return f"{text}. Two hospitals are too few to predict a further one."
    predicted = f"{format_metric(auc.predicted_low)} to {format_metric(auc.predicted_high)}"
    return f"{text}. At a further hospital an AUC of {predicted} is expected (95% prediction interval)."


def _rejects_negative_controls(negative_controls: Mapping[str, Any] | None) -> Condition:
    name = "Negative controls are classified as negative"
    if negative_controls is None:
        text = "There are no unused negative images from the source of the positive class."
        return Condition(name, NOT_APPLICABLE, text)
    estimate = format_estimate(*(negative_controls[key] for key in ("fraction", "low", "high")), spec=".0%")
    called, images = negative_controls["called"], negative_controls["images"]
    are = "is" if called == 1 else "are"
    counts = f"{called} of {images} negative controls {are} classified as positive"
    text = (
        f"{called} of {images} negative images from the source of the positive class {are} classified as positive: "
        f"{estimate}."
    )
    if negative_controls["high"] <= MOST_FALSE_POSITIVES:
        return Condition(name, MET, text)
    if negative_controls["low"] > MOST_FALSE_POSITIVES:
        return Condition(name, FAILED, text, counts)
    text += f" They are too few to decide whether more than {MOST_FALSE_POSITIVES:.0%} would be."
    reason = f"too few negative controls ({counts}, {estimate})"
    return Condition(name, INCONCLUSIVE, text, reason)


def _needs_no_spot(shortcuts: ShortcutAudit, covered: Mapping[str, Any] | None) -> Condition:
    name = "No mark at a fixed place explains the predictions"
    spot = shortcuts.row("fixed spot")
    found = spot["p_holm"] < SIGNIFICANT
    text = (
        f"The best of {CELLS} × {CELLS} cells {'separates' if found else 'does not separate'} the classes"
        f" (AUC {format_estimate(spot['auc'], spot['low'], spot['high'])})"
    )
    where = f", {describe_box(shortcuts.spots[0])}" if found and shortcuts.spots else ""
    if covered is None:
        if not found and spot["high"] < NEAR_CHANCE:
            return Condition(name, MET, f"{text}.")
        reason = "the network was not evaluated with the most telling cells of the image covered"
        return Condition(name, NOT_TESTED, f"{text}{where}; {reason}.", f"{text[:1].lower()}{text[1:]}, and {reason}")
    return _judge_covered(name, f"{text}{where}.", covered, TELLING, "with a fixed place of the image covered")


def _needs_no_mark(marks: Mapping[str, Any] | None) -> Condition:
    name = "No sharp mark in the lungs explains the predictions"
    if marks is None:  # guard: marks_untested
        reason = "the network was not evaluated with the sharpest edges in the lungs covered"
        return Condition(name, NOT_TESTED, f"{reason[:1].upper()}{reason[1:]}.", reason)
    return _judge_covered(name, "", marks, SHARPEST, "with letters or other sharp marks covered")


def _judge_covered(name: str, before: str, covered: Mapping[str, Any], what: str, where: str) -> Condition:
    """Return the condition that the network does not need what was covered in the images.

    Args:
        name: Name of the condition.
        before: Sentences that precede the result.
        covered: As in `give_verdict`.
        what: What was covered, a plural.
        where: The same as the beginning of a clause.
    """
    estimate = format_estimate(covered["auc"], covered["auc_low"], covered["auc_high"])
    difference = format_estimate(covered["difference"], covered["low"], covered["high"], spec=SIGNED)
    text = (
        f"{before} On the same {int(covered['n'])} patients, the AUC of the network is {estimate} where {what} are "
        f"covered, and {format_metric(covered['network_auc'])} where they are not; the paired difference is "
        f"{difference}."
    ).strip()
    if covered["low"] > 0 and not covered["auc_low"] > 0.5:  # guard: covered_spot
        return Condition(name, FAILED, text, f"{where}, the network is not better than chance (AUC {estimate})")
    if covered["high"] < MOST_EXPLAINED * (covered["network_auc"] - 0.5):  # guard: mostly_covered
        return Condition(name, MET, text)
    if covered["network_auc"] <= 0.5:
        reason = f"there is nothing that {what} could explain, since the network ranks no better than chance"
        return Condition(name, INCONCLUSIVE, f"{text} {reason[:1].upper()}{reason[1:]}.", reason)
    lower = format_estimate(covered["difference"], covered["low"], covered["high"])
    return Condition(name, INCONCLUSIVE, text, f"{where}, the AUC of the network may be lower by {lower}")
