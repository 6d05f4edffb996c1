"""The report: it is complete, self-contained and safe, and it shows its caveats."""

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
from covid_fastai.data.metadata import IN_PRETRAINING
from covid_fastai.errors import UsageError
from covid_fastai.evaluation.prediction_table import read_predictions
from covid_fastai.reporting.cases import describe_cases
from covid_fastai.reporting.caveats import cohort_caveats, run_caveats, source_table
from covid_fastai.reporting.report import _describe_saliency as describe_saliency
from covid_fastai.reporting.report import render_report
from covid_fastai.run_folder import RunFolder
from covid_fastai.saliency.region_fraction import BOX_NAME

LAID_OUT = (
    "(selector) => [...document.querySelectorAll(selector)].filter((part) => part.getClientRects().length).length"
)

SIZE_OF = "parseFloat(getComputedStyle(document.querySelector('%s')).fontSize)"


class Page(html.parser.HTMLParser):
    """The tags and texts of an HTML page."""

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


@pytest.mark.browser
@pytest.mark.slow
def test_a_print_has_all_tables_and_no_contents(copy):
    """As Chromium lays it out."""
    pytest.importorskip("websockets", reason="websockets is not installed")
    from tests.app.server.browser import find_chromium, open_browser

    if find_chromium() is None:
        pytest.skip("no Chromium is installed")
    with open_browser() as browser:
        browser.go(render_report(copy).resolve().as_uri(), width=720)  # the width of A4 without its margins
        browser.call("Emulation.setEmulatedMedia", media="print")
        assert browser.run(f"({LAID_OUT})('.contents')") == 0  # its links lead nowhere on paper
        folded = browser.run("document.querySelectorAll('main details table').length")
        assert folded > 3 and browser.run(f"({LAID_OUT})('main details table')") == folded
        assert browser.run("document.documentElement.scrollWidth") <= 720
        sizes = [
            browser.run(SIZE_OF % selector) for selector in ("section > p:not([class])", "td", ".metrics dd", ".note")
        ]
        assert max(sizes) == sizes[0] < 16  # pixels: a table is not set larger than the text


def test_the_page_is_self_contained_and_every_image_has_a_text(run_folder):
    page = Page(run_folder / "report.html")
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) >= 8
    assert all(image["src"].startswith("data:image/") and image["alt"] for image in images)
    assert not [tag for tag, _ in page.tags if tag in ("script", "iframe", "object", "form")]
    links = [attrs["href"] for tag, attrs in page.tags if "href" in attrs]
    assert links and all(link.startswith("#") for link in links)  # the contents
    assert {link[1:] for link in links} <= {attrs.get("id") for _, attrs in page.tags}
    assert not [attrs for _, attrs in page.tags if attrs.get("src", "data:")[:5] != "data:"]
    policy = next(attrs for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy["content"]


def test_the_page_gives_metrics_with_intervals_and_the_research_notice(run_folder):
    run, page = read_run(run_folder), Page(run_folder / "report.html")
    summary = run.metrics.summary()
    for value, interval in zip(summary["value"], summary["95% interval"], strict=True):
        assert value in page.text and interval in page.text
    assert page.text.count("Research use only") >= 2
    assert run.config["python"] in page.text and run.config["command"] in page.text
    assert "no patient is in more than one part" in page.text
    assert "random weights" in page.text
    assert "diagnos" not in page.text.lower()


@pytest.mark.slow
def test_the_page_is_reproducible_from_its_files(copy):
    written = [(copy / "report.html").read_text(), render_report(copy).read_text()]
    first, second = (re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "", page) for page in written)
    # the training writes its report before it is finished
    end = '<tr><td data-label="time">[^<]*</td><td data-label="event">finished</td><td data-label="facts"></td></tr>\n'
    assert len(re.findall(end, second)) == 1 and first == re.sub(end, "", second)


@pytest.mark.slow
def test_hostile_names_are_escaped(copy):
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


def test_the_page_marks_images_that_are_gone(copy):
    table = pd.read_csv(copy / "predictions.csv", dtype=str, keep_default_na=False)
    table["path"] = "/gone/" + table["path"].str.rsplit("/", n=1).str[-1]
    table["prediction"] = table["label"].map({"Normal": "COVID-19", "COVID-19": "Normal"})
    table.to_csv(copy / "predictions.csv", index=False)
    assert "image not available" in Page(render_report(copy)).text


