"""pytest fixtures for packages that build on this one: a data set, a cohort, loaders and a trained learner.

Installing the package is enough: pytest finds the plugin by its entry point. Heavy imports happen only when a fixture
is used, so other test runs do not become slower. Each fixture is made once per session, from a seed, without a network.
Copy a table before you change it; to train, build your own learner (`build_learner(covid_dls)`).

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
IMAGE_SIZE = 64  # pixels; small, so that drawing, reading and training take seconds
SEED = 0


@pytest.fixture(scope="session")
def covid_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a synthetic data set in CoronaHack's layout and return its folder: 40 patients, images of 64x64 pixels.

    The chest radiographs are schematic drawings, not images of people. As in CoronaHack, patients have several images,
    there are four hospitals, and the official TEST has no COVID-19.
    """
    from covid_fastai.data.phantom import write_phantom

    folder = tmp_path_factory.mktemp("covid_dataset") / "CoronaHack"
    return write_phantom(folder, patients=PATIENTS, image_size=IMAGE_SIZE, seed=SEED)


@pytest.fixture(scope="session")
def covid_cohort(covid_dataset: Path) -> pd.DataFrame:
    """Return the cohort of `covid_dataset` for the task covid, split by patient with a quarter in `valid`."""
    from covid_fastai.data.metadata import read_cohort
    from covid_fastai.data.splits import split_by_patient

    return split_by_patient(read_cohort(covid_dataset, task="covid"), valid_pct=0.25, seed=SEED)


@pytest.fixture(scope="session")
def covid_dls(covid_cohort: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> DataLoaders:
    """Return fastai `DataLoaders` of `covid_cohort` on the CPU, with batches of 8 images `(8, 1, 64, 64)`."""
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
    """Return a fastai `Learner`: a ResNet-18 trained on `covid_dls` for one epoch from random weights.

    Training is short and the model is not accurate: use it for tests that need a learner, not correct predictions.
    """
    from fastai.torch_core import no_random

    from covid_fastai.model.learner import build_learner
    from covid_fastai.model.schedule import fit

    with no_random(SEED):
        learn = build_learner(covid_dls, weights=None, path=covid_dls.path)
        fit(learn, frozen_epochs=0, unfrozen_epochs=1)
    return learn
