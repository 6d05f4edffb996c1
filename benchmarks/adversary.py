"""An adversary of the shortcut audit: `python -m benchmarks.adversary` plants shortcuts and records what is found.

Each data set has 50 patients per class and about 165 images of 96 pixels, without disease signal. A shortcut is planted
in a fraction of the images of one class, its strength. For each kind, strength and seed, the table has the baselines
that are better than chance after correction, by the test of the audit. For all but the weaker strengths it has the
verdict, too, with every other condition met: the adversary's network reads the shortcut without an error, no network
without the lungs separates the classes, and another hospital has the same shortcut. Where marks are covered, it
is at chance if less than a fifth of the change of its images is left, and else as good as before. The verdict must
never be "evidence of disease signal". Data sets without a shortcut give the false flags; there are twice as many with a
true signal, and three of them have 300 patients per class, of which the verdict must be "evidence of disease signal".
The shortcuts of `inventions.py` are planted in three data sets each.
Rows are written as they are computed, so that an interrupted run can be continued. `adversary.csv` and `adversary.md`
stand in this folder.
"""

from __future__ import annotations

import argparse
import csv
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.inventions import INVENTED
from benchmarks.planting import KINDS, Kind, Plant, save
from covid_fastai.audit.baseline_features import Features, read_features
from covid_fastai.audit.baselines import (
    LUNG_FREE,
    PARTLY_BLIND,
    find_shortcuts,
    list_blocks,
    permute_baselines,
    rows_to_try,
)
from covid_fastai.audit.fixed_spots import find_edges, places_of
from covid_fastai.audit.lung_region import within_lungs
from covid_fastai.audit.verdict import give_verdict
from covid_fastai.data.lungs import segment_lungs
from covid_fastai.data.phantom import CSV_NAME, write_phantom

HERE = Path(__file__).parent
CLASSES = ["Normal", "COVID-19"]
PLANTED = KINDS | INVENTED
INVENTED_SEEDS = 3  # data sets of each kind that was invented afterwards
PATIENTS, IMAGE_SIZE = 50, 96
STRENGTHS = (1.0, 0.8)
CLEAN, SIGNAL, CONTROL = "none, no signal", "none, true signal", "none, true signal, 300 patients per class"
CONTROL_PATIENTS, CONTROLS = 300, 3  # enough to bound each baseline
# What each baseline is to find; the strength at which it finds it in 95% of the data sets is measured with these.
MEASURED = {
    "frame": "mark at 10% from the edge",
    "frame texture": "blur, 0.7 pixels",
    "non-linear": "border bright or dark",
    "sharp edges": "letters anywhere in the lungs",
    "fixed spot": "letters in the lung",
}
WEAKER = (0.6, 0.5, 0.4, 0.3, 0.2)
LEVELS = {"shown": "evidence", "not shown": "open", "failed": "a shortcut"}
COLUMNS = ["kind", "strength", "seed", "found", "strongest", "auc", "level", "clause"]
ALL_ELSE_MET = {
    "network": {"value": 1.0, "low": 0.96, "high": 1.0, "n": 100},
    "versus": pd.DataFrame(
        [{"baseline": "thumbnail", "network_auc": 1.0, "baseline_auc": 0.8, "difference": 0.2, "low": 0.1, "high": 0.3,
          "n": 100, "errorless_low": 0.1}]
    ),
    "blind": {"auc": 0.5, "auc_low": 0.4, "auc_high": 0.6, "network_auc": 1.0, "difference": 0.5, "low": 0.4,
              "high": 0.6, "n": 100, "images": 100, "boxes": 0, "boxes_auc": 0.5},
    "external": [{"source": "the other hospital", "value": 1.0, "low": 0.96, "high": 1.0, "n": 100, "thumbnail": 0.8,
                  "difference": 0.2, "difference_low": 0.1, "difference_high": 0.3}],
}  # fmt: skip

# A network where the most telling cells, or the sharpest edges, are covered: one that reads what lies in many places,
# as opacities do, and one that reads nothing else than what was covered.
LITTLE_LOST = {"auc": 0.99, "auc_low": 0.95, "auc_high": 1.0, "network_auc": 1.0, "difference": 0.01, "low": 0.0,
               "high": 0.03, "n": 100}  # fmt: skip
