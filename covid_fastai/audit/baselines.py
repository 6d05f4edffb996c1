"""Shortcut baselines: how far one gets without a look at a lung, on the same folds as the network."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from covid_fastai.audit.baseline_features import (
    BASELINES,
    LUNG_FREE,
    Features,
    one_hot,
    read_features,
    sources_of,
)
from covid_fastai.audit.permutation import holm, permute_labels
from covid_fastai.data.cohort import as_cohort
from covid_fastai.data.splits import fold_by_patient
from covid_fastai.data.tables import as_rows
from covid_fastai.errors import DataError
from covid_fastai.evaluation.formatting import ResultDisplay, format_interval, format_metric, format_p_value
from covid_fastai.evaluation.metrics import evaluate
from covid_fastai.evaluation.prediction_table import PROBABILITY
from covid_fastai.notices import RESEARCH_USE
from covid_fastai.options import Seed, checked
from covid_fastai.plotting import COLOURS, GREY

__all__ = ["ShortcutAudit", "compare_parts", "find_shortcuts", "fit_and_predict", "plot_shortcuts", "predict_shortcuts"]

logger = logging.getLogger("covid_fastai")

COLUMNS = ["baseline", "sees", "lung_free", "auc", "low", "high", "accuracy", "n", "p", "p_holm", "flagged"]
LEVEL = 0.05  # of all flags together: a clean data set is flagged in at most 5 of 100 cases
PERMUTATIONS = 999  # the smallest p is then 0.001, which Holm's correction for four baselines leaves below 0.05
PENALTY = 0.1  # scikit-learn's C: standardised features of a hundred patients need a firm hand
MOST = 1000  # images of a class that are looked at; more say nothing new, and take time
FOLDS = 5
DRAWS = 500  # of the bootstrap, for the mean AUC of more than two classes


@dataclass(frozen=True, eq=False, repr=False)
class ShortcutAudit(ResultDisplay):
    """What baselines that see little or nothing of a lung reach.

    Attributes:
        table: A row a baseline: `baseline`, `sees` (what it is given), `lung_free` (whether no lung can be seen in it),
            `auc` with `low` and `high` (95%; with more than two classes the mean of each against the rest),
            `accuracy`, `n` (patients), `p` (of the permutation test), `p_holm` (corrected for the lung-free ones) and
            `flagged`. Rows of what could not be tried have NaN.
        permuted: The AUCs that the thumbnail reaches once the patients' labels are dealt out at random: `median`, `low`
            and `high` (the middle 95%).
        predictions: By baseline, its out-of-fold predictions, a table like that of `predict`.
        images: How many images were looked at.
        unreadable: How many of the images could not be opened.
    """

    table: pd.DataFrame
    permuted: Mapping[str, float]
    predictions: Mapping[str, pd.DataFrame] = field(repr=False)
    images: int
    unreadable: int

    @property
    def flags(self) -> list[str]:
        """The lung-free baselines that tell the classes apart better than chance, the strongest first."""
        flagged = self.table[self.table["flagged"]]
        return flagged.sort_values("auc", ascending=False, kind="stable")["baseline"].tolist()

    def row(self, baseline: str) -> dict[str, Any]:
        """Return a baseline's row of the table."""
        return as_rows(self.table.set_index("baseline").loc[[baseline]])[0]

    def summary(self) -> pd.DataFrame:
        """Return the table as text."""
        rows = self.table
        return pd.DataFrame(
            {
                "given": rows["baseline"],
                "sees": rows["sees"],
                "AUC": [format_metric(value) for value in rows["auc"]],
                "95% interval": [
                    format_interval(low, high) for low, high in zip(rows["low"], rows["high"], strict=True)
                ],
                "accuracy": [format_metric(value) for value in rows["accuracy"]],
                "above chance": [_chance(row) for row in as_rows(rows)],
            }
        )

    def notes(self) -> list[str]:
        """Return what has to be said beside the table."""
        if self.flags:
            listed = ", ".join(f"{name} (AUC {format_metric(self.row(name)['auc'])})" for name in self.flags)
            said = [f"The classes can be told apart without a look at a lung, by: {listed}."]
        else:
            said = [
                "Nothing that was tried tells the classes apart without a look at a lung. What was not tried may: only "
                "another hospital's images can show that nothing does."
            ]
        reached = format_interval(self.permuted["low"], self.permuted["high"], spec="z.2f")
        said.append(f"With the patients' labels dealt out at random the thumbnail reaches {reached}.")
        if self.unreadable:
            said.append(f"{self.unreadable} images could not be opened and were left out.")
        return [*said, RESEARCH_USE]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values, without the predictions."""
        names = {"permuted": dict(self.permuted), "images": self.images, "unreadable": self.unreadable}
        return {"table": self.table.to_dict("records"), **names}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ShortcutAudit:
        """Make an audit from what `to_dict` returned; it holds no predictions."""
        table = pd.DataFrame(fields["table"], columns=COLUMNS)
        for name in ("auc", "low", "high", "accuracy", "p", "p_holm"):
            table[name] = table[name].astype(float)  # JSON has null where a figure has NaN
        return cls(table, fields["permuted"], {}, fields["images"], fields["unreadable"])

    def _display_parts(self) -> Iterator[pd.DataFrame | str]:
        yield from (self.summary(), *self.notes())


@checked
def find_shortcuts(
    cohort: pd.DataFrame,
    *,
    most: int = MOST,
    permutations: int = PERMUTATIONS,
    seed: Seed = 0,
    features: Features | None = None,
) -> ShortcutAudit:
    """Try to tell the classes apart without a look at a lung.

    A logistic regression on each baseline's features predicts every patient from the others, on the cohort's own folds
    (`fold_by_patient`); where it has none, its validation part is a fold, and its training part is dealt into four.
    Whether a baseline is better than chance is tested by dealing the labels out among the patients anew (a ridge
    regression stands in for the logistic one there, whose refits would take minutes), and the baselines that cannot see
    a lung are flagged at 5% all together, by Holm's correction (Scandinavian Journal of Statistics 1979).

    Args:
        cohort: What `read_cohort`, a split or `fold_by_patient` returned; train and valid rows are looked at.
        most: Images of a class that are looked at, whole patients, drawn at random.
        permutations: Of the test.
        seed: Of the draw, the folds and the permutations.
        features: What `read_features` returned for the rows that `rows_to_try` names; None to open the images.

    Returns:
        The audit.

    Raises:
        DataError: A class has fewer than two patients, or no image can be opened.
    """
    rows = rows_to_try(cohort, most=most, seed=seed)
    features = read_features(rows["path"]) if features is None else features
    unreadable = int((~features.readable).sum())
    rows, features = rows[features.readable].reset_index(drop=True), features.take(features.readable)
    classes = _classes(cohort, rows)
    rng = np.random.default_rng(seed)
    found, tests, predictions = [], {}, {}
    permuted = {}
    for name in BASELINES:
        x = _block(name, features, rows)
        if x is None:
            found.append({"baseline": name, "auc": np.nan, "low": np.nan, "high": np.nan, "n": 0})
            continue
        table = _out_of_fold(x, rows, classes)
        result = evaluate(table, n_resamples=DRAWS, seed=seed)
        auc, predictions[name] = result.row("auc"), table
        found.append({"baseline": name, **{key: auc[key] for key in ("low", "high", "n")}, "auc": auc["value"]})
        found[-1]["accuracy"] = result.value("accuracy")
        if x.shape[1]:
            observed, chance = permute_labels(x, rows, classes, permutations=permutations, rng=rng)
            tests[name] = (1 + int((chance >= observed).sum())) / (1 + permutations)
            if name == "thumbnail":
                low, median, high = np.quantile(chance, [0.025, 0.5, 0.975])
                permuted = {"median": float(median), "low": float(low), "high": float(high)}
    table = pd.DataFrame(found).reindex(columns=COLUMNS)
    table["sees"] = table["baseline"].map(BASELINES)
    table["lung_free"] = table["baseline"].isin(LUNG_FREE)
    table["p"] = table["baseline"].map(tests)
    table["p_holm"] = table["baseline"].map(holm({name: p for name, p in tests.items() if name in LUNG_FREE}))
    table["flagged"] = table["p_holm"] < LEVEL
    return ShortcutAudit(table, permuted, predictions, len(rows), unreadable)


def predict_shortcuts(
    trained_on: pd.DataFrame,
    rows: pd.DataFrame,
    *,
    baselines: Sequence[str] = ("mean and spread", "border ring", "thumbnail"),
    most: int = MOST,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Fit baselines on some images and predict others with them: a test set, or another hospital's.

    Args:
        trained_on: Rows of a cohort, with `path`, `label` and `patient`.
        rows: Others, which are predicted; `label` and `patient` are carried on where they are.
        baselines: Names in `BASELINES`; "source" and "prevalence" say nothing elsewhere.
        most: Images of a class that are fitted on.
        seed: Of the draw.

    Returns:
        By baseline a table like that of `predict`; an image that cannot be opened is `unreadable` in it.

    Raises:
        DataError: The rows to fit on have one class only.
    """
    fit = _draw(trained_on, most=most, seed=seed)
    classes = _classes(trained_on, fit)
    if fit["label"].nunique() < 2:
        raise DataError("The rows to fit on have one class only.", hint="Give rows of each class.")
    known, others = read_features(fit["path"]), read_features(rows["path"])
    columns = ["path", "label", "patient", "split", "source", "view"]
    about = rows.reindex(columns=columns).astype(object).fillna("").astype(str).reset_index(drop=True)
    tables = {}
    for name in baselines:
        label = fit.loc[known.readable, "label"]
        p = fit_and_predict(known.blocks[name][known.readable], label, others.blocks[name], classes)
        p[~others.readable] = np.nan
        tables[name] = _table(about, p, classes).assign(status=np.where(others.readable, "ok", "unreadable"))
    return tables


