"""pytest fixtures for people who build on this package: data, cohort, loaders and a trained learner, ready to use.

Installing the package is enough: pytest finds the plugin by its entry point. It imports nothing heavy until a fixture
is used, so a test run without these fixtures pays nothing. All are made once a session, from a seed, without a network.
Copy a table before you change it; train on a learner of your own (`build_learner(covid_dls)`).

    def test_my_rule(covid_cohort):
        assert my_rule(covid_cohort).all()
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import pandas as pd
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner

__all__ = ["covid_cohort", "covid_dataset", "covid_dls", "covid_learner"]

PATIENTS = {"COVID-19": 16, "Normal": 16, "bacteria": 4, "virus": 4}
IMAGE_SIZE = 64  # pixels: drawn, opened and learnt from in seconds
SEED = 0


@pytest.fixture(scope="session")
def covid_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a synthetic data set in CoronaHack's layout: 40 patients, images of 64x64 pixels.

    Its schematic chest radiographs hold no person's image; several images a patient, four hospitals, an official TEST
    without COVID-19, as in CoronaHack.
    """
    from covid_fastai.data.phantom import write_phantom

    folder = tmp_path_factory.mktemp("covid_dataset") / "CoronaHack"
    return write_phantom(folder, patients=PATIENTS, image_size=IMAGE_SIZE, seed=SEED)


@pytest.fixture(scope="session")
def covid_cohort(covid_dataset: Path) -> pd.DataFrame:
    """The cohort of `covid_dataset` for the task covid, a row an image, split by patient: a quarter is `valid`."""
    from covid_fastai.data.metadata import read_cohort
    from covid_fastai.data.splits import split_by_patient

    return split_by_patient(read_cohort(covid_dataset, task="covid"), valid_pct=0.25, seed=SEED)


@pytest.fixture(scope="session")
def covid_dls(covid_cohort: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> DataLoaders:
    """fastai `DataLoaders` of `covid_cohort` on the CPU: batches of 8 images `(8, 1, 64, 64)`."""
    from fastai.torch_core import no_random

    from covid_fastai.data.dataloaders import build_dataloaders

    with no_random(SEED):
        return build_dataloaders(
            covid_cohort,
            image_size=IMAGE_SIZE,
            batch_size=8,
            num_workers=0,
            device="cpu",
            path=tmp_path_factory.mktemp("covid_dls"),
        )


@pytest.fixture(scope="session")
def covid_learner(covid_dls: DataLoaders) -> Learner:
    """A fastai `Learner`, a ResNet-18 that was trained on `covid_dls` for one epoch from random weights.

    It is quick, not good: use it where a test needs a learner, not where it needs a right answer.
    """
    from fastai.torch_core import no_random

    from covid_fastai.model.learner import build_learner
    from covid_fastai.model.schedule import fit

    with no_random(SEED):
        learn = build_learner(covid_dls, weights=None, path=covid_dls.path)
        fit(learn, frozen_epochs=0, unfrozen_epochs=1)
    return learn
