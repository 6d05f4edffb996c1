"""The end of a training, as Python and the command line show it: the verdict first, metrics, report, what next."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from covid_fastai.audit.runs import Run
from covid_fastai.audit.verdict import NOT_TESTED
from covid_fastai.evaluation.prediction_table import UNKNOWN_PATIENTS
from covid_fastai.notices import RESEARCH_USE
from covid_fastai.reporting.run_facts import SPLIT_TITLES

__all__ = ["closing_parts", "next_steps", "show_closing"]


def closing_parts(run: Run, *, python: bool) -> Iterator[str | tuple[str, pd.DataFrame]]:
    """Yield what is shown at the end of a training.

    Args:
        run: An evaluated run.
        python: Whether the next steps are calls of functions; otherwise they are commands.

    Yields:
        Paragraphs, and tables with their titles.
    """
    verdict = run.verdict
    yield str(run.plain_verdict)
    if verdict is not None:
        yield f"Verdict: {verdict.sentence}"
    for split, result in run.evaluations.items():
        yield SPLIT_TITLES.get(split, split), result.summary()
        failed = f" {result.n_failed} images have no prediction and are not counted." if result.n_failed else ""
        unknown = "" if result.patients_known else f" {UNKNOWN_PATIENTS}"
        yield f"{result.n_images} images.{failed}{unknown} {RESEARCH_USE}"
    yield f"Report: {run.report}"
    yield "\n".join(["What next:", *(f"  {step}" for step in next_steps(run, python=python))])


def next_steps(run: Run, *, python: bool) -> list[str]:
    """Return what to do after a training, each step with the call or command for it.

    Args:
        run: An evaluated run.
        python: As in `closing_parts`.

    Returns:
        One line for each step.
    """
    steps = []
    path = str(run.path)
    if run.is_synthetic:
        steps.append(("train on radiographs", 'train_classifier("FOLDER")', "covid-fastai train FOLDER"))
    if not run.folder.external_results():
        validate = f'validate({path!r}, "DATA")', f"covid-fastai validate {path} DATA"
        steps.append(("test at another hospital", *validate))
    verdict = run.verdict
    if verdict is None:
        steps.append(("test for shortcuts", f"audit_run({path!r})", f"covid-fastai audit {path}"))
    elif any("--full" in each.text and each.outcome == NOT_TESTED for each in verdict.conditions):
        full = f"covid-fastai audit {path} --full"
        steps.append(("train without the lungs", f"{full}  (in a terminal)", full))
    if run.folder.model.is_dir():
        predict = f"Predictor({path!r}).predict(FILES)", f"covid-fastai predict {path} FILES"
        steps.append(("predict images", *predict))
    width = max((len(what) for what, *_ in steps), default=0) + 1
    return [f"{what + ':':<{width}} {call if python else command}" for what, call, command in steps]


def show_closing(run: Run) -> None:
    """Print the end of a training, for users of Python."""
    for part in closing_parts(run, python=True):
        text = part if isinstance(part, str) else f"\n{part[0]}\n{part[1].to_string(index=False)}"
        print(text, flush=True)  # noqa: T201
