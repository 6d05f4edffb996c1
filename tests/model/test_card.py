"""The model card: the metadata for the Hub, and the findings that are shown with every prediction."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from covid_fastai.errors import ModelFormatError
from covid_fastai.model.bundle_config import BundleConfig
from covid_fastai.model.card import FINDINGS_FILE, Findings, build_card, read_findings, split_card, write_card
from covid_fastai.notices import OF_DRAWINGS

WEIGHTS = {"name": "cxr-resnet18", "mean": 0.5, "std": 0.25, "origin": "", "sha256": "", "arch": "resnet18"}


@pytest.fixture
def config() -> BundleConfig:
    fields = {"format": 3, "covid_fastai": "0.1.0", "arch": "resnet18", "head": ["Linear"], "n_in": 1}
    fields |= {"classes": ["Normal", "COVID-19"], "positive": "COVID-19", "task": "covid", "image_size": 64}
    fields |= {"resize": "squash-bilinear-antialias", "region": "frame", "segmentation": ""}
    fields |= {"mean": 0.5, "std": 0.25, "augmentation": "standard"}
    fields |= {"batch_size": 16, "threshold": 0.4, "temperature": 1.5, "training_manifest": "", "weights": WEIGHTS}
    fields |= {"sha256": "0" * 64, "onnx": None, "versions": {}, "fingerprint": "f" * 64}
    golden = {"image_sha256": "0" * 64, "logits": [0.0, 0.0], "probabilities": [0.5, 0.5]}
    return BundleConfig.model_validate({**fields, "golden": golden})


def test_the_hub_can_read_its_metadata(config):
    text = build_card(config, title="A: model", license="cc-by-4.0", tags=["adults: [x]", "onnx"])
    front = yaml.safe_load(text.split("---\n")[1])
    assert front == ModelCard(text).data.to_dict() and ModelCard(text).text.startswith("\n# A: model\n")
    assert front["library_name"] == "covid_fastai" and front["license"] == "cc-by-4.0"
    assert front["pipeline_tag"] == "image-classification"
    assert {"adults: [x]", "onnx", "safetensors", "chest-x-ray"} <= set(front["tags"])
    assert len(front["tags"]) == len(set(front["tags"]))


@pytest.mark.parametrize(
    "name",
    [
        "![x](http://host/a.png)",
        "[x](http://host)",
        "\\![x\\](http://host/a.png)",
        "![a][b] [b]: http://host/a.png",
        "<img src=http://host/a.png>",
        "<!-- x -->",
        "`a` ![`b`](http://host/a.png)",
    ],
)
def test_no_name_makes_a_link_or_an_image(config, tmp_path, name):
    """The Hub and editors show the card as a page, and would load the image from somebody's server."""
    classes = {"classes": ("Normal", name), "positive": name}
    hostile = config.model_copy(update=classes)
    limits = [f"{name}: few patients.", name]
    path = write_card(tmp_path, hostile, title=name, headline=name, verdict=name, limits=limits, metrics=f"### {name}")
    page = MarkdownIt("commonmark").render(split_card(path.read_text())[1])
    assert not re.search("<(img|a |!--)", page) and page.count("http://host") == path.read_text().count("http://host")
    assert read_findings(tmp_path, hostile).headline == name


def test_the_card_has_the_facts_of_the_config(config):
    text = build_card(config, title="Mine")
    for words in ("# Mine", "Normal, COVID-19", "probability of 0.4 or more", "64 x 64", "temperature 1.5", "ffffffff"):
        assert words in text
    assert "Research use only; not a medical device" in text and "diagnos" not in text.lower()


def test_the_card_says_that_the_graph_does_not_crop(config):
    onnx = {"sha256": "0" * 64, "opset": 20, "input": "images", "outputs": ["probabilities", "logits", "maps"]}
    config = BundleConfig.model_validate(config.model_dump() | {"onnx": onnx})
    assert "does not crop" not in build_card(config, title="Mine")
    lungs = BundleConfig.model_validate(config.model_dump() | {"region": "lungs", "segmentation": "lungs-1-ab"})
    assert "cropped to the lungs" in (text := build_card(lungs, title="Mine")) and "the graph does not crop" in text


