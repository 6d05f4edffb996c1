"""The commands compare and evaluate as processes, with their output and exit status."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from covid_fastai.evaluation.comparison import compare
from covid_fastai.evaluation.decision_curve import predictive_values
from covid_fastai.evaluation.metrics import evaluate
from covid_fastai.evaluation.thresholds import thresholds_by_fold
from tests.app.cli.commands import run_command as run


def make_predictions(*, seed: int, skill: float, folds: int = 4) -> pd.DataFrame:
    """Return random predictions of 80 patients; a larger `skill` separates the two classes better."""
    rng = np.random.default_rng(seed)
    label = np.arange(80) % 2
    p = 1 / (1 + np.exp(-rng.normal(skill * (2 * label - 1))))
    table = pd.DataFrame({"path": [f"{n}.png" for n in range(80)], "label": np.where(label, "P", "N")})
    table["patient"] = [f"q{n}" for n in range(80)]
    return table.assign(fold=np.arange(80) // 2 % folds, p_N=1 - p, p_P=p)


@pytest.fixture
def tables(tmp_path):
    for name, skill in (("good", 1.5), ("poor", 0.3)):
        make_predictions(seed=len(name) + int(skill), skill=skill).to_csv(tmp_path / f"{name}.csv", index=False)
    return tmp_path


@pytest.mark.slow
def test_compare_prints_the_result_of_the_function(tables):
    done = run("compare", "good.csv", "poor.csv", cwd=tables)
    assert done.returncode == 0, done.stderr
    row = compare(tables / "good.csv", tables / "poor.csv").row("auc")
    line = next(line for line in done.stdout.splitlines() if "AUC" in line)
    assert f"{row['difference']:+.3f}" in line and f"{row['low']:+.3f} to {row['high']:+.3f}" in line
    assert "Compared with good" in done.stdout and "kappa" in done.stdout and "not a medical device" in done.stdout


@pytest.fixture
def evaluated(tables, monkeypatch):
    """Run `evaluate --json` in this process."""
    from covid_fastai.app.cli import evaluate as commands
    from covid_fastai.app.cli.main import app

    monkeypatch.setattr(commands, "set_up_logging", lambda **options: None)  # it would change the logging of all tests
    monkeypatch.chdir(tables)

    def evaluated(*arguments):
        done = CliRunner().invoke(app, ["evaluate", *map(str, arguments), "--json", "--n-resamples", "200"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    return evaluated


@pytest.mark.parametrize(("options", "threshold"), [((), 0.5), (("--threshold", 0.25), 0.25)])
def test_evaluate_has_the_threshold_of_the_function(options, threshold, evaluated):
    answer, expected = evaluated("poor.csv", *options), evaluate("poor.csv", threshold=threshold, n_resamples=200)
    assert answer["threshold"] == threshold and answer["confusion"] == expected.confusion.to_numpy().tolist()
    assert 0 < expected.value("sensitivity") < 1, "another threshold would give the same"


def test_evaluate_takes_a_run(evaluated, tables):
    (tables / "run").mkdir()
    (tables / "poor.csv").rename(tables / "run" / "predictions.csv")
    assert evaluated("run") == evaluated("run/predictions.csv")


def test_compare_as_json_and_csv(tables):
    options = ("--json", "--n-resamples", 200, "--name", "A", "--name", "B", "--threshold", 0.5, "--threshold", 0.4)
    done = run("compare", "good.csv", "poor.csv", *options, "--out", "d.csv", "--cases", "c.csv", cwd=tables)
    answer = json.loads(done.stdout)
    expected = compare(
        tables / "good.csv", tables / "poor.csv", names=["A", "B"], threshold=[0.5, 0.4], n_resamples=200
    )
    assert answer["reference"] == "A" and answer["table"][0]["difference"] == expected.table["difference"][0]
    differences = pd.read_csv(tables / "d.csv", keep_default_na=False)
    pd.testing.assert_frame_equal(differences, expected.table, check_dtype=False)
    assert list(pd.read_csv(tables / "c.csv")["patient"]) == list(expected.cases["patient"])


def test_compare_refuses_one_model_a_missing_file_and_other_classes(tables):
    assert run("compare", "good.csv", cwd=tables).returncode == 2
    done = run("compare", "good.csv", "gone.csv", cwd=tables)
    assert done.returncode == 3 and "gone.csv" in done.stderr and "Traceback" not in done.stderr
    table = make_predictions(seed=0, skill=1).rename(columns={"p_P": "p_Q"}).replace("P", "Q")
    table.to_csv(tables / "other.csv", index=False)
    done = run("compare", "good.csv", "other.csv", cwd=tables)
    assert done.returncode == 3 and "other has N, Q" in done.stderr


def test_evaluate_reports_the_operating_point_and_the_predictive_values(tables):
    options = ("--sensitivity", 0.9, "--prevalence", 0.01, "--prevalence", 0.2)
    done = run("evaluate", "good.csv", *options, cwd=tables)
    assert done.returncode == 0, done.stderr
    point = thresholds_by_fold(tables / "good.csv", sensitivity=0.9)
    assert point.describe() in done.stdout
    values = predictive_values(point, prevalences=(0.01, 0.2))
    line = next(line for line in done.stdout.splitlines() if "PPV at a prevalence of 0.01" in line)
    assert f"{values['value'][0]:.3f}" in line and f"{values['low'][0]:.3f} to {values['high'][0]:.3f}" in line
    answer = json.loads(run("evaluate", "good.csv", *options, "--json", cwd=tables).stdout)
    assert answer["operating_point"]["threshold"] == pytest.approx(point.threshold)
    assert [row["value"] for row in answer["predictive_values"]] == pytest.approx(values["value"].tolist())
    assert "predictive_values" not in json.loads(run("evaluate", "good.csv", "--json", cwd=tables).stdout)


def test_evaluate_notes_a_threshold_chosen_on_the_same_patients(tables):
    make_predictions(seed=1, skill=1.0, folds=1).to_csv(tables / "one.csv", index=False)
    done = run("evaluate", "one.csv", "--sensitivity", 0.9, cwd=tables)
    assert "On the patients that it was chosen on" in done.stdout
    assert run("evaluate", "one.csv", "--sensitivity", 1.9, cwd=tables).returncode == 2
    assert run("evaluate", "one.csv", "--prevalence", 0, cwd=tables).returncode == 2
