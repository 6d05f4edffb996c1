"""The audit of a model: could it be right without looking at a lung? Baselines, probes, and the verdict."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from covid_fastai.audit.baselines import ShortcutAudit, compare_parts, find_shortcuts
from covid_fastai.audit.verdict import Condition, Verdict, give_verdict
from covid_fastai.data.cohort import Cohort, CohortInfo
from covid_fastai.data.tables import as_rows
from covid_fastai.errors import DataError
from covid_fastai.evaluation.comparison import compare
from covid_fastai.evaluation.formatting import MISSING, SIGNED, ResultDisplay, format_estimate
from covid_fastai.evaluation.intervals import wilson
from covid_fastai.evaluation.metrics import evaluate
from covid_fastai.evaluation.prediction_table import (
    PROBABILITY,
    choose_positive,
    class_columns,
    has_label_and_prediction,
    read_predictions,
)
from covid_fastai.evaluation.runs import Run, read_run
from covid_fastai.files import write_json
from covid_fastai.notices import RESEARCH_USE
from covid_fastai.options import Seed, checked
from covid_fastai.run_folder import RunFolder

__all__ = [
    "Audit",
    "audit_predictions",
    "audit_run",
    "negative_control_rows",
    "read_audit",
]

OWN_SHARE = 0.95  # of a class's images from a source that the other classes hardly have: it is that class's own
DRAWS = 500  # of the bootstrap, which only the mean AUC of more than two classes needs
BLIND, PERMUTED, NEGATIVE_CONTROL, UNTRAINED = "black centre", "permuted labels", "negative control", "frozen backbone"
JUDGED, RETRAINED, NEVER = "when judged", "in training too", "never trained, linear head"
VERSUS = ["baseline", "difference", "low", "high", "n", "errorless_low"]
PLACEBO = ["class", "auc", "low", "high", "n"]
ALTERED = ["change", "when", "auc", "auc_low", "auc_high", "difference", "low", "high", "n"]


@dataclass(frozen=True, eq=False, repr=False)
class Audit(ResultDisplay):
    """What speaks for and against a model's having learnt disease.

    Attributes:
        network: The network's AUC on the held-out patients: `value`, `low`, `high`, `n`.
        shortcuts: What baselines reach that see little or nothing of a lung.
        versus: A row a baseline: `baseline`, `difference` (the network's AUC less the baseline's, on the same
            patients), `low`, `high` (95%, paired), `n`, and `errorless_low`, of the thumbnail, the lower bound if
            the network made no error at all.
        batch_effect: A row a class that is in the official TEST and in training: how well the thumbnail separates the
            two parts, which differ in nothing but how they were made: `class`, `auc`, `low`, `high`, `n`.
        altered: A row a change of the images: `change`, `when` ("when judged", "in training too", or "never trained,
            linear head" for the features of the first weights), the network's
            `auc` on them with `auc_low` and `auc_high`, and `difference` (unaltered less altered) with `low` and
            `high`.
        negative_controls: `images`, `called`, `fraction`, `low`, `high`: how many of the negatives of the positive
            class's own source are called positive; None where there are none.
        external: Of each source with both classes: `source`, `value`, `low`, `high`, `n`, `thumbnail`.
        verdict: What follows.
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
        """Return the baselines beside the network, as text."""
        table = self.shortcuts.summary()
        said = {
            row["baseline"]: format_estimate(row["difference"], row["low"], row["high"], spec=SIGNED)
            for row in as_rows(self.versus)
        }
        table["network less it"] = [said.get(name, MISSING) for name in table["given"]]
        return table

    def notes(self) -> list[str]:
        """Return what has to be said beside the table of baselines."""
        return self.shortcuts.notes()

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, without the baselines' predictions."""
        tables = {name: getattr(self, name).to_dict("records") for name in ("versus", "batch_effect", "altered")}
        whole = {"network": dict(self.network), "shortcuts": self.shortcuts.to_dict(), **tables}
        whole |= {
            "negative_controls": self.negative_controls,
            "external": list(self.external),
            "verdict": self.verdict.to_dict(),
        }
        return whole

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
    retrained: Mapping[str, pd.DataFrame] | None = None,
    external: Sequence[Mapping[str, Any]] = (),
    positive: str | None = None,
    seed: Seed = 0,
    most: int = 1000,
) -> Audit:
    """Set a model's predictions beside those of baselines that see little or nothing of a lung.

    Args:
        predictions: Held-out predictions, of this package or of any other model.
        cohort: All rows, with `split` or `fold`; None where there are only the predictions: the baselines are then
            tried on those images alone.
        probes: The model's predictions of altered images and of negative controls, with the column `probe`; None where
            none were made.
        retrained: By the change of the images (`"black centre"`, `"noise centre"`) held-out predictions of a network
            that was trained and judged on images so changed; `"permuted labels"` for one that was trained on labels
            dealt out at random, `"frozen backbone"` for a linear head on the first weights' features.
        external: Of each source with both classes what `validate` found there: `source`, `value`, `low`, `high`, `n`,
            `thumbnail`.
        positive: As in `evaluate`.
        seed: Of every draw.
        most: Images of a class that the baselines are tried on.

    Returns:
        The audit.

    Raises:
        DataError: A table is faulty, there are too few patients, or no image can be opened.
    """
    table = read_predictions(predictions)
    classes = class_columns(table)
    positive = choose_positive(classes, positive, one_vs_rest=True)
    cohort = _as_cohort(table, classes) if cohort is None else cohort
    shortcuts = find_shortcuts(cohort, most=most, seed=seed)
    auc = evaluate(table, positive=positive, n_resamples=DRAWS, seed=seed).row("auc")
    network = {name: auc[name] for name in ("value", "low", "high", "n")}
    versus = _versus(table, shortcuts, positive)
    altered, negative_controls = (
        _altered(table, probes, retrained or {}, positive),
        _count_negative_controls(probes, positive),
    )
    blind = altered[(altered["change"] == BLIND) & (altered["when"] == RETRAINED)]
    verdict = give_verdict(
        shortcuts,
        network=network,
        versus=versus,
        blind=None if blind.empty else as_rows(blind)[0],
        external=external,
        negative_controls=negative_controls,
    )
    batch_effect = compare_parts(cohort, seed=seed)
    return Audit(network, shortcuts, versus, batch_effect, altered, negative_controls, list(external), verdict)


