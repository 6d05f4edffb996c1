"""Every public layout, rebuilt small, is read by one call with the counts that follow from its rows by hand."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from covid_fastai import read_cohort, read_run
from tests.app.cli.commands import run_command
from tests.data.public_layouts import LAYOUTS, build_chexpert, build_nih, count_images

REPOSITORY = Path(__file__).parents[2]
pytest.importorskip("pydicom", reason="the extra dicom is not installed")


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_a_public_layout_is_read_by_one_call(layout, tmp_path):
    layout.build(tmp_path)
    cohort = read_cohort(tmp_path, **layout.options)
    assert count_images(cohort) == layout.images
    excluded = cohort[cohort["split"] == "excluded"]
    assert excluded["note"].value_counts().to_dict() == dict(layout.excluded)
    used = cohort[cohort["split"] != "excluded"]
    assert used["patient_known"].all() == (layout.patients is not None)
    assert used["patient"].nunique() == (layout.patients or len(used))
    assert not [row for row in cohort.facts.problems if row["severity"] == "error"]


def run(*arguments, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "covid_fastai", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_a_public_layout_is_checked_by_one_command(layout, tmp_path):
    layout.build(tmp_path / "FOLDER")
    done = run_command(*shlex.split(layout.command())[1:], "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {}
    for row in json.loads(done.stdout)["counts"]:
        if row["split"] != "excluded":
            counts.setdefault(row["split"], {})[row["label"]] = row["images"]
    assert counts == layout.images


QUICK = "--weights none --image-size 32 --batch-size 4 --frozen-epochs 0 --unfrozen-epochs 1 --num-workers 0 --no-audit"


@pytest.mark.slow
@pytest.mark.nightly
def test_chexpert_is_trained_on_with_its_official_split_and_validated_on_nih(tmp_path):
    build_chexpert(tmp_path / "CheXpert")
    options = "--recipe chexpert --positive Pneumonia --split official"
    train = run("train", "CheXpert", *options.split(), *QUICK.split(), "--out", "run", cwd=tmp_path)
    assert train.returncode == 0, train.stdout + train.stderr
    trained = read_run(tmp_path / "run")
    cohort = read_cohort(tmp_path / "CheXpert", recipe="chexpert", positive="Pneumonia", check_images=False)
    assert sorted(trained.predictions["path"]) == sorted(cohort.loc[cohort["split"] == "valid", "path"])
    assert trained.config["config"]["split"] == "official" and "--split official" in trained.config["command"]
    build_nih(tmp_path / "NIH")
    validate = run("validate", "run", "NIH", "--recipe", "nih-chestxray14", "--json", cwd=tmp_path)
    assert validate.returncode == 0, validate.stdout + validate.stderr
    patients = {row["metric"]: row["n"] for row in json.loads(validate.stdout)["table"]}
    assert (patients["auc"], patients["sensitivity"], patients["specificity"]) == (16, 6, 10)


@pytest.mark.nightly
@pytest.mark.slow
def test_the_table_of_layouts_is_printed(tmp_path):
    command = [sys.executable, "-m", "tests.data.public_layouts"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    rows = done.stdout.splitlines()
    assert len(rows) == len(LAYOUTS) + 2 and all(row.endswith("| yes |") for row in rows[2:])
