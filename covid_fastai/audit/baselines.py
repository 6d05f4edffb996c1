"""Shortcut baselines: performance on features with little or nothing of the lungs, on the folds of the network."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from covid_fastai.audit.baseline_features import (
    Features,
    fill_hidden,
    kernel_components,
    one_hot,
    read_features,
    values_of,
)
from covid_fastai.audit.baseline_models import build_predictions_table, fit_and_predict, predict_out_of_fold
from covid_fastai.audit.fixed_spots import Box, describe_box, find_spots
from covid_fastai.audit.permutation import PERMUTATIONS, holm, permute_labels
from covid_fastai.data.cohort import as_cohort
from covid_fastai.data.splits import fold_by_patient
from covid_fastai.data.tables import as_rows
from covid_fastai.errors import DataError
from covid_fastai.evaluation.formatting import ResultDisplay, format_interval, format_metric, format_p_value
from covid_fastai.evaluation.metrics import evaluate_table
from covid_fastai.evaluation.prediction_table import read_predictions
from covid_fastai.notices import RESEARCH_USE
from covid_fastai.options import Seed, checked
from covid_fastai.plotting import COLOURS, GREY

__all__ = [
    "BASELINES",
    "HIDDEN_ABOUT",
    "LUNG_FREE",
    "OF_TABLE",
    "PARTLY_BLIND",
    "SMALLEST_EFFECT",
    "ShortcutAudit",
    "compare_parts",
    "find_cohort_spots",
    "find_shortcuts",
    "list_blocks",
    "permute_baselines",
    "plot_shortcuts",
    "predict_shortcuts",
]

logger = logging.getLogger("covid_fastai")

# A new baseline is a line here, with what it is given; `baseline_features.read_features` computes its features.
BASELINES = {
    "prevalence": "class frequencies only",
    "source": "name of the image source (hospital or collection)",
    "projection": "projection (PA or AP) that the table names",
    "headers": "format, mode, width, height, compression and colour profile of the file",
    "intensity mean and SD": "mean and standard deviation of the pixel intensities outside of the lungs",
    "border ring": "outermost pixels at 16 x 16, without the lungs",
    "frame": "image at 16 x 16 pixels between the outermost pixels and the central 10 x 10, without the lungs",
    "frame texture": "power spectrum, grey levels and compression of the outer 3/16 of each side, without the lungs",
    "non-linear": "border ring, frame texture, and intensity mean and SD together, with an RBF kernel",
    "sharp edges": "how far the sharpest edges of the whole image exceed its other edges",
    "lung geometry": "place, size and shape of the box around the segmented lungs, and their tilt",
    "fixed spot": "contrast and texture of one cell of 32 x 32",
    "black centre": "image at 16 x 16 pixels without its central 10 x 10",
    "thumbnail": "image at 16 x 16 pixels",
}
# better than chance here is no finding
LUNG_FREE = ("source", "projection", "headers", "intensity mean and SD", "border ring", "frame", "frame texture")
LUNG_FREE += ("non-linear",)
PARTLY_BLIND = ("black centre", "lung geometry", "sharp edges", "fixed spot")  # may see disease

HIDDEN_ABOUT = ("intensity mean and SD", "frame", "frame texture", "non-linear")  # nothing to see without lungs
OF_TABLE = {"source": "source", "projection": "view"}  # baselines that read a column of the table

COLUMNS = ["baseline", "sees", "lung_free", "auc", "low", "high", "accuracy", "n", "p", "p_holm", "flagged"]
LEVEL = 0.05  # family-wise: at most 5% of data sets without a shortcut get any flag
SMALLEST_EFFECT = 0.6  # a flag with a lower AUC is weak: with thousands of patients 0.52 is significant, too
MOST = 1000  # images per class; more take time and hardly change the result
FOLDS = 5
FEWEST_PATIENTS = 10  # in TEST and in training, for the check of a batch effect
N_RESAMPLES = 500  # of the bootstrap, for the mean AUC of more than two classes
SPOT = "fixed spot"
LUNGS_HIDE = "the lungs fill most images, or were not found"


@dataclass(frozen=True, eq=False, repr=False)
class ShortcutAudit(ResultDisplay):
    """Results of baselines that see little or nothing of the lungs.

    Attributes:
        table: One row per baseline: `baseline`, `sees` (its input), `lung_free` (whether the input shows no lung),
            `auc` with `low` and `high` (95%; with more than two classes the mean of each class against the rest),
            `accuracy`, `n` (patients), `p` (of the permutation test), `p_holm` (corrected for the number of baselines
            that see no lung or only some of the lungs) and `flagged` (lung-free and `p_holm` below 0.05). Baselines
            that could not be evaluated have NaN.
        spots: Places that separate the classes, such as a letter in the lungs, as `SpotTest.boxes`.
        permuted: AUC of the thumbnail on permuted labels: `median`, `low` and `high` (the middle 95%).
        predictions: Out-of-fold predictions of each baseline, tables like that of `predict`.
        images: Number of images used.
        unreadable: Number of images that could not be opened.
        hidden: Largest fraction of a class's images whose lungs were not found, so that the baselines of `HIDDEN_ABOUT`
            see nothing of them.
    """

    table: pd.DataFrame
    permuted: Mapping[str, float]
    predictions: Mapping[str, pd.DataFrame] = field(repr=False)
    images: int
    unreadable: int
    spots: Sequence[Sequence[int]] = ()
    hidden: float = 0.0

    @property
    def flags(self) -> list[str]:
        """The lung-free baselines that separate the classes better than chance, the strongest first."""
        flagged = self.table[self.table["flagged"]]
        return flagged.sort_values("auc", ascending=False, kind="stable")["baseline"].tolist()

    def row(self, baseline: str) -> dict[str, Any]:
        """Return the row of one baseline."""
        return as_rows(self.table.set_index("baseline").loc[[baseline]])[0]

    def summary(self) -> pd.DataFrame:
        """Return the table as text."""
        rows = self.table
        return pd.DataFrame(
            {
                "baseline": rows["baseline"],
                "input": rows["sees"],
                "AUC": [format_metric(value) for value in rows["auc"]],
                "95% interval": [
                    format_interval(low, high) for low, high in zip(rows["low"], rows["high"], strict=True)
                ],
                "accuracy": [format_metric(value) for value in rows["accuracy"]],
                "better than chance": [_describe_test(row) for row in as_rows(rows)],
            }
        )

    def notes(self) -> list[str]:
        """Return the notes that belong to the table."""
        notes = []
        for beginning, weak in (("Lung-free baselines separate", False), ("Lung-free baselines weakly separate", True)):
            flags = [name for name in self.flags if (self.row(name)["auc"] < SMALLEST_EFFECT) == weak]
            if flags:
                listed = ", ".join(f"{name} (AUC {format_metric(self.row(name)['auc'])})" for name in flags)
                notes.append(f"{beginning} the classes: {listed}.")
        if not notes:
            notes = [
                "No lung-free baseline is shown to separate the classes. Other shortcuts may exist; only images of "
                "another hospital can rule them out."
            ]
        partly = [row for row in as_rows(self.table) if row["baseline"] in PARTLY_BLIND and row["p_holm"] < LEVEL]
        if partly:
            listed = ", ".join(f"{row['baseline']} (AUC {format_metric(row['auc'])})" for row in partly)
            notes.append(f"Better than chance, but with some of the lungs in sight: {listed}.")
        if any(row["baseline"] == SPOT for row in partly):
            notes.append(f"The fixed spot is {describe_box(self.spots[0])} of the image.")
        permuted = format_interval(self.permuted["low"], self.permuted["high"], spec="z.2f")
        notes.append(f"On permuted labels the AUC of the thumbnail is {permuted} (middle 95% of the permutations).")
        if self.unreadable:
            notes.append(f"{self.unreadable} images could not be opened and were left out.")
        return [*notes, RESEARCH_USE]

    def to_dict(self) -> dict[str, Any]:
        """Return the results as plain values, without the predictions."""
        names = {"permuted": dict(self.permuted), "images": self.images, "unreadable": self.unreadable}
        names |= {"spots": [list(box) for box in self.spots], "hidden": self.hidden}
        return {"table": self.table.to_dict("records"), **names}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ShortcutAudit:
        """Restore an audit from the result of `to_dict`, without predictions."""
        table = pd.DataFrame(fields["table"], columns=COLUMNS)
        for name in ("auc", "low", "high", "accuracy", "p", "p_holm"):
            table[name] = table[name].astype(float)  # JSON has null in place of NaN
        return cls(
            table, fields["permuted"], {}, fields["images"], fields["unreadable"], fields["spots"], fields["hidden"]
        )

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
    """Test whether the classes can be separated without seeing the lungs.

    A logistic regression on the features of each baseline predicts every patient from the other patients, in the
    cohort's own folds (`fold_by_patient`). Without folds, the validation part is one fold and the training part is
    split into four. A permutation test of the labels decides whether a baseline is better than chance; it uses ridge
    regression, since refitting the logistic regression for every permutation would take minutes. The test of the fixed
    spot is that of the largest distance of a cell's AUC from 0.5 (Westfall and Young 1993). The baselines that see no
    lung, and those that see some of the lungs, are tested at a family-wise level of 5% with Holm's correction
    (Scandinavian Journal of Statistics 6, 1979); the first are flagged.

    Args:
        cohort: Result of `read_cohort`, of a split or of `fold_by_patient`; rows of train and valid are used.
        most: Largest number of images per class; whole patients are sampled at random.
        permutations: Number of permutations of the test; fewer than 250 cannot flag anything after the correction.
        seed: Seed of the sample, the folds and the permutations.
        features: Result of `read_features` for the rows of `rows_to_try`; None to open the images.

    Returns:
        The audit.

    Raises:
        DataError: A class has fewer than two patients, or no image can be opened.

    Examples:
        >>> shortcuts = find_shortcuts(cohort)
        >>> len(shortcuts.summary()) > 1
        True
    """
    logger.info("Audit: training baselines that do not use the lungs.")
    rows = rows_to_try(cohort, most=most, seed=seed)
    features = read_features(rows["path"]) if features is None else features
    unreadable = int((~features.readable).sum())
    rows, features = rows[features.readable].reset_index(drop=True), features.take(features.readable)
    classes = _classes(cohort, rows)
    blocks = list_blocks(features, rows)
    results, predictions = [], {}
    for name, x in blocks.items():
        if x is None:
            results.append({"baseline": name, "auc": np.nan, "low": np.nan, "high": np.nan, "n": 0})
            continue
        table = read_predictions(predict_out_of_fold(x, rows, classes, best_column=name == SPOT))
        # the bootstrap is of the mean AUC of more than two classes only
        result = evaluate_table(table, n_resamples=N_RESAMPLES, seed=seed, metrics=["auc", "accuracy"])
        auc, predictions[name] = result.row("auc"), table
        metrics = {"auc": auc["value"], **{key: auc[key] for key in ("low", "high", "n")}}
        results.append({"baseline": name, **metrics, "accuracy": result.value("accuracy")})
    tests = permute_baselines(rows, blocks, classes, permutations=permutations, seed=seed)
    table = pd.DataFrame(results).reindex(columns=COLUMNS)
    table["sees"] = table["baseline"].map(BASELINES)
    table["lung_free"] = table["baseline"].isin(LUNG_FREE)
    table["p"] = table["baseline"].map(tests.p)
    table["p_holm"] = table["baseline"].map(tests.p_holm)
    table["flagged"] = table["lung_free"] & (table["p_holm"] < LEVEL)
    low, median, high = np.quantile(tests.permuted_thumbnail, [0.025, 0.5, 0.975])
    permuted = {"median": float(median), "low": float(low), "high": float(high)}
    unseen = pd.Series(np.isnan(features.blocks["frame texture"]).all(axis=1))
    hidden = float(unseen.groupby(rows["label"].to_numpy()).mean().max())
    return ShortcutAudit(table, permuted, predictions, len(rows), unreadable, tests.spots, hidden)


@dataclass(frozen=True)
class PermutationTests:
    """Results of the permutation tests of the baselines.

    Attributes:
        p: The p-value of each baseline.
        p_holm: Those of the baselines that see no lung, or some of the lungs, corrected for their number.
        observed: The AUC of each baseline's ridge regression; of the fixed spot 0.5 plus the largest distance from 0.5.
        permuted_thumbnail: The AUCs of the thumbnail on permuted labels.
        spots: As `ShortcutAudit.spots`.
    """

    p: Mapping[str, float]
    p_holm: Mapping[str, float]
    observed: Mapping[str, float]
    permuted_thumbnail: np.ndarray
    spots: tuple[Box, ...]


def permute_baselines(
    rows: pd.DataFrame,
    blocks: Mapping[str, np.ndarray | None],
    classes: list[str],
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> PermutationTests:
    """Test each baseline by permuting the labels, as `find_shortcuts` does.

    Args:
        rows: Result of `rows_to_try`.
        blocks: Result of `list_blocks`.
        classes: All classes.
        permutations: As in `find_shortcuts`.
        seed: Seed of the permutations.

    Returns:
        The tests.
    """
    rng = np.random.default_rng(seed)
    chances: dict[str, tuple[float, np.ndarray]] = {}  # the statistic of the true and of the permuted labels
    spots: tuple[Box, ...] = ()
    for name, x in blocks.items():
        if x is None or not x.shape[1]:
            continue
        if name == SPOT:
            test = find_spots(x, rows, classes, permutations=permutations, seed=seed)
            spots, chances[name] = test.boxes, (0.5 + test.observed, 0.5 + test.permuted)
        else:
            chances[name] = permute_labels(x, rows, classes, permutations=permutations, rng=rng)
    # 1 is added to both, so that p is never 0 (Phipson and Smyth, SAGMB 9, 2010)
    p = {name: (1 + int((chance >= seen).sum())) / (1 + permutations) for name, (seen, chance) in chances.items()}
    p_holm = holm({name: p[name] for name in p if name in (*LUNG_FREE, *PARTLY_BLIND)})
    observed = {name: seen for name, (seen, _) in chances.items()}
    return PermutationTests(p, p_holm, observed, chances["thumbnail"][1], spots)


def find_cohort_spots(cohort: pd.DataFrame, *, seed: int = 0) -> tuple[Box, ...]:
    """Find the places that separate the classes, as `find_shortcuts` does with the same seed.

    Args:
        cohort: As in `find_shortcuts`.
        seed: As in `find_shortcuts`.

    Returns:
        The places, as `SpotTest.boxes`; none if there are too few patients or images.
    """
    try:
        rows = rows_to_try(cohort, seed=seed)
    except DataError:  # find_shortcuts reports it
        return ()
    features = read_features(rows["path"], blocks=[SPOT])
    rows, features = rows[features.readable].reset_index(drop=True), features.take(features.readable)
    if rows["label"].nunique() < 2:
        return ()
    return find_spots(features.blocks[SPOT], rows, _classes(cohort, rows), seed=seed).boxes


def predict_shortcuts(
    trained_on: pd.DataFrame,
    rows: pd.DataFrame,
    *,
    baselines: Sequence[str] = ("intensity mean and SD", "border ring", "thumbnail"),
    most: int = MOST,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Fit baselines on some images and predict other images, such as a test set or another hospital's images.

    Args:
        trained_on: Rows of a cohort to fit on, with `path`, `label` and `patient`.
        rows: Rows to predict; `label` and `patient` are optional.
        baselines: Names of `baseline_features.BLOCKS`; the source and the prevalence mean nothing on other data.
        most: Largest number of images per class to fit on.
        seed: Seed of the sample to fit on.

    Returns:
        A table like that of `predict` for each baseline; images that cannot be opened have the status `unreadable`.

    Raises:
        DataError: The rows to fit on have only one class.
    """
    fit = _sample_patients(trained_on, most=most, seed=seed)
    classes = _classes(trained_on, fit)
    if fit["label"].nunique() < 2:
        raise DataError("The rows to fit on have only one class.", hint="Give rows of each class.")
    fitted, predicted = (read_features(table["path"], blocks=baselines) for table in (fit, rows))
    columns = ["path", "label", "patient", "split", "source", "view"]
    about = rows.reindex(columns=columns).astype(object).fillna("").astype(str).reset_index(drop=True)
    tables = {}
    for name in baselines:
        label = fit.loc[fitted.readable, "label"]
        x = fitted.blocks[name][fitted.readable]
        p = fit_and_predict(fill_hidden(x), label, fill_hidden(predicted.blocks[name], x), classes)
        p[~predicted.readable] = np.nan
        status = np.where(predicted.readable, "ok", "unreadable")
        tables[name] = build_predictions_table(about, p, classes).assign(status=status)
    return tables


