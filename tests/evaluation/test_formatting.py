"""Numbers, intervals and results as text, with one sign for a missing value."""

from __future__ import annotations

import ast
import inspect
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import covid_fastai
from covid_fastai.evaluation.formatting import (
    MISSING,
    PERCENT,
    SIGNED,
    ResultDisplay,
    format_estimate,
    format_interval,
    format_metric,
    format_metric_name,
    format_p_value,
)

NONE = [None, math.nan, math.inf, np.float64("nan")]
PACKAGE = Path(covid_fastai.__file__).parent


@pytest.mark.parametrize("value", NONE)
def test_a_missing_value_has_one_sign(value):
    assert format_metric(value) == format_metric(value, spec=SIGNED) == format_metric(value, spec=PERCENT) == MISSING
    assert format_interval(value, 0.5) == format_interval(0.5, value) == MISSING
    assert format_estimate(value, 0.1, 0.2) == MISSING
    assert format_estimate(0.5, value, 0.2) == format_estimate(0.5, 0.2, value) == "0.500"
    assert format_p_value(value) == f"p = {MISSING}"


def test_numbers_have_three_decimals_and_zero_has_no_minus_sign():
    assert format_metric(0.8256) == "0.826" and format_metric(np.float32(1)) == "1.000"
    assert format_metric(-0.0004) == "0.000" and format_metric(-0.0004, spec=SIGNED) == "+0.000"
    assert format_metric(0.25, spec=PERCENT) == "25%"


def test_an_interval_follows_its_estimate():
    assert format_interval(0.5, 0.75) == "0.500 to 0.750"
    assert format_estimate(0.6, 0.5, 0.75) == "0.600 (0.500 to 0.750)"
    assert format_estimate(0.1, -0.05, 0.2, spec=SIGNED) == "+0.100 (-0.050 to +0.200)"


@pytest.mark.parametrize(("p", "text"), [(1.0, "p = 1.000"), (0.0301, "p = 0.030"), (0.0004, "p < 0.001")])
def test_p_values(p, text):
    assert format_p_value(p) == text


def test_metrics_have_their_usual_names():
    assert format_metric_name("auc") == "AUC" and format_metric_name("f1", "COVID-19") == "F1 (COVID-19)"
    assert format_metric_name("balanced_accuracy") == "balanced accuracy"


class ExampleResult(ResultDisplay):
    def _display_parts(self):
        yield pd.DataFrame({"a<b": ["<i>", "x"], "value": [0.5, math.nan]})
        yield ["one & two", "three"]
        yield "that's <all>"


def test_text_and_html_have_the_same_parts_and_html_is_escaped():
    text, page = repr(ExampleResult()), ExampleResult()._repr_html_()
    assert text.splitlines()[-3:] == ["one & two", "three", "that's <all>"] and MISSING in text and "NaN" not in text
    assert "<ul><li>one &amp; two</li><li>three</li></ul><p>that&#x27;s &lt;all&gt;</p>" in page
    assert "<i>" not in page and "&lt;i&gt;" in page and f"<td>{MISSING}</td>" in page


def test_only_the_base_class_defines_repr_html():
    modules = {
        path.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name == "_repr_html_"
    }
    assert modules == {Path(inspect.getfile(ResultDisplay)).name}


def test_no_other_module_formats_an_interval():
    """` to ` between two numbers with fixed decimals is an interval, which `format_interval` formats."""
    places = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if path.name == "formatting.py" or not isinstance(node, ast.JoinedStr):
                continue
            for before, between, after in zip(node.values, node.values[1:], node.values[2:], strict=False):
                specs = [ast.unparse(part) for part in (before, after) if isinstance(part, ast.FormattedValue)]
                fixed = len(specs) == 2 and all(re.search(r"\.\d[f%]", spec) for spec in specs)
                if fixed and getattr(between, "value", None) == " to ":
                    places.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert not places
