"""Compare models on the same patients: paired differences, agreement, and patients on whom they disagree."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from scipy.stats import binomtest, t

from covid_fastai.data.tables import as_rows
from covid_fastai.errors import UsageError
from covid_fastai.evaluation.formatting import (
    SIGNED,
    ResultDisplay,
    format_estimate,
    format_interval,
    format_metric,
    format_metric_name,
    format_p_value,
)
from covid_fastai.evaluation.intervals import Z, wilson
from covid_fastai.evaluation.metric_intervals import difference_interval
from covid_fastai.evaluation.metrics import Evaluation, evaluate_table, score_units
from covid_fastai.evaluation.pairing import PairedPredictions, pair_predictions, pair_tables
from covid_fastai.evaluation.prediction_table import PROBABILITY, PredictionOptions, choose_positive, class_columns
from covid_fastai.evaluation.resamples import Resamples
from covid_fastai.evaluation.runs import Run
from covid_fastai.evaluation.weighted_metrics import LOWER_IS_BETTER, WeightedMetric, list_weighted_metrics
from covid_fastai.figures import Figure
from covid_fastai.notices import DRAWINGS, RESEARCH_USE
from covid_fastai.options import NResamples, Probability, Seed, check_option, checked
from covid_fastai.plotting import class_colours

__all__ = [
    "AGREEMENT_COLUMNS",
    "Comparison",
    "cohen_kappa",
    "compare",
    "compare_aucs",
    "corrected_t",
    "list_disagreements",
    "measure_agreement",
    "plot_comparison",
]

COLUMNS = ["model", "metric", "class", "reference_value", "value", "difference", "low", "high", "n", "unit", "method"]
AUC_COLUMNS = ["model", "auc", "auc_low", "auc_high", "reference_auc", "difference", "low", "high", "n"]
TEST_COLUMNS = ["model", "metric", "class", "difference", "low", "high", "p", "folds"]


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(ResultDisplay):
    """The differences of models on the same patients, relative to the first model, the reference.

    Attributes:
        names: The names of the models; the first is the reference.
        table: One row per model and metric: `model`, `metric`, `class`, `reference_value`, `value`, `difference` (value
            minus reference value) with `low` and `high` (95%), `n`, `unit`, `method`.
        fold_tests: One row per model and metric: the mean `difference` over the folds, with the interval and `p` of the
            corrected resampled t-test; empty if the models do not have the same folds.
        agreement: One row per model: the `fraction` of patients with the same predicted class as by the reference with
            `low` and `high`, Cohen's `kappa` with its bounds, counts of correct predictions by one model or both, and
            the p-value of McNemar's exact test, `mcnemar_p`.
        cases: The patients on whom the models disagree, the largest gap first: `patient`, `label`, `images`, `gap`
            (largest total variation distance between the probabilities of two models, 0 to 1), and for each model
            `<name> predicted` and `<name> p(<class>)`.
        evaluations: The evaluation of each model on the compared patients.
        notes: Sentences on what was left out and how images were matched.
    """

    names: list[str]
    table: pd.DataFrame
    fold_tests: pd.DataFrame
    agreement: pd.DataFrame
    cases: pd.DataFrame
    evaluations: dict[str, Evaluation]
    notes: list[str]

    def row(self, metric: str, *, model: str | None = None, of: str | None = None) -> dict[str, Any]:
        """Return the row of a difference in `table`.

        Args:
            metric: A metric, such as `"auc"`.
            model: The name of the model; None for the second.
            of: The class; None for the metric of all classes together, else that of the positive class, else the mean
                over the classes.

        Raises:
            UsageError: There is no such row.
        """
        model = model or self.names[1]
        rows = self.table[(self.table["model"] == model) & (self.table["metric"] == metric)]
        reference = self.evaluations[self.names[0]]
        for name in [of] if of is not None else ["", reference.positive, "macro"]:
            rows_of_class = rows[rows["class"] == name]
            if len(rows_of_class):
                return as_rows(rows_of_class)[0]
        known = ", ".join(dict.fromkeys(self.table["metric"]))
        raise UsageError(
            f"There is no difference of {metric!r} for {model!r}.",
            hint=f"Metrics: {known}. Models: {', '.join(self.names[1:])}.",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return differences, agreement and cases as plain values."""
        tables = {
            name: getattr(self, name).to_dict("records") for name in ("table", "fold_tests", "agreement", "cases")
        }
        return {"names": self.names, "reference": self.names[0], **tables, "notes": self.notes}

    def summary(self) -> pd.DataFrame:
        """Return the differences as formatted text."""
        rows = self.table.to_dict("records")
        return pd.DataFrame(
            {
                "model": self.table["model"],
                "metric": [format_metric_name(row["metric"], row["class"]) for row in rows],
                self.names[0]: [format_metric(row["reference_value"]) for row in rows],
                "value": [format_metric(row["value"]) for row in rows],
                "difference": [format_metric(row["difference"], spec=SIGNED) for row in rows],
                "95% interval": [format_interval(row["low"], row["high"], spec=SIGNED) for row in rows],
                "n": [f"{row['n']} {row['unit']}s" for row in rows],
            }
        )

    def _display_parts(self) -> Iterator[pd.DataFrame | str | list[str]]:
        yield from (self.summary(), self.sentences(), RESEARCH_USE)

    def sentences(self) -> list[str]:
        """Return agreement and notes as sentences."""
        reference, sentences = self.names[0], []
        for row in self.agreement.to_dict("records"):
            fraction = format_estimate(row["fraction"], row["low"], row["high"])
            kappa = "" if math.isnan(row["kappa"]) else f" (kappa {format_metric(row['kappa'])})"
            sentences.append(
                f"{row['model']} and {reference} predict the same class for a fraction of {fraction} of {row['n']} "
                f"patients{kappa}. Only {reference} is correct for {row['only_reference']} patients, only "
                f"{row['model']} for {row['only_model']} (McNemar's exact test, {format_p_value(row['mcnemar_p'])})."
            )
        return [*sentences, *self.notes]


