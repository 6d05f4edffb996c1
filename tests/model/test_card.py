"""The model card: metadata that the Hub reads, and the two sections that stand beside every answer."""

from __future__ import annotations

import json

import pytest
import yaml

from covid_fastai.model.bundle_config import BundleConfig
from covid_fastai.model.card import CARD_FILE, Card, build_card, read_card

WEIGHTS = {"name": "cxr-resnet18", "mean": 0.5, "std": 0.25, "origin": "", "sha256": "", "arch": "resnet18"}


@pytest.fixture
def config() -> BundleConfig:
    fields = {"format": 2, "covid_fastai": "0.1.0", "arch": "resnet18", "head": ["Linear"], "n_in": 1}
    fields |= {"classes": ["Normal", "COVID-19"], "positive": "COVID-19", "task": "covid", "image_size": 64}
    fields |= {"resize": "squash-bilinear-antialias", "mean": 0.5, "std": 0.25, "augmentation": "default"}
    fields |= {"batch_size": 16, "threshold": 0.4, "temperature": 1.5, "training_manifest": "", "weights": WEIGHTS}
    fields |= {"sha256": "0" * 64, "onnx": None, "versions": {}, "fingerprint": "f" * 64}
    golden = {"image_sha256": "0" * 64, "logits": [0.0, 0.0], "probabilities": [0.5, 0.5]}
    return BundleConfig.model_validate({**fields, "golden": golden})


def test_the_hub_can_read_its_metadata(config):
    text = build_card(config, title="A: model", license="cc-by-4.0", tags=["adults: [x]", "onnx"])
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["library_name"] == "covid_fastai" and front["license"] == "cc-by-4.0"
    assert front["pipeline_tag"] == "image-classification"
    assert {"adults: [x]", "onnx", "safetensors", "chest-x-ray"} <= set(front["tags"])
    assert len(front["tags"]) == len(set(front["tags"]))


def test_it_says_what_the_config_says(config):
    text = build_card(config, title="Mine")
    for words in ("# Mine", "Normal, COVID-19", "probability of 0.4 on", "64 x 64", "temperature 1.5", "ffffffff"):
        assert words in text
    assert "Research use only; not a medical device" in text and "diagnos" not in text.lower()


def test_verdict_and_limits_come_back(config, tmp_path):
    limits = ["Adults only.", "One **hospital**,\nin `Wuhan`."]
    text = build_card(config, title="Mine", verdict="AUC 0.9 (0.8 to 1.0),\n n = 40.", limits=limits, figures="| a |")
    (tmp_path / CARD_FILE).write_text(text, encoding="utf-8")
    assert read_card(tmp_path) == Card("AUC 0.9 (0.8 to 1.0), n = 40.", ("Adults only.", "One hospital, in Wuhan."))


def test_what_is_not_stated_is_empty(config, tmp_path):
    assert read_card(tmp_path) == Card()
    (tmp_path / CARD_FILE).write_text(build_card(config, title="Mine"), encoding="utf-8")
    assert read_card(tmp_path) == Card()
    (tmp_path / CARD_FILE).write_bytes(b"\xff\xfe## Limits\n" + b"# x\n" * 9)
    assert read_card(tmp_path) == Card()


def test_a_card_by_hand(tmp_path):
    (tmp_path / CARD_FILE).write_text(
        "# M\n\n## Verdict\nFit for nothing yet.\n\n## Limits\n\nPlain words.\n## More\nx\n"
    )
    assert read_card(tmp_path) == Card("Fit for nothing yet.", ("Plain words.",))
    (tmp_path / CARD_FILE).write_text("## Limits\n" + json.dumps("x" * 5000))
    assert len(read_card(tmp_path).limits[0]) == 1200
