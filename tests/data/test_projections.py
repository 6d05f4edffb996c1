"""Projections and modalities: stated non-frontal projections are excluded; without a statement they are unknown."""

from __future__ import annotations

import pandas as pd
import pytest

from covid_fastai.data.projections import (
    is_unstated,
    join_projections,
    not_frontal,
    not_radiograph,
    read_projection,
    read_views,
    view_of_name,
)


@pytest.mark.parametrize(
    ("text", "projection"),
    [
        *[(text, "PA") for text in ("PA", " pa ", "Postero-anterior", "POSTERO_ANTERIOR", "PA view")],
        *[(text, "AP") for text in ("AP", "Antero posterior", "anterior-posterior", "Chest AP", "R-10206")],
        *[(text, "frontal") for text in ("Frontal", "frontal view", "AP/PA", "pa|ap")],
        *[("AP Supine", "AP supine"), ("AP_ERECT", "AP erect"), ("Portable AP", "AP portable")],
        ("PA upright", "PA upright"),
        ("posteroanterior (PA)", "PA"),
    ],
)
def test_a_frontal_projection_in_its_spellings(text, projection):
    assert read_projection(text) == projection and not_frontal(projection) == ""


@pytest.mark.parametrize("text", ["L", "LL", "RL", "Lat", "LATERAL", "left lateral", "Lateral View", "LAT_L", "R LAT"])
def test_a_lateral_projection_in_its_spellings(text):
    assert read_projection(text) == "L" and not_frontal("L") == "lateral view"


@pytest.mark.parametrize(
    "text",
    ["Axial", "Coronal", "XTABLE LATERAL", "SWIMMERS", "LAO", "RAO", "AP LORDOTIC", "lordotic", "LLD", "PA oblique"]
    + ["PA and lateral", "sagittal", "AP axial", "decubitus", "1", "scout"],
)
def test_anything_else_that_is_stated_is_not_taken_for_frontal(text):
    assert read_projection(text) == text and f"{text!r} is not known to be frontal" in not_frontal(
        read_projection(text)
    )


@pytest.mark.parametrize("text", ["", "  ", "nan", "NaN", "N/A", "-", "--", "unknown", "Not available", "(none)", "?"])
def test_a_placeholder_states_nothing(text):
    assert is_unstated(text) and read_projection(text) == "" and not_radiograph(text) == ""


@pytest.mark.parametrize("text", ["chest", "CXR", "portable", "Chest view", "supine"])
def test_a_word_that_is_no_projection_states_none(text):
    assert read_projection(text) == ""


@pytest.mark.parametrize("text", ["0", "1", "P-7", "none of these", "NA12"])
def test_a_value_is_not_a_placeholder(text):
    assert not is_unstated(text)


@pytest.mark.parametrize("text", ["X-ray", "xray", "X Ray", "CR", "dx", "DR", "Chest X-ray", "Digital Radiography"])
def test_radiographs_are_included(text):
    assert not_radiograph(text) == ""


@pytest.mark.parametrize("text", ["CT", "CT scan", "MR", "ultrasound", "PET/CT", "mammography", "X-ray angiography"])
def test_another_modality_is_excluded_by_name(text):
    assert not_radiograph(text) == f"modality {text!r} is not a radiograph"


@pytest.mark.parametrize(
    ("stated", "joined", "frontal"),
    [
        (("", ""), "", True),
        (("frontal", "PA"), "PA", True),
        (("AP supine", "frontal"), "AP supine", True),
        (("PA", "AP"), "frontal", True),
        (("L", ""), "L", False),
        (("L", "L"), "L", False),
        (("frontal", "L"), "frontal and L", False),
        (("PA", "Axial"), "PA and Axial", False),
    ],
)
def test_statements_of_several_columns_are_joined(stated, joined, frontal):
    assert join_projections(stated) == joined and (not_frontal(joined) == "") == frontal


def test_several_columns_of_the_view_count_together():
    extras = pd.DataFrame(
        {"Frontal/Lateral": ["Frontal", "Lateral", "Frontal", "Frontal"], "AP/PA": ["AP", "", "LL", "nan"]}
    )
    views = read_views(pd.Series(["", "", "", "PA"]), extras.assign(Sex="F"))
    assert views.tolist() == ["AP", "L", "frontal and L", "PA"]
    assert read_views(pd.Series(["ap", "?"]), pd.DataFrame(index=range(2))).tolist() == ["AP", ""]


@pytest.mark.parametrize(
    ("name", "view"),
    [
        ("CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg", "frontal"),
        ("patient1/study2/view2_lateral.jpg", "L"),
        ("view1_lateral", "L"),
        ("sub-S01/ses-E1/mod-rx/sub-S01_ses-E1_run-1_bp-chest_vp-pa_cr.png", "PA"),
        ("sub-S01_ses-E1_vp-ap_dx.png", "AP"),
        ("sub-S01_vp-ll_cr.png", "L"),
        ("review1_lateral.png", ""),
        ("frontal.png", ""),
        ("lateral/0001.png", ""),
        ("mvp-ll.png", ""),
        ("view1_lateral_copy.png", ""),
    ],
)
def test_the_view_in_a_file_name_of_a_public_form(name, view):
    assert view_of_name(name) == view
