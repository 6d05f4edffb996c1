"""A run in which everything is installed fails where a test is skipped that could have run."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import NO_SKIPS, REPOSITORY

TESTS = """
import pytest

def test_passes():
    pass

@pytest.mark.skipif(True, reason="system: only on Windows")
def test_of_another_system():
    pass

def test_of_a_gpu():
    pytest.skip("GPU: none here")

def test_of_real_data():
    pytest.skip("real data: none here")
"""
MODULE = 'import pytest\npytest.importorskip("not_there_at_all", reason="the extra web is not installed")'


@pytest.fixture
def run(tmp_path):
    """Run tests beside the project's own hooks, and return the status and what was printed."""

    def run_tests(**environment: str) -> tuple[int, str]:
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "tests.conftest",
            "-p",
            "no:cacheprovider",
            str(tmp_path),
        ]
        kept = {name: value for name, value in os.environ.items() if name not in (NO_SKIPS, "COVID_FASTAI_DATA")}
        kept = {name: value for name, value in kept.items() if not name.startswith("PYTEST_")}
        kept |= {"PYTHONPATH": str(REPOSITORY), **environment}
        done = subprocess.run(command, env=kept, cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    return run_tests


@pytest.mark.nightly
@pytest.mark.slow
def test_what_nothing_could_spare_is_allowed(run, tmp_path):
    (tmp_path / "test_one.py").write_text(TESTS)
    status, output = run(**{NO_SKIPS: "1"})
    assert status == 0 and "1 passed, 3 skipped" in output and NO_SKIPS not in output


@pytest.mark.nightly
@pytest.mark.slow
def test_what_is_missing_fails_the_run_and_is_named_once(run, tmp_path):
    """In two processes, as the suite runs: a package that is missing, real data that are not where they were named."""
    (tmp_path / "test_one.py").write_text(TESTS)
    (tmp_path / "test_two.py").write_text(MODULE)
    status, output = run(**{NO_SKIPS: "1", "COVID_FASTAI_DATA": str(tmp_path), "PYTEST_ADDOPTS": "-n 2"})
    assert status == 1 and f"skips that {NO_SKIPS} does not allow" in output
    listed = output.split(f"{NO_SKIPS} does not allow")[1]
    assert listed.count("test_two.py:2: the extra web is not installed") == 1
    assert listed.count("test_one.py:15: real data: none here") == 1 and listed.count(".py:") == 2
    status, output = run()
    assert status == 0 and NO_SKIPS not in output  # elsewhere a skip is no failure
