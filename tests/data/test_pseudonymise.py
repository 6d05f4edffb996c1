"""A pseudonymised run holds numbers only; its key lies beside it, and what it hides is found through it."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from covid_fastai import pseudonyms
from covid_fastai.audit import runs
from covid_fastai.config import TrainConfig
from covid_fastai.data.cohort import Cohort, load_cohort
from covid_fastai.data.metadata import read_cohort
from covid_fastai.data.phantom import is_synthetic, write_phantom
from covid_fastai.data.pretraining_overlap import mark_pretraining_overlap, read_manifest
from covid_fastai.data.splits import fold_by_patient, split_by_patient
from covid_fastai.errors import DataError, ResourceError, UsageError
from covid_fastai.evaluation.moved_images import move_images, require_images
from covid_fastai.evaluation.pairing import pair_predictions
from covid_fastai.evaluation.runs import read_run
from covid_fastai.files import read_csv, write_csv, write_json
from covid_fastai.pseudonyms import find_key
from covid_fastai.reporting.data_pages import write_exploration
from covid_fastai.reporting.report import write_evaluation
from covid_fastai.run_folder import RunFolder
from covid_fastai.training.run_context import RunPlan, kept_cohort, resolve_run, run_context, write_cohort

FILE, PATIENT, REMARK = "DOE_JOHN", "ROE^JANE", "MILLER"
LINKS = pytest.mark.skipif(os.name == "nt", reason="system: links need the developer mode of Windows")
pytestmark = LINKS


def write_data(folder: Path, *, faulty: bool = False) -> Path:
    """Write 16 small images with names of people in their own names, their patients and another column."""
    (folder / REMARK).mkdir(parents=True)
    rows = []
    for number in range(16):
        name = f"{REMARK}/{FILE}_{number}.png"
        pixels = np.random.default_rng(number).integers(0, 256, (6, 6)).astype(np.uint8)
        Image.fromarray(pixels).resize((40, 40), Image.Resampling.BICUBIC).save(folder / name)
        label = ("Normal", "COVID-19")[number % 2]
        rows.append({"path": name, "label": label, "patient": f"{PATIENT} {number // 2}{label}", "remark": REMARK})
    if faulty:
        rows[3]["path"] = f"{FILE}_gone.png"
    pd.DataFrame(rows).to_csv(folder / f"{PATIENT}.csv", index=False)
    return folder / f"{PATIENT}.csv"


def begin(data: Path | None, out: Path, *, resume: bool = False, **options) -> tuple[RunPlan, Cohort]:
    """Begin or resume a run up to its cohort, as `train_classifier` does."""
    where = {"out": None, "resume": out, "choices": {}}
    if not resume:
        choices = {"pseudonymise": True, "weights": None, "image_root": str(data.parent), "valid_pct": 0.3, **options}
        where = {"out": out, "resume": None, "choices": choices}
    run = resolve_run(data, preset=None, **where)
    with run_context(run, quiet=True):
        cohort = read_cohort(run.data, **run.config.options_of(read_cohort))
        return run, write_cohort(split_by_patient(cohort, valid_pct=0.3), run)


def shared_text(run: Path) -> str:
    """Return all that stands in the files of a run, and their names."""
    files = [path for path in run.rglob("*") if path.is_file()]
    return "\n".join(f"{path.relative_to(run)}\n{path.read_bytes().decode('utf-8', 'replace')}" for path in files)


def assert_hidden(run: Path, *more: str) -> None:
    text = shared_text(run)
    for secret in (FILE, PATIENT, REMARK, str(run.parent), os.path.expanduser("~") + os.sep, *more):
        assert secret not in text, secret


@pytest.fixture
def data(tmp_path) -> Path:
    return write_data(tmp_path / "data")


def test_numbers_stand_for_files_and_patients_in_every_file(data, tmp_path):
    run, cohort = begin(data, tmp_path / "run")
    assert_hidden(run.folder.path, str(data))
    stored = read_csv(run.folder.cohort, dtype=str)
    assert cohort["path"].map(os.path.isfile).all() and cohort["path"].tolist() == stored["path"].tolist()
    assert (
        cohort["path"].str.fullmatch(r".*\d{6}-\d{6}\.png").all()
        and cohort["patient"].str.fullmatch(r"P\d{6}-\d{5}").all()
    )
    plain = split_by_patient(read_cohort(data), valid_pct=0.3)
    assert cohort["split"].tolist() == plain["split"].tolist() and cohort["label"].tolist() == plain["label"].tolist()
    assert (pd.factorize(cohort["patient"])[0] == pd.factorize(plain["patient"])[0]).all()
    assert cohort.facts.left_out == ("remark",)


def test_a_table_that_is_written_into_the_run_later_has_numbers_and_is_read_back_with_paths(data, tmp_path):
    run, cohort = begin(data, tmp_path / "run")
    table = pd.DataFrame({"path": cohort["path"], "p_Normal": 0.5, "p_COVID-19": 0.5, "label": cohort["label"]})
    write_csv(run.folder.predictions, table)
    write_json(run.folder.audit, {"of": cohort["path"].tolist(), "data": str(data), "folder": str(data.parent / "x")})
    run.folder.log("failed", reason=f"{cohort['path'][0]} of {data.resolve()} in {Path.home()}/x")
    assert_hidden(run.folder.path, str(data.parent))
    assert read_run(run.folder.path).predictions["path"].tolist() == cohort["path"].tolist()
    assert load_cohort(run.folder.path)["path"].tolist() == cohort["path"].tolist()


def test_only_its_owner_can_read_the_key(data, tmp_path):
    before = os.umask(0)
    try:
        run, _ = begin(data, tmp_path / "run")
    finally:
        os.umask(before)
    key = run.folder.key
    modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in (key, *key.rglob("*")) if not path.is_symlink()}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert len(modes) >= 6 and {mode for path, mode in modes.items() if path.is_file()} == {0o600}
    assert FILE in (key / "key.csv").read_text() and PATIENT in (key / "key.csv").read_text()


def test_without_the_key_numbers_remain_and_the_error_says_so(data, tmp_path):
    run, _ = begin(data, tmp_path / "run")
    shutil.copytree(run.folder.path, tmp_path / "shared")
    shared = read_run(tmp_path / "shared")
    assert find_key(shared.folder.cohort) is None
    assert shared.cohort["path"].str.fullmatch(r"\d{6}-\d{6}\.png").all()
    with pytest.raises(DataError, match="key is not there") as caught:
        require_images(shared)
    assert "Put the folder of the key back" in caught.value.hint
    os.rename(run.folder.key, tmp_path / "shared.key")  # the remedy
    require_images(read_run(tmp_path / "shared"))


def test_a_resumed_run_has_the_same_numbers_and_sees_changed_data(data, tmp_path):
    run, cohort = begin(data, tmp_path / "run")
    resumed, again = begin(None, tmp_path / "run", resume=True)
    assert resumed.config == run.config and str(resumed.data) == str(data)
    pd.testing.assert_frame_equal(again, cohort)
    rows = pd.read_csv(data)
    rows.iloc[::-1].to_csv(data, index=False)
    with pytest.raises(DataError, match="have changed"):
        begin(None, tmp_path / "run", resume=True)
    assert_hidden(run.folder.path)


def test_other_folds_of_a_repeated_cross_validation_have_the_numbers_of_the_run(data, tmp_path):
    run, cohort = begin(data, tmp_path / "run")
    folded = kept_cohort(fold_by_patient(read_cohort(data), folds=2, seed=9), run)
    assert folded["fold"].nunique() == 2 and folded.facts.data == "DATA"
    for name in ("path", "patient", "group"):
        assert folded[name].tolist() == cohort[name].tolist()


def test_moved_images_get_new_links(data, tmp_path):
    run, cohort = begin(data, tmp_path / "run")
    data.parent.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="are missing"):
        require_images(read_run(run.folder.path))
    moved = move_images(run.folder.path, tmp_path / "elsewhere")
    require_images(moved)
    assert moved.cohort["path"].tolist() == cohort["path"].tolist()
    assert_hidden(run.folder.path, "elsewhere")


def test_a_start_that_fails_names_nobody_in_the_run_and_does_not_block_it(tmp_path):
    data = write_data(tmp_path / "data", faulty=True)
    with pytest.raises(DataError, match=FILE):
        begin(data, tmp_path / "run")
    assert_hidden(tmp_path / "run")
    assert FILE in (tmp_path / "run.key" / "problems.csv").read_text()
    begin(data, tmp_path / "run", on_problem="skip")
    assert_hidden(tmp_path / "run")
    problems = read_csv(tmp_path / "run" / "problems.csv", dtype=str, keep_default_na=False)
    assert "missing file" in problems["reason"].tolist()


def test_the_key_of_another_run_is_not_replaced(data, tmp_path):
    (tmp_path / "run.key").mkdir()
    (tmp_path / "run.key" / "notes.txt").write_text("mine")
    with pytest.raises(ResourceError, match="run.key exists"):
        begin(data, tmp_path / "run")
    assert (tmp_path / "run.key" / "notes.txt").read_text() == "mine"


def test_hashes_of_patients_stay_with_the_key(data, tmp_path):
    """A patient's name can be guessed from its hash, and a number is no patient of other data."""
    run, _ = begin(data, tmp_path / "run")
    rows = read_cohort(data)
    shared, private = (
        read_manifest(folder / RunFolder.training_manifest) for folder in (run.folder.path, run.folder.key)
    )
    assert not mark_pretraining_overlap(rows, None, [shared]).any()
    assert mark_pretraining_overlap(rows, None, [private]).any()