def test_wrong_images_have_the_map_of_the_saved_model_beside_them(run_folder, copy):
    run = read_run(run_folder)
    described = describe_cases(run.metrics, run.folder)
    assert described["cases"] and all(case["overlay"] != case["image"] for case in described["cases"])
    assert described["has_maps"]
    shutil.rmtree(copy / "model")
    without = describe_cases(run.metrics, RunFolder(copy))
    assert without["cases"] and not without["has_maps"]


def test_a_map_without_a_region_is_said_to_be_empty(run_folder, monkeypatch):
    run = read_run(run_folder)
    assert not any(case["is_empty"] for case in describe_cases(run.metrics, run.folder)["cases"])
    monkeypatch.setattr("covid_fastai.reporting.cases.against_rest", lambda maps, targets: -abs(maps[:, 0]) - 1)
    assert all(case["is_empty"] for case in describe_cases(run.metrics, run.folder)["cases"])


def test_a_patient_in_training_and_held_out_is_an_alarm(copy):
    cohort = load_cohort(copy)
    cohort.loc[cohort["split"] == "train", "patient"] = cohort.loc[cohort["split"] == "valid", "patient"].iloc[0]
    save_cohort(cohort, copy)
    first = run_caveats(read_run(copy))[0]
    assert first.level == "alarm" and "held-out patients are also in training" in first.title


def test_unknown_patients_and_a_second_evaluation_of_the_test_set_are_alarms(copy):
    cohort = load_cohort(copy)
    cohort.loc[cohort.index[cohort["split"] == "train"][0], "patient_known"] = False
    save_cohort(cohort, copy)
    for _ in range(2):
        RunFolder(copy).log("test evaluated", images=3)
    titles = [caveat.title for caveat in run_caveats(read_run(copy)) if caveat.level == "alarm"]
    assert "The patients of some images are unknown." in titles
    assert "The official test set was evaluated 2 times." in titles