@checked
def compare(
    *models: str | Path | pd.DataFrame | Run,
    names: Sequence[str] | None = None,
    positive: str | None = None,
    threshold: float | Sequence[float] = 0.5,
    split: str | None = None,
    n_resamples: NResamples = 2000,
    seed: Seed = 0,
    **reading: Unpack[PredictionOptions],
) -> Comparison:
    """Compare two or more models on the images, or else the patients, that all of them have predicted.

    Each model is compared with the first. The intervals are of the differences on the same patients, since the overlap
    of two models' intervals is not a test. The interval of an AUC difference uses DeLong's covariance
    (`auc_difference`), that of a difference of proportions Newcombe's method 10, and those of other metrics combine the
    intervals of both models with their correlation. If the models were trained on the same folds, the corrected
    resampled t-test (Nadeau and Bengio, Machine Learning 2003) also accounts for the choice of the training set.
    Intervals are not corrected for the number of comparisons.

    Args:
        *models: Tables or CSV files that `read_predictions` accepts, runs or their folders (their held-out patients).
        names: One name per model; None to derive them from files and folders.
        positive: The positive class, to which sensitivity refers; None for the last of two.
        threshold: The positive class is predicted if its probability is at least this; one for all models, or one per
            model.
        split: The split whose rows are compared, such as `"test"`; None for tables of one split, and for the held-out
            patients of runs.
        n_resamples: Number of bootstrap resamples, 100 or more.
        seed: Seed of the bootstrap.
        **reading: How tables are read, as in `read_predictions`, the same for all: `score_column`, `label_column` ...

    Returns:
        The comparison.

    Raises:
        UsageError: There are fewer than two models, or an option has a value that is not allowed.
        DataError: A table is faulty, or the models have different classes, no patient in common, or different labels
            for the same image.

    Examples:
        >>> other = predictions.assign(**{"p_Normal": 0.5, "p_COVID-19": 0.5})
        >>> comparison = compare(predictions, other, names=["model", "coin"], n_resamples=200)
        >>> comparison.table.loc[comparison.table["metric"] == "auc", ["model", "difference", "n"]].round(2)
          model  difference   n
        4  coin       -0.33  60
    """
    paired = pair_predictions(models, names=names, positive=positive, split=split, **reading)
    values = [threshold] * len(models) if isinstance(threshold, (int, float)) else list(threshold)
    thresholds: list[float] = [check_option("threshold", value, Probability) for value in values]
    if len(thresholds) != len(models):
        raise UsageError(
            f"{len(thresholds)} thresholds for {len(models)} models.", hint="Give one threshold, or one per model."
        )
    options = {"positive": positive, "n_resamples": n_resamples, "seed": seed}
    evaluations, units, table = _compare_tables(paired, thresholds, **options)
    reference, *others = paired.tables
    result, tests, agreement = evaluations[reference], [], []
    for name in others:
        agreement.append({"model": name, **measure_agreement(units[reference], units[name], result.classes)})
        tests += [{"model": name, **row} for row in _test_folds(paired, reference, name, evaluations, thresholds)]
    return Comparison(
        names=list(paired.tables),
        table=table,
        fold_tests=pd.DataFrame(tests, columns=TEST_COLUMNS),
        agreement=pd.DataFrame(agreement, columns=AGREEMENT_COLUMNS),
        cases=list_disagreements(units, result.classes, result.positive),
        evaluations=evaluations,
        notes=[*paired.notes, *([DRAWINGS] if all(each.is_synthetic for each in evaluations.values()) else [])],
    )


