"""Models beside each other on the same patients: paired differences, agreement, and the cases where they part."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import binomtest, t

from covid_fastai.data.tables import as_rows
from covid_fastai.errors import UsageError
from covid_fastai.evaluation.bootstrap import resample_patients
from covid_fastai.evaluation.formatting import (
    SIGNED,
    ResultDisplay,
    format_estimate,
    format_interval,
    format_metric,
    format_metric_name,
    format_p_value,
)
from covid_fastai.evaluation.intervals import Z, auc_difference, newcombe_difference, percentile_interval, wilson
from covid_fastai.evaluation.metrics import Evaluation, evaluate, score_units
from covid_fastai.evaluation.pairing import Paired, pair_predictions
from covid_fastai.evaluation.prediction_table import PROBABILITY
from covid_fastai.evaluation.runs import Run
from covid_fastai.evaluation.weighted_metrics import (
    LOWER_IS_BETTER,
    WeightedMetric,
    compute_in_blocks,
    list_weighted_metrics,
)
from covid_fastai.notices import RESEARCH_USE
from covid_fastai.options import NResamples, Probability, Seed, check_option, checked
from covid_fastai.plotting import class_colours

__all__ = [
    "AGREEMENT_COLUMNS",
    "Comparison",
    "agreement_of",
    "cases_of",
    "compare",
    "corrected_t",
    "kappa",
    "plot_comparison",
]

COLUMNS = ["model", "metric", "class", "reference_value", "value", "difference", "low", "high", "n", "unit", "method"]
TEST_COLUMNS = ["model", "metric", "class", "difference", "low", "high", "p", "folds"]


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(ResultDisplay):
    """How models differ on the same patients; the first is the reference.

    Attributes:
        names: The models; the first is the reference, which all others are compared with.
        table: A row a model and figure: `model`, `metric`, `class`, `reference_value`, `value`, `difference` (the
            model's less the reference's) with `low` and `high` (95%), `n`, `unit`, `method`.
        fold_tests: The mean `difference` over the folds with the interval and `p` of the corrected resampled t-test;
            empty where the models have not the same folds.
        agreement: A row a model: `share` of patients for whom it says what the reference says, Cohen's `kappa`, who is
            right, and McNemar's exact `mcnemar_p`.
        cases: The patients for whom the models say different classes, the strongest disagreement first: `patient`,
            `label`, `images`, `gap` (of the probabilities, 0 to 1), by model `<name> says`, `<name> p(<class>)`.
        evaluations: Each model's evaluation on the patients that are compared.
        notes: What was left out, and how images were matched.
    """

    names: list[str]
    table: pd.DataFrame
    fold_tests: pd.DataFrame
    agreement: pd.DataFrame
    cases: pd.DataFrame
    evaluations: dict[str, Evaluation]
    notes: list[str]

    def row(self, metric: str, *, model: str | None = None, of: str | None = None) -> dict[str, Any]:
        """Return one difference's row of `table`.

        Args:
            metric: A figure, such as `"auc"`.
            model: Which model; None for the second.
            of: The class; None for the figure of all classes, else the positive class's, else the mean of all.

        Raises:
            UsageError: There is no such row.
        """
        model = model or self.names[1]
        rows = self.table[(self.table["model"] == model) & (self.table["metric"] == metric)]
        first = self.evaluations[self.names[0]]
        for name in [of] if of is not None else ["", first.positive, "macro"]:
            found = rows[rows["class"] == name]
            if len(found):
                return as_rows(found)[0]
        known = ", ".join(dict.fromkeys(self.table["metric"]))
        raise UsageError(
            f"There is no difference of {metric!r} for {model!r}.",
            hint=f"Figures: {known}. Models: {', '.join(self.names[1:])}.",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return differences, agreement and cases as plain values."""
        tables = {
            name: getattr(self, name).to_dict("records") for name in ("table", "fold_tests", "agreement", "cases")
        }
        return {"names": self.names, "reference": self.names[0], **tables, "notes": self.notes}

    def summary(self) -> pd.DataFrame:
        """Return the differences as text, for tables."""
        rows = self.table.to_dict("records")
        return pd.DataFrame(
            {
                "model": self.table["model"],
                "figure": [format_metric_name(row["metric"], row["class"]) for row in rows],
                self.names[0]: [format_metric(row["reference_value"]) for row in rows],
                "its": [format_metric(row["value"]) for row in rows],
                "difference": [format_metric(row["difference"], spec=SIGNED) for row in rows],
                "95% interval": [format_interval(row["low"], row["high"], spec=SIGNED) for row in rows],
                "n": [f"{row['n']} {row['unit']}s" for row in rows],
            }
        )

    def _display_parts(self) -> Iterator[pd.DataFrame | str | list[str]]:
        yield from (self.summary(), self.sentences(), RESEARCH_USE)

    def sentences(self) -> list[str]:
        """Return agreement and notes as sentences."""
        said = []
        for row in self.agreement.to_dict("records"):
            share = format_estimate(row["fraction"], row["low"], row["high"])
            chance = "" if math.isnan(row["kappa"]) else f", kappa {format_metric(row['kappa'])}"
            said.append(
                f"{row['model']} says what {self.names[0]} says for a share of {share} of {row['n']} patients{chance}; "
                f"only {self.names[0]} is right for {row['only_reference']}, only {row['model']} for "
                f"{row['only_model']} (McNemar's exact {format_p_value(row['mcnemar_p'])})."
            )
        return [*said, *self.notes]


