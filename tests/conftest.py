"""Fixtures that many tests share: the real images where they are, and one small synthetic data set."""

from __future__ import annotations

import gc
import logging
import os
import random
import socket
import sys
from pathlib import Path

import numpy as np
import pytest

import tests.examples  # noqa: F401 - the settings of all property tests
from tests.prediction_fixtures import make_predictions, predictions, run_folder, three_classes  # noqa: F401

if "PYTEST_XDIST_WORKER" in os.environ:  # two processes with all cores each are slower than one
    os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).parents[1]
NO_SKIPS = "COVID_FASTAI_NO_SKIPS"  # set where everything is installed: a skip then fails the run
# The files that take longest, of the fast tests or of the slow ones: they come first, so that none of them is left to
# one process when the other has nothing more to do.
LONGEST = """
    training/test_train attacks/test_training training/test_external audit/test_baselines reporting/test_report
    app/cli/test_main app/server/test_app app/cli/test_output training/test_cross_validate training/test_retrain
    attacks/test_kills attacks/test_privacy data/test_images model/test_bundle evaluation/test_comparison
    data/test_fingerprints data/test_splits app/server/test_browser data/test_metadata data/test_phantom
    saliency/test_methods model/test_predictor model/test_features model/test_checkpoint app/cli/test_serve
""".split()
EXCUSES = ("GPU: ", "system: ")  # how the reason of a skip begins that no installation could spare


@pytest.hookimpl(wrapper=True)
def pytest_collection(session):
    """Search for no garbage among what the tests import, then and later: each search there takes half a second."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items):
    places = {REPOSITORY / "tests" / f"{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Decoded images of the tests, and of the processes that they start, are kept in a folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COVID_FASTAI_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _same_environment():
    """Keep what a test, or a command that it runs in this process, writes into the environment from the next test."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(autouse=True)
def _same_logging():
    """Keep the levels and handlers that a command sets in this process from the next test."""
    loggers = [logging.getLogger(name) for name in ("covid_fastai", "covid_fastai.live", "py.warnings")]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    formatter = logging.lastResort.formatter
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
    logging.lastResort.setFormatter(formatter)
    logging.captureWarnings(False)


@pytest.fixture(autouse=True)
def _same_random_numbers():
    """Let a test draw the same random numbers, whichever tests ran before it in its process."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - fastai and torchvision draw from the global generators
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def _no_other_host(request, monkeypatch):
    """Let a test speak with this machine only, unless it is marked network."""
    if request.node.get_closest_marker("network"):
        return
    connect = socket.socket.connect

    def connect_here(self, address):
        host = address[0] if isinstance(address, tuple) else "localhost"  # a name in the file system
        if host not in ("localhost", "::1", "") and not str(host).startswith("127."):
            raise RuntimeError(f"A test asked for {host}; mark it network, or serve what it needs on 127.0.0.1.")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)  # guard: other_host


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real radiographs, named by COVID_FASTAI_DATA; tests that need it carry the marker `realdata`."""
    folder = Path(os.environ.get("COVID_FASTAI_DATA", REPOSITORY / "../shared/data")).resolve()
    if not (folder / "coronahack-224").is_dir():
        pytest.skip(f"real data: {folder}/coronahack-224 is not there; set COVID_FASTAI_DATA")
    return folder


def _unexcused_skips(reporter) -> list[str]:
    """Return the skips that fail a run in which everything is said to be installed, a line each."""
    if not os.environ.get(NO_SKIPS):
        return []
    excuses = EXCUSES if "COVID_FASTAI_DATA" in os.environ else (*EXCUSES, "real data: ")
    lines = set()  # a module that is skipped is reported by each process
    for report in reporter.stats.get("skipped", []):
        path, line, text = report.longrepr
        reason = text.removeprefix("Skipped: ")
        if not reason.startswith(excuses):
            lines.add(f"{os.path.relpath(path, REPOSITORY)}:{line}: {reason}")
    return sorted(lines)


def pytest_sessionfinish(session, exitstatus):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and exitstatus == pytest.ExitCode.OK and _unexcused_skips(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    if lines := _unexcused_skips(terminalreporter):
        terminalreporter.section(f"skips that {NO_SKIPS} does not allow", sep="=", red=True)
        for line in lines:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def phantom_root(tmp_path_factory) -> Path:
    """A small synthetic data set in CoronaHack's layout: 20 patients each of COVID-19 and Normal, 8 of each other."""
    from covid_fastai.data.phantom import write_phantom

    patients = {"COVID-19": 20, "Normal": 20, "bacteria": 8, "virus": 8}
    return write_phantom(tmp_path_factory.mktemp("phantom") / "data", patients=patients, image_size=64, seed=1)


@pytest.fixture(scope="session")
def phantom_cohort(phantom_root):
    """The covid task's cohort of `phantom_root`, split by patient, a quarter for validation. Copy before changing."""
    from covid_fastai.data.metadata import read_cohort
    from covid_fastai.data.splits import split_by_patient

    return split_by_patient(read_cohort(phantom_root, task="covid"), valid_pct=0.25, seed=0)


@pytest.fixture(scope="session")
def small_model(tmp_path_factory) -> Path:
    """The folder of a saved model of 10 KB, made without torch: a fixed linear layer on 4 x 4 mean grey levels.

    It takes 64 pixels, has the classes Normal and COVID-19 and the threshold 0.4, and its answers differ from picture
    to picture. `Predictor` reads it; `load_model` does not, since it is no architecture of the package.
    """
    from tests.small_model import write_small_model

    return write_small_model(tmp_path_factory.mktemp("small") / "small-covid")
