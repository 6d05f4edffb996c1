"""The documents of a run: model card, data sheet, and its answers to two reporting guidelines."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from covid_fastai.audit.plain_words import say_plainly
from covid_fastai.evaluation.formatting import format_metric
from covid_fastai.evaluation.runs import Run, read_run
from covid_fastai.files import atomic_write
from covid_fastai.model.card import as_inert_markdown, write_card
from covid_fastai.notices import RESEARCH_USE
from covid_fastai.reporting.caveats import Caveat, limits, run_caveats
from covid_fastai.reporting.datasheet import build_datasheet
from covid_fastai.reporting.guidelines import ITEMS, SOURCES, Item
from covid_fastai.reporting.run_facts import SPLIT_TITLES, RunFacts, describe_metric, markdown_table
from covid_fastai.run_folder import RunFolder

__all__ = ["write_documents"]

ANSWERED, IN_PART, MISSING = "answered", "in part", "missing"
OTHER_DOCUMENTS = (
    f"The run's folder also holds `{RunFolder.datasheet}` (the data) and `{RunFolder.reporting_items}` (CLAIM 2024 and "
    "TRIPOD+AI)."
)
NO_AUDIT = "Not audited: it was not tested whether the model uses the lungs or differences between the image sources."


def write_documents(run: str | Path | Run) -> dict[str, Path]:
    """Write the model card, the data sheet and the reporting items of a run from the files in its folder.

    `train_classifier`, `cross_validate`, `validate` and `covid-fastai audit` call this function, so that the documents
    stay up to date. They report measured results; results that were not measured are reported as missing.

    Args:
        run: A run's folder, or the result of `read_run`; the files are read again.

    Returns:
        The written files by name: `model card` (`model/README.md`, with `model/findings.json`; for a cross-validation
        `model card, fold <k>` for each fold; absent if no model was saved or evaluated), `data sheet` (`datasheet.md`)
        and `reporting items` (`reporting-items.md`: the items of CLAIM 2024 and TRIPOD+AI).

    Raises:
        DataError: The folder is not a run, or one of its files is damaged.
        ModelFormatError: `config.json` of a saved model is damaged.
        ResourceError: A file cannot be written.
    """
    facts = RunFacts(read_run(run.path if isinstance(run, Run) else run))
    written = {}
    for folder in facts.models if facts.evaluated else ():
        fold = folder.parent.name.removeprefix("fold-") if facts.folds else ""
        name = f"model card, fold {fold}" if facts.folds else "model card"
        written[name] = _write_card(facts, folder, fold=fold)
    written["data sheet"] = _write(facts.run.folder.datasheet, build_datasheet(facts))
    written["reporting items"] = _write(facts.run.folder.reporting_items, _reporting_items(facts))
    return written


def _write(path: Path, text: str) -> Path:
    with atomic_write(path) as file:
        file.write(as_inert_markdown(text))
    return path


def _write_card(facts: RunFacts, folder: Path, *, fold: str) -> Path:
    result = facts.result
    level = facts.audit.verdict.level if facts.audit else None
    plain = say_plainly(level, result.classes, result.positive, synthetic=facts.is_synthetic)
    which = f" (fold {fold} of {facts.folds})" if fold else ""
    alarms = [f"{caveat.title} {caveat.text}" for caveat in run_caveats(facts.run) if _is_limit(caveat)]
    return write_card(
        folder,
        facts.models[folder],
        title=f"{' or '.join(result.classes)}{which}",
        headline=plain.headline,
        level=level or "",
        synthetic=facts.is_synthetic,
        verdict=_verdict(facts),
        limits=[*alarms, *limits(facts.cohort, result, external=bool(facts.external))],
        metrics=_metrics(facts, fold=fold),
    )


def _is_limit(caveat: Caveat) -> bool:
    return caveat.level == "alarm" or "synthetic" in caveat.title


def _verdict(facts: RunFacts) -> str:
    if facts.audit is None:
        return NO_AUDIT
    outdated = " External data were evaluated after this verdict; repeat the audit." if facts.audit_is_older else ""
    return facts.audit.verdict.sentence + outdated


def _metrics(facts: RunFacts, *, fold: str) -> str:
    patients = "All results are of held-out patients, on whom the model was not trained."
    if fold:
        patients = (
            f"The results are those of all {facts.folds} models together, each evaluated on the patients on whom it "
        )
        patients += f"was not trained. The model of fold {fold} alone has no separate results."
    sections = [patients, *(_split_metrics(facts, split) for split in facts.run.evaluations)]
    if facts.audit is not None:
        rows = facts.audit.verdict.table().rename(columns={"name": "condition", "text": "result"})
        sections += ["### Conditions of the verdict", markdown_table(rows)]
        sections += ["### Baselines that see little or nothing of the lungs", markdown_table(facts.audit.summary())]
    if facts.external:
        sections += ["### External data", *(_external(name, result) for name, result in facts.external.items())]
    if facts.subgroups is not None:
        sections += ["### Subgroups", markdown_table(facts.subgroups.summary()), *facts.subgroups.notes]
    command = "The steps were called one by one; no single command repeats the run."
    if facts.command:  # the card is published with its model, and the path of a folder may name its owner
        command = f"```\n{facts.command.replace(str(facts.run.config['data']), _data_name(facts))}\n```"
    return "\n\n".join([*sections, "### Command of the run", command, OTHER_DOCUMENTS])


def _data_name(facts: RunFacts) -> str:
    data = facts.run.config["data"]
    return Path(data).name if data else "rows"  # guard: data_name


def _split_metrics(facts: RunFacts, split: str) -> str:
    return f"### {SPLIT_TITLES.get(split, split)}\n\n{markdown_table(facts.run.evaluations[split].summary())}"


def _external(name: str, result: dict) -> str:
    rows = [
        {
            "images of": row["images of"],
            "comparison": row["comparison"],
            "metric": describe_metric(row),
            "thumbnail": next(
                (
                    format_metric(thumbnail["value"])
                    for thumbnail in result.get("thumbnail", [])
                    if all(thumbnail[key] == row[key] for key in ("images of", "comparison", "metric"))
                ),
                "not evaluated",
            ),
        }
        for row in result["table"]
    ]
    notes = f"{result['overlap']} images of the training data, or other images of their patients, were excluded first."
    if result.get("not_compared"):
        notes += (
            f" The patients of {result['not_compared']} images could not be compared with the training patients: they "
        )
        notes += "are numbers without a stated source."
    return f"{name}: {notes}\n\n{markdown_table(rows)}"


def _reporting_items(facts: RunFacts) -> str:
    head = [
        "# Reporting items",
        "This document answers the items of two reporting guidelines from the files of this run. The items are "
        "paraphrased; the text of the guidelines is authoritative. *Answered* means that the run holds the fact, not "
        f"that it satisfies a reviewer. {RESEARCH_USE}",
    ]
    tables = []
    for guideline, source in SOURCES.items():
        rows = [_row(item, facts) for item in ITEMS if item.guideline == guideline]
        counts = Counter(row["state"] for row in rows)
        summary = ", ".join(f"{counts[state]} {state}" for state in (ANSWERED, IN_PART, MISSING))
        head.append(f"**{guideline}**: {summary}; {len(rows)} items in total.")
        tables += [f"## {guideline}", f"{source}.", markdown_table(rows)]
    return "\n\n".join([*head, *tables]) + "\n"


def _row(item: Item, facts: RunFacts) -> dict[str, str]:
    row = {"item": item.number, "content": item.asks}
    answer = item.answer(facts) if item.answer else None
    if answer is None:
        return {**row, "state": MISSING, "where": "", "answer": item.reason}
    text = answer.text if answer.text.endswith((".", "...")) else f"{answer.text}."
    text += f" Missing: {answer.missing}." if answer.missing else ""
    return {**row, "state": IN_PART if answer.missing else ANSWERED, "where": answer.where, "answer": text}
