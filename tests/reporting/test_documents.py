"""The documents of a run: they report its results, and name what is missing."""

from __future__ import annotations

import inspect
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml

from covid_fastai import read_run, write_documents
from covid_fastai.data.cohort import load_cohort, save_cohort
from covid_fastai.errors import DataError
from covid_fastai.model.bundle_config import read_config
from covid_fastai.model.card import Findings, read_findings
from covid_fastai.reporting import guidelines
from covid_fastai.reporting.guidelines import CLAIM, ITEMS, TRIPOD_AI
from covid_fastai.reporting.run_facts import RunFacts, describe_metric, markdown_table

CARD, SHEET, REPORTING = "model card", "data sheet", "reporting items"


@pytest.fixture
def run(run_folder, tmp_path):
    """A copy of the run that a test may change."""
    return shutil.copytree(run_folder, tmp_path / "run")


def rows_of(path, guideline):
    """Return the rows of a guideline's table by item."""
    section = path.read_text().split(f"## {guideline}\n")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in section.splitlines()
        if line[:1] == "|"
    ]
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


def findings_of(card) -> Findings:
    return read_findings(card.parent, read_config(card.parent / "config.json"))


def state(folder, item, guideline=CLAIM):
    return rows_of(write_documents(folder)[REPORTING], guideline)[item]["state"]


def test_every_item_of_both_guidelines_is_listed_once():
    numbers = {name: [item.number for item in ITEMS if item.guideline == name] for name in (CLAIM, TRIPOD_AI)}
    assert numbers[CLAIM] == [str(n) for n in range(1, 45)]
    assert len(numbers[TRIPOD_AI]) == len(set(numbers[TRIPOD_AI])) == 52
    assert {re.sub("[a-g]", "", number) for number in numbers[TRIPOD_AI]} == {str(n) for n in range(1, 28)}
    answering = {name for name, value in vars(guidelines).items() if inspect.isfunction(value) and name[0] != "_"}
    answering = {name for name in answering if getattr(guidelines, name).__module__ == guidelines.__name__}
    assert {item.answer.__name__ for item in ITEMS if item.answer} == answering  # each function answers an item
    assert all(item.reason and item.asks for item in ITEMS)


def test_a_training_writes_all_documents(run_folder):
    assert all((run_folder / name).is_file() for name in ("model/README.md", "datasheet.md", "reporting-items.md"))
    report = (run_folder / "report.html").read_text()
    assert "datasheet.md" in report and "reporting-items.md" in report and "model/README.md" in report


def test_the_card_holds_the_verdict_the_limits_and_every_metric(run):
    from covid_fastai import read_audit

    path = write_documents(run)[CARD]
    text, findings = path.read_text(), findings_of(path)
    assert findings.verdict == read_audit(run).verdict.sentence and findings.verdict in text
    assert any("same image sources" in limit for limit in findings.limits)
    assert all(f"\n- {limit}\n" in text for limit in findings.limits)
    summary = read_run(run).metrics.summary()
    for row in summary.to_dict("records"):
        assert f"| {row['metric']} | {row['value']} | {row['95% interval']} | {row['n']} |" in text
    assert yaml.safe_load(text.split("---")[1])["license"] == "unknown"


def test_the_card_gives_the_command_without_the_folder_of_the_data(run):
    config = read_run(run).config
    text = write_documents(run)[CARD].read_text()
    data = config["data"]
    assert config["command"].replace(data, data.rsplit("/", 1)[-1]) in text and data not in text


def test_without_an_audit_the_verdict_and_its_items_are_missing(run):
    assert state(run, "30") == "in part" and state(run, "25", TRIPOD_AI) == "in part"
    (run / "audit.json").unlink()
    written = write_documents(run)
    assert findings_of(written[CARD]).verdict.startswith("Not audited")
    assert rows_of(written[REPORTING], CLAIM)["30"]["state"] == "missing"
    assert rows_of(written[REPORTING], TRIPOD_AI)["25"]["state"] == "missing"


@pytest.mark.slow
def test_an_item_is_missing_if_its_file_is_missing(run):
    for item, name in (("23", "versions.json"), ("25", "history.csv"), ("7", "problems.csv")):
        guideline = TRIPOD_AI if item == "7" else CLAIM
        assert state(run, item, guideline) == "answered"
        (run / name).rename(run / f"away-{name}")
        assert state(run, item, guideline) == "missing"
        (run / f"away-{name}").rename(run / name)


def test_without_a_model_there_is_no_card(run):
    shutil.rmtree(run / "model")
    written = write_documents(run)
    assert set(written) == {SHEET, REPORTING}
    for item in ("1", "9", "22", "27"):
        assert rows_of(written[REPORTING], CLAIM)[item]["state"] == "missing"