def compare_parts(cohort: pd.DataFrame, *, most: int = 500, seed: int = 0) -> pd.DataFrame:
    """Try to tell the official TEST's images of a class from the training images of the same class: a batch_effect.

    There is nothing to tell but how the images were made. Above chance the TEST is another batch, and what was learnt
    or chosen in training need not hold on it.

    Args:
        cohort: Rows with `split`, `label` and `patient`.
        most: Images of a part that are looked at.
        seed: Of the draw and the folds.

    Returns:
        A row a class that has ten patients or more in either part: `class`, `auc` of the thumbnail, `low` and `high`
        (95%), `n` patients.
    """
    rows = []
    for name, part in cohort[cohort["split"].isin(["train", "valid", "test"])].groupby("label"):
        part = pd.DataFrame(part)  # a plain table: its classes are others now
        part = part.assign(label=np.where(part["split"] == "test", "official TEST", "training"), split="train")
        patients = part.groupby("label")["patient"].nunique()
        if len(patients) < 2 or patients.min() < 10:
            continue
        part = rows_to_try(part.drop(columns="fold", errors="ignore"), most=most, seed=seed)
        features = read_features(part["path"])
        part, features = part[features.readable].reset_index(drop=True), features.take(features.readable)
        table = _out_of_fold(features.blocks["thumbnail"], part, ["training", "official TEST"])
        auc = evaluate(table, n_resamples=DRAWS, seed=seed).row("auc")
        rows.append({"class": name, "auc": auc["value"], **{key: auc[key] for key in ("low", "high", "n")}})
    return pd.DataFrame(rows, columns=["class", "auc", "low", "high", "n"])