def test_files_among_the_options_are_hidden_and_kept_in_the_key(data, tmp_path):
    run, _ = begin(data, tmp_path / "run")
    stored = read_run(run.folder.path).config
    assert stored["data"] == "DATA" and stored["config"]["image_root"] == "IMAGE_ROOT"
    assert "covid-fastai train DATA" in stored["command"] and stored["config"]["pseudonymise"]
    assert TrainConfig.from_dict(run.folder.read_options()["config"]) == run.config


def write_predictions(run: RunPlan, cohort: Cohort) -> Path:
    """Write predictions of all rows of a run, whose probabilities say which image they are of."""
    key = read_csv(run.folder.key / "key.csv", dtype=str)
    p = key["path"].str.extract(r"_(\d+)\.png", expand=False).astype(float) / 100
    rows = pd.DataFrame(cohort[["path", "label", "patient", "patient_known"]]).assign(split="valid")
    write_csv(run.folder.predictions, rows.assign(**{"p_Normal": 1 - p, "p_COVID-19": p, "status": "ok"}))
    return run.folder.predictions


def test_two_pseudonymised_runs_are_compared_by_the_images_that_they_hide(data, tmp_path):
    """A number of one run is another image in the other one."""
    first = write_predictions(*begin(data, tmp_path / "a"))
    pd.read_csv(data).iloc[::-1].to_csv(data, index=False)
    second = write_predictions(*begin(data, tmp_path / "b"))
    tables = list(pair_predictions([first, second]).tables.values())
    assert len(tables[0]) == 16 and (tables[0]["p_COVID-19"] == tables[1]["p_COVID-19"]).all()
    for name in "ab":
        shutil.rmtree(tmp_path / f"{name}.key")
    with pytest.raises(DataError, match="no image and no patient"):
        pair_predictions([first, second])