ALL_LOST = LITTLE_LOST | {"auc": 0.5, "auc_low": 0.4, "auc_high": 0.6, "difference": 0.5, "low": 0.4, "high": 0.6}
MOST_LEFT, LOOKED_AT = 0.2, 20  # of the change that a shortcut makes in an image; images of which the median is taken


class DataSet:
    """Images of one seed with their features, and a folder for those with a shortcut.

    Args:
        folder: An empty folder.
        seed: Seed of the images.
        signal: Whether the lungs show the disease.
        patients: Number of patients per class.
    """

    def __init__(self, folder: Path, seed: int, *, signal: bool = False, patients: int = PATIENTS) -> None:
        counts = {"COVID-19": patients, "Normal": patients}
        root = write_phantom(folder / "phantom", patients=counts, image_size=IMAGE_SIZE, seed=seed, signal=signal)
        table = pd.read_csv(root / CSV_NAME)
        drawn = {path.name: path for path in root.rglob("*.jpeg")}
        self.folder, self.seed = folder, seed
        self.pixels = [np.asarray(Image.open(drawn[name]).convert("L")) for name in table["X_ray_image_name"]]
        label = np.where(table["Label_2_Virus_category"] == "COVID-19", "COVID-19", "Normal")
        self.table = table[["patient", "source", "view"]].assign(label=label, split="train")
        self.table["path"] = [str(folder / f"{number}.png") for number in range(len(table))]
        for path, pixels in zip(self.table["path"], self.pixels, strict=True):
            save(pixels, path)
        self.features = read_features(self.table["path"])
        self.planted: tuple[str, np.ndarray, Features, Features] | None = None
        self.altered: list[tuple[np.ndarray, np.ndarray]] = []  # some images before and after the shortcut

    def plant(self, kind: str, strength: float) -> tuple[pd.DataFrame, Features]:
        """Return the table and the features with a shortcut in a fraction of the images of COVID-19."""
        if kind not in PLANTED:
            return self.table, self.features
        about = PLANTED[kind]
        rng = np.random.default_rng([self.seed, list(PLANTED).index(kind)])
        places = rng.permutation(np.flatnonzero(self.table["label"] == "COVID-19"))
        if self.planted is None or self.planted[0] != kind:
            changed = self._change(about, about.plant, places, rng)
            # before the files are overwritten
            self.altered = [
                (self.pixels[place], np.asarray(Image.open(self._path(place)))) for place in places[:LOOKED_AT]
            ]
            others = self.features
            if about.other is not None:
                others = self._change(Kind(about.other), about.other, np.arange(len(self.table)), rng)
            self.planted = kind, places, changed, others
        count = round(strength * len(places))
        blocks = {name: block.copy() for name, block in self.planted[3].blocks.items()}
        for name, block in self.planted[2].blocks.items():
            blocks[name][places[:count]] = block[:count]
        table = self.table.copy()
        if about.view:
            table.loc[table.index[places[:count]], "view"] = about.view
        return table, Features(blocks, self.features.readable)

    def _change(self, kind: Kind, plant: Plant, places: np.ndarray, rng: np.random.Generator) -> Features:
        """Return the features of some images after a change."""
        for place in places:
            save(plant(self.pixels[place], rng), self._path(place), kind)
        return read_features(map(self._path, places))

    def _path(self, place: int) -> str:
        return str(self.folder / f"planted-{place}.png")

    def _cover(self, kind: str, spots: Sequence[Sequence[int]]) -> list[Mapping[str, float] | None]:
        """Return the results of the adversary's network with the fixed spots and with the sharpest edges covered.

        It is lost if its shortcut is covered.
        """
        if kind not in PLANTED:
            return [None, None] if kind == CLEAN else [LITTLE_LOST, LITTLE_LOST]
        left: tuple[list[float], list[float]] = ([], [])
        for before, after in self.altered:
            (lungs,) = segment_lungs(after)
            change = np.abs(after.astype(float) - before)
            for fractions, boxes in zip(left, (spots, find_edges(after, within_lungs(lungs))), strict=True):
                uncovered = change.copy()
                for place in places_of(boxes, *change.shape):
                    uncovered[place] = 0
                # a shortcut of the file or of the table changes no pixel, and is not covered
                fractions.append(float(uncovered.sum() / change.sum()) if change.any() else 1.0)
        return [ALL_LOST if np.median(fractions) < MOST_LEFT else LITTLE_LOST for fractions in left]

    def judge(self, kind: str, strength: float, *, audited: bool) -> dict[str, object]:
        """Return a row of the table."""
        table, features = self.plant(kind, strength)
        rows = rows_to_try(table, seed=self.seed)
        places = pd.Series(np.arange(len(table)), index=table["path"])
        features = features.take(places[rows["path"]].to_numpy())
        # the audit tests the same permutations; what they do not change, the statistics of the true labels, is left
        shortcuts = find_shortcuts(table, features=features, seed=self.seed) if audited else None
        once = {"permutations": 1} if shortcuts else {}
        tests = permute_baselines(rows, list_blocks(features, rows), CLASSES, seed=self.seed, **once)
        p_holm = {name: shortcuts.row(name)["p_holm"] for name in tests.p_holm} if shortcuts else tests.p_holm
        found = [name for name, p in p_holm.items() if p < 0.05]
        strongest = max(p_holm, key=lambda name: tests.observed[name])
        row = {"kind": kind, "strength": strength, "seed": self.seed, "found": "; ".join(found)}
        row |= {"strongest": strongest, "auc": round(tests.observed[strongest], 3), "level": "", "clause": ""}
        if shortcuts:
            covered, marks = self._cover(kind, shortcuts.spots)
            verdict = give_verdict(shortcuts, covered=covered, marks=marks, **ALL_ELSE_MET)
            row |= {"level": verdict.level, "clause": verdict.sentence.split(" (")[0].split(". ")[0]}
        return row


