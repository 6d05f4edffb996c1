"""`train_classifier` from end to end, on synthetic radiographs."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from covid_fastai import read_cohort, read_run, train_classifier
from covid_fastai.config import TrainConfig
from covid_fastai.data.cohort import load_cohort
from covid_fastai.data.phantom import write_phantom
from covid_fastai.errors import DataError, ResourceError, UsageError
from covid_fastai.run_folder import MODEL_BUILT, RunFolder
from covid_fastai.training import run_context, train
from covid_fastai.training.run_context import precision_of, resolve_run

QUICK = {"image_size": 32, "batch_size": 8, "frozen_epochs": 1, "unfrozen_epochs": 1, "weights": None, "num_workers": 0}
FILES = {"config.json", "versions.json", "cohort.csv", "cohort.json", "problems.csv", "history.csv", "steps.csv"}
FILES |= {"training.manifest.safetensors", "predictions.csv", "metrics.json", "record.jsonl", "report.html"}


@pytest.fixture(scope="module")
def learn(phantom_root, tmp_path_factory):
    """The learner of a run without an audit, which takes half of the time; `run_folder` is one with an audit."""
    out = tmp_path_factory.mktemp("runs") / "first"
    return train_classifier(phantom_root, out=out, quiet=True, audit=False, **QUICK)


def test_the_run_folder_has_every_file(learn):
    assert FILES <= {path.name for path in learn.path.iterdir()}
    assert {path.name for path in (learn.path / "model").iterdir()} >= {"model.safetensors", "config.json"}
    pickles = [path for path in learn.path.rglob("*") if path.suffix in {".pkl", ".pth", ".pt"}]
    assert pickles == []


def test_a_run_can_be_read(learn):
    run = read_run(learn.path)
    assert len(run.history) == 2
    assert run.config["config"]["image_size"] == 32
    assert set(run.predictions["split"]) == {"valid"}
    assert 0 <= run.metrics.value("auc") <= 1
    saved = json.loads((learn.path / "metrics.json").read_text())
    assert set(saved) == {"valid"}


def test_the_log_of_a_training_escapes_what_a_terminal_obeys(monkeypatch, capsys):
    logger = logging.getLogger("covid_fastai")
    monkeypatch.setattr(logger, "propagate", False)  # else pytest's own handler counts as one of the user
    monkeypatch.setattr(logger, "handlers", [])
    with run_context._logging(quiet=False):
        logger.info("Command: covid-fastai train 'x\x1b[2J'")
    assert capsys.readouterr().err == "Command: covid-fastai train 'x\\x1b[2J'\n"


def test_no_patient_is_in_two_splits(learn):
    cohort = load_cohort(learn.path)
    assert cohort.facts == learn.dls.facts.cohort.facts
    pd.testing.assert_frame_equal(cohort, learn.dls.facts.cohort)
    used = cohort[cohort["split"].isin(["train", "valid", "test"])]
    assert used.groupby("patient")["split"].nunique().max() == 1


@pytest.mark.slow
def test_unknown_patients_are_stated_in_every_document(phantom_root, tmp_path):
    rows = read_cohort(phantom_root)
    for name, images in rows[rows["split"] == "train"].groupby("label"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number, path in enumerate(images["path"][:12]):
            shutil.copy(path, tmp_path / "data" / name / f"{number}{Path(path).suffix}")
    learn = train_classifier(tmp_path / "data", out=tmp_path / "run", quiet=True, audit=False, **QUICK)
    run = read_run(learn.path)
    assert not run.cohort["patient_known"].any() and not run.predictions["patient_known"].any()
    assert not run.metrics.patients_known
    assert "The patients of some images are unknown." in (learn.path / "report.html").read_text()
    assert "The patients of some used images are unknown" in (learn.path / "datasheet.md").read_text()


@pytest.mark.slow
def test_a_table_with_many_column_types_is_trained_on_and_restored(phantom_root, tmp_path):
    rows = read_cohort(phantom_root)[["path", "label", "patient", "split", "source"]]
    rows = pd.DataFrame(rows[rows["split"] == "train"]).reset_index(drop=True)
    number = np.arange(len(rows))
    rows = rows.assign(sex=np.where(number % 5, number % 2, np.nan), age=number % 90, ward=number % 3 == 0)
    rows = rows.assign(taken=pd.Timestamp("2020-03-01") + pd.to_timedelta(number, unit="D"))
    rows = rows.assign(weight=np.where(number % 5, 70.5, np.nan), code=[f"{n:03d}" for n in number])
    names = ["age", "ward", "taken", "weight", "code"]
    options = {"quiet": True, "audit": False, "keep_columns": names[1:], **QUICK}
    learn = train_classifier(rows, out=tmp_path / "run", **options)
    again = read_run(learn.path).cohort
    pd.testing.assert_frame_equal(pd.DataFrame(again[names]), rows[names], check_dtype=False)
    assert [again[name].dtype.kind for name in names[:4]] == ["i", "b", "M", "f"]
    pd.testing.assert_frame_equal(again, learn.dls.facts.cohort)
    assert f"- Sex: known for {int((number % 5 > 0).sum())} of" in (learn.path / "datasheet.md").read_text()


def test_the_saved_model_gives_the_same_probabilities(learn):
    from covid_fastai import load_model, predict, read_run

    before = read_run(learn.path).predictions
    after = predict(load_model(learn.path / "model"), learn.dls.facts.cohort.query("split == 'valid'"))
    columns = [column for column in before if column.startswith("p_")]
    np.testing.assert_allclose(after[columns], before[columns], atol=1e-5)


@pytest.mark.slow
def test_export_chooses_threshold_and_temperature_on_the_held_out_patients(learn, tmp_path):
    from covid_fastai import Predictor, choose_threshold, read_run
    from covid_fastai.app.export import export_model
    from covid_fastai.evaluation.calibration import apply_temperature, fit_temperature
    from covid_fastai.model.bundle_config import read_config

    config = read_config(learn.path / "model" / "config.json")
    manifest = (learn.path / "training.manifest.safetensors").read_bytes()
    assert config.training_manifest == hashlib.sha256(manifest).hexdigest() and config.threshold is None
    folder = export_model(learn.path, tmp_path / "model", sensitivity=0.7, calibrate=True)
    held_out = read_run(learn.path).predictions
    temperature = fit_temperature(held_out)
    scaled = apply_temperature(held_out, temperature)
    judged = read_config(folder / "config.json")
    assert judged.temperature == pytest.approx(temperature) and judged.training_manifest == config.training_manifest
    assert judged.threshold == pytest.approx(choose_threshold(scaled, sensitivity=0.7, positive="COVID-19"))
    table = Predictor(folder).predict(held_out["path"].tolist())
    np.testing.assert_allclose(table["p_COVID-19"], scaled["p_COVID-19"], atol=1e-4)
    assert ((table["p_COVID-19"] >= judged.threshold) == (table["prediction"] == "COVID-19")).all()
    card = (folder / "README.md").read_text()
    assert f"{held_out['patient'].nunique()} held-out patients of the run. Metrics on these patients" in card
    for run, options, words in [
        (folder, {"calibrate": True}, "not the model of a run"),
        (learn.path, {"sensitivity": 1.5}, "sensitivity=1.5"),
    ]:
        with pytest.raises(UsageError, match=words):
            export_model(run, tmp_path / "other", **options)
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_without_changing_the_callers_random_state(
    learn, phantom_root, tmp_path, capsys
):
    import torch

    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    config = TrainConfig(**{**QUICK, "seed": 1})  # the same choices as an object, one of them replaced
    again = train_classifier(phantom_root, config=config, seed=42, out=tmp_path / "again")
    printed = capsys.readouterr().out  # the verdict first; `quiet=True` prints nothing
    assert printed.startswith("This shows nothing about COVID-19 in patients.") and "What next:" in printed
    assert torch.equal(torch.rand(1), expected)
    first, second = (read_run(folder).predictions for folder in (learn.path, again.path))
    pd.testing.assert_frame_equal(first, second)


def test_a_second_run_never_changes_the_first(learn, phantom_root):
    from covid_fastai.errors import ResourceError

    before = (learn.path / "metrics.json").stat().st_mtime_ns
    with pytest.raises(ResourceError, match="exists and is not empty"):
        train_classifier(phantom_root, out=learn.path, quiet=True, **QUICK)
    assert (learn.path / "metrics.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_fastai_methods_remain_available(learn):
    import matplotlib.pyplot as plt
    from fastai.interpret import ClassificationInterpretation

    with learn.no_bar(), learn.no_logging():
        interpretation = ClassificationInterpretation.from_learner(learn)
        interpretation.plot_top_losses(9)
        interpretation.plot_confusion_matrix()
        learn.show_results()
        learn.dls.show_batch()
        assert learn.lr_find(end_lr=1e-3, num_it=20, stop_div=False, show_plot=False) is not None
        probabilities, targets = learn.tta(n=2)
        assert probabilities.shape == (len(targets), 2)
        learn.fine_tune(1)
        decision, _, scores = learn.predict(learn.dls.facts.cohort["path"].iloc[0])
    plt.close("all")
    assert decision in learn.dls.vocab and float(scores.sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_the_official_test_is_evaluated_on_request_only_and_recorded(phantom_root, tmp_path):
    from covid_fastai import read_run, train_classifier

    learn = train_classifier(
        phantom_root, task="pneumonia", evaluate_test=True, out=tmp_path / "run", quiet=True, audit=False, **QUICK
    )
    run = read_run(learn.path)
    evaluations = [event for event in run.record if event["event"] == "test evaluated"]
    assert len(evaluations) == 1
    assert set(json.loads((learn.path / "metrics.json").read_text())) == {"valid", "test"}
    test = run.cohort.query("split == 'test'")
    assert evaluations[0]["images"] == len(test) == (run.predictions["split"] == "test").sum()
    assert not set(test["patient"]) & set(run.cohort.query("split == 'train'")["patient"])


@pytest.mark.slow
def test_the_covid_task_has_no_official_test(phantom_root, tmp_path):
    with pytest.raises(UsageError, match="no official TEST"):
        train_classifier(phantom_root, task="covid", evaluate_test=True, out=tmp_path / "run", quiet=True, **QUICK)


def test_faulty_rows_stop_the_run_and_are_listed(phantom_root, tmp_path):
    table = pd.read_csv(phantom_root / "Chest_xray_Corona_Metadata.csv", dtype=str, keep_default_na=False)
    table.loc[0, "X_ray_image_name"] = "gone.jpeg"
    copy = tmp_path / "data"
    copy.mkdir()
    table.to_csv(copy / "Chest_xray_Corona_Metadata.csv", index=False)
    (copy / "Coronahack-Chest-XRay-Dataset").symlink_to(phantom_root / "Coronahack-Chest-XRay-Dataset")
    with pytest.raises(DataError) as caught:
        train_classifier(copy, out=tmp_path / "run", quiet=True, **QUICK)
    assert any("gone.jpeg" in str(row["path"]) for row in caught.value.details)
    problems = pd.read_csv(tmp_path / "run" / "problems.csv")
    assert "gone.jpeg" in problems["path"].str.cat()


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_same_result(learn, phantom_root, tmp_path):
    from fastai.callback.core import Callback

    from covid_fastai import read_run, train_classifier

    class Interrupt(Callback):
        needs_body = False  # else the frozen epochs of this run alone would run the body in every step

        def before_epoch(self):
            if not self.learn.model[0][0].weight.requires_grad:
                return
            raise KeyboardInterrupt

    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train_classifier(phantom_root, out=folder, quiet=True, callbacks=[Interrupt()], audit=False, **QUICK)
    assert not (folder / "predictions.csv").exists()
    resumed = train_classifier(resume=folder, quiet=True)
    run, whole = read_run(folder), read_run(learn.path)
    begun = ["data read", "model built"]
    events = ["started", *begun, "interrupted", "resumed", *begun, "finished"]
    assert [event["event"] for event in run.record] == events
    pd.testing.assert_frame_equal(run.predictions, whole.predictions)
    assert resumed.path == folder
    with pytest.raises(UsageError, match="finished"):
        train_classifier(resume=folder)


@pytest.mark.slow
def test_an_interrupted_run_resumes_after_its_data_have_moved(phantom_root, tmp_path):
    from fastai.callback.core import Callback

    class Interrupt(Callback):
        def before_epoch(self):
            raise KeyboardInterrupt

    folder, data, moved = tmp_path / "run", tmp_path / "data", tmp_path / "elsewhere/renamed"
    shutil.copytree(phantom_root, data)
    with pytest.raises(KeyboardInterrupt):
        train_classifier(data, out=folder, quiet=True, callbacks=[Interrupt()], audit=False, **QUICK)
    moved.parent.mkdir()
    data.rename(moved)
    with pytest.raises(DataError, match="was begun with the data .*data, which do not exist") as caught:
        train_classifier(resume=folder)
    assert f"covid-fastai train NEW_DATA --resume {folder}" in caught.value.hint
    train_classifier(moved, resume=folder, quiet=True)
    run = read_run(folder)
    assert run.status == "finished" and run.cohort["path"].str.startswith(f"{moved}{os.sep}").all()
    assert run.predictions["path"].str.startswith(f"{moved}{os.sep}").all()
    assert "images moved" in [event["event"] for event in run.record]


@pytest.mark.slow
def test_cross_validation_predicts_every_patient_once(phantom_root, tmp_path):
    from covid_fastai import cross_validate

    run = cross_validate(phantom_root, folds=2, out=tmp_path / "cv", quiet=True, audit=False, **QUICK)
    predictions = run.predictions
    assert predictions["path"].is_unique
    assert set(predictions["fold"]) == {0, 1}
    assert predictions.groupby("patient")["fold"].nunique().max() == 1
    train = run.cohort.query("split == 'train'")
    assert set(predictions["path"]) == set(train["path"])


def test_cross_validation_refuses_incompatible_options(phantom_root):
    from covid_fastai import cross_validate

    for wrong in ({"folds": 1}, {"split": "image"}, {"evaluate_test": True}):
        with pytest.raises(UsageError):
            cross_validate(phantom_root, **wrong)


@pytest.mark.slow
def test_the_report_names_the_weights_and_random_ones_as_no_transfer(learn, phantom_root, tmp_path):
    options = {**QUICK, "weights": "auto", "frozen_epochs": 0, "audit": False}
    own = train_classifier(phantom_root, out=tmp_path / "run", quiet=True, **options)
    assert own.facts.weights.name == "cxr"
    assert "radiograph weights" in (own.path / "report.html").read_text()
    assert "trained from random weights" not in (own.path / "report.html").read_text()
    assert "trained from random weights" in (learn.path / "report.html").read_text()


def test_the_signature_shows_every_option():
    from covid_fastai import cross_validate, train_classifier

    for function in (train_classifier, cross_validate):
        parameters = inspect.signature(function).parameters
        assert set(TrainConfig.model_fields) <= set(parameters)
        assert all(p.kind is p.KEYWORD_ONLY for name, p in parameters.items() if name != "data")


def test_a_config_cannot_be_combined_with_preset_or_resume(phantom_root, tmp_path):
    from covid_fastai import cross_validate, train_classifier

    for function in (train_classifier, cross_validate):
        for other in ({"preset": "article"}, {"resume": tmp_path}):
            with pytest.raises(UsageError, match="config and .* are mutually exclusive"):
                function(phantom_root, config=TrainConfig(), out=tmp_path / "run", **other)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_script_that_opens_images_in_processes_needs_the_main_guard(tmp_path):
    """With the start methods of Windows and macOS, the data loader's processes import the script."""
    data = write_phantom(tmp_path / "data", patients={"COVID-19": 12, "Normal": 12}, image_size=64, seed=0)
    script = tmp_path / "script.py"
    script.write_text(f"""
import multiprocessing
multiprocessing.set_start_method("spawn", force=True)
from covid_fastai import train_classifier
choices = dict(weights=None, image_size=64, batch_size=4, frozen_epochs=0, unfrozen_epochs=1, audit=False)
train_classifier({str(data)!r}, num_workers=1, quiet=True, **choices)
""")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "process that opens images has ended" in last and "__main__" in last
    assert len(list((tmp_path / "runs").iterdir())) == 1, "the new process began no run of its own"