def test_a_column_to_keep_must_be_there(data, tmp_path):
    with pytest.raises(UsageError, match="'ward'"):
        begin(data, tmp_path / "run", keep_columns="ward")


def test_a_key_of_another_user_decides_nothing(data, tmp_path, monkeypatch):
    """Whoever may write beside a run, as in a shared folder, could otherwise change what is written into it."""
    run, cohort = begin(data, tmp_path / "run", pseudonymise=False)
    key = run.folder.key
    key.mkdir()
    write_json(key / "private.json", {"hidden": {"COVID-19": "Normal"}, "data": "other", "config": {}, "tag": 100_000})
    status = os.stat

    def stat_of_other(path, *arguments, **options):
        facts = status(path, *arguments, **options)
        return os.stat_result((*facts[:4], facts.st_uid + 1, *facts[5:10])) if Path(path) == key else facts

    monkeypatch.setattr(pseudonyms.os, "stat", stat_of_other)
    write_csv(run.folder.predictions, pd.DataFrame({"label": cohort["label"]}))
    assert read_csv(run.folder.predictions)["label"].tolist() == cohort["label"].tolist()
    assert find_key(run.folder.predictions) is None and run.folder.read_options()["data"] == str(data)
    monkeypatch.undo()
    key.rename(tmp_path / "elsewhere")
    key.symlink_to(tmp_path / "elsewhere")
    assert find_key(run.folder.predictions) is None