def rewrite(copy, *, weights=None, config=(), cohort=lambda table: table):
    """Change the weights, the options and the rows of a run, and return its caveats."""
    lines = [json.loads(line) for line in (copy / "record.jsonl").read_text().splitlines()]
    for line in lines:
        if "weights" in line and weights is not None:
            line["weights"].update(weights)
    (copy / "record.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    fields = json.loads((copy / "config.json").read_text())
    fields["config"].update(config)
    (copy / "config.json").write_text(json.dumps(fields))
    save_cohort(cohort(load_cohort(copy)), copy)
    return run_caveats(read_run(copy))


def mark(number, *, split="train"):
    """Return a function that marks the first images of a split as pretraining images."""

    def change(table):
        table.loc[table.index[table["split"] == split][:number], "in_pretraining"] = True
        return table

    return change


CXR = {"name": "cxr", "origin": "/package/cxr-resnet18.safetensors"}


def test_a_run_from_random_weights_has_no_caveat_about_pretraining(run_folder):
    assert not [caveat for caveat in run_caveats(read_run(run_folder)) if "pretraining data" in caveat.title]


@pytest.mark.parametrize("weights", [CXR, {"name": "file", "origin": "C:\\my\\cxr-resnet18.safetensors"}])
@pytest.mark.slow
def test_package_weights_without_exclusion_of_the_overlap_are_an_alarm(copy, weights):
    caveats = rewrite(copy, weights=weights, config={"exclude_pretraining_overlap": False})
    assert any(caveat.level == "alarm" and "may be in the pretraining data" in caveat.title for caveat in caveats)
    if weights is CXR:  # one page is enough
        assert "Held-out patients may be in the pretraining data" in Page(render_report(copy)).text


def test_package_weights_with_an_unmarked_cohort_are_an_alarm(copy):
    caveats = rewrite(copy, weights=CXR, cohort=lambda table: table.drop(columns="in_pretraining"))
    assert any(caveat.level == "alarm" and "may be in the pretraining data" in caveat.title for caveat in caveats)


@pytest.mark.parametrize("weights", [{"name": "imagenet", "origin": "resnet18-f37072fd.pth"}, {"name": "random"}])
def test_other_weights_have_no_caveat_about_pretraining(copy, weights):
    caveats = rewrite(copy, weights=weights, config={"exclude_pretraining_overlap": False})
    assert not [caveat for caveat in caveats if "pretraining data" in caveat.title]


@pytest.mark.parametrize("weights", [CXR, {"name": "imagenet", "origin": "resnet18-f37072fd.pth"}])
@pytest.mark.slow
def test_the_report_counts_the_images_excluded_from_evaluation(copy, weights):
    def change(table):
        table = mark(5)(table)
        table.loc[table.index[table["split"] == "excluded"][:3], ["in_pretraining", "note"]] = [True, IN_PRETRAINING]
        return table

    caveats = rewrite(copy, weights=weights, cohort=change)
    (caveat,) = [caveat for caveat in caveats if "pretraining data" in caveat.title]
    assert caveat.level == "caution" and caveat.title.startswith("8 images were excluded from evaluation")
    assert ("does not name its patients" in caveat.text) == (weights is CXR)
    if weights is CXR:  # one page is enough
        assert "8 images were excluded from evaluation" in Page(render_report(copy)).text


def test_package_weights_without_overlap_still_have_a_caveat(copy):
    (caveat,) = [caveat for caveat in rewrite(copy, weights=CXR) if "pretraining data" in caveat.title]
    assert caveat.title.startswith("No image is known") and "does not name its patients" in caveat.text


@pytest.mark.parametrize("folds", [False, True])
def test_a_held_out_pretraining_image_is_an_alarm(copy, folds):
    def change(table):
        table = mark(2, split="valid")(table)
        return table.assign(fold=table["split"].eq("valid").astype(int) - 1) if folds else table

    caveats = rewrite(copy, weights=CXR, cohort=change)
    assert any(caveat.level == "alarm" and caveat.title.startswith("2 held-out images") for caveat in caveats)


@pytest.mark.slow
def test_a_cross_validation_predicts_each_image_of_the_folds_once_and_no_pretraining_image(
    covid_dataset, tmp_path, monkeypatch
):
    from covid_fastai import cross_validate, read_cohort
    from covid_fastai.data import pretraining_overlap

    cohort = read_cohort(covid_dataset, check_images=False)
    chosen = {label: sorted(rows["patient"].unique())[:3] for label, rows in cohort.groupby("label") if label}
    images = cohort[cohort["patient"].isin(sum(chosen.values(), []))].drop_duplicates("patient")  # one per patient
    pretraining_overlap.write_manifest(images, tmp_path / "cxr.manifest.safetensors")
    monkeypatch.setattr(pretraining_overlap, "MANIFEST_FOLDER", tmp_path)
    quick = {"image_size": 32, "frozen_epochs": 0, "unfrozen_epochs": 1, "weights": None, "num_workers": 0}
    quick |= {"audit": False}
    run = cross_validate(covid_dataset, folds=2, repeats=2, out=tmp_path / "run", quiet=True, **quick)
    aucs = run.repeats[run.repeats["metric"] == "auc"].set_index("repeat")["value"]
    assert aucs[0] == pytest.approx(run.metrics.value("auc")) and aucs[1] != aucs[0]
    assert not list(run.path.glob("repeat-1/fold-*/model")) and list(run.path.glob("fold-*/model"))
    pretrained = cohort["patient"].isin(images["patient"]) & (cohort["split"] == "train")
    assert sorted(run.predictions["path"]) == sorted(cohort.loc[(cohort["split"] == "train") & ~pretrained, "path"])
    page = Page(render_report(run.path)).text
    assert f"{pretrained.sum()} images were excluded from evaluation" in page
    assert "no patient is in more than one fold" in page and "repeated with other folds and seeds" in page
    with pytest.raises(UsageError, match=r"folds=2, repeats=2"):
        cross_validate(resume=run.path, folds=2)


def confounded(cohort):
    cohort = cohort.copy()
    cohort["source"] = cohort["label"].map({"Normal": "kermany", "COVID-19": "cohen"}).fillna("kermany")
    return cohort


def test_a_class_confounded_with_its_source_is_an_alarm(covid_cohort):
    assert not [caveat for caveat in cohort_caveats(covid_cohort) if "Class and image source" in caveat.title]
    caveats = cohort_caveats(confounded(covid_cohort))
    assert caveats[0].level == "alarm" and "Class and image source go together" in caveats[0].title
    assert 'from the image source "cohen", where' in caveats[0].text  # a name alone is taken for a word
    assert source_table(covid_cohort.assign(source="unknown")) is None


@pytest.mark.realdata
def test_class_and_source_are_confounded_in_coronahack(real_data):
    from covid_fastai import read_cohort

    cohort = read_cohort(real_data / "coronahack-224", task="covid", check_images=False)
    assert any("Class and image source go together" in caveat.title for caveat in cohort_caveats(cohort))


@pytest.mark.slow
def test_the_report_states_on_how_many_images_the_box_was_used(copy):
    path = RunFolder(copy).saliency
    table = pd.DataFrame(
        {"path": [f"{n}.png" for n in range(12)], "patient": [f"p{n}" for n in range(12)], "label": "x"}
    )
    table = table.assign(of="COVID-19", inside=0.5, box=0.6, border=0.1, inside_area=0.3, box_area=0.4, border_area=0.2)
    table.assign(lung="segmented lungs").to_csv(path, index=False)
    assert describe_saliency(read_run(copy))["saliency_note"] == ""
    table.assign(lung=["segmented lungs"] * 9 + [f"{BOX_NAME}, instead of the lungs: No lung was found."] * 3).to_csv(
        path, index=False
    )
    page = Page(render_report(copy)).text
    assert "central box" in page
    assert "On 3 of 12 images no lungs were found, and the box takes their place." in page


@pytest.mark.slow
def test_the_exploration_describes_patients_and_images(covid_cohort, tmp_path):
    page = Page(write_exploration(confounded(covid_cohort), tmp_path / "page.html"))
    assert sum(tag == "img" for tag, _ in page.tags) == 6
    assert "Class and image source go together" in page.text
    assert "Area and place of the lungs" in page.text and "The lungs were segmented in a sample of" in page.text
    assert "Quality of the segmentation by class and source" in page.text
    assert "JPEG" in page.text and "Research use only" in page.text


@pytest.mark.slow
def test_the_single_steps_end_in_a_report_too(covid_cohort, tmp_path):
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
    with pytest.raises(UsageError, match="not fitted in this session: it has no history"):
        write_report(unfitted, result)


@pytest.mark.slow
def test_predictions_of_any_model_get_a_page(run_folder, tmp_path):
    from covid_fastai import write_evaluation

    page = write_evaluation(run_folder, tmp_path / "page.html").read_text()
    assert "Does the model need the lungs?" in page and "Wrong answers" in page
    table = pd.read_csv(run_folder / "predictions.csv").drop(columns="patient")
    table["path"] = [f"gone-{number}.png" for number in range(len(table))]
    gone = write_evaluation(table, tmp_path / "gone.html").read_text()
    assert "were not tested for shortcuts" in gone and "image not available" in gone and "patients of some" in gone


def test_the_report_gives_the_verdict_and_its_conditions(run_folder):
    page = (run_folder / "report.html").read_text()
    assert "Conditions of the verdict" in page and "disease signal not shown" in page.lower()


@pytest.mark.slow
def test_a_page_about_data_lists_shortcuts_and_copies(phantom_cohort, tmp_path):
    from covid_fastai.audit.baselines import find_shortcuts
    from covid_fastai.audit.leaks import find_leaks
    from covid_fastai.reporting.data_pages import write_audit

    shutil.copy(phantom_cohort["path"].iloc[0], tmp_path / "copy.jpeg")
    more = pd.concat([phantom_cohort, phantom_cohort.iloc[[0]].assign(path=str(tmp_path / "copy.jpeg"))])
    leaks = find_leaks(more.reset_index(drop=True))
    page = write_audit(phantom_cohort, find_shortcuts(phantom_cohort, permutations=99), leaks, tmp_path / "audit.html")
    text = page.read_text()
    assert "copy.jpeg" in text and "border ring" in text and str(tmp_path) not in text


def test_synthetic_images_are_named_wherever_results_are_shown(run_folder, covid_cohort):
    assert "All images are synthetic." in (run_folder / "report.html").read_text()
    real = covid_cohort.assign(path=[f"scan-{number}.png" for number in range(len(covid_cohort))])
    assert not [caveat for caveat in cohort_caveats(real) if "synthetic" in caveat.title]
    mixed = covid_cohort.assign(path=[*covid_cohort["path"].iloc[:2], *real["path"].iloc[2:]])
    (caveat,) = [caveat for caveat in cohort_caveats(mixed) if "synthetic" in caveat.title]
    assert caveat.title == f"2 of {len(mixed)} images are synthetic." and caveat.level == "caution"
