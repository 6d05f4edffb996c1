"""The documents of a run: model card, data sheet, and what it answers of two reporting guidelines."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from covid_fastai.evaluation.formatting import format_metric
from covid_fastai.evaluation.runs import Run, read_run
from covid_fastai.files import atomic_write
from covid_fastai.model.card import write_card
from covid_fastai.notices import RESEARCH_USE
from covid_fastai.reporting.caveats import limits, run_remarks
from covid_fastai.reporting.datasheet import build_datasheet
from covid_fastai.reporting.guidelines import ITEMS, SOURCES, Item
from covid_fastai.reporting.run_facts import SPLIT_TITLES, RunFacts, markdown_table, say_figure
from covid_fastai.run_folder import RunFolder

__all__ = ["write_documents"]

ANSWERED, PARTLY, MISSING = "answered", "in part", "missing"
BESIDE = (
    f"In the run's folder: `{RunFolder.datasheet}` (the data) and `{RunFolder.reporting_items}` (CLAIM 2024 and "
    "TRIPOD+AI)."
)
NO_AUDIT = "Not audited: whether the model looks at lungs, or at what tells the collections apart, was not tried."


def write_documents(run: str | Path | Run) -> dict[str, Path]:
    """Write a run's model card, data sheet and reporting items, from its folder alone; again after each new finding.

    `train_classifier`, `cross_validate`, `validate` and `covid-fastai audit` call it. Each line is filled in from what
    was measured; what was not measured is said to be missing.

    Args:
        run: A run's folder, or what `read_run` returned; the files are read anew.

    Returns:
        The files by what they are: `model card` (`model/README.md`, with `model/findings.json` beside it; of a
        cross-validation `model card, fold <k>` of each fold; none where no model was saved or none was judged),
        `data sheet` (`datasheet.md`) and `reporting items` (`reporting-items.md`: the items of CLAIM 2024 and
        TRIPOD+AI).

    Raises:
        DataError: The folder is no run, or one of its files is damaged.
        ModelFormatError: `config.json` of a saved model is damaged.
        ResourceError: A file cannot be written.
    """
    facts = RunFacts(read_run(run.path if isinstance(run, Run) else run))
    written = {}
    for folder in facts.models if facts.judged else ():
        fold = folder.parent.name.removeprefix("fold-") if facts.folds else ""
        name = f"model card, fold {fold}" if facts.folds else "model card"
        written[name] = _write_card(facts, folder, fold=fold)
    written["data sheet"] = _write(facts.run.folder.datasheet, build_datasheet(facts))
    written["reporting items"] = _write(facts.run.folder.reporting_items, _reporting_items(facts))
    return written


def _write(path: Path, text: str) -> Path:
    with atomic_write(path) as file:
        file.write(text)
    return path


def _write_card(facts: RunFacts, folder: Path, *, fold: str) -> Path:
    result = facts.result
    which = f" (fold {fold} of {facts.folds})" if fold else ""
    alarms = [f"{one.title} {one.text}" for one in run_remarks(facts.run) if one.level == "alarm"]
    return write_card(
        folder,
        facts.models[folder],
        title=f"{' or '.join(result.classes)}{which}",
        verdict=_verdict(facts),
        limits=[*alarms, *limits(facts.cohort, result, external=bool(facts.external))],
        metrics=_figures(facts, fold=fold),
    )


def _verdict(facts: RunFacts) -> str:
    if facts.audit is None:
        return NO_AUDIT
    late = " External data were tried after this verdict: audit the run anew." if facts.audit_is_older else ""
    return facts.audit.verdict.sentence + late


def _figures(facts: RunFacts, *, fold: str) -> str:
    who = "Held-out patients, whom the model was not trained on."
    if fold:
        who = f"All {facts.folds} models together, each judged on the patients that it was not trained on. This one "
        who += f"model alone, fold {fold}, was judged on some of them, and has no figures of its own here."
    parts = [who, *(_split_figures(facts, split) for split in facts.run.evaluations)]
    if facts.audit is not None:
        rows = facts.audit.verdict.table().rename(columns={"name": "what must hold", "text": "what was found"})
        parts += ["### The verdict's conditions", markdown_table(rows)]
        parts += ["### Beside baselines that see little or nothing of a lung", markdown_table(facts.audit.summary())]
    if facts.external:
        parts += ["### External data", *(_external(name, found) for name, found in facts.external.items())]
    if facts.subgroups is not None:
        parts += ["### Subgroups", markdown_table(facts.subgroups.summary()), *facts.subgroups.notes]
    again = "The run was told by hand: no command makes it again."
    if facts.command:  # a card leaves the house with its model, and a folder may name its owner
        again = f"```\n{facts.command.replace(str(facts.run.config['data']), _own_name(facts))}\n```"
    return "\n\n".join([*parts, "### The command that made them", again, BESIDE])


def _own_name(facts: RunFacts) -> str:
    data = facts.run.config["data"]
    return Path(data).name if data else "rows"  # guard: data_name


def _split_figures(facts: RunFacts, split: str) -> str:
    return f"### {SPLIT_TITLES.get(split, split)}\n\n{markdown_table(facts.run.evaluations[split].summary())}"


def _external(name: str, found: dict) -> str:
    rows = [
        {
            "images of": row["images of"],
            "comparison": row["comparison"],
            "figure": say_figure(row),
            "thumbnail": next(
                (
                    format_metric(one["value"])
                    for one in found.get("thumbnail", [])
                    if all(one[key] == row[key] for key in ("images of", "comparison", "metric"))
                ),
                "not tried",
            ),
        }
        for row in found["table"]
    ]
    taken = f"{found['overlap']} images that the model knew, or others of their patients, were taken out first."
    if found.get("not_compared"):
        taken += (
            f" The patients of {found['not_compared']} images could not be compared: numbers without a stated source."
        )
    return f"{name}: {taken}\n\n{markdown_table(rows)}"


def _reporting_items(facts: RunFacts) -> str:
    head = [
        "# Reporting items",
        "What this run answers of two reporting guidelines, filled in from its own files. The items are put in our own "
        "short words; the guidelines' text is what counts. *Answered* says that the run holds the fact, not that a "
        f"reviewer would be content with it. {RESEARCH_USE}",
    ]
    tables = []
    for guideline, source in SOURCES.items():
        rows = [_row(item, facts) for item in ITEMS if item.guideline == guideline]
        counts = Counter(row["state"] for row in rows)
        said = ", ".join(f"{counts[state]} {state}" for state in (ANSWERED, PARTLY, MISSING))
        head.append(f"**{guideline}**: {said}; {len(rows)} in all.")
        tables += [f"## {guideline}", f"{source}.", markdown_table(rows)]
    return "\n\n".join([*head, *tables]) + "\n"


def _row(item: Item, facts: RunFacts) -> dict[str, str]:
    row = {"item": item.number, "asks for": item.asks}
    answer = item.answer(facts) if item.answer else None
    if answer is None:
        return {**row, "state": MISSING, "where": "", "what was found": f"missing: {item.missing}"}
    said = answer.text if answer.text.endswith((".", "...")) else f"{answer.text}."
    said += f" Missing: {answer.lacks}." if answer.lacks else ""
    return {**row, "state": PARTLY if answer.lacks else ANSWERED, "where": answer.where, "what was found": said}
