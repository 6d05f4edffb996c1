"""The end of a training: the verdict first, metrics, the report, and what to do next in the caller's own language."""

from __future__ import annotations

import shutil

from covid_fastai import read_run
from covid_fastai.reporting.closing import closing_parts, next_steps, show_closing


def test_the_verdict_is_first_and_the_next_steps_are_last(run_folder):
    run = read_run(run_folder)
    parts = list(closing_parts(run, python=True))
    assert parts[0] == str(run.plain_verdict) and parts[1] == f"Verdict: {run.verdict.sentence}"
    (metrics,) = (part for part in parts if not isinstance(part, str))
    assert metrics[0] == "Held-out patients" and metrics[1].equals(run.metrics.summary())
    assert parts[-2] == f"Report: {run.report}" and parts[-1].startswith("What next:")


def test_each_step_is_a_call_or_a_command_and_only_what_is_open_is_named(run_folder, tmp_path):
    run = read_run(run_folder)
    python, command = (" ".join(next_steps(run, python=flag)) for flag in (True, False))
    assert f"validate({str(run_folder)!r}" in python and f"Predictor({str(run_folder)!r})" in python
    assert f"covid-fastai validate {run_folder} DATA" in command and f"audit {run_folder} --full" in command
    assert "train_classifier(" in python and "train_classifier(" not in command  # on radiographs: these are drawings
    copy = shutil.copytree(run_folder, tmp_path / "run")
    (copy / "external").mkdir()
    (copy / "external" / "there.json").write_text("{}")
    (copy / "audit.json").unlink()
    shutil.rmtree(copy / "model")
    steps = " ".join(next_steps(read_run(copy), python=True))
    assert "validate(" not in steps and "Predictor(" not in steps and f"audit_run({str(copy)!r})" in steps


def test_python_prints_it(run_folder, capsys):
    show_closing(read_run(run_folder))
    printed = capsys.readouterr().out
    assert printed.startswith("This shows nothing about COVID-19 in patients.") and "95% interval" in printed