def test_a_resumed_run_joins_its_processes_on_the_device_that_it_was_begun_with(learn, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(learn.path, folder)
    (folder / "record.jsonl").write_text('{"event": "started"}\n')
    saved = json.loads((folder / "config.json").read_text())
    saved["config"]["device"] = "cpu"
    (folder / "config.json").write_text(json.dumps(saved))
    joined = []

    def join(device):
        joined.append(device)
        raise KeyboardInterrupt

    monkeypatch.setattr("covid_fastai.training.train.join_processes", join)
    for options in ({"resume": folder}, {"data": folder, "device": "cuda"}, {"data": folder}):
        with pytest.raises(KeyboardInterrupt):
            train_classifier(quiet=True, **options)
    assert joined == ["cpu", "cuda", "auto"]
    with pytest.raises(DataError, match="is not a run that can be resumed"):
        train_classifier(resume=tmp_path)


def test_a_resumed_run_keeps_its_number_format(tmp_path, monkeypatch):
    """On another machine, "auto" may be another format; half of a run in each would not be the run that was begun."""
    monkeypatch.setattr("covid_fastai.model.precision.bf16_instructions", lambda: "")
    monkeypatch.setattr("covid_fastai.model.precision._flags_tell", lambda: True)
    folder, config = RunFolder(tmp_path), TrainConfig(device="cpu")
    assert precision_of(folder, config, resuming=True) == "auto", "interrupted before the model was built"
    folder.log(MODEL_BUILT, arch="resnet18", device="cpu", weights={})
    assert precision_of(folder, config, resuming=True) == "auto", "begun with an older version"
    folder.log(MODEL_BUILT, arch="resnet18", device="cpu", precision="bf16", why="AMX", weights={})
    assert precision_of(folder, config, resuming=True) == "bf16"
    assert precision_of(folder, config, resuming=False) == "auto"
    folder.log(MODEL_BUILT, arch="resnet18", device="cuda:0", precision="fp16", why="before Ampere", weights={})
    assert precision_of(folder, config, resuming=True) == "auto", "a CPU has no fp16"


def test_a_run_records_its_number_format_and_why(learn):
    built = read_run(learn.path).built
    assert (built["precision"], built["why"]) == learn.facts.precision and built["why"]
    assert f"on cpu in {built['precision']}" in " ".join((learn.path / "report.html").read_text().split())


def test_a_start_that_failed_does_not_block_its_folder(tmp_path):
    """The files of such a run are replaced; any other file, and a run that trained, are not."""
    (tmp_path / "data.csv").write_text("image,label\ngone.png,Normal\ngone2.png,COVID-19\n")
    out = tmp_path / "run"
    for _ in range(2):
        with pytest.raises(DataError, match="2 missing file"):
            train_classifier(tmp_path / "data.csv", out=out, quiet=True, weights=None)
        assert read_run(out).status == "failed" and len(read_run(out).record) == 2
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ResourceError, match="exists and is not empty"):
        train_classifier(tmp_path / "data.csv", out=out, quiet=True, weights=None)
    (out / "notes.txt").unlink()
    RunFolder(out).log("model built")
    with pytest.raises(ResourceError, match="exists and is not empty"):
        train_classifier(tmp_path / "data.csv", out=out, quiet=True, weights=None)
    assert read_run(out).status == "model built"


