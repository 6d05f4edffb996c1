"""The data sheet of a run: what the data are and are not, in the questions of Gebru et al. (CACM 64(12), 2021)."""

from __future__ import annotations

import pandas as pd

from covid_fastai.data.download import TERMS
from covid_fastai.data.metadata import summarise_cohort
from covid_fastai.data.pretraining_overlap import package_manifests, read_manifest
from covid_fastai.evaluation.subgroups import AGE_BANDS
from covid_fastai.notices import RESEARCH_USE
from covid_fastai.reporting.caveats import cohort_remarks, source_table
from covid_fastai.reporting.run_facts import KNOWN_COLUMNS, RunFacts, markdown_table, say_counts
from covid_fastai.run_folder import RunFolder

__all__ = ["build_datasheet"]

UNKNOWN = "Unknown: the data do not say."
CORONAHACK = {"kermany", "cohen"}  # the sources that this package gives names to by itself


def build_datasheet(facts: RunFacts) -> str:
    """Write what a run knows of its data as Markdown; what it does not know is said to be unknown.

    Args:
        facts: Of the run.

    Returns:
        The text.
    """
    sections = {
        "Why the data were made": f"{UNKNOWN} This run uses them to tell {_task(facts)}.",
        "What is in them": _composition(facts),
        "Where the images come from": _sources(facts),
        "What is excluded": _aside(facts),
        "Who the patients are": _patients(facts),
        "The files": _files(facts),
        "The same picture twice": _copies(facts),
        "Problems found": _problems(facts),
        "How they were collected": "Unknown, unless the terms below say it: dates, machines, consent, ethics approval, "
        "and how patients' identities were removed.",
        "Labels": _labels(facts),
        "What weights have seen": _seen(facts),
        "Uses": _uses(facts),
        "Terms": _terms(facts),
        "Maintenance": f"{UNKNOWN} `{RunFolder.training_manifest}` recognises the training images without showing one.",
    }
    name = facts.run.config.get("data") or "rows of a table in memory"
    head = f"# Data sheet\n\nOf the data `{name}`, as this run read them. Counted from `{RunFolder.cohort}`, "
    head += f"which lists every image. {RESEARCH_USE}\n"
    return "\n".join([head, *(f"## {title}\n\n{text}\n" for title, text in sections.items())])


def _task(facts: RunFacts) -> str:
    return " from ".join(facts.result.classes) if facts.judged else "its classes apart"


def _composition(facts: RunFacts) -> str:
    both = f"{facts.both_sides} patients are on two sides."
    known = "Every image that takes part names its patient."
    if not facts.patients_known:
        known = "Not every image names its patient; an image without one counts as a patient of its own."
    everybody, taking_part = (rows["patient"].nunique() for rows in (facts.cohort, facts.used))
    text = f"Chest radiographs: {len(facts.cohort):,} images of {everybody:,} patients; {len(facts.used):,} images of "
    text += f"{taking_part:,} patients take part. {known} {both}"
    rows = summarise_cohort(facts.cohort[facts.cohort["split"] != "excluded"])
    rows["split"] = rows["split"].replace("train", "folds, or training" if facts.folds else "train")
    parts = [text, markdown_table(rows.drop(columns="note").rename(columns={"split": "part", "label": "class"}))]
    if facts.folds:
        judged = facts.used[facts.used["fold"] >= 0]
        never = len(facts.used) - len(judged)
        parts.append(f"In the folds: {say_counts(judged)}. {never:,} more images are trained on in every fold.")
    return "\n\n".join(parts)


def _sources(facts: RunFacts) -> str:
    table = source_table(facts.cohort)
    if table is None:
        return UNKNOWN
    text = "Images by collection or hospital and class, by a column of the data or, where there is none, by file names."
    alarms = [f"- **{one.title}** {one.text}" for one in cohort_remarks(facts.cohort) if one.level == "alarm"]
    return "\n\n".join([text, markdown_table(table), *(["\n".join(alarms)] if alarms else [])])


def _aside(facts: RunFacts) -> str:
    if facts.excluded.empty:
        return "Nothing: every row takes part."
    rows = summarise_cohort(facts.excluded).drop(columns="split")
    text = "Rows that were read and take no part, neither in training nor in any figure."
    return f"{text}\n\n{markdown_table(rows.rename(columns={'label': 'finding', 'note': 'why'}))}"


