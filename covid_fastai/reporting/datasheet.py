"""The data sheet of a run, with the sections of Gebru et al., Datasheets for Datasets (CACM 64(12), 2021)."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from covid_fastai.data.download import TERMS
from covid_fastai.data.metadata import summarise_cohort
from covid_fastai.data.pretraining_overlap import read_package_manifests
from covid_fastai.evaluation.subgroups import AGE_BANDS
from covid_fastai.notices import RESEARCH_USE
from covid_fastai.reporting.caveats import cohort_caveats, source_table
from covid_fastai.reporting.run_facts import KNOWN_COLUMNS, RunFacts, describe_counts, markdown_table
from covid_fastai.run_folder import RunFolder

__all__ = ["build_datasheet"]

UNKNOWN = "Unknown: the data do not state it."
CORONAHACK = {"kermany", "cohen"}  # the sources that this package infers from file names


def build_datasheet(facts: RunFacts) -> str:
    """Describe the data of a run as Markdown; facts that the run does not hold are reported as unknown.

    Args:
        facts: The facts of the run.

    Returns:
        The text.
    """
    sections = {
        "Motivation": f"{UNKNOWN} This run uses the data to {_task(facts)}.",
        "Composition": _composition(facts),
        "Sources": _sources(facts),
        "Excluded rows": _excluded(facts),
        "Patients": _patients(facts),
        "Columns": _columns(facts),
        "Files": _files(facts),
        "Copies": _copies(facts),
        "Problems": _problems(facts),
        "Collection": "Dates, machines, consent, ethics approval and de-identification are unknown, unless the terms "
        "of use below state them.",
        "Labels": _labels(facts),
        "Pretraining overlap": _pretraining(facts),
        "Uses": _uses(facts),
        "Terms of use": _terms(facts),
        "Maintenance": f"{UNKNOWN} `{RunFolder.training_manifest}` holds fingerprints of the training images, which "
        "recognise them without showing them.",
    }
    name = facts.run.config.get("data") or "rows of a table in memory"
    head = f"# Data sheet\n\nThis sheet describes the data `{name}` as this run read them. `{RunFolder.cohort}` lists "
    head += f"every image. {RESEARCH_USE}\n"
    return "\n".join([head, *(f"## {title}\n\n{text}\n" for title, text in sections.items())])


def _task(facts: RunFacts) -> str:
    return f"separate {' from '.join(facts.result.classes)}" if facts.evaluated else "separate its classes"


def _composition(facts: RunFacts) -> str:
    shared = f"{facts.shared_patients} patients are in more than one part."
    known = "The patient of every used image is known."
    if not facts.patients_known:
        known = "The patients of some used images are unknown; each of these images counts as a separate patient."
    n_all, n_used = (rows["patient"].nunique() for rows in (facts.cohort, facts.used))
    text = (
        f"Chest radiographs: {len(facts.cohort):,} images of {n_all:,} patients, of which {len(facts.used):,} images "
    )
    text += f"of {n_used:,} patients are used. {known} {shared}"
    rows = summarise_cohort(facts.cohort[facts.cohort["split"] != "excluded"])
    rows["split"] = rows["split"].replace("train", "folds, or training" if facts.folds else "train")
    paragraphs = [text, markdown_table(rows.drop(columns="note").rename(columns={"split": "part", "label": "class"}))]
    if facts.folds:
        in_folds = facts.used[facts.used["fold"] >= 0]
        only_training = len(facts.used) - len(in_folds)
        counts = describe_counts(in_folds)
        paragraphs.append(f"In the folds: {counts}. {only_training:,} more images are in training in every fold.")
    return "\n\n".join(paragraphs)


def _sources(facts: RunFacts) -> str:
    table = source_table(facts.cohort)
    if table is None:
        return UNKNOWN
    text = (
        "Number of images by collection or hospital and class. The source is a column of the data or, without one, is "
    )
    text += "inferred from file names."
    caveats = cohort_caveats(facts.cohort)
    alarms = [f"- **{caveat.title}** {caveat.text}" for caveat in caveats if caveat.level == "alarm"]
    return "\n\n".join([text, markdown_table(table), *(["\n".join(alarms)] if alarms else [])])


def _excluded(facts: RunFacts) -> str:
    if facts.excluded.empty:
        return "None: all rows are used."
    rows = summarise_cohort(facts.excluded).drop(columns="split")
    text = "These rows were read, but are used neither in training nor in the evaluation."
    return f"{text}\n\n{markdown_table(rows.rename(columns={'label': 'finding', 'note': 'reason'}))}"


def _patients(facts: RunFacts) -> str:
    lines, total = [], len(facts.used)
    for column, name in KNOWN_COLUMNS.items():
        n = facts.count_known(column)
        lines.append(f"- {name.capitalize()}: " + (f"known for {n:,} of {total:,} images." if n else "unknown."))
    tables = [markdown_table(table) for column in ("view", "sex") if (table := _crosstab(facts, column)) is not None]
    if facts.count_known("age"):
        years = pd.to_numeric(facts.used["age"], errors="coerce")
        bands = pd.cut(years, [0, *AGE_BANDS.values()], right=False, labels=list(AGE_BANDS))
        rows = facts.used.assign(**{"age band": bands.astype(object).where(bands.notna(), "unknown")})
        tables.append(markdown_table(pd.crosstab(rows["age band"], rows["label"]).reset_index()))
        ages = facts.used.assign(years=years).groupby("label")["years"].agg(["count", "median", "min", "max"])
        lines += [
            f"- Age of {name}, years: {row['median']:g} ({row['min']:g} to {row['max']:g}); {row['count']:g} images."
            if row["count"]
            else f"- Age of {name}: unknown."
            for name, row in ages.iterrows()
        ]
    note = (
        "The tables count images by class. A characteristic that differs between the classes, or is known for only one "
    )
    note += "class, is a possible shortcut."
    return "\n\n".join(["\n".join(lines), *([note] if tables else []), *tables])


def _columns(facts: RunFacts) -> str:
    """Name the columns that the run keeps and those that it leaves out; values are not shown."""
    cohort = facts.cohort
    text = f"`{RunFolder.cohort}` has the columns {_names(cohort.columns)}. "
    left_out = (
        f"These columns of the data were left out: {_names(cohort.left_out)}."
        if cohort.left_out
        else "No column was left out."
    )
    text += f"{left_out} A run keeps what it needs, and the columns that `keep_columns` (`--keep-columns`) names."
    if facts.run.is_pseudonymised:
        text += (
            " The names of files and patients are replaced by numbers, in every file of the run. Their key lies in a "
            "folder of its own beside the run, which only its owner can read: do not share it together with the run. "
            "Text that is part of an image is not replaced."
        )
    return text


def _names(columns: Iterable[object]) -> str:
    names = (" ".join(str(name).split()) for name in columns)
    return ", ".join("`" + name.replace("`", "'") + "`" for name in names)


def _crosstab(facts: RunFacts, column: str) -> pd.DataFrame | None:
    if not facts.count_known(column):
        return None
    values = facts.used[column].astype(object).where(facts.used[column].notna(), "").astype(str)
    values = values.str.strip().replace("", "unknown")
    table = pd.crosstab(values, facts.used["label"]).reset_index().rename_axis(columns=None)
    return table.rename(columns={column: KNOWN_COLUMNS[column]})


def _files(facts: RunFacts) -> str:
    if facts.headers is None:
        return "Not read: the images are no longer where the run read them."
    rows = [
        {
            "class": name,
            "files read": len(headers),
            "formats": ", ".join(f"{kind} {n}" for kind, n in headers["format"].value_counts().items()),
            "modes": ", ".join(f"{kind} {n}" for kind, n in headers["mode"].value_counts().items()),
            "median size, pixels": f"{headers['width'].median():.0f} x {headers['height'].median():.0f}",
            "median megabytes": f"{headers['megabytes'].median():.3f}",
        }
        for name, headers in facts.headers.groupby("label", sort=False)
    ]
    text = (
        "The headers of at most 400 files per class were read. A difference between the classes is a possible shortcut."
    )
    return f"{text}\n\n{markdown_table(rows)}"


def _copies(facts: RunFacts) -> str:
    if not facts.run.folder.problems.is_file():
        return UNKNOWN
    rows = facts.run.problems
    if (rows["kind"] == "not_opened").any():
        return "Not searched: the images were not opened when the rows were read."
    n = int(rows["kind"].str.contains("same_picture").sum())
    patients = facts.cohort.groupby("group")["patient"].nunique()
    text = f"{n} images are copies of other images, including re-encoded and resized copies. A split by patient keeps "
    return text + f"copies in one part; {int((patients > 1).sum())} groups of copies join several patients."


def _problems(facts: RunFacts) -> str:
    if not facts.run.folder.problems.is_file():
        return UNKNOWN
    rows = facts.run.problems
    if rows.empty:
        return "None. Every row and every image was checked."
    counts = rows.groupby(["severity", "kind"], sort=False).agg(rows=("row", "size"), example=("reason", "first"))
    return markdown_table(counts.reset_index().assign(kind=lambda table: table["kind"].str.replace("_", " ")))


def _labels(facts: RunFacts) -> str:
    findings = facts.used.groupby("label")["finding"].agg(lambda values: ", ".join(sorted(set(values) - {""})))
    mapping = "; ".join(f"{name} from {values or 'the class itself'}" for name, values in findings.items())
    text = f"The labels are those of the data: {mapping}. It is unknown who assigned them, whether from the image or a "
    return text + "laboratory test, how well readers agree, and how many are wrong. The images were not read again."


def _pretraining(facts: RunFacts) -> str:
    if "in_pretraining" not in facts.cohort or not facts.fields.get("exclude_pretraining_overlap", True):
        return (
            "Not searched (exclude_pretraining_overlap=False): evaluated images may be in the pretraining data of the "
            "weights."
        )
    pretrained = facts.cohort["in_pretraining"]
    fold = facts.cohort["fold"] if "fold" in facts.cohort else -1
    evaluated = pretrained & (facts.cohort["split"].isin(["valid", "test"]) | (fold >= 0))
    text = f"{int(pretrained.sum()):,} images, or other images of their patients, are in the pretraining data of this "
    text += f"package's weights; {int(evaluated.sum())} of them are evaluated."
    collections = "; ".join(
        f"{name}, {n:,} images" for manifest in read_package_manifests() for name, n in manifest.sources.items()
    )
    text += f" The pretraining data are: {collections}." if collections else ""
    name = facts.weights.get("name", "unknown")
    others = "" if name in ("cxr", "random") else " The pretraining data of those weights are unknown to this package."
    return f"{text} The initial weights of this model are `{name}`.{others}"


def _uses(facts: RunFacts) -> str:
    external = ", ".join(facts.external) or "none"
    text = (
        f"This run used the data to train and evaluate a model. External data for its evaluation: {external}. Do not "
    )
    text += "use the data for decisions about a person: it is unknown for which purpose they were collected and which "
    return text + "population they represent."


def _terms(facts: RunFacts) -> str:
    if not CORONAHACK & set(facts.used["source"].str.casefold()):
        return (
            "Unknown: the data name no licence. Ask the provider before you share the data or a model trained on them."
        )
    text = "Columns or file names show that these images come from collections that are part of CoronaHack. Its terms: "
    return f"{text}{TERMS}"