def compare_parts(cohort: pd.DataFrame, *, most: int = 500, seed: int = 0) -> pd.DataFrame:
    """Check for a batch effect: whether a thumbnail separates the official TEST from training within a class.

    Within a class the two should differ only in how the images were made. An AUC above chance means that the TEST comes
    from another batch, to which results of training need not transfer.

    Args:
        cohort: Rows with `split`, `label` and `patient`.
        most: Largest number of images from TEST and from training, per class.
        seed: Seed of the sample and the folds.

    Returns:
        One row per class with at least ten patients in both: `class`, `auc` of the thumbnail, `low` and `high` (95%),
        `n` patients.
    """
    rows = []
    for name, images in cohort[cohort["split"].isin(["train", "valid", "test"])].groupby("label"):
        images = pd.DataFrame(images)  # a plain table, since its classes are now TEST and training
        images = images.assign(label=np.where(images["split"] == "test", "official TEST", "training"), split="train")
        patients = images.groupby("label")["patient"].nunique()
        if len(patients) < 2 or patients.min() < FEWEST_PATIENTS:
            continue
        images = rows_to_try(images.drop(columns="fold", errors="ignore"), most=most, seed=seed)
        features = read_features(images["path"], blocks=["thumbnail"])
        images, features = images[features.readable].reset_index(drop=True), features.take(features.readable)
        table = predict_out_of_fold(features.blocks["thumbnail"], images, ["training", "official TEST"])
        table = read_predictions(table)
        auc = evaluate_table(table, n_resamples=N_RESAMPLES, seed=seed, metrics=["auc"]).row("auc")
        rows.append({"class": name, "auc": auc["value"], **{key: auc[key] for key in ("low", "high", "n")}})
    return pd.DataFrame(rows, columns=["class", "auc", "low", "high", "n"])


