"""Coverage of the 95% intervals: `python -m benchmarks.coverage` simulates data sets whose true values are known.

Each cell of the table is one metric, number of patients, prevalence and AUC. In each of its draws the labels are random
with the prevalence, the scores of the classes are normal, and the probabilities are the true ones (calibrated) or have
log odds twice as large (overconfident). The second model of a comparison has the scores of the first with noise added.
Draws are written to `--out` in blocks, so that an interrupted run can be continued. At the end, `coverage.md` is
written into this folder.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections import defaultdict
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit
from scipy.stats import norm

from covid_fastai.evaluation.bootstrap import calibration_gaps
from covid_fastai.evaluation.decision_curve import net_benefit
from covid_fastai.evaluation.intervals import wilson
from covid_fastai.evaluation.metric_intervals import difference_interval, metric_interval
from covid_fastai.evaluation.resamples import Resamples
from covid_fastai.evaluation.weighted_metrics import WeightedMetric, list_weighted_metrics

HERE = Path(__file__).parent
CLASSES = ["N", "P"]
CELLS = [
    (n, prevalence, auc, scale)
    for scale in (1.0, 2.0)
    for n in (40, 120)
    for prevalence in (0.1, 0.5)
    for auc in (0.8, 0.9, 0.95, 0.99)
]
BLOCK = 100  # draws that are written together
LARGE = 400_000  # patients of the sample that the true values are computed from
N_RESAMPLES = 200  # for the correlation of two models
THRESHOLD = 0.25  # of the net benefit
NOISE = 0.7  # standard deviation that the second model's scores have more
# The other metrics are the same for overconfident probabilities, which rank the patients in the same order.
DEPEND_ON_SCALE = ("brier", "log_loss", "ece")
COLUMNS = ["n", "prevalence", "auc", "scale", "block", "metric", "covered", "too_low", "too_high", "draws"]
LOWEST, HIGHEST, FEWEST = 0.93, 0.98, 10  # the target, in cells that expect this number of patients of each class


def draw(
    n: int, prevalence: float, auc: float, scale: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw patients.

    Returns:
        Whether each is of the class, its probabilities by both models, and its true probability, given the score of
        the first model, `(n,)` each.
    """
    of_class = rng.random(n) < prevalence
    distance = math.sqrt(2) * norm.ppf(auc)
    scores = rng.normal(size=n) + distance * of_class
    prior = math.log(prevalence / (1 - prevalence))
    logits = distance * scores - distance**2 / 2 + prior
    # the second model sees the score with noise, and is calibrated for it
    spread = math.sqrt(1 + NOISE**2)
    noisy = (scores + NOISE * rng.normal(size=n)) / spread
    other = distance / spread * noisy - (distance / spread) ** 2 / 2 + prior
    return of_class, expit(scale * logits), expit(scale * other), expit(logits)


def metrics_of(of_class: np.ndarray, p: np.ndarray) -> dict[str, WeightedMetric]:
    """Return the metrics of a model by name."""
    table = pd.DataFrame({"label": np.where(of_class, "P", "N"), "p_N": 1 - p, "p_P": p})
    table["predicted"] = np.where(p >= 0.5, "P", "N")
    return {metric.metric: metric for metric in list_weighted_metrics(table, CLASSES, "P")}


def compute(metric: WeightedMetric, n: int) -> float:
    """Return the value of a metric of n patients."""
    return float(metric.compute(np.ones((1, n)))[0])


def true_calibration_error(p: np.ndarray, truth: np.ndarray) -> float:
    """Return the calibration error in the bins of the data if outcomes had their true probabilities."""
    return float(np.abs(calibration_gaps(p, truth, np.ones((1, len(p))))).sum())


@cache
def true_values(prevalence: float, auc: float, scale: float) -> dict[str, float]:
    """Return the metrics and differences in a large sample, except those of calibration, which depend on the bins."""
    of_class, first, second, _ = draw(LARGE, prevalence, auc, scale, np.random.default_rng(0))
    values = {}
    for name, metric in metrics_of(of_class, first).items():
        values[name] = compute(metric, LARGE)
        values[f"difference of {name}"] = compute(metrics_of(of_class, second)[name], LARGE) - values[name]
    odds = THRESHOLD / (1 - THRESHOLD)
    acted_on = first >= THRESHOLD
    values["net benefit"] = float((acted_on & of_class).mean() - odds * (acted_on & ~of_class).mean())
    values["net benefit, gain"] = values["net benefit"] - max(prevalence - (1 - prevalence) * odds, 0)
    return values