def _patients(facts: RunFacts) -> str:
    lines, total = [], len(facts.used)
    for column, name in KNOWN_COLUMNS.items():
        n = facts.known(column)
        lines.append(f"- {name.capitalize()}: " + (f"known of {n:,} of {total:,} images." if n else "unknown."))
    tables = [markdown_table(table) for column in ("view", "sex") if (table := _crosstab(facts, column)) is not None]
    if facts.known("age"):
        years = pd.to_numeric(facts.used["age"], errors="coerce")
        bands = pd.cut(years, [0, *AGE_BANDS.values()], right=False, labels=list(AGE_BANDS))
        rows = facts.used.assign(age_band=bands.astype(object).where(bands.notna(), "unknown"))
        tables.append(markdown_table(pd.crosstab(rows["age_band"], rows["label"]).reset_index()))
        ages = facts.used.assign(years=years).groupby("label")["years"].agg(["count", "median", "min", "max"])
        lines += [
            f"- Age of {name}, years: {row['median']:g} ({row['min']:g} to {row['max']:g}); {row['count']:g} images."
            if row["count"]
            else f"- Age of {name}: unknown."
            for name, row in ages.iterrows()
        ]
    note = "Images by class. Where a class alone is known, or differs, a model can tell the class by it."
    return "\n\n".join(["\n".join(lines), *([note] if tables else []), *tables])


def _crosstab(facts: RunFacts, column: str) -> pd.DataFrame | None:
    if not facts.known(column):
        return None
    values = facts.used[column].astype(object).where(facts.used[column].notna(), "").astype(str)
    values = values.str.strip().replace("", "unknown")
    return pd.crosstab(values, facts.used["label"]).reset_index().rename_axis(columns=None)


def _files(facts: RunFacts) -> str:
    if facts.headers is None:
        return "Not read: the images are no longer where the run found them."
    rows = [
        {
            "class": name,
            "files read": len(found),
            "formats": ", ".join(f"{kind} {n}" for kind, n in found["format"].value_counts().items()),
            "modes": ", ".join(f"{kind} {n}" for kind, n in found["mode"].value_counts().items()),
            "median size, pixels": f"{found['width'].median():.0f} x {found['height'].median():.0f}",
            "median megabytes": f"{found['megabytes'].median():.3f}",
        }
        for name, found in facts.headers.groupby("label", sort=False)
    ]
    text = "Headers of 400 files a class at most. Where the classes differ here, a file tells its class unseen."
    return f"{text}\n\n{markdown_table(rows)}"


def _copies(facts: RunFacts) -> str:
    if not facts.run.folder.problems.is_file():
        return UNKNOWN
    rows = facts.run.problems
    if (rows["kind"] == "not_opened").any():
        return "Not looked for: the images were not opened when the rows were read."
    n = int(rows["kind"].str.contains("same_picture").sum())
    joined = facts.cohort.groupby("group")["patient"].nunique()
    text = (
        f"Images that show the picture of another one, re-encoded or resized copies included: {n}. A split by patient "
    )
    return text + f"keeps them together; groups that join several patients for it: {int((joined > 1).sum())}."


def _problems(facts: RunFacts) -> str:
    if not facts.run.folder.problems.is_file():
        return UNKNOWN
    rows = facts.run.problems
    if rows.empty:
        return "None: every row and every image was checked."
    counts = rows.groupby(["severity", "kind"], sort=False).agg(rows=("row", "size"), example=("reason", "first"))
    return markdown_table(counts.reset_index().assign(kind=lambda table: table["kind"].str.replace("_", " ")))


def _labels(facts: RunFacts) -> str:
    findings = facts.used.groupby("label")["finding"].agg(lambda values: ", ".join(sorted(set(values) - {""})))
    said = "; ".join(f"{name} from {found or 'the class itself'}" for name, found in findings.items())
    text = f"Taken as the data have them: {said}. Who gave them, from the picture or from a laboratory test, how often "
    return text + "readers agree, and how many are wrong is unknown. Nobody has read the images anew."


def _seen(facts: RunFacts) -> str:
    if "in_pretraining" not in facts.cohort or not facts.fields.get("exclude_pretraining_overlap", True):
        return "Not looked for (exclude_pretraining_overlap=False): pretrained weights may have seen judged images."
    seen = facts.cohort["in_pretraining"]
    fold = facts.cohort["fold"] if "fold" in facts.cohort else -1
    judged = seen & (facts.cohort["split"].isin(["valid", "test"]) | (fold >= 0))
    n = int(seen.sum())
    text = f"Of {n:,} images, the package's own weights have seen them or another image of their patient; figures "
    text += f"count {int(judged.sum())} of those."
    collections = "; ".join(
        f"{name}, {n:,} images" for file in package_manifests() for name, n in read_manifest(file).sources.items()
    )
    text += f" Those weights were made from: {collections}." if collections else ""
    name = facts.weights.get("name", "unknown")
    others = "" if name in ("cxr", "random") else " What those have seen is not known to the package."
    return f"{text} This model began from the weights `{name}`.{others}"


def _uses(facts: RunFacts) -> str:
    outside = ", ".join(facts.external) or "none"
    text = f"In this run: to train a model and judge it. External data that it was tried on: {outside}. Not for "
    return text + "decisions about any person: for what the data were collected, and whom they represent, is unknown."


def _terms(facts: RunFacts) -> str:
    if not CORONAHACK & set(facts.used["source"].str.casefold()):
        return "Unknown: the data name no licence. Ask who gave you the data before you share them or a model of them."
    text = "By their columns or file names, images here are of collections that CoronaHack is made of. What is known "
    return f"{text}of its terms: {TERMS}"