def plot_shortcuts(audit: ShortcutAudit, *, network: Mapping[str, Any] | None = None) -> Figure:
    """Plot the AUC of each baseline with its interval; flagged baselines are orange, the network is on top.

    Args:
        audit: Result of `find_shortcuts`.
        network: AUC of the network on held-out patients: `value`, `low`, `high` and `n`; None to leave it out.

    Returns:
        The figure.
    """
    rows = audit.table.dropna(subset=["auc"])
    figure = Figure(figsize=(6.4, 1.1 + 0.34 * (len(rows) + (network is not None))), layout="constrained")
    axes = figure.subplots()
    lines = [(row["baseline"], row["auc"], row["low"], row["high"], row["flagged"]) for row in rows.to_dict("records")]
    if network is not None:
        lines.append((f"network (n = {network['n']})", network["value"], network["low"], network["high"], None))
    for y, (_, auc, low, high, flagged) in enumerate(lines):
        colour = {None: "#000000", True: COLOURS[1], False: COLOURS[0]}[flagged]
        errors = [[max(auc - low, 0)], [max(high - auc, 0)]] if low == low else None  # NaN: no interval
        axes.errorbar(auc, y, xerr=errors, fmt="D" if flagged is None else "o", color=colour, ms=5, capsize=3)
        axes.annotate(format_metric(auc), (1.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    axes.axvline(0.5, color=GREY, lw=0.8, ls=":")
    axes.set(yticks=range(len(lines)), yticklabels=[line[0] for line in lines], ylim=(-0.6, len(lines) - 0.4))
    axes.set(xlim=(min(0.4, *(min(line[1:3]) for line in lines)) - 0.02, 1.01), xlabel="AUC with 95% interval")
    n = int(rows["n"].max())
    axes.set_title(
        f"Baselines{' and network' if network else ''} (orange: flagged), n = {n} patients",
        fontsize=10,
        loc="left",
    )
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def rows_to_try(cohort: pd.DataFrame, *, most: int = MOST, seed: int = 0) -> pd.DataFrame:
    """Sample the rows that baselines are evaluated on and assign their folds.

    Args:
        cohort: As in `find_shortcuts`.
        most: As in `find_shortcuts`.
        seed: Seed of the sample and the folds.

    Returns:
        The rows, at most `most` per class plus the rest of the last patient, with the column `fold`; rows of fold -1
        are used for fitting in every fold and never predicted.

    Raises:
        DataError: A class has fewer than two patients.
    """
    used = cohort[cohort["split"].isin(["train", "valid"])]
    patients = used.groupby("label")["patient"].nunique()
    if len(patients) < 2 or patients.min() < 2:
        counts = ", ".join(f"{n} of {name}" for name, n in patients.items()) or "none"
        raise DataError(
            f"There are too few patients to test for shortcuts: {counts}.", hint="Give at least two patients per class."
        )
    if "fold" in used:
        return _sample_patients(used, most=most, seed=seed)
    rows = _sample_patients(used, most=most, seed=seed)
    if not (rows["split"] == "train").any():
        rows = rows.assign(split="train")
    rows = rows.assign(group=rows["group"] if "group" in rows else rows["patient"]).drop(
        columns="in_pretraining", errors="ignore"
    )
    trained = rows[rows["split"] == "train"]
    folds = int(min(FOLDS - rows["split"].eq("valid").any(), trained.groupby("label")["group"].nunique().min()))
    if folds < 2:  # one training patient in a class: only the validation part can be predicted
        return rows.assign(fold=rows["split"].eq("valid").astype(int) - 1).reset_index(drop=True)
    folded = fold_by_patient(trained, folds=folds, seed=seed)
    return rows.assign(fold=folded["fold"].reindex(rows.index).fillna(folds).astype(int)).reset_index(drop=True)


def _sample_patients(rows: pd.DataFrame, *, most: int, seed: int) -> pd.DataFrame:
    """Sample whole patients of each class until there are `most` images of it."""
    rng = np.random.default_rng(seed)
    samples = []
    for _, images in rows.groupby("label", sort=True):
        sizes = images.groupby("patient", sort=True).size()
        order = sizes.iloc[rng.permutation(len(sizes))]
        chosen = order.index[order.cumsum() - order < most]  # patients before whom fewer than `most` images were taken
        samples.append(images[images["patient"].isin(chosen)])
    return pd.concat(samples).sort_index().reset_index(drop=True)


def _classes(cohort: pd.DataFrame, rows: pd.DataFrame) -> list[str]:
    known = [name for name in as_cohort(cohort).facts.classes if name in set(rows["label"])]
    return known if set(known) == set(rows["label"]) else sorted(rows["label"].unique())


def list_blocks(features: Features, rows: pd.DataFrame) -> dict[str, np.ndarray | None]:
    """Return the features of each baseline `(n, k)`, by name; None if it cannot be evaluated."""
    return {name: _block(name, features, rows) for name in BASELINES}


def _block(name: str, features: Features, rows: pd.DataFrame) -> np.ndarray | None:
    """Return the features of a baseline `(n, k)`, k = 0 for the prevalence; None if it cannot be evaluated.

    It cannot if the table has one source or projection only, or if the lungs hide in most images what the baseline
    would see.
    """
    if name == "prevalence":
        return np.zeros((len(rows), 0))
    if name == "non-linear":
        components = kernel_components(features)
        return components if components.shape[1] else None
    if name not in OF_TABLE:
        filled = fill_hidden(features.blocks[name])
        return filled if filled.shape[1] else None
    if OF_TABLE[name] not in rows:
        return None
    values = values_of(rows, OF_TABLE[name])
    return one_hot(values, sorted(values.unique())) if values.nunique() > 1 else None


def _describe_test(row: Mapping[str, Any]) -> str:
    if row["auc"] != row["auc"]:
        of_table = f"there is only one {row['baseline']}, or none is named"
        return f"not tested: {of_table if row['baseline'] in OF_TABLE else LUNGS_HIDE}"
    if row["p"] != row["p"]:
        return ""
    return f"{'flagged, ' if row['flagged'] else ''}{format_p_value(row['p'])}"
