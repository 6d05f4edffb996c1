"""Some seconds of fuzzing; `python -m tests.attacks.fuzz` runs longer."""

from __future__ import annotations

import pytest

from tests.attacks.fuzz import fuzz
from tests.attacks.guided import KINDS

SECONDS = 6


@pytest.mark.slow
def test_mutated_files_give_a_result_or_a_typed_error(tmp_path):
    found = fuzz(tmp_path, seconds=SECONDS, seed=0)
    assert {*KINDS} - {"DICOM"} <= found.keys()
    total = sum(sum(counts.values()) for counts in found.values())
    assert total > 100 and sum(counts["refused"] for counts in found.values()) > 20
    assert found["image"]["answered"] and found["image"]["refused"]