@checked
def compare(
    *models: str | Path | pd.DataFrame | Run,
    names: Sequence[str] | None = None,
    positive: str | None = None,
    threshold: float | Sequence[float] = 0.5,
    n_resamples: NResamples = 2000,
    seed: Seed = 0,
) -> Comparison:
    """Compare two or more models on the images, or else the patients, that all of them have judged.

    Each model is compared with the first. Overlapping intervals of two models are no test; the intervals here are of
    the difference itself, on the same patients: of an AUC with DeLong's covariance (`auc_difference`), of a proportion
    by Newcombe's method 10, of any other figure by bootstrap draws that are the same for all models. Where the models
    were trained on the same folds, the corrected resampled t-test (Nadeau and Bengio, Machine Learning 2003) is given
    too: it also asks whether other training sets would say the same. No interval is corrected for the number of
    comparisons.

    Args:
        *models: Tables or CSV files that `read_predictions` accepts, runs or their folders (their held-out patients).
        names: A name each; None for the files' and folders' own.
        positive: The class that sensitivity is about; None for the last of two.
        threshold: The positive class is predicted from this probability on; one for all, or one each.
        n_resamples: Bootstrap draws, 100 or more.
        seed: Of the bootstrap.

    Returns:
        The comparison.

    Raises:
        UsageError: There are fewer than two models, or an option has a value that is not allowed.
        DataError: A table is faulty, the models have different classes, no patient in common, or different labels for
            the same image.

    Examples:
        >>> other = predictions.assign(**{"p_Normal": 0.5, "p_COVID-19": 0.5})
        >>> comparison = compare(predictions, other, names=["model", "coin"], n_resamples=200)
        >>> comparison.table.loc[comparison.table["metric"] == "auc", ["model", "difference", "n"]].round(2)
          model  difference   n
        4  coin       -0.34  60
    """
    paired = pair_predictions(models, names=names)
    given = [threshold] * len(models) if isinstance(threshold, (int, float)) else list(threshold)
    thresholds: list[float] = [check_option("threshold", value, Probability) for value in given]
    if len(thresholds) != len(models):
        raise UsageError(f"{len(thresholds)} thresholds for {len(models)} models.", hint="Give one, or one each.")
    results = {
        name: evaluate(part, positive=positive, threshold=value, n_resamples=n_resamples, seed=seed)
        for (name, part), value in zip(paired.tables.items(), thresholds, strict=True)
    }
    reference, *others = paired.tables
    units = {
        name: score_units(part, positive=results[name].positive, threshold=value).table
        for (name, part), value in zip(paired.tables.items(), thresholds, strict=True)
    }
    first = results[reference]
    weights = resample_patients(
        units[reference]["patient"], units[reference]["label"], n_resamples=n_resamples, seed=seed
    )
    measures = {name: list_weighted_metrics(part, first.classes, first.positive) for name, part in units.items()}
    drawn = [compute_in_blocks(measure.compute, weights) for measure in measures[reference]]
    rows, tests, agreement = [], [], []
    for name in others:
        for here, there, there_drawn in zip(measures[name], measures[reference], drawn, strict=True):
            row = _difference(here, there, there_drawn, units[reference]["patient"].to_numpy(), weights)
            rows.append({"model": name, **row})
        agreement.append({"model": name, **agreement_of(units[reference], units[name], first.classes)})
        tests += [{"model": name, **row} for row in _fold_tests(paired, reference, name, results, thresholds)]
    return Comparison(
        names=list(paired.tables),
        table=pd.DataFrame(rows, columns=COLUMNS),
        fold_tests=pd.DataFrame(tests, columns=TEST_COLUMNS),
        agreement=pd.DataFrame(agreement, columns=AGREEMENT_COLUMNS),
        cases=cases_of(units, first.classes, first.positive),
        evaluations=results,
        notes=paired.notes,
    )


