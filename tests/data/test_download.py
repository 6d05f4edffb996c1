"""The download of CoronaHack: results and errors of a fake kagglehub. Nothing is downloaded here."""

from __future__ import annotations

import errno
import logging
import socket
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from covid_fastai.data.download import DATASET, PAGE, TERMS, download_coronahack
from covid_fastai.data.layouts import CORONAHACK_CSV
from covid_fastai.data.metadata import read_cohort
from covid_fastai.errors import DataError, OfflineError, ResourceError, UnavailableError


@pytest.fixture
def kagglehub(monkeypatch):
    """A fake kagglehub that returns or raises `answer`, and records its calls."""
    module = ModuleType("kagglehub")
    module.calls = []

    def dataset_download(handle, **options):
        module.calls.append((handle, options))
        if isinstance(module.answer, BaseException):
            raise module.answer
        return str(module.answer)

    module.dataset_download = dataset_download
    monkeypatch.setitem(sys.modules, "kagglehub", module)
    return module


class HTTPError(OSError):
    """As in requests: an OSError with a response."""

    def __init__(self, status: int):
        super().__init__(f"{status} Client Error.\n\nYou don't have permission to access resource")
        self.response = SimpleNamespace(status_code=status)


@pytest.mark.parametrize("below", ["", "versions/3"])
def test_the_folder_of_the_csv_is_returned(kagglehub, tmp_path, below):
    folder = tmp_path / below
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CORONAHACK_CSV).write_text("X_ray_image_name,Label,Dataset_type\n")
    kagglehub.answer = tmp_path
    assert download_coronahack() == folder
    assert kagglehub.calls == [(DATASET, {})]


def test_the_returned_folder_can_be_read(kagglehub, phantom_root):
    kagglehub.answer = phantom_root
    assert len(read_cohort(download_coronahack(), check_images=False)) > 0


def test_a_folder_is_passed_as_an_absolute_path(kagglehub, phantom_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kagglehub.answer = phantom_root
    download_coronahack("data")
    assert kagglehub.calls == [(DATASET, {"output_dir": str(tmp_path / "data")})]


def test_terms_are_logged_before_the_download(kagglehub, phantom_root, caplog):
    logged = []
    kagglehub.answer = phantom_root
    fetch = kagglehub.dataset_download
    kagglehub.dataset_download = lambda *args, **options: (logged.extend(caplog.messages), fetch(*args, **options))[1]
    with caplog.at_level(logging.INFO, "covid_fastai"):
        download_coronahack()
    assert logged == [TERMS]
    assert "CC BY 4.0" in TERMS and "CC BY-NC-SA 4.0" in TERMS and PAGE in TERMS and "Research use only" in TERMS


def test_without_kagglehub_the_hint_has_the_pip_command(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with caplog.at_level(logging.INFO, "covid_fastai"), pytest.raises(UnavailableError, match="kagglehub") as error:
        download_coronahack()
    assert 'pip install "covid_fastai[data]"' in error.value.hint and PAGE in error.value.hint
    assert error.value.exit_code == 4 and not caplog.messages


@pytest.mark.parametrize(
    "failure",
    [
        ConnectionError("Max retries exceeded with url: /api\nthe second line"),
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        TimeoutError("timed out"),
        socket.gaierror(-2, "Name or service not known"),
        OSError(errno.ENETUNREACH, "Network is unreachable"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_offline_the_hint_explains_the_manual_download(kagglehub, failure):
    kagglehub.answer = failure
    with pytest.raises(OfflineError, match="cannot be reached") as error:
        download_coronahack()
    assert PAGE in error.value.hint and "unzip" in error.value.hint and "read_cohort(" in error.value.hint
    assert "second line" not in str(error.value) and error.value.__cause__ is failure


@pytest.mark.parametrize(("status", "login"), [(401, True), (403, True), (404, False), (429, False), (503, False)])
def test_a_refusal_raises_with_its_status(kagglehub, status, login):
    kagglehub.answer = HTTPError(status)
    with pytest.raises(UnavailableError, match=f"Kaggle answers {status}: ") as error:
        download_coronahack()
    assert not isinstance(error.value, OfflineError)
    assert ("kagglehub.login()" in error.value.hint) == login and PAGE in error.value.hint


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left"),
        (PermissionError(errno.EACCES, "Permission denied", "/data"), "Permission denied"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/etc/passwd/data"), "Not a directory"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "/data"), "File name too long"),
        (FileExistsError("output_dir is not empty: /data. Set force_download=True to replace it."), "not empty: /data"),
    ],
)
def test_a_folder_that_cannot_be_written(kagglehub, failure, message):
    kagglehub.answer = failure
    with pytest.raises(ResourceError, match=f"cannot be written: .*{message}") as error:
        download_coronahack("data")
    assert "folder" in error.value.hint


def test_other_errors_of_kagglehub_are_wrapped(kagglehub):
    kagglehub.answer = RuntimeError("checksum mismatch")
    with pytest.raises(UnavailableError, match="kagglehub failed: RuntimeError: checksum mismatch") as error:
        download_coronahack()
    assert PAGE in error.value.hint and type(error.value) is UnavailableError


def test_an_interrupt_is_not_wrapped(kagglehub):
    kagglehub.answer = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        download_coronahack()


def test_another_data_set_is_refused(kagglehub, tmp_path):
    (tmp_path / "readme.txt").write_text("moved")
    kagglehub.answer = tmp_path
    with pytest.raises(DataError, match=f"has no {CORONAHACK_CSV}") as error:
        download_coronahack()
    assert PAGE in error.value.hint and str(tmp_path) in error.value.message


def test_a_file_instead_of_a_folder_is_refused(kagglehub, tmp_path):
    file = Path(tmp_path / "page.html")
    file.write_text("<html>")
    kagglehub.answer = file
    with pytest.raises(DataError, match="it is not CoronaHack"):
        download_coronahack()