def plot_shortcuts(audit: ShortcutAudit, *, network: Mapping[str, Any] | None = None) -> Figure:
    """Plot the AUC of each baseline with its interval, what is flagged in another colour, the network on top.

    Args:
        audit: What `find_shortcuts` returned.
        network: The network's figure on held-out patients, with `value`, `low` and `high`; None to leave it out.

    Returns:
        The figure.
    """
    rows = audit.table.dropna(subset=["auc"])
    figure = Figure(figsize=(6.4, 1.1 + 0.34 * (len(rows) + (network is not None))), layout="constrained")
    axes = figure.subplots()
    lines = [(row["baseline"], row["auc"], row["low"], row["high"], row["flagged"]) for row in rows.to_dict("records")]
    if network is not None:
        lines.append((f"the network (n = {network['n']})", network["value"], network["low"], network["high"], None))
    for place, (_, auc, low, high, flagged) in enumerate(lines):
        colour = {None: "#000000", True: COLOURS[1], False: COLOURS[0]}[flagged]
        spread = [[max(auc - low, 0)], [max(high - auc, 0)]] if low == low else None
        axes.errorbar(auc, place, xerr=spread, fmt="D" if flagged is None else "o", color=colour, ms=5, capsize=3)
        axes.annotate(format_metric(auc), (1.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    axes.axvline(0.5, color=GREY, lw=0.8, ls=":")
    axes.set(yticks=range(len(lines)), yticklabels=[line[0] for line in lines], ylim=(-0.6, len(lines) - 0.4))
    axes.set(xlim=(min(0.4, *(min(line[1:3]) for line in lines)) - 0.02, 1.01), xlabel="AUC, with 95% interval")
    n = int(rows["n"].max())
    axes.set_title(
        f"Baselines{' beside the network' if network else ''} (orange: flagged), n = {n} patients",
        fontsize=10,
        loc="left",
    )
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def rows_to_try(cohort: pd.DataFrame, *, most: int = MOST, seed: int = 0) -> pd.DataFrame:
    """Return the rows that baselines are tried on, with the column `fold`; -1 is fitted on in every fold.

    Args:
        cohort: As in `find_shortcuts`.
        most: Images of a class, whole patients.
        seed: Of the draw and the folds.

    Returns:
        The rows, of which there are at most `most` a class (one patient's more).

    Raises:
        DataError: A class has fewer than two patients.
    """
    used = cohort[cohort["split"].isin(["train", "valid"])]
    patients = used.groupby("label")["patient"].nunique()
    if len(patients) < 2 or patients.min() < 2:
        counts = ", ".join(f"{n} of {name}" for name, n in patients.items()) or "none"
        raise DataError(f"Shortcuts cannot be looked for with so few patients: {counts}.", hint="Two a class at least.")
    if "fold" in used:
        return _draw(used, most=most, seed=seed)
    rows = _draw(used, most=most, seed=seed)
    if not (rows["split"] == "train").any():
        rows = rows.assign(split="train")
    rows = rows.assign(group=rows["group"] if "group" in rows else rows["patient"]).drop(
        columns="in_pretraining", errors="ignore"
    )
    trained = rows[rows["split"] == "train"]
    folds = int(min(FOLDS - rows["split"].eq("valid").any(), trained.groupby("label")["group"].nunique().min()))
    if folds < 2:  # a patient a class is trained on: the others are judged by it
        return rows.assign(fold=rows["split"].eq("valid").astype(int) - 1).reset_index(drop=True)
    dealt = fold_by_patient(trained, folds=folds, seed=seed)
    return rows.assign(fold=dealt["fold"].reindex(rows.index).fillna(folds).astype(int)).reset_index(drop=True)


def _draw(rows: pd.DataFrame, *, most: int, seed: int) -> pd.DataFrame:
    """Draw whole patients of each class until there are `most` images of it."""
    rng = np.random.default_rng(seed)
    kept = []
    for _, part in rows.groupby("label", sort=True):
        sizes = part.groupby("patient", sort=True).size()
        order = sizes.iloc[rng.permutation(len(sizes))]
        kept.append(part[part["patient"].isin(order.index[(order.cumsum() - order < most)])])
    return pd.concat(kept).sort_index().reset_index(drop=True)


def _classes(cohort: pd.DataFrame, rows: pd.DataFrame) -> list[str]:
    known = [name for name in as_cohort(cohort).facts.classes if name in set(rows["label"])]
    return known if set(known) == set(rows["label"]) else sorted(rows["label"].unique())


def _block(name: str, features: Features, rows: pd.DataFrame) -> np.ndarray | None:
    """Return a baseline's features `(n, k)`; none at all for the prevalence; None where it cannot be tried."""
    if name == "prevalence":
        return np.zeros((len(rows), 0))
    if name != "source":
        return features.blocks[name]
    sources = sources_of(rows)
    return one_hot(sources, sorted(sources.unique())) if sources.nunique() > 1 else None


def fit_and_predict(
    x: np.ndarray, labels: Sequence[str] | pd.Series, others: np.ndarray, classes: Sequence[str]
) -> np.ndarray:
    """Fit a logistic regression, classes weighted alike, and predict others with it.

    Args:
        x: Features to fit on, `(n, k)`; they are standardised.
        labels: Their classes, `(n,)`.
        others: Features to predict, `(m, k)`.
        classes: All classes, in the order of the columns.

    Returns:
        Probabilities, `(m, classes)`; 0 for a class that was not fitted on.
    """
    model = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, class_weight="balanced", max_iter=2000))
    model.fit(x, labels)
    p = np.zeros((len(others), len(classes)))
    p[:, [list(classes).index(name) for name in model.classes_]] = model.predict_proba(others)
    return p


