"""Write the table and the plots of the measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

__all__ = ["as_brief", "as_markdown", "write_results"]


def write_results(folder: Path, benchmark: str, rows: list[dict[str, Any]], *, machine: str) -> pd.DataFrame:
    """Replace a benchmark's rows in `results.csv`, and write `results.md`, `results.png` and `growth.png`.

    Args:
        folder: The folder of the results.
        benchmark: The benchmark's name.
        rows: Measurements as mappings.
        machine: A description of the machine.

    Returns:
        The table with the rows of all benchmarks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    new = pd.DataFrame(rows).replace("", None).assign(benchmark=benchmark, machine=machine)
    new["size"] = new["size"].astype(float)  # as it is read back
    file = folder / "results.csv"
    if file.is_file():
        before = pd.read_csv(file)
        new = pd.concat([before[before["benchmark"] != benchmark], new], ignore_index=True)
    new.to_csv(file, index=False)
    (folder / "results.md").write_text(as_markdown(new), encoding="utf-8")
    plot_ratios(new, folder / "results.png")
    plot_growth(new, folder / "growth.png")
    return new


def as_markdown(table: pd.DataFrame) -> str:
    """Return the table as Markdown: times as median and half of the interquartile range, ratios with their range."""
    lines = [
        "# Speed",
        "",
        "Measured by `python -m benchmarks`; a ratio above 1 means that this package is faster.",
        "",
        "| work | ours, s | compared with | theirs, s | ratio | target | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in table.to_dict("records"):
        ours, theirs, ratio = _seconds(row["ours"], row["ours_half_iqr"]), "", ""
        target = "" if pd.isna(row["target"]) else f"{row['target']:g}"
        if not pd.isna(row["ratio"]):
            theirs = _seconds(row["theirs"], row["theirs_half_iqr"])
            ratio = f"**{row['ratio']:.2f}** ({row['low']:.2f} to {row['high']:.2f})"
        elif target:
            target = f"{target} s"
        peer, remark = (("" if pd.isna(row[key]) else row[key]) for key in ("peer", "remark"))
        lines.append(f"| {row['name']} | {ours} | {peer} | {theirs} | {ratio} | {target} | {remark} |")
    machines = "; ".join(sorted(set(table["machine"])))
    repeats = int(table["repeats"].max())
    return "\n".join([*lines, "", f"Measured on {machines}; at most {repeats} pairs, in alternation.", ""])


def as_brief(table: pd.DataFrame) -> str:
    """Return the rows that have a peer, as the README shows them."""
    lines = ["| work | ours, s | compared with | theirs, s | speed-up |", "| --- | --- | --- | --- | --- |"]
    for row in _with_peer(table).to_dict("records"):
        ours, theirs = (_seconds(row[side]) for side in ("ours", "theirs"))
        ratio = f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        lines.append(f"| {row['name']} | {ours} | {row['peer']} | {theirs} | {ratio} |")
    return "\n".join(lines)


def _with_peer(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with a comparison; of work that was measured for several sizes, only the largest."""
    largest = table.groupby("benchmark")["size"].transform("max")
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
    labels = [f"{row['name']}\ncompared with {row['peer']}" for _, row in rows.iterrows()]
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
    """Plot the time of work that was measured for several sizes, with a dotted line proportional to the size."""
    sized = table[table["size"].notna()].sort_values("size")
    grown = [(name, rows) for name, rows in sized.groupby("benchmark") if rows["size"].nunique() > 1]
    if not grown:
        return
    figure, all_axes = plt.subplots(1, len(grown), figsize=(4.5 * len(grown), 3.6), layout="constrained", squeeze=False)
    for axes, (_, rows) in zip(all_axes[0], grown, strict=True):
        size, ours = rows["size"].to_numpy(), rows["ours"].to_numpy()
        axes.loglog(size, ours, "o-", color="#1b7837", label="ours")
        if rows["theirs"].notna().all():
            axes.loglog(size, rows["theirs"], "s-", color="#762a83", label=rows["peer"].iloc[0])
        axes.loglog(size, ours[-1] * size / size[-1], ":", color="grey", label="in proportion to the size")
        axes.set_xticks(size, [f"{int(value):,}" for value in size])
        axes.minorticks_off()
        axes.set_yticks(10.0 ** np.arange(np.floor(np.log10(ours.min())), np.ceil(np.log10(ours.max())) + 1))
        title = rows["name"].iloc[-1].replace(f"{int(size[-1]):,} ", "")
        axes.set(title=title, xlabel="their number", ylabel="seconds")
        axes.legend(fontsize=8)
    figure.savefig(file, dpi=130)
    plt.close(figure)