def corrected_t(differences: np.ndarray, test_to_train: float) -> tuple[float, float, float]:
    """Test the mean of fold-wise differences, with the variance enlarged for folds that share their training patients.

    Args:
        differences: Of each fold, `(k,)`, two or more.
        test_to_train: Patients of a fold by patients that its model was trained on, such as 1/4 for five folds.

    Returns:
        The bounds of the 95% interval, and the two-sided p-value (Nadeau and Bengio, Machine Learning 2003).
    """
    k, mean = len(differences), float(np.mean(differences))
    error = math.sqrt((1 / k + test_to_train) * float(np.var(differences, ddof=1)))
    if error == 0:
        return mean, mean, 1.0 if mean == 0 else 0.0
    half = float(t.ppf(0.975, k - 1)) * error
    return mean - half, mean + half, float(2 * t.sf(abs(mean) / error, k - 1))


def plot_comparison(comparison: Comparison) -> Figure:
    """Plot the differences with their intervals, a row a figure; right of the line the model is better.

    Args:
        comparison: What `compare` returned.

    Returns:
        The figure: the figures of which more is better, and beside them those of which less is better, turned round.
    """
    others, reference = comparison.names[1:], comparison.names[0]
    colours = dict(zip(others, list(class_colours(["", *others]).values())[1:], strict=True))
    table = comparison.table[comparison.table["difference"].notna()]
    errors = table["metric"].isin(LOWER_IS_BETTER)
    parts = [part for part in (table[~errors], table[errors]) if len(part)]
    keys = [list(dict.fromkeys(zip(part["metric"], part["class"], strict=True))) for part in parts]
    height = 1.5 + 0.22 * max(map(len, keys)) * (1 + 0.5 * (len(others) - 1))
    figure = Figure(figsize=(5.2 * len(parts), height), layout="constrained")
    panels = figure.subplots(1, len(parts), squeeze=False)[0]
    for axes, part, names in zip(panels, parts, keys, strict=True):
        places = {key: place for place, key in enumerate(names)}
        sign = -1 if part["metric"].iloc[0] in LOWER_IS_BETTER else 1
        axes.axvline(0, color="#555555", lw=0.8)
        for number, name in enumerate(others):
            own = part[part["model"] == name]
            y = [
                places[key] + 0.22 * (number - (len(others) - 1) / 2)
                for key in zip(own["metric"], own["class"], strict=True)
            ]
            ends = np.sort(sign * own[["low", "high"]].to_numpy(), axis=1)
            axes.hlines(y, ends[:, 0], ends[:, 1], color=colours[name], lw=1.4)
            axes.plot(sign * own["difference"], y, "o", color=colours[name], markersize=4.5)
        texts = [format_metric_name(metric, of) for metric, of in names]
        axes.set(yticks=range(len(names)), yticklabels=texts, ylim=(len(names) - 0.4, -0.6))
        way = "less" if sign < 0 else "more"
        axes.set_xlabel(f"{way} than {reference}: better to the right, 95% interval", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    n = int(comparison.agreement["n"].iloc[0])
    handles = [Line2D([], [], color=colour, marker="o", markersize=4.5, label=name) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside upper left", frameon=False, fontsize=9, ncols=3, title_fontsize=10)
    figure.suptitle(f"Against {reference}, n = {n} patients", fontsize=10)
    return figure


def _difference(
    here: WeightedMetric, there: WeightedMetric, there_drawn: np.ndarray, patients: np.ndarray, weights: np.ndarray
) -> dict[str, Any]:
    """Return a row of `Comparison.table`: the difference, and the interval that suits it."""
    once = np.ones((1, len(patients)))
    n = int(here.included.sum())
    values = [float(measure.compute(once)[0]) if n else math.nan for measure in (there, here)]
    difference, low, high = values[1] - values[0], math.nan, math.nan
    if n == 0 or not math.isfinite(difference):
        method = "no unit of some class"
    elif here.hit is not None and there.hit is not None:
        low, high = newcombe_difference(here.hit[here.included], there.hit[here.included])
        method = "Newcombe, paired"
    elif here.of_class is not None and here.scores is not None and there.scores is not None:
        low, high, method = auc_difference(here.scores, there.scores, here.of_class, patients)
    else:
        drawn = compute_in_blocks(here.compute, weights) - there_drawn
        drawn, method = drawn[np.isfinite(drawn)], "bootstrap, paired"
        if len(drawn) and np.ptp(drawn) > 1e-9:  # wider than a float's rounding
            low, high = percentile_interval(drawn)
            low, high = min(low, difference), max(high, difference)
        else:
            method = "all resamples equal"
    row = (here.metric, here.of, *values, difference, low, high, n, "patient", method)
    return dict(zip(COLUMNS[1:], row, strict=True))


def _fold_tests(
    paired: Paired, reference: str, name: str, results: dict[str, Evaluation], thresholds: list[float]
) -> list[dict[str, Any]]:
    """Return the rows of `Comparison.fold_tests` for one model; none where the folds are not the same."""
    if not paired.same_folds:
        return []
    order = list(paired.tables)
    found: dict[tuple[str, str], list[float]] = {}
    ratios, total = [], paired.tables[reference]["patient"].nunique()
    folds = sorted(paired.tables[reference]["fold"].unique(), key=str)
    for fold in folds:
        values = []
        for model in (reference, name):
            part = paired.tables[model]
            part, result = part[part["fold"] == fold], results[model]
            units = score_units(part, positive=result.positive, threshold=thresholds[order.index(model)]).table
            once = np.ones((1, len(units)))
            listed = list_weighted_metrics(units, result.classes, result.positive)
            values.append({(m.metric, m.of): float(m.compute(once)[0]) for m in listed if m.included.any()})
            patients = units["patient"].nunique()
        ratios.append(patients / (total - patients))
        for key in values[0]:
            found.setdefault(key, []).append(values[1][key] - values[0][key])
    rows = []
    for (metric, of), differences in found.items():
        if len(differences) == len(folds) and np.isfinite(differences).all():
            low, high, p = corrected_t(np.array(differences), float(np.mean(ratios)))
            row = (metric, of, float(np.mean(differences)), low, high, p, len(folds))
            rows.append(dict(zip(TEST_COLUMNS[1:], row, strict=True)))
    return rows


AGREEMENT_COLUMNS = ["model", "fraction", "low", "high", "kappa", "kappa_low", "kappa_high", "n"]
AGREEMENT_COLUMNS += ["both_right", "only_reference", "only_model", "both_wrong", "mcnemar_p"]


def agreement_of(first: pd.DataFrame, second: pd.DataFrame, classes: list[str]) -> dict[str, Any]:
    """Count where two models say the same, and who is right where they do not.

    Args:
        first: `Scores.table` of the reference.
        second: The same of the model, its patients in the same order.
        classes: All classes.

    Returns:
        A row of `Comparison.agreement`, without the model's name. `mcnemar_p` is the exact binomial probability, two
        sided, that patients for whom only one is right fall to them so unevenly (McNemar, Psychometrika 1947).
    """
    here, there = second["predicted"].to_numpy(), first["predicted"].to_numpy()
    right, right_there = here == first["label"].to_numpy(), there == first["label"].to_numpy()
    share, n = float((here == there).mean()), len(here)
    only_reference, only_model = int((right_there & ~right).sum()), int((right & ~right_there).sum())
    apart = only_reference + only_model
    p = float(binomtest(only_model, apart).pvalue) if apart else 1.0
    both = (int((right & right_there).sum()), only_reference, only_model, int((~right & ~right_there).sum()))
    row = (share, *wilson(share, n), *kappa(there, here, classes), n, *both, p)
    return dict(zip(AGREEMENT_COLUMNS[1:], row, strict=True))


def cases_of(units: dict[str, pd.DataFrame], classes: list[str], positive: str | None) -> pd.DataFrame:
    """List the patients for whom models say different classes, the strongest disagreement first.

    Args:
        units: `Scores.table` by model, their patients in the same order.
        classes: All classes.
        positive: The class whose probability is shown; None for that of each model's most probable class.

    Returns:
        `Comparison.cases`; its `gap` is the greatest total variation distance between two models' probabilities.
    """
    names, first = list(units), next(iter(units.values()))
    p = np.stack([part[[PROBABILITY + name for name in classes]].to_numpy() for part in units.values()])
    gaps = np.abs(p[:, None] - p[None]).sum(axis=-1).max(axis=(0, 1)) / 2  # total variation, the greatest of any two
    said = np.stack([part["predicted"].to_numpy() for part in units.values()])
    table = first[["patient", "label", "images"]].assign(gap=gaps)
    for number, name in enumerate(names):
        of = positive or "its class"
        column = classes.index(positive) if positive else None
        table[f"{name} says"] = said[number]
        table[f"{name} p({of})"] = p[number].max(axis=1) if column is None else p[number][:, column]
    parted = table[(said != said[0]).any(axis=0)]
    return parted.sort_values("gap", ascending=False, kind="stable").reset_index(drop=True)


def kappa(first: np.ndarray, second: np.ndarray, classes: Sequence[str]) -> tuple[float, float, float]:
    """Compute Cohen's kappa, agreement beyond chance, with its large-sample interval (Fleiss, Cohen, Everitt 1969).

    Args:
        first: What one model says, `(n,)`.
        second: What the other says, `(n,)`.
        classes: All classes.

    Returns:
        Kappa and the bounds of its 95% interval; NaN where both say one class only.
    """
    names = list(classes)
    counts = pd.crosstab(pd.Categorical(first, names), pd.Categorical(second, names), dropna=False).to_numpy()
    n, p = counts.sum(), counts / counts.sum()
    rows, columns = p.sum(axis=1), p.sum(axis=0)
    observed, chance = float(np.trace(p)), float(rows @ columns)
    if chance >= 1:
        return math.nan, math.nan, math.nan
    value = (observed - chance) / (1 - chance)
    pulls = rows[None, :] + columns[:, None]  # of a cell: how often its column's class is said first, its row's second
    agree = (np.diag(p) * (1 - np.diag(pulls) * (1 - value)) ** 2).sum()
    part = (1 - value) ** 2 * ((p - np.diag(np.diag(p))) * pulls**2).sum()
    variance = (agree + part - (value - chance * (1 - value)) ** 2) / ((1 - chance) ** 2 * n)
    half = Z * math.sqrt(max(float(variance), 0.0))
    return value, value - half, min(value + half, 1.0)