def _out_of_fold(x: np.ndarray, rows: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """Return the predictions of each row by the model of the other folds."""
    p = np.full((len(rows), len(classes)), np.nan)
    label, fold = rows["label"].to_numpy(), rows["fold"].to_numpy()
    for number in np.unique(fold[fold >= 0]):
        own, fit = fold == number, fold != number
        if x.shape[1]:
            p[own] = fit_and_predict(x[fit], label[fit], x[own], classes)
        else:
            shares = np.array([(label == name).mean() for name in classes])
            p[own] = (shares * 2**20).round() / 2**20  # the mean over a patient's images is then the same number
    judged = fold >= 0
    columns = ["path", "label", "patient", "split", "source", "view", "fold"]
    about = rows.reindex(columns=columns)[judged].reset_index(drop=True)
    return _table(about, p[judged], classes).assign(status="ok")


def _table(about: pd.DataFrame, p: np.ndarray, classes: list[str]) -> pd.DataFrame:
    table = pd.DataFrame(about).copy()
    for number, name in enumerate(classes):
        table[PROBABILITY + name] = p[:, number]
    return table.assign(prediction=np.array(classes, dtype=object)[np.nan_to_num(p, nan=-1.0).argmax(axis=1)])


def _chance(row: Mapping[str, Any]) -> str:
    if row["auc"] != row["auc"]:
        return "not tried: one source, or none named"
    if row["p"] != row["p"]:
        return ""
    return f"{'flagged, ' if row['flagged'] else ''}{format_p_value(row['p'])}"
