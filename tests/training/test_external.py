"""External validation: overlap is excluded, the threshold is unchanged, confounded metrics are marked."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from covid_fastai import (
    cross_validate,
    list_runs,
    load_model,
    predict,
    read_run,
    train_classifier,
    validate,
    write_phantom,
)
from covid_fastai.app.cli import evaluate, main
from covid_fastai.app.export import export_model
from covid_fastai.audit.baselines import predict_shortcuts
from covid_fastai.data.cohort import load_cohort
from covid_fastai.errors import CovidFastaiError, DataError, UsageError
from covid_fastai.training.external import CONFOUNDED, NOT_STATED, ONE_CLASS, SAME, TRAINED, evaluate_sources

pytestmark = pytest.mark.slow
QUICK = {"image_size": 32, "batch_size": 8, "frozen_epochs": 0, "unfrozen_epochs": 1, "weights": None, "num_workers": 0}


@pytest.fixture(scope="module")
def run(phantom_root, tmp_path_factory):
    return train_classifier(phantom_root, out=tmp_path_factory.mktemp("runs") / "run", quiet=True, **QUICK).path


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Write a data set of forty new patients, in the form of another hospital's table."""
    root = write_phantom(
        tmp_path_factory.mktemp("elsewhere") / "data", patients={"COVID-19": 20, "Normal": 20}, image_size=64, seed=7
    )
    table = pd.read_csv(next(root.glob("*Metadata.csv")))
    folder = next(path for path in root.rglob("train") if path.is_dir())
    rows = pd.DataFrame({"image": table["X_ray_image_name"], "patient": "other-" + table["patient"].astype(str)})
    rows["label"] = table["Label_2_Virus_category"].map({"COVID-19": "positive"}).fillna("no finding")
    rows["source"] = "elsewhere"
    rows = rows[rows["image"].map(lambda name: (folder / name).exists())]
    rows.to_csv(folder / "labels.csv", index=False)
    return folder / "labels.csv"


def predictions(sources: dict[str, str]) -> pd.DataFrame:
    """Return predictions of ten patients per class and source."""
    rows = []
    for source, labels in sources.items():
        for label in labels.split("+"):
            for number in range(10):
                p = (0.7 if label == "ill" else 0.4) + 0.02 * number
                rows.append({"path": f"{source}-{label}-{number}", "label": label, "source": source, "p_ill": p})
    table = pd.DataFrame(rows)
    return table.assign(p_well=1 - table["p_ill"], patient=table["path"])


def test_validation_on_another_hospital(run, elsewhere):
    result = validate(run, elsewhere, labels={"positive": "COVID-19"})
    assert len(result.overlap) == 0 and result.threshold == 0.5
    assert set(result.table["comparison"]) == {SAME} and set(result.table["metric"]) >= {"auc", "sensitivity"}
    assert result.table.loc[result.table["metric"] == "auc", "n"].item() == result.predictions["patient"].nunique()
    assert "Research use only" in result._repr_html_() and "No image had to be excluded" in repr(result)


def test_training_images_and_patients_are_excluded(run, elsewhere, phantom_root, tmp_path):
    """A training image in another format and with another name, and another image of a training patient."""
    cohort = load_cohort(run)
    trained = cohort[cohort["split"] == "train"].iloc[0]
    rows = pd.read_csv(elsewhere).assign(image=lambda table: [str(elsewhere.parent / name) for name in table["image"]])
    Image.open(trained["path"]).convert("L").resize((90, 90)).save(tmp_path / "copy.png")
    copy = {"image": str(tmp_path / "copy.png"), "patient": "unheard of", "label": "positive", "source": "elsewhere"}
    pd.concat([rows, pd.DataFrame([copy])]).to_csv(tmp_path / "labels.csv", index=False)
    result = validate(run, tmp_path / "labels.csv", labels={"positive": "COVID-19"}, image_root="/")
    assert list(result.overlap["patient"]) == ["unheard of"]
    assert "unheard of" not in set(result.predictions["patient"])


def test_data_that_overlap_completely_are_an_error(run, phantom_root):
    cohort = load_cohort(run)
    rows = cohort.loc[cohort["split"] == "train", ["path", "label", "patient"]]
    with pytest.raises(DataError, match="trained on all of them"):
        validate(run, rows)