def plan(seeds: int) -> list[tuple[int, str, float]]:
    """Return what is measured: seed, kind and strength, seed by seed."""
    cells = []
    for seed in range(seeds):
        cells += [(seed, CLEAN, 0.0), (2 * seed, SIGNAL, 0.0), (2 * seed + 1, SIGNAL, 0.0)]
        cells += [(seed, CONTROL, 0.0)] if seed < CONTROLS else []
        for kind in KINDS if seed >= INVENTED_SEEDS else PLANTED:
            weaker = WEAKER if kind in MEASURED.values() else ()
            cells += [(seed, kind, strength) for strength in (*STRENGTHS, *weaker)]
    return cells


def run(out: Path, *, seeds: int, kinds: list[str]) -> pd.DataFrame:
    """Measure what `out` does not hold yet, and return all of its rows."""
    done = set()
    if out.exists():
        rows = pd.read_csv(out, keep_default_na=False)
        done = set(rows[["seed", "kind", "strength"]].itertuples(index=False, name=None))
    todo = [cell for cell in plan(seeds) if cell not in done and (not kinds or cell[1] in kinds)]
    with open(out, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if file.tell() == 0:
            writer.writeheader()
        for seed, drawn in dict.fromkeys((seed, _drawn(kind)) for seed, kind, _ in todo):
            with tempfile.TemporaryDirectory() as folder:
                signal, patients = drawn
                images = DataSet(Path(folder), seed, signal=signal, patients=patients)
                for number, kind, strength in todo:
                    if (number, _drawn(kind)) == (seed, drawn):
                        writer.writerow(images.judge(kind, strength, audited=strength not in WEAKER))
                        file.flush()
    return pd.read_csv(out, keep_default_na=False)


def _drawn(kind: str) -> tuple[bool, int]:
    """Return whether the images of a kind show the disease, and the number of patients per class."""
    return kind in (SIGNAL, CONTROL), CONTROL_PATIENTS if kind == CONTROL else PATIENTS


def as_markdown(rows: pd.DataFrame) -> str:
    """Return the page."""
    found = rows["found"].str.split("; ")
    rows = rows.assign(
        flagged=[bool(set(names) & set(LUNG_FREE)) for names in found],
        noticed=[bool(set(names) & {*LUNG_FREE, *PARTLY_BLIND}) for names in found],
    )
    is_planted, strong = rows["kind"].isin(PLANTED), rows["strength"].isin(STRENGTHS)
    planted = rows[is_planted & strong]
    shown = [int((rows.loc[chosen, "level"] == "shown").sum()) for chosen in (is_planted, ~is_planted)]
    lines = [
        "# The audit against an adversary",
        "",
        "Written by `python -m benchmarks.adversary`. Each data set has 50 patients per class, about 165 synthetic "
        "images of 96 pixels, and no disease signal; a shortcut is planted in a fraction of the images of one class. "
        "Flagged: a baseline without the lungs is better than chance. Noticed: flagged, or a baseline that sees some "
        "of the lungs is better than chance, which leaves the verdict open. Both at a family-wise level of 5%.",
        f"Of {len(planted)} data sets with a shortcut in at least 80% of the images, "
        f"{int(planted['noticed'].sum())} are noticed. {int((rows['level'] != '').sum())} data sets have a verdict, "
        'which assumes that all conditions but those on the shortcuts are met; "evidence of disease signal" is given '
        f"to {shown[0]} with a shortcut and to {shown[1]} without.",
        "",
        "| shortcut | kind was used for the design | seeds | flagged at 1.0 | noticed at 1.0 | flagged at 0.8 | "
        "noticed at 0.8 | found most often by | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for kind, about in PLANTED.items():
        of_kind = rows[(rows["kind"] == kind) & strong]
        if of_kind.empty:
            continue
        counts = []
        for strength in STRENGTHS:
            cell = of_kind[of_kind["strength"] == strength]
            counts += [f"{int(cell[name].sum())} of {len(cell)}" for name in ("flagged", "noticed")]
        names = of_kind["found"].str.split("; ").explode()
        best = ", ".join(names[names != ""].value_counts().index[:3])
        clauses = " / ".join(of_kind.loc[of_kind["clause"] != "", "clause"].unique())
        used = "invented later" if kind in INVENTED else "no" if about.held_out else "yes"
        seeds = of_kind["seed"].nunique()
        lines.append(f"| {kind} | {used} | {seeds} | {' | '.join(counts)} | {best or 'none'} | {clauses} |")
    lines += ["", "## Data sets without a shortcut", ""]
    texts = {CLEAN: "without signal", SIGNAL: "with a true signal", CONTROL: CONTROL.removeprefix("none, ")}
    for kind, text in texts.items():
        cell = rows[rows["kind"] == kind]
        if len(cell):
            levels = ", ".join(f"{int((cell['level'] == level).sum())} {name}" for level, name in LEVELS.items())
            lines.append(
                f"- {text}: {int(cell['flagged'].sum())} of {len(cell)} are flagged; in {int(cell['noticed'].sum())} a "
                f"baseline is better than chance, those that may see some of the lungs included. Verdicts: {levels}."
            )
    return "\n".join([*lines, "", *_describe_strengths(rows)]) + "\n"


def _describe_strengths(rows: pd.DataFrame) -> list[str]:
    """Return the section on the strength at which each baseline finds its shortcut."""
    levels = sorted({*STRENGTHS, *WEAKER})
    lines = [
        "## Strength at which a baseline finds a shortcut",
        "",
        "Fraction of data sets in which the baseline itself is better than chance, by the fraction of images that have "
        "the shortcut.",
        "",
        "| baseline | shortcut | seeds | " + " | ".join(f"{level:g}" for level in levels) + " | 95% found from |",
        "| --- | --- | --- |" + " --- |" * (len(levels) + 1),
    ]
    for baseline, kind in MEASURED.items():
        of_kind = rows[rows["kind"] == kind]
        hits = of_kind["found"].str.split("; ").map(lambda names, baseline=baseline: baseline in names)
        shares = {level: hits[of_kind["strength"] == level].mean() for level in levels}
        enough = [level for level in levels if all(shares[other] >= 0.95 for other in levels if other >= level)]
        texts = " | ".join("" if share != share else f"{share:.0%}" for share in shares.values())
        lowest = f"{min(enough):g}" if enough else "not reached"
        lines.append(f"| {baseline} | {kind} | {of_kind['seed'].nunique()} | {texts} | {lowest} |")
    return lines


def main() -> None:
    """Measure, print the page and write it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adversary", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="data sets of each kind; twice as many with signal")
    parser.add_argument("--kinds", nargs="*", default=[], help="only these kinds; default: all")
    parser.add_argument("--out", type=Path, default=HERE / "adversary.csv")
    parser.add_argument("--page", type=Path, default=HERE / "adversary.md")
    arguments = parser.parse_args()
    logging.getLogger("covid_fastai").setLevel(logging.ERROR)
    rows = run(arguments.out, seeds=arguments.seeds, kinds=arguments.kinds)
    text = as_markdown(rows)
    arguments.page.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
