"""The report: whole, self-contained, safe, and loud where it has to be."""

from __future__ import annotations

import html.parser
import json
import re
import shutil

import pandas as pd
import pytest

from covid_fastai import (
    build_dataloaders,
    build_learner,
    evaluate,
    fit,
    predict,
    read_run,
    write_exploration,
    write_report,
)
from covid_fastai.data.cohort import load_cohort, save_cohort
from covid_fastai.data.metadata import SEEN
from covid_fastai.errors import UsageError
from covid_fastai.evaluation.prediction_table import read_predictions
from covid_fastai.reporting.caveats import cohort_remarks, run_remarks, source_table
from covid_fastai.reporting.report import render_report
from covid_fastai.run_folder import RunFolder


class Page(html.parser.HTMLParser):
    """The tags and texts of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts))


@pytest.fixture
def copy(run_folder, tmp_path):
    return shutil.copytree(run_folder, tmp_path / "run")


def test_the_page_stands_alone_and_every_picture_has_words(run_folder):
    page = Page(run_folder / "report.html")
    pictures = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(pictures) >= 8
    assert all(picture["src"].startswith("data:image/") and picture["alt"] for picture in pictures)
    assert not [tag for tag, _ in page.tags if tag in ("script", "iframe", "object", "form")]
    links = [attrs for tag, attrs in page.tags if "href" in attrs or attrs.get("src", "data:")[:5] != "data:"]
    assert links == []
    policy = next(attrs for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy["content"]


def test_the_page_says_the_figures_the_limits_and_what_it_is_not(run_folder):
    run, page = read_run(run_folder), Page(run_folder / "report.html")
    summary = run.metrics.summary()
    for value, interval in zip(summary["value"], summary["95% interval"], strict=True):
        assert value in page.text and interval in page.text
    assert page.text.count("Research use only") >= 2
    assert run.config["python"] in page.text and run.config["command"] in page.text
    assert "no patient is on two sides" in page.text
    assert "random weights" in page.text
    assert "diagnos" not in page.text.lower()


def test_the_same_files_give_the_same_page(copy):
    first = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "", render_report(copy).read_text())
    second = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "", render_report(copy).read_text())
    assert first == second


def test_hostile_names_are_text(copy):
    evil = "<script>alert(1)</script>"
    cohort, predictions = load_cohort(copy), read_predictions(copy / "predictions.csv")
    for table in (cohort, predictions):
        table["source"] = evil
        table["path"] = [f"/x/{evil}{number}.png" for number in range(len(table))]
    save_cohort(cohort, copy)
    predictions.to_csv(copy / "predictions.csv", index=False)
    page = Page(render_report(copy))
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert evil in page.text


def test_images_that_are_gone_are_said(copy):
    table = pd.read_csv(copy / "predictions.csv", dtype=str, keep_default_na=False)
    table["path"] = "/gone/" + table["path"].str.rsplit("/", n=1).str[-1]
    table.to_csv(copy / "predictions.csv", index=False)
    assert "file is not here" in Page(render_report(copy)).text


def test_a_patient_on_two_sides_is_an_alarm(copy):
    cohort = load_cohort(copy)
    cohort.loc[cohort["split"] == "train", "patient"] = cohort.loc[cohort["split"] == "valid", "patient"].iloc[0]
    save_cohort(cohort, copy)
    first = run_remarks(read_run(copy))[0]
    assert first.level == "alarm" and "trained on too" in first.title


def test_unknown_patients_and_a_test_that_was_touched_twice_are_alarms(copy):
    cohort = load_cohort(copy)
    cohort.loc[cohort.index[cohort["split"] == "train"][0], "patient_known"] = False
    save_cohort(cohort, copy)
    for _ in range(2):
        RunFolder(copy).log("test evaluated", images=3)
    titles = [remark.title for remark in run_remarks(read_run(copy)) if remark.level == "alarm"]
    assert "Not every image's patient is known." in titles
    assert "The official test set was touched 2 times." in titles


def rewrite(copy, *, weights=None, config=(), cohort=lambda table: table):
    """Change what a run says of its weights, its options and its rows, and return its remarks."""
    lines = [json.loads(line) for line in (copy / "record.jsonl").read_text().splitlines()]
    for line in lines:
        if "weights" in line and weights is not None:
            line["weights"].update(weights)
    (copy / "record.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    fields = json.loads((copy / "config.json").read_text())
    fields["config"].update(config)
    (copy / "config.json").write_text(json.dumps(fields))
    save_cohort(cohort(load_cohort(copy)), copy)
    return run_remarks(read_run(copy))


def mark(number, *, split="train"):
    """Mark the first images of a split as seen."""

    def change(table):
        table.loc[table.index[table["split"] == split][:number], "in_pretraining"] = True
        return table

    return change


CXR = {"name": "cxr", "origin": "/package/cxr-resnet18.safetensors"}


def test_a_run_that_no_weights_have_helped_says_nothing_of_them(run_folder):
    assert not [remark for remark in run_remarks(read_run(run_folder)) if "weights have seen" in remark.title]


@pytest.mark.parametrize("weights", [CXR, {"name": "file", "origin": "C:\\my\\cxr-resnet18.safetensors"}])
def test_our_weights_without_the_guard_are_an_alarm(copy, weights):
    remarks = rewrite(copy, weights=weights, config={"exclude_pretraining_overlap": False})
    assert any(remark.level == "alarm" and "may have seen the held-out" in remark.title for remark in remarks)
    assert "may have seen the held-out patients" in Page(render_report(copy)).text


def test_a_run_from_before_the_guard_is_one_without_it(copy):
    remarks = rewrite(copy, weights=CXR, cohort=lambda table: table.drop(columns="in_pretraining"))
    assert any(remark.level == "alarm" and "may have seen the held-out" in remark.title for remark in remarks)


@pytest.mark.parametrize("weights", [{"name": "imagenet", "origin": "resnet18-f37072fd.pth"}, {"name": "random"}])
def test_other_weights_need_no_guard(copy, weights):
    remarks = rewrite(copy, weights=weights, config={"exclude_pretraining_overlap": False})
    assert not [remark for remark in remarks if "in_pretraining" in remark.title]


@pytest.mark.parametrize("weights", [CXR, {"name": "imagenet", "origin": "resnet18-f37072fd.pth"}])
def test_the_report_says_how_many_were_kept_out_of_evaluation(copy, weights):
    def change(table):
        table = mark(5)(table)
        table.loc[table.index[table["split"] == "excluded"][:3], ["in_pretraining", "note"]] = [True, SEEN]
        return table

    (remark,) = [remark for remark in rewrite(copy, weights=weights, cohort=change) if "have seen" in remark.title]
    assert remark.level == "care" and remark.title.startswith("8 images were kept out of evaluation")
    assert ("names no patients" in remark.text) == (weights is CXR)
    assert "8 images were kept out of evaluation" in Page(render_report(copy)).text


def test_our_weights_name_what_is_not_known_where_nothing_was_seen(copy):
    (remark,) = [remark for remark in rewrite(copy, weights=CXR) if "have seen" in remark.title]
    assert remark.title.startswith("0 images") and "names no patients" in remark.text


@pytest.mark.parametrize("folds", [False, True])
def test_a_held_out_image_that_the_weights_have_seen_is_an_alarm(copy, folds):
    def change(table):
        table = mark(2, split="valid")(table)
        return table.assign(fold=table["split"].eq("valid").astype(int) - 1) if folds else table

    remarks = rewrite(copy, weights=CXR, cohort=change)
    assert any(remark.level == "alarm" and "have seen 2 held-out images" in remark.title for remark in remarks)


@pytest.mark.slow
def test_a_cross_validation_predicts_each_dealt_image_once_and_no_seen_one(covid_dataset, tmp_path, monkeypatch):
    from covid_fastai import cross_validate, read_cohort
    from covid_fastai.data import pretraining_overlap

    cohort = read_cohort(covid_dataset, check_images=False)
    whom = {label: sorted(rows["patient"].unique())[:3] for label, rows in cohort.groupby("label") if label}
    images = cohort[cohort["patient"].isin(sum(whom.values(), []))].drop_duplicates("patient")  # one of each is enough
    pretraining_overlap.write_manifest(images, tmp_path / "cxr.manifest.safetensors")
    monkeypatch.setattr(pretraining_overlap, "MANIFEST_FOLDER", tmp_path)
    quick = {"image_size": 32, "frozen_epochs": 0, "unfrozen_epochs": 1, "weights": None, "num_workers": 0}
    run = cross_validate(covid_dataset, folds=2, out=tmp_path / "run", quiet=True, **quick)
    kept_out = cohort["patient"].isin(images["patient"]) & (cohort["split"] == "train")
    assert sorted(run.predictions["path"]) == sorted(cohort.loc[(cohort["split"] == "train") & ~kept_out, "path"])
    page = Page(render_report(run.path)).text
    assert f"{kept_out.sum()} images were kept out of evaluation" in page and "no patient is in two folds" in page


def confounded(cohort):
    cohort = cohort.copy()
    cohort["source"] = cohort["label"].map({"Normal": "kermany", "COVID-19": "cohen"}).fillna("kermany")
    return cohort


def test_a_class_with_a_source_of_its_own_is_an_alarm(covid_cohort):
    assert not [remark for remark in cohort_remarks(covid_cohort) if "Class and source" in remark.title]
    remarks = cohort_remarks(confounded(covid_cohort))
    assert remarks[0].level == "alarm" and "Class and source are one" in remarks[0].title
    assert source_table(covid_cohort.assign(source="unknown")) is None


@pytest.mark.realdata
def test_coronahack_is_such_a_case(real_data):
    from covid_fastai import read_cohort

    cohort = read_cohort(real_data / "coronahack-224", task="covid", check_images=False)
    assert any("Class and source are one" in remark.title for remark in cohort_remarks(cohort))


def test_exploration_shows_who_is_in_the_data(covid_cohort, tmp_path):
    page = Page(write_exploration(confounded(covid_cohort), tmp_path / "page.html"))
    assert sum(tag == "img" for tag, _ in page.tags) == 5
    assert "Class and source are one" in page.text
    assert "JPEG" in page.text and "Research use only" in page.text


def test_the_story_told_by_hand_ends_in_a_report_too(covid_cohort, tmp_path):
    """The lines of ARCHITECTURE and README, without train_classifier."""
    dls = build_dataloaders(covid_cohort, image_size=32, batch_size=8, num_workers=0, path=tmp_path)
    learn = build_learner(dls, weights=None, path=tmp_path)
    fit(learn, frozen_epochs=0, unfrozen_epochs=1)
    result = evaluate(predict(learn))
    page = Page(write_report(learn, result))
    assert f"{result.value('auc'):.3f}" in page.text
    assert read_run(tmp_path).metrics.value("auc") == pytest.approx(result.value("auc"))
    unfitted = build_learner(dls, weights=None, path=tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(UsageError, match="not fitted here: it has no history"):
        write_report(unfitted, result)


def test_anybodys_predictions_get_a_page(run_folder, tmp_path):
    from covid_fastai import write_evaluation

    page = write_evaluation(run_folder / "predictions.csv", tmp_path / "page.html").read_text()
    assert "Could it be right without looking at a lung?" in page and "Where it was most wrong" in page
    table = pd.read_csv(run_folder / "predictions.csv").assign(path="gone.png").drop(columns="patient")
    gone = write_evaluation(table, tmp_path / "gone.html").read_text()
    assert "Shortcuts were not looked for" in gone and "file is not here" in gone and "patient is known" in gone


def test_the_report_gives_the_verdict_and_its_rules(run_folder):
    page = (run_folder / "report.html").read_text()
    assert "The verdict, rule by rule" in page and "disease signal not shown" in page.lower()


def test_a_page_about_data_names_shortcuts_and_copies(phantom_cohort, tmp_path):
    from covid_fastai.audit.baselines import find_shortcuts
    from covid_fastai.audit.leaks import find_leaks
    from covid_fastai.reporting.data_pages import write_audit

    shutil.copy(phantom_cohort["path"].iloc[0], tmp_path / "copy.jpeg")
    more = pd.concat([phantom_cohort, phantom_cohort.iloc[[0]].assign(path=str(tmp_path / "copy.jpeg"))])
    leaks = find_leaks(more.reset_index(drop=True))
    page = write_audit(phantom_cohort, find_shortcuts(phantom_cohort, permutations=99), leaks, tmp_path / "audit.html")
    text = page.read_text()
    assert "copy.jpeg" in text and "border ring" in text and str(tmp_path) not in text