def test_a_class_that_the_model_lacks(run, elsewhere):
    with pytest.raises(UsageError, match="'flu'.*\n?"):
        validate(run, elsewhere, labels={"positive": "flu"})


@pytest.mark.slow
@pytest.mark.nightly
def test_a_task_made_from_options_is_in_the_run_and_validates_columns_of_findings(elsewhere, tmp_path):
    labels = {"pos*": "Opacity", "no finding": "Clear lung"}
    options = {"classes": ("Clear lung", "Opacity"), "labels": labels, "audit": False, "quiet": True}
    train_classifier(elsewhere, out=tmp_path / "run", **options, **QUICK)
    run = read_run(tmp_path / "run")
    assert run.config["task"] == "clear-lung-vs-opacity" and run.cohort.facts.classes == options["classes"]
    assert list_runs(tmp_path)["task"].tolist() == ["clear-lung-vs-opacity"]
    assert run.config["config"]["labels"] == labels and "--classes 'Clear lung,Opacity'" in run.config["command"]
    config = json.loads((run.path / "model" / "config.json").read_text())
    assert (config["classes"], config["positive"]) == (list(options["classes"]), "Opacity")

    write_phantom(tmp_path / "data", patients={"COVID-19": 8, "Normal": 8}, image_size=64, seed=9)
    files = sorted(path for path in (tmp_path / "data").rglob("train/*"))
    opacity = [1 if number % 2 else 0 for number in range(len(files))]
    rows = pd.DataFrame({"path": [str(file) for file in files], "Target": [-1, *opacity[1:]], "source": "third"})
    rows.to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(UsageError, match="positive='Clear lung' is not the positive class of the model, 'Opacity'"):
        validate(run, rows, label_columns="Target", positive="Clear lung")
    for choice in (["--label-columns", "Target"], ["--label-column", "Target"]):
        out = tmp_path / "predictions.csv"
        command = ["validate", str(run.path), str(tmp_path / "rows.csv"), *choice, "--positive", "Opacity", "--quiet"]
        done = CliRunner().invoke(main.app, [*command, "--out", str(out)])
        assert done.exit_code == 0, done.output
        labels = pd.read_csv(out)["label"].value_counts().to_dict()
        assert labels == {"Opacity": sum(opacity), "Clear lung": len(files) - sum(opacity) - 1}


def test_an_unknown_label_is_named(run, elsewhere):
    with pytest.raises(DataError) as error:
        validate(run, elsewhere)
    assert any("positive" in fault["reason"] for fault in error.value.details)


def test_sources_that_have_a_class_each_are_confounded():
    table = evaluate_sources(predictions({"a": "ill", "b": "well", "c": "ill+well"}), positive="ill")
    kinds = {source: set(rows["comparison"]) for source, rows in table.groupby("images of")}
    assert kinds == {"a": {ONE_CLASS}, "b": {ONE_CLASS}, "c": {SAME}, "a + b": {CONFOUNDED}}
    assert set(table.loc[table["images of"] == "a", "metric"]) == {"sensitivity"}
    assert table[table["images of"] == "c"].set_index("metric").loc["auc", "value"] == 1.0


def test_a_source_that_the_model_was_trained_on_is_no_other_hospital():
    table = evaluate_sources(predictions({"b": "ill+well", "c": "ill+well"}), positive="ill", training_sources=[" B"])
    kinds = {source: set(rows["comparison"]) for source, rows in table.groupby("images of")}
    assert kinds == {"b": {TRAINED}, "c": {SAME}}


@pytest.mark.parametrize("source", ["", "unknown", "nan", "N/A"])
def test_a_source_that_is_not_stated_is_not_one_hospital(source):
    table = evaluate_sources(predictions({source: "ill+well"}), positive="ill")
    assert set(table["comparison"]) == {NOT_STATED} and set(table["images of"]) == {"unknown"}


def test_without_a_stated_source_the_verdict_stays_open_and_the_notes_say_why(run, elsewhere, tmp_path):
    rows = (
        pd.read_csv(elsewhere).drop(columns="source").assign(patient=lambda t: t["patient"].str.extract(r"(\d+)$")[0])
    )
    rows["image"] = [str(elsewhere.parent / name) for name in rows["image"]]
    result = validate(run, rows, labels={"positive": "COVID-19"}, keep=False)
    notes = " ".join(result.notes())
    assert result.same_source() == [] and "Source not stated" in notes
    assert result.not_compared == len(result.predictions) and "were not compared" in notes
    named = validate(run, rows, labels={"positive": "COVID-19"}, keep=False, source="Turin")
    assert [row["source"] for row in named.same_source()] == ["Turin"] and named.not_compared == 0
    assert "not compared" not in " ".join(named.notes())