def test_a_start_that_was_killed_does_not_block_its_folder(phantom_root, tmp_path):
    """Before its first event a run has claimed its folder and written its options, in whole or in part."""
    config = {"data": "x", "config": {}, "python": "train_classifier('x')", "command": "covid-fastai train x"}
    for number, files in enumerate([[".lock"], [".lock", ".config.json.01234567.part"], [".lock", "config.json"]]):
        out = tmp_path / str(number)
        out.mkdir()
        for name in files:
            (out / name).write_text(json.dumps(config))
        resolve_run(phantom_root, preset=None, out=out, resume=None, choices={"weights": None})
        assert not any(out.iterdir())
    (tmp_path / "mine").mkdir()
    for content in ('{"colour": "blue"}', "[1]", "colour = blue"):
        (tmp_path / "mine" / "config.json").write_text(content)
        with pytest.raises(ResourceError, match="exists and is not empty"):
            resolve_run(phantom_root, preset=None, out=tmp_path / "mine", resume=None, choices={"weights": None})


@pytest.mark.slow
@pytest.mark.parametrize("step", ["write_probes", "audit_run", "write_report", "write_documents"])
@pytest.mark.nightly
def test_a_run_whose_last_steps_fail_is_not_finished_and_is_resumed_without_training(
    learn, phantom_root, tmp_path, monkeypatch, step
):
    def fail(*arguments, **options):
        raise OSError("the disk is gone")

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(train, step, fail)
        with pytest.raises(OSError, match="the disk is gone"):
            train_classifier(phantom_root, out=folder, quiet=True, **QUICK)
    run = RunFolder(folder)
    assert not run.is_finished() and any(run.checkpoints.iterdir()) and (run.model / "config.json").is_file()
    epochs = len(read_run(folder).history)
    train_classifier(resume=folder, quiet=True)
    again, whole = read_run(folder), read_run(learn.path)
    assert run.is_finished() and run.report.is_file() and not any(run.checkpoints.iterdir())
    assert len(again.history) == epochs
    columns = [name for name in whole.predictions if name.startswith("p_")]
    np.testing.assert_allclose(again.predictions[columns], whole.predictions[columns], atol=1e-6)
