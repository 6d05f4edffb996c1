"""Write the table and the plots of the measurements."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

__all__ = ["as_markdown", "write_results"]

STEP_COLOURS = (
    "#1b7837",
    "#2166ac",
    "#b2182b",
    "#e08214",
    "#542788",
    "#35978f",
    "#c51b7d",
    "#7f7f7f",
    "#8c510a",
    "black",
)


def write_results(
    folder: Path, benchmark: str, rows: list[dict[str, Any]], *, machine: Mapping[str, str]
) -> pd.DataFrame:
    """Replace a benchmark's rows in `results.csv`, and write `results.md`, `results.png` and `growth.png`.

    Rows of processors with other instructions remain.

    Args:
        folder: The folder of the results.
        benchmark: The benchmark's name.
        rows: Measurements as mappings.
        machine: `machine`, `instructions` and `format`, as `describe_machine` returns them.

    Returns:
        The table with the rows of all benchmarks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    new = pd.DataFrame(rows).replace("", None).assign(benchmark=benchmark, **machine)
    new["size"] = new["size"].astype(float)  # as it is read back
    file = folder / "results.csv"
    if file.is_file():
        before = pd.read_csv(file)
        replaced = (before["benchmark"] == benchmark) & (before["instructions"] == machine["instructions"])
        new = pd.concat([before[~replaced], new], ignore_index=True)
    new.to_csv(file, index=False)
    (folder / "results.md").write_text(as_markdown(new), encoding="utf-8")
    plot_ratios(new, folder / "results.png")
    plot_growth(new, folder / "growth.png")
    return new


def as_markdown(table: pd.DataFrame) -> str:
    """Return the table as Markdown, one section for each kind of processor.

    Times are the median and half of the interquartile range, ratios the median with the range of the pairs.
    """
    parts = [
        "# Speed",
        "Measured by `python -m benchmarks`, in alternating pairs. A ratio above 1 means that this package is faster; "
        'it holds on the processor that its section names. The format is the one that `precision="auto"` trains in.',
    ]
    for kind, rows in table.groupby("instructions", sort=False):
        parts += [f"## {kind}", *(f"On {machine}." for machine in dict.fromkeys(rows["machine"])), _section(rows)]
    return "\n\n".join([*parts, ""]).rstrip("\n") + "\n"