@checked
def audit_run(folder: str | Path | Run, *, seed: Seed | None = None, most: int = 1000) -> Audit:
    """Audit a run from what its folder holds, and write `audit.json` into it.

    The images must still be where the run found them. What `audit --full` retrained, and what `validate` found at other
    hospitals, is taken into account where it is there.

    Args:
        folder: A run that was judged, as `train_classifier` or `cross_validate` wrote it, or what `read_run` returned.
        seed: As in `audit_predictions`; None for the run's own.
        most: As in `audit_predictions`.

    Returns:
        The audit.

    Raises:
        DataError: The folder is no run, or as in `audit_predictions`.
    """
    run = folder if isinstance(folder, Run) else read_run(folder)
    result, probes = run.metrics, run.folder.probes
    retrained = {
        path.parent.name.replace("-", " "): read_predictions(path)
        for path in sorted(run.folder.retrained.glob(f"*/{RunFolder.predictions}"))
    }
    found = [json.loads(path.read_text(encoding="utf-8")) for path in run.folder.external_results().values()]
    text = {"label": str, "patient": str}
    audit = audit_predictions(
        result.predictions,
        run.cohort,
        probes=pd.read_csv(probes, keep_default_na=False, dtype=text) if probes.is_file() else None,
        retrained=retrained,
        external=[one for data_set in found for one in data_set["same_source"]],
        positive=result.positive,
        seed=(run.config.get("config") or {}).get("seed", 0) if seed is None else seed,
        most=most,
    )
    write_json(run.folder.audit, audit.to_dict())
    return audit


def read_audit(folder: str | Path) -> Audit | None:
    """Read a run's audit back.

    Args:
        folder: The run's folder.

    Returns:
        The audit, without the baselines' predictions; None where the run was not audited.

    Raises:
        DataError: `audit.json` is damaged.
    """
    path = RunFolder(folder).audit
    if not path.is_file():
        return None
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        conditions = tuple(Condition(**one) for one in fields["verdict"].pop("conditions"))
        fields["verdict"] = Verdict(**fields["verdict"], conditions=conditions)
        fields["shortcuts"] = ShortcutAudit.from_dict(fields["shortcuts"])
        for name, columns in (("versus", VERSUS), ("batch_effect", PLACEBO), ("altered", ALTERED)):
            fields[name] = pd.DataFrame(fields[name], columns=columns)
        return Audit(**fields)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: {error}.", hint="Audit the run anew: covid-fastai audit RUN.") from error


