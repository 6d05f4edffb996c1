"""The audit of a model: whether it may be right without using the lungs. Baselines, probes and the verdict."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from covid_fastai.audit.baselines import ShortcutAudit, compare_parts, find_shortcuts
from covid_fastai.audit.fixed_spots import format_boxes
from covid_fastai.audit.verdict import Condition, Verdict, give_verdict
from covid_fastai.data.cohort import Cohort, CohortInfo
from covid_fastai.data.projections import is_unstated
from covid_fastai.data.tables import as_rows
from covid_fastai.errors import DataError
from covid_fastai.evaluation.comparison import compare_aucs
from covid_fastai.evaluation.formatting import MISSING, SIGNED, ResultDisplay, format_estimate
from covid_fastai.evaluation.intervals import clustered_proportion
from covid_fastai.evaluation.metrics import evaluate_table
from covid_fastai.evaluation.moved_images import move_images, require_images
from covid_fastai.evaluation.prediction_table import (
    PROBABILITY,
    choose_positive,
    class_columns,
    has_label_and_prediction,
    read_predictions,
)
from covid_fastai.evaluation.runs import Run, read_run
from covid_fastai.files import read_csv, write_json
from covid_fastai.notices import RESEARCH_USE
from covid_fastai.options import Seed, checked
from covid_fastai.run_folder import RunFolder
from covid_fastai.saliency.region_fraction import BOX_NAME

__all__ = [
    "Audit",
    "audit_predictions",
    "audit_run",
    "negative_control_rows",
    "read_audit",
]

OWN_FRACTION = 0.95  # of a class's images from sources that hardly occur in the other classes: they are its own sources
N_RESAMPLES = 500  # bootstrap resamples; only the mean AUC of more than two classes needs them
BLIND, PERMUTED, NEGATIVE_CONTROL, UNTRAINED = "lungs removed", "permuted labels", "negative control", "frozen backbone"
REGION = "lung_region"  # the column of predictions of altered images that names the region of the lungs in each
COVERED, SPOTS = "fixed spots covered", "spots"  # a probe, and the column that names what it covered
MARKS = "sharpest edges covered"
# when the images were altered: values of the column `when`
EVALUATION_ONLY, RETRAINED = "at evaluation only", "in training and evaluation"
NOT_RETRAINED = "frozen, linear head only"
VERSUS = ["baseline", "network_auc", "baseline_auc", "difference", "low", "high", "n", "errorless_low"]
BATCH_EFFECT = ["class", "auc", "low", "high", "n"]
ALTERED = ["change", "when", "auc", "auc_low", "auc_high", "network_auc", "difference", "low", "high", "n"]
ALTERED += ["images", "boxes", "boxes_auc"]


@dataclass(frozen=True, eq=False, repr=False)
class Audit(ResultDisplay):
    """Evidence for and against a model having learnt disease.

    Attributes:
        network: AUC of the network on the held-out patients: `value`, `low`, `high`, `n`.
        shortcuts: Results of baselines that see little or nothing of the lungs.
        versus: One row per baseline: `baseline`, `network_auc` and `baseline_auc` on the same patients, their
            `difference` (network minus baseline) with `low` and `high` (95%, paired), `n`, and for the thumbnail
            `errorless_low`, the lower bound if the network made no error.
        batch_effect: One row per class that occurs in the official TEST and in training: how well the thumbnail
            separates the two, which should differ only in how the images were made: `class`, `auc`, `low`, `high`,
            `n`.
        altered: One row per change of the images: `change`, `when` (`"at evaluation only"`, `"in training and
            evaluation"`, or `"frozen, linear head only"` for the features of the initial weights), the network's `auc`
            with `auc_low` and `auc_high`, `network_auc` (unaltered, on the same patients), `difference` (unaltered
            minus altered) with `low` and `high`, and `n`; `images` whose lungs were altered, and `boxes`, how many of
            them had a central box altered since their lungs were not found (both 0 if images were not altered, NaN if
            the predictions do not say); and `boxes_auc`, the largest AUC that these images alone can give.
        negative_controls: `images`, `patients`, `called` (number of images classified as positive), `fraction`, `low`
            and `high` for negative images from the source of the positive class; None if there are none.
        external: One mapping per external source with both classes, as `validate` writes them.
        verdict: The conclusion.
    """

    network: Mapping[str, Any]
    shortcuts: ShortcutAudit
    versus: pd.DataFrame
    batch_effect: pd.DataFrame
    altered: pd.DataFrame
    negative_controls: Mapping[str, Any] | None
    external: Sequence[Mapping[str, Any]]
    verdict: Verdict

    def summary(self) -> pd.DataFrame:
        """Return the baselines and their differences to the network, as text."""
        table = self.shortcuts.summary()
        differences = {
            row["baseline"]: format_estimate(row["difference"], row["low"], row["high"], spec=SIGNED)
            for row in as_rows(self.versus)
        }
        table["network minus baseline"] = [differences.get(name, MISSING) for name in table["baseline"]]
        return table

    def notes(self) -> list[str]:
        """Return the notes that belong to the table of baselines."""
        return self.shortcuts.notes()

    def to_dict(self) -> dict[str, Any]:
        """Return the audit as plain values, without the predictions of the baselines."""
        tables = {name: getattr(self, name).to_dict("records") for name in ("versus", "batch_effect", "altered")}
        fields = {"network": dict(self.network), "shortcuts": self.shortcuts.to_dict(), **tables}
        return fields | {
            "negative_controls": self.negative_controls,
            "external": list(self.external),
            "verdict": self.verdict.to_dict(),
        }

    def __repr__(self) -> str:
        return "\n".join([self.summary().to_string(index=False), *self.notes(), str(self.verdict)])

    def _display_parts(self) -> Iterator[pd.DataFrame | str]:
        yield from (self.summary(), *self.shortcuts.notes()[:-1], *self.verdict._display_parts(), RESEARCH_USE)


@checked
def audit_predictions(
    predictions: str | Path | pd.DataFrame,
    cohort: pd.DataFrame | None = None,
    *,
    probes: pd.DataFrame | None = None,
    retrained: Mapping[str, str | Path | pd.DataFrame] | None = None,
    external: Sequence[Mapping[str, Any]] = (),
    unstated: Sequence[Mapping[str, Any]] = (),
    positive: str | None = None,
    seed: Seed = 0,
    most: int = 1000,
) -> Audit:
    """Compare a model's predictions with those of baselines that see little or nothing of the lungs.

    Args:
        predictions: Held-out predictions of any model, made by this package or not.
        cohort: All rows, with `split` or `fold`; None if only the predictions are known. The baselines then use the
            predicted images alone.
        probes: The model's predictions of altered images and of negative controls, with the column `probe`; None if
            there are none.
        retrained: Held-out predictions of retrained networks by change: `"lungs removed"`, `"noise for lungs"` and
            `"lungs only"` for networks trained and evaluated on altered images, `"permuted labels"` for a network
            trained on permuted labels, `"frozen backbone"` for a linear head on the features of the initial weights.
        external: Results of `validate` (`Validation.same_source`), one mapping per source with both classes.
        unstated: Such results for images of both classes without a stated source (`Validation.not_stated`).
        positive: As in `evaluate`.
        seed: Seed of all random numbers.
        most: Largest number of images per class that the baselines use.

    Returns:
        The audit.

    Raises:
        DataError: A table is faulty, there are too few patients, or no image can be opened.
    """
    table = read_predictions(predictions)
    classes = class_columns(table)
    positive = choose_positive(classes, positive, one_vs_rest=True)
    cohort = _cohort_from_predictions(table, classes) if cohort is None else cohort
    shortcuts = find_shortcuts(cohort, most=most, seed=seed)
    options = {"positive": positive, "n_resamples": N_RESAMPLES, "seed": seed}
    auc = evaluate_table(table, **options, metrics=["auc"]).row("auc")
    network = {name: auc[name] for name in ("value", "low", "high", "n")}
    versus = _compare_with_baselines(table, shortcuts, positive)
    altered = _evaluate_altered(table, probes, retrained or {}, positive)
    negative_controls = _count_negative_controls(probes, positive)
    blind = altered[(altered["change"] == BLIND) & (altered["when"] == RETRAINED)]
    verdict = give_verdict(
        shortcuts,
        network=network,
        versus=versus,
        blind=None if blind.empty else as_rows(blind)[0],
        external=external,
        unstated=unstated,
        negative_controls=negative_controls,
        covered=_find_covered(altered, probes, shortcuts),
        marks=next(iter(as_rows(altered[altered["change"] == MARKS])), None),
        unstated_fraction=float(shortcuts.predictions["thumbnail"]["source"].map(is_unstated).mean()),
    )
    batch_effect = compare_parts(cohort, seed=seed)
    return Audit(network, shortcuts, versus, batch_effect, altered, negative_controls, list(external), verdict)


@checked
def audit_run(
    folder: str | Path | Run, *, data: str | Path | None = None, seed: Seed | None = None, most: int = 1000
) -> Audit:
    """Audit a run from the files in its folder and write `audit.json` into it.

    Networks retrained by `covid-fastai audit --full` and results of
    `validate` are included if the folder has them.

    Args:
        folder: Folder of an evaluated run, as written by `train_classifier` or `cross_validate`, or the result of
            `read_run`.
        data: The folder that holds the images, if they have been moved since the training; their new paths are then
            written into the tables of the run. None if they are where the run read them.
        seed: As in `audit_predictions`; None for the seed of the run.
        most: As in `audit_predictions`.

    Returns:
        The audit.

    Raises:
        DataError: The folder is not a run, or images are missing; otherwise as in `audit_predictions`.

    Examples:
        >>> audit = audit_run(run)
        >>> type(audit.verdict).__name__
        'Verdict'
    """
    run = folder if isinstance(folder, Run) else read_run(folder)
    run = run if data is None else move_images(run, data)
    require_images(run)
    result, probes = run.metrics, run.folder.probes
    retrained = {
        path.parent.name.replace("-", " "): path
        for path in sorted(run.folder.retrained.glob(f"*/{RunFolder.predictions}"))
    }
    validations = [json.loads(path.read_text(encoding="utf-8")) for path in run.folder.external_results().values()]
    text = {"label": str, "patient": str}
    audit = audit_predictions(
        result.predictions,
        run.cohort,
        probes=read_csv(probes, keep_default_na=False, dtype=text) if probes.is_file() else None,
        retrained=retrained,
        external=[source for validation in validations for source in validation["same_source"]],
        unstated=[images for validation in validations for images in validation["not_stated"]],
        positive=result.positive,
        seed=(run.config.get("config") or {}).get("seed", 0) if seed is None else seed,
        most=most,
    )
    write_json(run.folder.audit, audit.to_dict())
    return audit


def read_audit(folder: str | Path) -> Audit | None:
    """Read the audit of a run.

    Args:
        folder: The run's folder.

    Returns:
        The audit, without the predictions of the baselines; None if the run was not audited.

    Raises:
        DataError: `audit.json` is damaged.

    Examples:
        >>> audit = read_audit(run)
        >>> type(audit.verdict).__name__
        'Verdict'
    """
    path = RunFolder(folder).audit
    if not path.is_file():
        return None
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        conditions = tuple(Condition(**condition) for condition in fields["verdict"].pop("conditions"))
        fields["verdict"] = Verdict(**fields["verdict"], conditions=conditions)
        fields["shortcuts"] = ShortcutAudit.from_dict(fields["shortcuts"])
        for name, columns in (("versus", VERSUS), ("batch_effect", BATCH_EFFECT), ("altered", ALTERED)):
            fields[name] = pd.DataFrame(fields[name], columns=columns)
        return Audit(**fields)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: {error}.", hint="Repeat the audit: covid-fastai audit RUN.") from error


def negative_control_rows(cohort: pd.DataFrame, *, positive: str) -> pd.DataFrame:
    """Return the negative controls: unused negative images from the source of the positive class.

    They show whether a model recognises the positive class or only its source. A negative control is excluded from the
    task, is not of the positive class and not a lateral view, and comes from the positive class's own sources: sources
    that hold at least 95% of the positive images and less than 5% of the images of every other class.

    Args:
        cohort: With `label`, `split`, `source`, `view` and, if known, `finding`.
        positive: The positive class.

    Returns:
        The rows; an empty table if the classes share their sources.
    """
    used = cohort[cohort["split"].isin(["train", "valid", "test"])]
    counts = pd.crosstab(used["source"], used["label"])
    if positive not in counts or counts.shape[1] < 2:
        return cohort.iloc[:0]
    fractions = counts / counts.sum()  # of each class, by source
    rare_in_others = fractions.drop(columns=positive).max(axis=1) < 1 - OWN_FRACTION
    own_sources = fractions.index[(fractions[positive] > 0) & rare_in_others]
    if fractions.loc[own_sources, positive].sum() < OWN_FRACTION:
        return cohort.iloc[:0]
    from_own = cohort["source"].isin([*own_sources]) & (cohort["source"] != "unknown")
    excluded = cohort[(cohort["split"] == "excluded") & from_own]
    finding = excluded["finding"] if "finding" in excluded else excluded["label"]
    return excluded[finding.ne(positive) & excluded["label"].ne(positive) & ~excluded["view"].isin(["L", "lateral"])]


def _cohort_from_predictions(table: pd.DataFrame, classes: list[str]) -> Cohort:
    """Return the rows of a predictions table as a cohort, with their folds if there are several."""
    rows = table[has_label_and_prediction(table)].assign(split="train")
    rows = rows if rows["fold"].nunique() > 1 else rows.drop(columns="fold")
    return Cohort(rows, facts=CohortInfo(classes=tuple(classes)))


def _compare_with_baselines(table: pd.DataFrame, shortcuts: ShortcutAudit, positive: str | None) -> pd.DataFrame:
    """Return `Audit.versus`."""
    names = shortcuts.table.dropna(subset=["auc"])["baseline"].tolist()
    differences = _paired_differences(table, {name: shortcuts.predictions[name] for name in names}, positive)
    # the lower bound that a model without errors would reach: if it is not above 0, the data cannot show a difference
    thumbnail = shortcuts.predictions["thumbnail"]
    errorless = thumbnail.copy()
    for name in class_columns(thumbnail):
        errorless[PROBABILITY + name] = thumbnail["label"].eq(name).astype(float)
    in_both = thumbnail["path"].isin(table["path"])
    best = _paired_differences(errorless[in_both], {"thumbnail": thumbnail[in_both]}, positive)
    return differences.assign(errorless_low=differences["baseline"].map({"thumbnail": best.loc[0, "low"]}))


def _paired_differences(table: pd.DataFrame, others: Mapping[str, pd.DataFrame], positive: str | None) -> pd.DataFrame:
    """Return the AUC of a table minus that of each other table, on the images of all tables, with paired intervals."""
    rows = []
    for row in as_rows(compare_aucs(table, others, positive=positive, n_resamples=N_RESAMPLES)):
        aucs = {"network_auc": row["reference_auc"], "baseline_auc": row["auc"]}
        # the other table minus the first: the signs are reversed here
        difference = {"difference": -row["difference"], "low": -row["high"], "high": -row["low"]}
        rows.append({"baseline": row["model"], **aucs, **difference, "n": int(row["n"])})
    return pd.DataFrame(rows, columns=VERSUS[:-1])


def _evaluate_altered(
    table: pd.DataFrame,
    probes: pd.DataFrame | None,
    retrained: Mapping[str, str | Path | pd.DataFrame],
    positive: str | None,
) -> pd.DataFrame:
    """Return `Audit.altered`."""
    tables = []
    if probes is not None:
        changes = [name for name in probes["probe"].unique() if name != NEGATIVE_CONTROL]
        tables += [(name, EVALUATION_ONLY, read_predictions(probes[probes["probe"] == name])) for name in changes]
    tables += [
        (name, NOT_RETRAINED if name == UNTRAINED else RETRAINED, read_predictions(rows))
        for name, rows in retrained.items()
    ]
    rows = []
    for change, when, predictions in tables:
        row: dict[str, Any] = {"change": change, "when": when, **_count_boxes(change, predictions)}
        if change == PERMUTED:  # permuted labels differ from the original ones, so that no paired difference exists
            options = {"positive": positive, "n_resamples": N_RESAMPLES, "metrics": ["auc"]}
            auc = evaluate_table(predictions, **options).row("auc")
            row |= {"auc": auc["value"], "auc_low": auc["low"], "auc_high": auc["high"], "n": auc["n"]}
        else:  # all metrics of a row are of the patients of both tables
            (paired,) = as_rows(compare_aucs(table, {change: predictions}, positive=positive, n_resamples=N_RESAMPLES))
            interval = {"low": -paired["high"], "high": -paired["low"]}  # altered minus unaltered: reversed here
            row |= {"network_auc": paired["reference_auc"], "difference": -paired["difference"], **interval}
            row |= {name: paired[name] for name in ("auc", "auc_low", "auc_high", "n")}
        rows.append(row)
    return pd.DataFrame(rows, columns=ALTERED)


def _count_boxes(change: str, predictions: pd.DataFrame) -> dict[str, float]:
    """Return the number of images whose lungs were altered, of those with a box instead, and the AUC of these alone.

    A box leaves some of the lungs, and opacities are a reason that lungs are not found: all patients with a box may be
    ranked correctly by the disease, and the others at random.
    """
    if change in (PERMUTED, UNTRAINED, COVERED, MARKS):
        return {"images": 0, "boxes": 0, "boxes_auc": 0.5}
    if REGION not in predictions:  # a table of another program
        return {"images": float("nan"), "boxes": float("nan"), "boxes_auc": 0.5}
    boxed = predictions[REGION].astype(str).str.startswith(BOX_NAME)
    patients = boxed.groupby([predictions["label"], predictions["patient"]]).any()
    label = patients.index.get_level_values(0)
    without = [(1 - patients[label == name].mean()) * (1 - patients[label != name].mean()) for name in label.unique()]
    aucs = 1 - np.array(without) / 2  # of a pair that has no box, half is in order
    return {"images": len(boxed), "boxes": int(boxed.sum()), "boxes_auc": float(aucs.mean())}


def _find_covered(
    altered: pd.DataFrame, probes: pd.DataFrame | None, shortcuts: ShortcutAudit
) -> dict[str, Any] | None:
    """Return the row of the network on images with the fixed spots covered; None if other spots, or none, were."""
    row = altered[altered["change"] == COVERED]
    if probes is None or row.empty:
        return None
    covered = set(probes.loc[probes["probe"] == COVERED, SPOTS])
    return as_rows(row)[0] if covered == {format_boxes(shortcuts.spots)} else None


def _count_negative_controls(probes: pd.DataFrame | None, positive: str | None) -> dict[str, Any] | None:
    """Count the negative controls that are classified as positive, by the mean over the folds of a cross-validation."""
    if probes is None or positive is None or not (probes["probe"] == NEGATIVE_CONTROL).any():
        return None
    rows = probes[(probes["probe"] == NEGATIVE_CONTROL) & (probes["status"] == "ok")]
    if rows.empty:  # none could be opened
        return None
    images = rows.assign(p=pd.to_numeric(rows[f"p_{positive}"])).groupby("path")  # over the models of the folds
    hits, patients = images["p"].mean().ge(0.5), images["patient"].first()
    low, high = clustered_proportion(hits.to_numpy(dtype=float), patients.to_numpy())
    counts = {"images": len(hits), "patients": int(patients.nunique()), "called": int(hits.sum())}
    return {**counts, "fraction": float(hits.mean()), "low": low, "high": high}