def _section(table: pd.DataFrame) -> str:
    """Return the rows of one kind of processor as a table in Markdown."""
    lines = [
        "| work | format | ours, s | compared with | theirs, s | ratio | target | pairs | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in table.to_dict("records"):
        ours, theirs, ratio = _seconds(row["ours"], row["ours_half_iqr"]), "", ""
        target = "" if pd.isna(row["target"]) else f"{row['target']:g}"
        if not pd.isna(row["ratio"]):
            theirs = _seconds(row["theirs"], row["theirs_half_iqr"])
            ratio = f"**{row['ratio']:.2f}** ({row['low']:.2f} to {row['high']:.2f})"
        elif target:
            target = f"{target} s"
        texts = {key: "" if pd.isna(row[key]) else row[key] for key in ("peer", "remark", "format")}
        cells = [
            row["name"],
            texts["format"],
            ours,
            texts["peer"],
            theirs,
            ratio,
            target,
            row["repeats"],
            texts["remark"],
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _with_peer(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with a comparison; of work that was measured for several sizes, only the largest."""
    largest = table.groupby(["benchmark", "instructions"])["size"].transform("max")
    return table[table["ratio"].notna() & (table["size"].isna() | (table["size"] == largest))]


def _seconds(value: float, half_iqr: float | None = None) -> str:
    digits = 3 if value < 1 else 2 if value < 10 else 1
    return f"{value:.{digits}f}" + ("" if half_iqr is None else f" ± {half_iqr:.{digits}f}")


def plot_ratios(table: pd.DataFrame, file: Path) -> None:
    """Plot each ratio with the range of its pairs and its target."""
    rows = _with_peer(table).iloc[::-1].reset_index(drop=True)
    if rows.empty:
        return
    figure, axes = plt.subplots(figsize=(9, 0.5 * len(rows) + 1.4), layout="constrained")
    for number, row in rows.iterrows():
        reached = pd.isna(row["target"]) or row["ratio"] >= row["target"]
        colour = "#1b7837" if reached else "#b35806"
        axes.plot([row["low"], row["high"]], [number, number], color=colour, lw=2)
        axes.plot(row["ratio"], number, "o", color=colour)
        axes.annotate(
            f"{row['ratio']:.2f}", (row["ratio"], number), (0, 7), textcoords="offset points", ha="center", fontsize=8
        )
        if not pd.isna(row["target"]):
            axes.plot(row["target"], number, "|", color="black", ms=14, mew=2)
    labels = [f"{row['name']}\ncompared with {row['peer']}, on {row['instructions']}" for _, row in rows.iterrows()]
    axes.set_yticks(rows.index, labels, fontsize=8)
    axes.set_xscale("log")
    ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50, 100) if tick <= 1.5 * rows["high"].max()]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.axvline(1, color="grey", lw=0.8)
    figure.supxlabel("speed-up over the peer: median and range of the pairs; the bar is the target", fontsize=9)
    axes.margins(y=0.06)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def plot_growth(table: pd.DataFrame, file: Path) -> None:
    """Plot the time of work that was measured for several sizes, with a dotted line proportional to the size.

    A benchmark of several steps has a line for each. Of a benchmark that several processors have run, the last one is
    shown.
    """
    sized = table[table["size"].notna()]
    last = sized.groupby("benchmark")["instructions"].transform("last")
    sized = sized[sized["instructions"] == last].sort_values("size", kind="stable")
    sized = sized.assign(step=[_without_size(*row) for row in zip(sized["name"], sized["size"], strict=True)])
    grown = [(name, rows) for name, rows in sized.groupby("benchmark") if rows["size"].nunique() > 1]
    if not grown:
        return
    columns = min(3, len(grown))
    lines = -(-len(grown) // columns)
    figure, all_axes = plt.subplots(
        lines, columns, figsize=(4.8 * columns, 4.4 * lines), layout="constrained", squeeze=False
    )
    for axes in all_axes.flat[len(grown) :]:
        axes.set_axis_off()
    for axes, (_, rows) in zip(all_axes.flat, grown, strict=False):
        steps = [*rows.groupby("step", sort=False)]
        size, ours = rows["size"].unique(), rows["ours"].clip(lower=0.01)
        for (name, of_step), colour in zip(steps, STEP_COLOURS, strict=False):
            label = "ours" if len(steps) == 1 else name
            axes.loglog(
                of_step["size"], of_step["ours"].clip(lower=0.01), "o-", ms=4, lw=1.3, color=colour, label=label
            )
        if rows["theirs"].notna().all():
            axes.loglog(size, rows["theirs"], "s-", color="#762a83", label=rows["peer"].iloc[0])
        largest = ours[rows["size"] == size[-1]].max()
        axes.loglog(size, largest * size / size[-1], ":", color="grey", label="in proportion to the size")
        axes.set_xticks(size, [f"{int(value):,}" for value in size])
        axes.minorticks_off()
        low = min(ours.min(), largest * size[0] / size[-1])
        axes.set_yticks(10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(largest)) + 1))
        units = set(rows["name"].str.rsplit(" ", n=1).str[-1])
        axes.set(title=steps[0][0] if len(steps) == 1 else f"steps of {units.pop()}")
        axes.set(xlabel="their number", ylabel="seconds")
        axes.legend(fontsize=7)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def _without_size(name: str, size: float) -> str:
    """Return the name of work without its size."""
    text = name.replace(f"{int(size):,} ", "")
    return text.split(" of ")[0] if text.split(" of ")[0].isidentifier() else text
