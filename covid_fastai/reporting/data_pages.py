"""Pages about data: who is in them and what they look like, shortcuts, and copies."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from covid_fastai.audit.baselines import ShortcutAudit
from covid_fastai.audit.leaks import LeakAudit, plot_leak_groups
from covid_fastai.data.cohort import as_cohort
from covid_fastai.data.exploration import (
    header_facts,
    plot_class_counts,
    plot_header_facts,
    plot_images_per_patient,
    plot_missing_values,
    plot_samples,
    shorten,
)
from covid_fastai.errors import DataError
from covid_fastai.reporting.caveats import cohort_remarks, source_table
from covid_fastai.reporting.html import draw_chart, write_page
from covid_fastai.reporting.report import count_problems, count_rows, describe_shortcuts

__all__ = ["write_audit", "write_exploration"]


def write_exploration(cohort: pd.DataFrame, out: str | Path = "exploration.html") -> Path:
    """Write the article's first two steps as a page: who is in the data, and what the images look like.

    Args:
        cohort: What `read_cohort` returned.
        out: The page's file; its folder must exist.

    Returns:
        The file.

    Raises:
        DataError: No image of the cohort can be read.
        ResourceError: The file cannot be written.
    """
    cohort = as_cohort(cohort)
    rows, classes = cohort[cohort["split"] != "excluded"], cohort.facts.classes
    if rows.empty:
        raise DataError("Every row of the cohort is excluded.", hint="Choose another task.")
    facts = header_facts(cohort)
    lead = f"{len(rows):,} images of {rows['patient'].nunique():,} patients take part in the task "
    lead += f"{cohort.facts.task}; {len(cohort) - len(rows):,} are excluded."
    return write_page(
        Path(out),
        "exploration.html",
        title=f"{' or '.join(classes)}: a look at the data",
        data=cohort.facts.data,
        lead=lead,
        remarks=cohort_remarks(cohort),
        counts=count_rows(cohort),
        sources=source_table(cohort),
        count_figures=[
            draw_chart(plot_class_counts(cohort), "Images and patients by class", wide=True),
            draw_chart(plot_images_per_patient(cohort), "Images of a patient"),
            draw_chart(plot_missing_values(cohort), "Empty cells by column"),
        ],
        samples=draw_chart(plot_samples(cohort), f"Sample radiographs of {', '.join(classes)}", kind="png", wide=True),
        header_text=_header_text(facts),
        headers=draw_chart(plot_header_facts(facts, classes=classes), "Format, mode and size of the files", wide=True),
        problems=count_problems(cohort.facts.problem_table()),
    )


def write_audit(
    cohort: pd.DataFrame, shortcuts: ShortcutAudit, leaks: LeakAudit, out: str | Path = "audit.html"
) -> Path:
    """Write what an audit of data has found as a page: shortcuts, and the same pictures side by side.

    Args:
        cohort: What was audited.
        shortcuts: What `find_shortcuts` returned for it.
        leaks: What `find_leaks` returned for it.
        out: The page's file; its folder must exist.

    Returns:
        The file.

    Raises:
        ImageError: A picture of a group is no longer there.
        ResourceError: The file cannot be written.
    """
    cohort = as_cohort(cohort)
    groups = (
        None
        if leaks.groups.empty
        else draw_chart(plot_leak_groups(leaks), "Pictures that are there twice, a row a group", kind="png", wide=True)
    )
    return write_page(
        Path(out),
        "data_audit.html",
        title=f"{Path(cohort.facts.data).name or 'The data'}: shortcuts and copies",
        shortcuts=describe_shortcuts(shortcuts),
        leaks=str(leaks).partition("\n")[0],
        crossings=leaks.crossings if len(leaks.crossings) else None,
        groups=groups,
        listed=leaks.groups.assign(path=leaks.groups["path"].map(lambda path: shorten(Path(str(path)).name, 40))),
        remarks=cohort_remarks(cohort),
        sources=source_table(cohort),
    )


def _header_text(facts: pd.DataFrame) -> str:
    parts = []
    for name, rows in facts.groupby("label", sort=False):
        formats = ", ".join(f"{n} {kind}" for kind, n in rows["format"].value_counts().items())
        size = f"{(rows['width'] * rows['height']).median() / 1e6:.2f} megapixels"
        parts.append(f"{name}: {formats}; median {size}")
    return ". ".join(parts) + ". Where the classes differ here, a model can be right without looking at a lung."