def test_the_findings_are_in_the_card_and_in_a_json_file(config, tmp_path):
    limits = ["Adults only.", "One **hospital**,\nin `Wuhan`."]
    path = write_card(tmp_path, config, title="Mine", verdict="AUC 0.9 (0.8 to 1.0),\n n = 40.", limits=limits)
    text = path.read_text(encoding="utf-8")
    assert "## Verdict\n\nAUC 0.9 (0.8 to 1.0), n = 40.\n" in text
    assert "\n- Adults only.\n- One **hospital**, in `Wuhan`.\n" in text
    findings = read_findings(tmp_path, config)
    assert findings.verdict == "AUC 0.9 (0.8 to 1.0), n = 40."
    assert findings.limits == ("Adults only.", "One **hospital**, in `Wuhan`.")
    path.write_text("## Verdict\n\nBetter than any doctor.\n")  # Markdown is for people: no program reads it
    assert read_findings(tmp_path, config) == findings


def test_a_model_of_drawings_says_so_wherever_it_is_read(config, tmp_path):
    said = {"headline": "This shows nothing about X.", "level": "failed", "verdict": "V."}
    for synthetic in (True, False):
        text = write_card(tmp_path, config, title="Mine", **said, synthetic=synthetic).read_text()
        findings = read_findings(tmp_path, config)
        assert "**This shows nothing about X.**" in text and text.index("**This") < text.index("- **Purpose**")
        assert (OF_DRAWINGS in text) == (OF_DRAWINGS in findings.sentences()) == synthetic
        assert ("synthetic" in yaml.safe_load(text.split("---\n")[1])["tags"]) == synthetic
        assert findings.short == ("model of drawings" if synthetic else "disease signal not shown")
        assert findings.sentences()[-2:] == ["This shows nothing about X.", "V."]
    assert Findings(fingerprint=config.fingerprint).short == "not stated"
    assert Findings(fingerprint=config.fingerprint).sentences() == ["The verdict on this model is not stated."]


def test_findings_that_are_not_stated_are_empty(config, tmp_path):
    assert read_findings(tmp_path, config) == Findings(fingerprint=config.fingerprint)
    text = write_card(tmp_path, config, title="Mine").read_text(encoding="utf-8")
    assert text.count("\nNot stated.\n") == 2
    assert read_findings(tmp_path, config) == Findings(fingerprint=config.fingerprint)


def test_long_findings_are_cut(config, tmp_path):
    write_card(tmp_path, config, title="Mine", verdict="x" * 5000, limits=["y"] * 500)
    findings = read_findings(tmp_path, config)
    assert len(findings.verdict) == 1200 and len(findings.limits) == 100


def test_findings_of_another_model_are_refused(config, tmp_path):
    write_card(tmp_path, config.model_copy(update={"fingerprint": "e" * 64}), title="Other", verdict="Sees disease.")
    with pytest.raises(ModelFormatError, match="about the model eeeeeeeeeeeeeeee, and this one is ffffffffffffffff"):
        read_findings(tmp_path, config)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        json.dumps({"fingerprint": "f" * 64, "verdict": 1}).encode(),
        json.dumps({"fingerprint": "f" * 64, "limits": "Adults only."}).encode(),
        json.dumps({"fingerprint": "f" * 64, "more": ""}).encode(),
        b'{"fingerprint": "' + b"f" * 64 + b'", "verdict": "' + b"x" * (1 << 20) + b'"}',
    ],
)
def test_damaged_findings_are_refused(config, tmp_path, content):
    (tmp_path / FINDINGS_FILE).write_bytes(content)
    with pytest.raises(ModelFormatError, match=FINDINGS_FILE):
        read_findings(tmp_path, config)