def test_a_single_source_is_not_confounded():
    table = evaluate_sources(predictions({"c": "ill+well", "d": "ill"}), positive="ill")
    assert CONFOUNDED not in set(table["comparison"])


def test_the_result_is_written_for_the_verdict(run, elsewhere):
    result = validate(run, elsewhere, labels={"positive": "COVID-19"})
    (file,) = (run / "external").glob("train-*.json")
    written = json.loads(file.read_text())["same_source"][0]
    assert written["source"] == "elsewhere" and written["value"] == pytest.approx(result.same_source()[0]["value"])
    train = read_run(run).cohort.query("split == 'train'")
    rows = result.predictions.assign(split="")
    found = predict_shortcuts(train, rows, baselines=("thumbnail",))["thumbnail"]
    units = found.groupby(["patient", "label"])["p_COVID-19"].mean().reset_index()
    expected = roc_auc_score(units["label"] == "COVID-19", units["p_COVID-19"])
    assert written["thumbnail"] == pytest.approx(expected)
    assert "thumbnail" in result.summary()


@pytest.mark.slow
def test_the_probabilities_of_a_cross_validation_are_averaged(phantom_root, elsewhere, tmp_path):
    folds = cross_validate(phantom_root, folds=2, out=tmp_path / "run", quiet=True, audit=False, **QUICK)
    result = validate(folds, elsewhere, labels={"positive": "COVID-19"}, keep=False)
    each = [predict(load_model(folds.path / f"fold-{k}" / "model"), result.predictions) for k in range(2)]
    mean = (each[0]["p_COVID-19"] + each[1]["p_COVID-19"]) / 2
    pd.testing.assert_series_equal(result.predictions["p_COVID-19"], mean, check_exact=False)
    assert not (folds.path / "external").exists()


@pytest.mark.parametrize("fault", ["model", "manifest", "label"])
def test_a_run_without_manifest_or_model_is_refused_before_data_are_read(run, elsewhere, tmp_path, monkeypatch, fault):
    copy, labels = shutil.copytree(run, tmp_path / "run"), {"positive": "COVID-19"}
    if fault == "model":
        (copy / "model" / "model.safetensors").unlink()
    elif fault == "manifest":
        (copy / "training.manifest.safetensors").unlink()
    else:
        labels = {"positive": "Covid"}

    def read(*arguments, **options):
        raise AssertionError("data were read")

    monkeypatch.setattr("covid_fastai.data.metadata.read_rows", read)
    monkeypatch.setattr(evaluate, "set_up_logging", lambda **options: None)  # it would change all tests
    words = [f"--label={theirs}={ours}" for theirs, ours in labels.items()]
    done = CliRunner().invoke(main.app, ["validate", str(copy), str(elsewhere), *words])
    with pytest.raises(CovidFastaiError) as in_python:
        validate(copy, elsewhere, labels=labels)
    assert str(done.exception) == str(in_python.value) and type(done.exception) is type(in_python.value)


@pytest.mark.slow
def test_an_export_is_validated_with_its_own_threshold(run, elsewhere, phantom_root, tmp_path):
    exported = export_model(run, tmp_path / "exported", sensitivity=0.9, calibrate=True)
    options = {"labels": {"positive": "COVID-19"}, "keep": False}
    result = validate(run, elsewhere, exported=exported, **options)
    assert result.threshold == load_model(exported).facts.bundle.threshold != 0.5
    units = result.predictions.groupby(["patient", "label"])["p_COVID-19"].mean().reset_index()
    ill = units[units["label"] == "COVID-19"]
    row = result.table.set_index("metric").loc["sensitivity"]
    assert row["value"] == pytest.approx((ill["p_COVID-19"] >= result.threshold).mean())
    other = train_classifier(phantom_root, out=tmp_path / "other", quiet=True, audit=False, seed=5, **QUICK).path
    with pytest.raises(UsageError, match="not an export of the model"):
        validate(other, elsewhere, exported=exported, **options)