def compare_aucs(
    reference: pd.DataFrame,
    others: Mapping[str, pd.DataFrame],
    *,
    positive: str | None,
    n_resamples: int,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare the AUC of other tables with that of a reference, as `compare` does, and compute nothing else.

    Args:
        reference: What `read_predictions` returned.
        others: Such tables of other models, by name.
        positive: As in `compare`.
        n_resamples: As in `compare`.
        seed: As in `compare`.

    Returns:
        One row per other model: `model`, `auc` with `auc_low` and `auc_high`, `reference_auc`, and `difference`, the
        AUC minus that of the reference, with `low`, `high` and `n`, all of the patients of all tables.
    """
    paired = pair_tables({"": reference, **others})
    thresholds = [0.5] * len(paired.tables)  # which no AUC depends on
    options = {"positive": positive, "n_resamples": n_resamples, "seed": seed}
    evaluations, _, table = _compare_tables(paired, thresholds, metrics=["auc"], **options)
    rows = []
    for name in others:
        auc = evaluations[name].row("auc")
        differences = table[(table["model"] == name) & (table["class"] == auc["class"])]
        row = as_rows(differences.rename(columns={"reference_value": "reference_auc"}))[0]
        rows.append({**row, "auc": auc["value"], "auc_low": auc["low"], "auc_high": auc["high"]})
    return pd.DataFrame(rows, columns=AUC_COLUMNS)


def _compare_tables(
    paired: PairedPredictions,
    thresholds: Sequence[float],
    *,
    positive: str | None,
    n_resamples: int,
    seed: int,
    metrics: Collection[str] | None = None,
) -> tuple[dict[str, Evaluation], dict[str, pd.DataFrame], pd.DataFrame]:
    """Return the evaluation and the `Scores.table` of each model, and `Comparison.table`, of all or of some metrics."""
    evaluations, units = {}, {}
    positive = choose_positive(class_columns(next(iter(paired.tables.values()))), positive)
    for (name, table), value in zip(paired.tables.items(), thresholds, strict=True):
        if not paired.same_folds:  # the AUC within folds needs the same folds in all tables
            table = table.assign(fold=0)
        scores = score_units(table, positive=positive, threshold=value)
        options = {"threshold": value, "n_resamples": n_resamples, "seed": seed, "metrics": metrics}
        evaluations[name] = evaluate_table(table, positive=positive, scores=scores, **options)
        units[name] = scores.table
    reference, *others = paired.tables
    classes, about = evaluations[reference].classes, units[reference]
    resamples = Resamples(about["patient"], about["label"], n_resamples, seed)
    listed = {name: list_weighted_metrics(table, classes, positive) for name, table in units.items()}
    rows = [
        {"model": name, **_difference_row(metric, reference_metric, resamples)}
        for name in others
        for metric, reference_metric in zip(listed[name], listed[reference], strict=True)
        if metrics is None or metric.metric in metrics
    ]
    return evaluations, units, pd.DataFrame(rows, columns=COLUMNS)


def corrected_t(differences: np.ndarray, test_to_train: float) -> tuple[float, float, float]:
    """Test the mean of fold-wise differences by the corrected resampled t-test (Nadeau and Bengio, ML 2003).

    The training patients of the folds overlap, which the variance is corrected for.

    Args:
        differences: The difference of each fold, `(k,)`, two or more.
        test_to_train: The number of patients of a fold divided by that of its training patients, such as 1/4 for five
            folds.

    Returns:
        The bounds of the 95% interval, and the two-sided p-value.
    """
    k, mean = len(differences), float(np.mean(differences))
    standard_error = math.sqrt((1 / k + test_to_train) * float(np.var(differences, ddof=1)))  # 1 / k if uncorrected
    if standard_error == 0:
        return mean, mean, 1.0 if mean == 0 else 0.0
    half_width = float(t.ppf(0.975, k - 1)) * standard_error
    return mean - half_width, mean + half_width, float(2 * t.sf(abs(mean) / standard_error, k - 1))


def plot_comparison(comparison: Comparison) -> Figure:
    """Plot the differences with their intervals, one row per metric; to the right of the line the model is better.

    Args:
        comparison: What `compare` returned.

    Returns:
        The figure, with one panel for metrics of which higher is better, and one with the x axis reversed for those of
        which lower is better.
    """
    others, reference = comparison.names[1:], comparison.names[0]
    colours = dict(zip(others, list(class_colours(["", *others]).values())[1:], strict=True))
    table = comparison.table[comparison.table["difference"].notna()]
    is_lower_better = table["metric"].isin(LOWER_IS_BETTER)
    tables = [rows for rows in (table[~is_lower_better], table[is_lower_better]) if len(rows)]
    keys = [list(dict.fromkeys(zip(rows["metric"], rows["class"], strict=True))) for rows in tables]
    height = 1.5 + 0.22 * max(map(len, keys)) * (1 + 0.5 * (len(others) - 1))
    figure = Figure(figsize=(5.2 * len(tables), height), layout="constrained")
    panels = figure.subplots(1, len(tables), squeeze=False)[0]
    for axes, panel_rows, panel_keys in zip(panels, tables, keys, strict=True):
        positions = {key: position for position, key in enumerate(panel_keys)}
        sign = -1 if panel_rows["metric"].iloc[0] in LOWER_IS_BETTER else 1
        axes.axvline(0, color="#555555", lw=0.8)
        for number, name in enumerate(others):
            rows = panel_rows[panel_rows["model"] == name]
            y = [
                positions[key] + 0.22 * (number - (len(others) - 1) / 2)
                for key in zip(rows["metric"], rows["class"], strict=True)
            ]
            bounds = np.sort(sign * rows[["low", "high"]].to_numpy(), axis=1)
            axes.hlines(y, bounds[:, 0], bounds[:, 1], color=colours[name], lw=1.4)
            axes.plot(sign * rows["difference"], y, "o", color=colours[name], markersize=4.5)
        labels = [format_metric_name(metric, of) for metric, of in panel_keys]
        axes.set(yticks=range(len(panel_keys)), yticklabels=labels, ylim=(len(panel_keys) - 0.4, -0.6))
        direction = "lower" if sign < 0 else "higher"
        axes.set_xlabel(f"{direction} than {reference}: better to the right, 95% interval", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    n = int(comparison.agreement["n"].iloc[0])
    handles = [Line2D([], [], color=colour, marker="o", markersize=4.5, label=name) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside upper left", frameon=False, fontsize=9, ncols=3, title_fontsize=10)
    figure.suptitle(f"Difference to {reference}, n = {n} patients", fontsize=10)
    return figure


def _difference_row(metric: WeightedMetric, reference: WeightedMetric, resamples: Resamples) -> dict[str, Any]:
    """Return a row of `Comparison.table`: the difference with the interval that suits its metric.

    Args:
        metric: The metric of the model.
        reference: The same metric of the reference.
        resamples: Bootstrap resamples of the units.
    """
    equal_weights = np.ones((1, len(metric.included)))  # the data themselves: each unit once
    n = int(metric.included.sum())
    values = [float(each.compute(equal_weights)[0]) if n else math.nan for each in (reference, metric)]
    difference, low, high = values[1] - values[0], math.nan, math.nan
    if n == 0 or not math.isfinite(difference):
        method = "no unit of some class"
    else:
        low, high, method = difference_interval(metric, reference, (values[0], values[1]), None, resamples)
    row = (metric.metric, metric.of, *values, difference, low, high, n, "patient", method)
    return dict(zip(COLUMNS[1:], row, strict=True))


def _test_folds(
    paired: PairedPredictions, reference: str, name: str, evaluations: dict[str, Evaluation], thresholds: list[float]
) -> list[dict[str, Any]]:
    """Return the rows of `Comparison.fold_tests` for one model; none if the models do not have the same folds."""
    if not paired.same_folds:
        return []
    order = list(paired.tables)
    differences: dict[tuple[str, str], list[float]] = {}
    ratios, n_patients = [], paired.tables[reference]["patient"].nunique()
    folds = sorted(paired.tables[reference]["fold"].unique(), key=str)
    for fold in folds:
        values = []
        for model in (reference, name):
            table, result = paired.tables[model], evaluations[model]
            rows = table[table["fold"] == fold]
            units = score_units(rows, positive=result.positive, threshold=thresholds[order.index(model)]).table
            equal_weights = np.ones((1, len(units)))
            metrics = list_weighted_metrics(units, result.classes, result.positive)
            values.append({(m.metric, m.of): float(m.compute(equal_weights)[0]) for m in metrics if m.included.any()})
            n_in_fold = units["patient"].nunique()
        ratios.append(n_in_fold / (n_patients - n_in_fold))
        for key in values[0]:
            differences.setdefault(key, []).append(values[1][key] - values[0][key])
    tests = []
    for (metric, of), by_fold in differences.items():
        if len(by_fold) == len(folds) and np.isfinite(by_fold).all():
            low, high, p = corrected_t(np.array(by_fold), float(np.mean(ratios)))
            row = (metric, of, float(np.mean(by_fold)), low, high, p, len(folds))
            tests.append(dict(zip(TEST_COLUMNS[1:], row, strict=True)))
    return tests


AGREEMENT_COLUMNS = ["model", "fraction", "low", "high", "kappa", "kappa_low", "kappa_high", "n"]
AGREEMENT_COLUMNS += ["both_right", "only_reference", "only_model", "both_wrong", "mcnemar_p"]


def measure_agreement(reference: pd.DataFrame, model: pd.DataFrame, classes: list[str]) -> dict[str, Any]:
    """Measure how often two models predict the same class, and which of them is correct if they do not.

    Args:
        reference: `Scores.table` of the reference.
        model: `Scores.table` of the model, with the patients in the same order.
        classes: All classes.

    Returns:
        A row of `Comparison.agreement`, without the name of the model. `mcnemar_p` is the two-sided p-value of
        McNemar's exact test (Psychometrika 1947), a binomial test on the patients for whom only one model is correct.
    """
    predicted, reference_predicted = model["predicted"].to_numpy(), reference["predicted"].to_numpy()
    labels = reference["label"].to_numpy()
    correct, reference_correct = predicted == labels, reference_predicted == labels
    fraction, n = float((predicted == reference_predicted).mean()), len(predicted)
    only_reference = int((reference_correct & ~correct).sum())
    only_model = int((correct & ~reference_correct).sum())
    n_discordant = only_reference + only_model
    p = float(binomtest(only_model, n_discordant).pvalue) if n_discordant else 1.0
    both_right, both_wrong = int((correct & reference_correct).sum()), int((~correct & ~reference_correct).sum())
    kappa = cohen_kappa(reference_predicted, predicted, classes)
    counts = (both_right, only_reference, only_model, both_wrong)
    row = (fraction, *wilson(fraction, n), *kappa, n, *counts, p)
    return dict(zip(AGREEMENT_COLUMNS[1:], row, strict=True))


def list_disagreements(units: dict[str, pd.DataFrame], classes: list[str], positive: str | None) -> pd.DataFrame:
    """List the patients on whom models disagree, the largest gap first.

    Args:
        units: `Scores.table` of each model, with the patients in the same order.
        classes: All classes.
        positive: The class whose probability is listed; None for that of the predicted class of each model.

    Returns:
        `Comparison.cases`. Its `gap` is the largest total variation distance between the probabilities of two models.
    """
    names, first = list(units), next(iter(units.values()))
    p = np.stack([table[[PROBABILITY + name for name in classes]].to_numpy() for table in units.values()])
    # total variation distance: half of the summed absolute differences; the largest of all pairs of models
    gaps = np.abs(p[:, None] - p[None]).sum(axis=-1).max(axis=(0, 1)) / 2
    predicted = np.stack([table["predicted"].to_numpy() for table in units.values()])
    cases = first[["patient", "label", "images"]].assign(gap=gaps)
    for number, name in enumerate(names):
        listed = p[number][:, classes.index(positive)] if positive else p[number].max(axis=1)
        cases[f"{name} predicted"] = predicted[number]
        cases[f"{name} p({positive or 'predicted class'})"] = listed
    differs = (predicted != predicted[0]).any(axis=0)
    return cases[differs].sort_values("gap", ascending=False, kind="stable").reset_index(drop=True)


def cohen_kappa(first: np.ndarray, second: np.ndarray, classes: Sequence[str]) -> tuple[float, float, float]:
    """Compute Cohen's kappa with its large-sample interval (Fleiss, Cohen and Everitt, Psychological Bulletin 1969).

    Args:
        first: Classes predicted by one model, `(n,)`.
        second: Classes predicted by the other model, `(n,)`.
        classes: All classes.

    Returns:
        Kappa and the bounds of its 95% interval; NaN if both models predict only one and the same class.
    """
    names = list(classes)
    counts = pd.crosstab(pd.Categorical(first, names), pd.Categorical(second, names), dropna=False).to_numpy()
    n, p = counts.sum(), counts / counts.sum()
    rows, columns = p.sum(axis=1), p.sum(axis=0)  # marginal distributions of the first and of the second model
    observed, chance = float(np.trace(p)), float(rows @ columns)
    if chance >= 1:
        return math.nan, math.nan, math.nan
    kappa = (observed - chance) / (1 - chance)
    # equation 13 of Fleiss et al.: cell (i, j) has the weight of the marginals of class j by the first model and of
    # class i by the second
    marginals = rows[None, :] + columns[:, None]
    diagonal = (np.diag(p) * (1 - np.diag(marginals) * (1 - kappa)) ** 2).sum()
    off_diagonal = (1 - kappa) ** 2 * ((p - np.diag(np.diag(p))) * marginals**2).sum()
    variance = (diagonal + off_diagonal - (kappa - chance * (1 - kappa)) ** 2) / ((1 - chance) ** 2 * n)
    half_width = Z * math.sqrt(max(float(variance), 0.0))
    return kappa, kappa - half_width, min(kappa + half_width, 1.0)