@pytest.mark.slow
def test_a_page_about_data_has_numbers_and_its_key_beside_it(data, tmp_path):
    cohort = read_cohort(data)
    page = write_exploration(cohort, tmp_path / "page.html", pseudonymise=True)
    assert_page_hides(page, data)
    assert (tmp_path / "page.html.key" / "key.csv").read_text().count(FILE) == 16
    with pytest.raises(ResourceError, match=r"page.html.key exists"):
        write_exploration(cohort, page, pseudonymise=True)
    with pytest.raises(ResourceError, match=r"page.html.key is its key"):
        write_exploration(cohort, page)
    with pytest.raises(DataError, match="excluded"):
        write_exploration(cohort.assign(split="excluded"), tmp_path / "none.html", pseudonymise=True)
    assert sorted(os.listdir(tmp_path)) == ["data", "page.html", "page.html.key"]


@pytest.mark.slow
def test_a_page_of_predictions_has_numbers_and_its_key_beside_it(data, tmp_path):
    cohort = read_cohort(data)
    table = pd.DataFrame(cohort[["path", "label", "patient", "patient_known"]]).assign(source="A")
    table.loc[2:3, "patient"] = table.loc[1, "patient"]  # a patient of two classes, whom the page mentions
    write_csv(tmp_path / "table.csv", table.assign(**{"p_Normal": 0.6, "p_COVID-19": 0.4}))
    options = {"image_root": tmp_path, "n_resamples": 100}
    page = write_evaluation(tmp_path / "table.csv", tmp_path / "page.html", pseudonymise=True, **options)
    assert_page_hides(page, data)
    assert page.read_text().count("<img") >= 8 and "shortcuts" in page.read_text()
    plain = write_evaluation(tmp_path / "table.csv", tmp_path / "plain.html", **options).read_text()
    assert FILE in plain and not (tmp_path / "plain.html.key").exists()


def assert_page_hides(page: Path, data: Path) -> None:
    text = page.read_text()
    for secret in (FILE, PATIENT, REMARK, str(data.parent), os.path.expanduser("~") + os.sep):
        assert secret not in text, secret
    assert (page.parent / "page.html.key").stat().st_mode & 0o777 == 0o700


def test_a_pseudonymised_run_of_synthetic_images_says_so(tmp_path):
    root = write_phantom(tmp_path / "data", patients={"COVID-19": 4, "Normal": 4}, image_size=64, seed=0)
    run, cohort = begin(root, tmp_path / "run", image_root=None)
    assert cohort["path"].map(is_synthetic).all()
    shutil.copytree(run.folder.path, tmp_path / "shared")
    for folder in ("run", "shared"):  # with the key and without it
        assert runs.read_run(tmp_path / folder).is_synthetic
    assert not is_synthetic("123456-000001.png") and not is_synthetic("a-synthetic.png")