def simulate(
    n: int, prevalence: float, auc: float, scale: float, block: int, truth: dict[str, float]
) -> dict[str, list[int]]:
    """Simulate a block of draws.

    Returns:
        By metric, for each draw whether the interval covers the truth (0), lies above it (1) or below it (2); draws of
        one class alone, and intervals that cannot be computed, are left out.
    """
    outcomes = defaultdict(list)

    def record(name: str, low: float, high: float, true: float) -> None:
        margin = 1e-9  # a float's rounding
        outcomes[name].append(1 if low > true + margin else 2 if high < true - margin else 0)

    for number in range(BLOCK):
        seed = [n, round(1000 * prevalence), round(1000 * auc), round(10 * scale), block, number]
        of_class, first, second, probability = draw(n, prevalence, auc, scale, np.random.default_rng(seed))
        if of_class.sum() < 2 or (~of_class).sum() < 2:
            continue
        resamples = Resamples(pd.Series(np.arange(n)), pd.Series(of_class.astype(str)), N_RESAMPLES, number)
        metrics, others = metrics_of(of_class, first), metrics_of(of_class, second)
        for name, metric in metrics.items():
            if scale != 1 and name not in DEPEND_ON_SCALE:
                continue
            value, other = compute(metric, n), compute(others[name], n)
            is_error = name == "ece"
            if math.isfinite(value):
                low, high, _ = metric_interval(metric, value, None, resamples)
                record(name, low, high, true_calibration_error(first, probability) if is_error else truth[name])
            if math.isfinite(value) and math.isfinite(other) and not is_error:
                low, high, _ = difference_interval(others[name], metric, (value, other), None, resamples)
                record(f"difference of {name}", low, high, truth[f"difference of {name}"])
        row = net_benefit(first, of_class, np.array([THRESHOLD]), None).iloc[0]
        record("net benefit", row["low"], row["high"], truth["net benefit"])
        record("net benefit, gain", row["gain_low"], row["gain_high"], truth["net benefit, gain"])
    return outcomes


def run(out: Path, *, draws: int, cells: list[tuple[int, float, float, float]]) -> pd.DataFrame:
    """Simulate the blocks that `out` does not hold yet, and return all of its rows."""
    done = set()
    if out.exists():
        rows = pd.read_csv(out)
        done = set(rows[["n", "prevalence", "auc", "scale", "block"]].itertuples(index=False, name=None))
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "a", newline="") as file:
        writer = csv.writer(file)
        if file.tell() == 0:
            writer.writerow(COLUMNS)
        for block in range(draws // BLOCK):
            for cell in cells:
                if (*cell, block) in done:
                    continue
                for metric, flags in simulate(*cell, block, true_values(*cell[1:])).items():
                    counts = [flags.count(kind) for kind in (0, 1, 2)]
                    writer.writerow([*cell, block, metric, *counts, len(flags)])
                file.flush()
    return pd.read_csv(out)


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the coverage of each metric and cell, with the bounds of its own interval."""
    keys = ["metric", "n", "prevalence", "auc", "scale"]
    table = rows.groupby(keys, sort=False)[["covered", "too_low", "too_high", "draws"]].sum().reset_index()
    table["coverage"] = table["covered"] / table["draws"]
    bounds = [wilson(row.coverage, row.draws) for row in table.itertuples()]
    return table.assign(low=[low for low, _ in bounds], high=[high for _, high in bounds])


def as_markdown(table: pd.DataFrame) -> str:
    """Return the page: the cells by metric, and those outside of the target."""
    table = table.assign(enough=table["n"] * np.minimum(table["prevalence"], 1 - table["prevalence"]) >= FEWEST)
    enough = table[table["enough"]]
    # outside by more than the error of the simulation
    outside = enough[(enough["high"] < LOWEST) | (enough["low"] > HIGHEST)]
    lines = [
        "# Coverage of the 95% intervals",
        "",
        "Written by `python -m benchmarks.coverage`. Each cell has up to "
        f"{int(table['draws'].max()):,} simulated data sets; the error of a coverage of 0.95 is about "
        f"{1.96 * math.sqrt(0.95 * 0.05 / table['draws'].max()):.3f}.",
        f"The target is {LOWEST} to {HIGHEST} in every cell that expects {FEWEST} patients or more of each class. "
        f"{len(enough) - len(outside)} of {len(enough)} cells reach it, up to the error of the simulation.",
        "",
        "## Range over the AUCs 0.8, 0.9, 0.95 and 0.99",
        "",
    ]
    names = list(dict.fromkeys(table["metric"]))
    columns = [(n, prevalence, scale) for scale in (1.0, 2.0) for n in (40, 120) for prevalence in (0.1, 0.5)]
    kinds = {1.0: "calibrated", 2.0: "overconfident"}
    heads = [f"n {n}, prevalence {prevalence:g}, {kinds[scale]}" for n, prevalence, scale in columns]
    lines += ["| metric | " + " | ".join(heads) + " |", "| --- |" + " --- |" * len(columns)]
    for name in names:
        cells = []
        for n, prevalence, scale in columns:
            chosen = (table["n"] == n) & (table["prevalence"] == prevalence) & (table["scale"] == scale)
            values = table.loc[chosen & (table["metric"] == name), "coverage"]
            cells.append(f"{values.min():.3f} to {values.max():.3f}" if len(values) else "")
        lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "With a prevalence of 0.1, 40 patients include 4 of the class: that column is no part of the target.",
        "",
    ]
    lines += ["## Cells outside of the target", ""]
    if outside.empty:
        lines.append("None.")
    for row in outside.sort_values("coverage").itertuples():
        kind = "too short" if row.coverage < LOWEST else "longer than needed"
        lines.append(
            f"- {row.metric.replace('_', ' ')}, n {row.n}, prevalence {row.prevalence:g}, AUC {row.auc:g}, "
            f"{kinds[row.scale]}: {row.coverage:.3f}, {kind} ({row.too_low} above the truth, {row.too_high} below it)"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Simulate, print the table and write `coverage.md`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--draws", type=int, default=2000, help="simulated data sets of each cell, in hundreds")
    parser.add_argument("--out", type=Path, default=HERE / "coverage.csv")
    parser.add_argument("--page", type=Path, default=HERE / "coverage.md")
    arguments = parser.parse_args()
    table = summarise(run(arguments.out, draws=arguments.draws, cells=CELLS))
    text = as_markdown(table)
    arguments.page.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