def negative_control_rows(cohort: pd.DataFrame, *, positive: str) -> pd.DataFrame:
    """Return the images that show whether a model knows the positive class or only where it comes from.

    They are excluded, are not of the positive class, are no lateral views, and come from a source that has 95% of the
    positive class's images, or more, and next to none of the other classes'.

    Args:
        cohort: With `label`, `split`, `source`, `view` and, where known, `finding`.
        positive: The positive class.

    Returns:
        The rows; none where the classes share their sources.
    """
    used = cohort[cohort["split"].isin(["train", "valid", "test"])]
    counts = pd.crosstab(used["source"], used["label"])
    if positive not in counts or counts.shape[1] < 2:
        return cohort.iloc[:0]
    shares = counts / counts.sum()
    own = shares.index[(shares[positive] > 0) & (shares.drop(columns=positive).max(axis=1) < 1 - OWN_SHARE)]
    if shares.loc[own, positive].sum() < OWN_SHARE:
        return cohort.iloc[:0]
    excluded = cohort[(cohort["split"] == "excluded") & cohort["source"].isin([*own]) & (cohort["source"] != "unknown")]
    finding = excluded["finding"] if "finding" in excluded else excluded["label"]
    return excluded[finding.ne(positive) & excluded["label"].ne(positive) & ~excluded["view"].isin(["L", "lateral"])]


def _as_cohort(table: pd.DataFrame, classes: list[str]) -> Cohort:
    """Return predictions as a cohort; their folds are kept where there are several."""
    rows = table[has_label_and_prediction(table)].assign(split="train")
    rows = rows if rows["fold"].nunique() > 1 else rows.drop(columns="fold")
    return Cohort(rows, facts=CohortInfo(classes=tuple(classes)))


def _versus(table: pd.DataFrame, shortcuts: ShortcutAudit, positive: str | None) -> pd.DataFrame:
    """Return `Audit.versus`."""
    tried = shortcuts.table.dropna(subset=["auc"])["baseline"].tolist()
    found = _less(table, {name: shortcuts.predictions[name] for name in tried}, positive)
    thumbnail = shortcuts.predictions["thumbnail"]
    errorless = thumbnail.copy()
    for name in class_columns(thumbnail):
        errorless[PROBABILITY + name] = thumbnail["label"].eq(name).astype(float)
    both = thumbnail["path"].isin(table["path"])
    best = _less(errorless[both], {"thumbnail": thumbnail[both]}, positive)
    return found.assign(errorless_low=found["baseline"].map({"thumbnail": best.loc[0, "low"]}))


def _less(table: pd.DataFrame, others: Mapping[str, pd.DataFrame], positive: str | None) -> pd.DataFrame:
    """Return the AUC of a table less that of each other one, on the images that all have, with paired intervals."""
    found = compare(table, *others.values(), names=["the first", *others], positive=positive, n_resamples=DRAWS)
    rows = []
    for name in others:
        row = found.row("auc", model=name)
        rows.append({"baseline": name, "difference": -row["difference"], "low": -row["high"], "high": -row["low"]})
        rows[-1]["n"] = int(row["n"])
    return pd.DataFrame(rows, columns=VERSUS[:-1])


def _altered(
    table: pd.DataFrame, probes: pd.DataFrame | None, retrained: Mapping[str, pd.DataFrame], positive: str | None
) -> pd.DataFrame:
    """Return `Audit.altered`."""
    rows = []
    found = []
    if probes is not None:
        changes = [name for name in probes["probe"].unique() if name != NEGATIVE_CONTROL]
        found += [(name, JUDGED, probes[probes["probe"] == name].reset_index(drop=True)) for name in changes]
    found += [(name, NEVER if name == UNTRAINED else RETRAINED, table) for name, table in retrained.items()]
    for change, when, predictions in found:
        auc = evaluate(predictions, positive=positive, n_resamples=DRAWS).row("auc")
        paired: dict[str, Any] = {"n": auc["n"]}
        if change != PERMUTED:  # its labels are others
            paired = as_rows(_less(table, {change: predictions}, positive).drop(columns="baseline"))[0]
        figures = {"auc": auc["value"], "auc_low": auc["low"], "auc_high": auc["high"]}
        rows.append({"change": change, "when": when, **figures, **paired})
    return pd.DataFrame(rows, columns=ALTERED)


def _count_negative_controls(probes: pd.DataFrame | None, positive: str | None) -> dict[str, Any] | None:
    """Count how many negative controls are called positive, by the mean of a cross-validation's models."""
    if probes is None or positive is None or not (probes["probe"] == NEGATIVE_CONTROL).any():
        return None
    rows = probes[(probes["probe"] == NEGATIVE_CONTROL) & (probes["status"] == "ok")]
    p = pd.to_numeric(rows[f"p_{positive}"]).groupby(rows["path"]).mean()  # over the models of the folds
    called = int((p >= 0.5).sum())
    low, high = wilson(called / len(p), len(p))
    return {"images": len(p), "called": called, "fraction": called / len(p), "low": low, "high": high}
