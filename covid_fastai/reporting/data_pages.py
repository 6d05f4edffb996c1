"""Pages about data: patients and images, shortcuts, and copies."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from covid_fastai.audit.baselines import ShortcutAudit
from covid_fastai.audit.leaks import LeakAudit, plot_leak_groups
from covid_fastai.data.cohort import Cohort, as_cohort
from covid_fastai.data.exploration import (
    header_facts,
    plot_class_counts,
    plot_header_facts,
    plot_images_per_patient,
    plot_missing_values,
    plot_samples,
    shorten,
)
from covid_fastai.data.lung_plots import lung_facts, plot_lung_facts
from covid_fastai.data.lung_tables import compare_framing, count_lungs
from covid_fastai.data.pseudonymise import DATA, numbered_page
from covid_fastai.errors import DataError
from covid_fastai.reporting.caveats import cohort_caveats, source_table
from covid_fastai.reporting.html import draw_chart, write_page
from covid_fastai.reporting.report import count_problems, count_rows, describe_shortcuts

__all__ = ["write_audit", "write_exploration"]

logger = logging.getLogger("covid_fastai")


def write_exploration(
    cohort: pd.DataFrame, out: str | Path = "exploration.html", *, pseudonymise: bool = False
) -> Path:
    """Write a page that describes the patients and the images of a cohort, the first two steps of the article.

    Args:
        cohort: Result of `read_cohort`.
        out: Path of the page; its folder must exist.
        pseudonymise: Whether numbers stand for files and patients. The key lies beside the page, in a folder that only
            its owner can read.

    Returns:
        The file.

    Raises:
        DataError: No image of the cohort can be read.
        ResourceError: The file cannot be written, or the key of an earlier page is there.
    """
    facts = as_cohort(cohort).facts
    files = {name: word for name, word in ((facts.data, DATA), (facts.root, "IMAGES")) if name}
    with numbered_page(as_cohort(cohort), out, numbered=pseudonymise, files=files) as rows:
        return _write_exploration(as_cohort(rows), Path(out))


def _write_exploration(cohort: Cohort, out: Path) -> Path:
    rows, classes = cohort[cohort["split"] != "excluded"], cohort.facts.classes
    if rows.empty:
        raise DataError("All rows of the cohort are excluded.", hint="Choose another task.")
    logger.info("Reading files, lungs and samples for the page.")
    facts, lungs = header_facts(cohort), lung_facts(cohort)
    lead = f"The task {cohort.facts.task} uses {len(rows):,} images of {rows['patient'].nunique():,} patients; "
    lead += f"{len(cohort) - len(rows):,} images are excluded."
    return write_page(
        out,
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
        lung_text=_lung_text(lungs, classes, of_all="lung_quality" in cohort),
        lung_counts=count_lungs(lungs),
        lungs=draw_chart(plot_lung_facts(lungs, classes=classes), "Area and place of the lungs by class", wide=True),
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


def _lung_text(facts: pd.DataFrame, classes: Sequence[str], *, of_all: bool) -> str:
    """Describe the lungs: where they were not found, and the measure that separates the classes best."""
    usable = facts["area"].notna()
    text = f"The lungs were segmented in {'all' if of_all else 'a sample of'} {len(facts):,} images. "
    if failed := int((~usable).sum()):
        reasons = facts.loc[~usable, "lung_quality"].value_counts()
        kinds = ", ".join(f"{n} {quality}" for quality, n in reasons.items())
        text += f"On {failed:,} of them they were not found ({kinds}); these are not in the histograms. "
    return text + compare_framing(facts, classes)
