"""Pages about data: patients and images, shortcuts, and copies."""

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
from covid_fastai.reporting.caveats import cohort_caveats, source_table
from covid_fastai.reporting.html import draw_chart, write_page
from covid_fastai.reporting.report import count_problems, count_rows, describe_shortcuts

__all__ = ["write_audit", "write_exploration"]


def write_exploration(cohort: pd.DataFrame, out: str | Path = "exploration.html") -> Path:
    """Write a page that describes the patients and the images of a cohort, the first two steps of the article.

    Args:
        cohort: Result of `read_cohort`.
        out: Path of the page; its folder must exist.

    Returns:
        The file.

    Raises:
        DataError: No image of the cohort can be read.
        ResourceError: The file cannot be written.
    """
    cohort = as_cohort(cohort)
    rows, classes = cohort[cohort["split"] != "excluded"], cohort.facts.classes
    if rows.empty:
        raise DataError("All rows of the cohort are excluded.", hint="Choose another task.")
    facts = header_facts(cohort)
    lead = f"The task {cohort.facts.task} uses {len(rows):,} images of {rows['patient'].nunique():,} patients; "
    lead += f"{len(cohort) - len(rows):,} images are excluded."
    return write_page(
        Path(out),
        "exploration.html",
        title=f"{' or '.join(classes)}: exploration of the data",
        data=cohort.facts.data,
        lead=lead,
        caveats=cohort_caveats(cohort),
        counts=count_rows(cohort),
        sources=source_table(cohort),
        count_figures=[
            draw_chart(plot_class_counts(cohort), "Images and patients by class", wide=True),
            draw_chart(plot_images_per_patient(cohort), "Images per patient"),
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
    """Write a page with the audit of data: shortcuts, and copies of images side by side.

    Args:
        cohort: The audited cohort.
        shortcuts: Result of `find_shortcuts` for it.
        leaks: Result of `find_leaks` for it.
        out: Path of the page; its folder must exist.

    Returns:
        The file.

    Raises:
        ImageError: An image of a group cannot be read.
        ResourceError: The file cannot be written.
    """
    cohort = as_cohort(cohort)
    groups = (
        None
        if leaks.groups.empty
        else draw_chart(plot_leak_groups(leaks), "Images with copies, one group per row", kind="png", wide=True)
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
        caveats=cohort_caveats(cohort),
        sources=source_table(cohort),
    )


def _header_text(facts: pd.DataFrame) -> str:
    descriptions = []
    for name, rows in facts.groupby("label", sort=False):
        formats = ", ".join(f"{n} {kind}" for kind, n in rows["format"].value_counts().items())
        size = f"{(rows['width'] * rows['height']).median() / 1e6:.2f} megapixels"
        descriptions.append(f"{name}: {formats}; median {size}")
    return ". ".join(descriptions) + ". Differences between the classes allow a model to be right without the lungs."