def test_without_an_evaluation_no_result_is_reported(run):
    (run / "metrics.json").unlink()
    written = write_documents(run)
    assert CARD not in written
    for item in ("28", "29", "32", "37", "38", "39", "40"):
        assert rows_of(written[REPORTING], CLAIM)[item]["state"] == "missing"


def test_external_data_answer_the_item_and_change_the_limit(run):
    assert state(run, "33") == "missing"
    metrics = {"metric": "auc", "value": 0.61, "low": 0.5, "high": 0.72, "n": 50}
    row = {"images of": "elsewhere", "comparison": "same source", **metrics}
    source = {"source": "elsewhere", "thumbnail": 0.6, **{key: metrics[key] for key in ("value", "low", "high", "n")}}
    result = {"table": [row], "thumbnail": [{**row, "value": 0.6}], "same_source": [source], "overlap": 3}
    (run / "external").mkdir()
    (run / "external" / "there.json").write_text(json.dumps(result | {"threshold": 0.5}))
    written = write_documents(run)
    item = rows_of(written[REPORTING], CLAIM)["33"]
    assert item["state"] == "answered"
    assert "0.610 (95% interval 0.500 to 0.720, n = 50 patients)" in item["answer"]
    findings = findings_of(written[CARD])
    assert "repeat the audit" in findings.verdict  # the audit does not include the external data
    assert not any("was not measured" in limit for limit in findings.limits)
    assert "3 images of the training data" in written[CARD].read_text()


def test_patients_without_known_characteristics_are_no_subgroup(run):
    cohort = load_cohort(run)
    facts = RunFacts(read_run(run))
    assert facts.count_known("sex") == len(facts.used)
    save_cohort(cohort.assign(sex="", age=np.nan, view="", source=""), run)
    written = write_documents(run)
    rows = rows_of(written[REPORTING], CLAIM)
    assert [rows[item]["state"] for item in ("7", "13", "36")] == ["missing"] * 3
    assert rows_of(written[REPORTING], TRIPOD_AI)["23b"]["state"] == "missing"
    sheet = written[SHEET].read_text()
    assert "- Sex: unknown." in sheet and "- Age: unknown." in sheet


def test_the_counts_at_the_top_agree_with_the_rows(run):
    path = write_documents(run)[REPORTING]
    for guideline in (CLAIM, TRIPOD_AI):
        states = pd.Series([row["state"] for row in rows_of(path, guideline).values()]).value_counts()
        line = (
            f"**{guideline}**: {states['answered']} answered, {states['in part']} in part, {states['missing']} missing"
        )
        assert line in path.read_text().split("## ")[0]


def test_the_counts_of_the_data_sheet_agree_with_the_cohort(run):
    text = write_documents(run)[SHEET].read_text()
    cohort = read_run(run).cohort
    used = cohort[cohort["split"] != "excluded"]
    for (split, label), rows in used.groupby(["split", "label"]):
        assert f"| {split} | {label} | {len(rows)} | {rows['patient'].nunique()} |" in text
    assert f"{len(cohort)} images of {cohort['patient'].nunique()} patients" in text
    assert "Unknown: the data name no licence" in text and "Mendeley" not in text


def test_the_data_sheet_reports_that_images_are_gone(run):
    cohort = load_cohort(run)
    assert "| JPEG " in write_documents(run)[SHEET].read_text()
    save_cohort(cohort.assign(path="/gone/" + cohort.index.astype(str)), run)
    (run / "metrics.json").unlink()
    assert "no longer where the run read them" in write_documents(run)[SHEET].read_text()


def test_text_from_the_data_stays_in_its_cell(run):
    cohort = load_cohort(run)
    save_cohort(cohort.assign(source="a|b\n# <img src=x> ![y](http://host/z.png)"), run)
    written = write_documents(run)
    assert "![y&#93;(http" in written[SHEET].read_text()
    for path in written.values():
        assert "](http" not in path.read_text()
        assert "<img" not in path.read_text() and "\n# <" not in path.read_text()
    assert len(rows_of(written[REPORTING], CLAIM)) == 44
    assert markdown_table([{"x": "a|b"}]).splitlines()[2] == "| a\\|b |"


def test_a_missing_value_is_called_not_estimable():
    row = {"metric": "auc", "value": None, "low": None, "high": None, "n": 3, "unit": "patient"}
    assert describe_metric(row) == "AUC not estimable (n = 3 patients)"
    assert "0.500 (95% interval –, n = 3 patients)" in describe_metric({**row, "value": 0.5})


def test_no_document_mentions_a_diagnosis(run):
    for path in write_documents(run).values():
        assert "Research use only" in path.read_text()
        assert "diagnosis" not in path.read_text().lower()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="is not the folder of a run"):
        write_documents(tmp_path)
