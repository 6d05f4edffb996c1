"""What a run needs before it begins, checked without torch, whose import takes seconds."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from covid_fastai.config import TrainConfig
from covid_fastai.data.layouts import find_data, find_image_root
from covid_fastai.data.pseudonymise import check_key, remove_key
from covid_fastai.data.recipes import get_recipe
from covid_fastai.data.regions import region_version
from covid_fastai.errors import DataError, UnavailableError, UsageError
from covid_fastai.files import CLAIM_FILES, check_new_folder, claim_folder, is_unfinished
from covid_fastai.model.choices import check_choices
from covid_fastai.run_folder import MODEL_BUILT, RunFolder

__all__ = [
    "check_crops",
    "check_folds",
    "check_out",
    "check_start",
    "clear_failed_start",
    "read_options",
    "read_unfinished",
]

logger = logging.getLogger("covid_fastai")

# what a run writes before it builds a model
BEFORE_TRAINING = {RunFolder.config, RunFolder.versions, RunFolder.record, RunFolder.problems, RunFolder.cohort}
BEFORE_TRAINING |= {RunFolder.cohort_info, RunFolder.training_manifest}


def check_start(data: Any, config: TrainConfig) -> None:
    """Check the options of a new run, and that the files and folders that it names exist.

    Args:
        data: As in `train_classifier`.
        config: The options.

    Raises:
        UsageError: An option cannot be right, or `data` is no path.
        DataError: The data, or what `image_root`, `join` or a recipe need, do not exist.
    """
    check_choices(config)
    if not isinstance(data, pd.DataFrame):
        find_data(data)
        if config.recipe is not None:
            get_recipe(config.recipe).require(data)
    find_image_root(config.image_root)
    if config.join is not None:
        find_data(config.join)


def check_folds(folds: int | None, choices: Mapping[str, Any], *, n_jobs: int = 1) -> None:
    """Raise for a cross-validation that cannot begin.

    Args:
        folds: Number of folds; None for a single training.
        choices: The options that were given.
        n_jobs: As in `cross_validate`.

    Raises:
        UsageError: The options are mutually exclusive.
        UnavailableError: Ray is needed, and not installed.
    """
    if n_jobs > 1 and find_spec("ray") is None:
        raise UnavailableError(
            f"n_jobs={n_jobs} needs Ray, which is not installed.", hint="pip install 'covid_fastai[ray]'"
        )
    device = str(choices.get("device", ""))
    if n_jobs > 1 and device.startswith("cuda:"):  # guard: gpu_of_ray
        raise UsageError(
            f"device={device!r} and n_jobs={n_jobs} are mutually exclusive: Ray gives each process its GPU.",
            hint="Use device='cuda', and CUDA_VISIBLE_DEVICES to choose the GPUs.",
        )
    if folds is not None and (folds < 2 or choices.get("split") == "image" or choices.get("evaluate_test")):
        raise UsageError(
            f"folds={folds} cannot be combined with these options.",
            hint="Cross-validation needs 2 folds or more, split='patient' or 'official', and evaluate_test=False.",
        )


def check_out(out: str | Path) -> None:
    """Raise for a folder in which no run can begin.

    Args:
        out: The folder of a new run.

    Raises:
        ResourceError: It is not empty, unless it holds only a run that ended before it trained; or it is a file.
    """
    if not _is_failed_start(RunFolder(Path(out))):
        check_new_folder(out)


def clear_failed_start(folder: RunFolder) -> None:
    """Empty the folder of a run that ended before a model was built, so that the same folder can be named again.

    Nothing is removed if another process owns the folder, or if it has any file that such a run does not write.

    Args:
        folder: The folder of a new run.
    """
    if not _is_failed_start(folder):
        return
    with claim_folder(folder.path):
        for path in _files_of_run(folder):
            path.unlink()  # guard: failed_start
        remove_key(folder)
        logger.info("%s held a run that ended before it trained; it begins anew.", folder.path)
    for name in CLAIM_FILES:
        (folder.path / name).unlink(missing_ok=True)


def _files_of_run(folder: RunFolder) -> list[Path]:
    return [path for path in folder.path.iterdir() if path.name not in CLAIM_FILES and not is_unfinished(path)]


def _is_failed_start(folder: RunFolder) -> bool:
    """Return whether a folder holds only what a run writes before it builds a model."""
    if not folder.path.is_dir() or MODEL_BUILT in {event["event"] for event in folder.read_record()}:
        return False
    paths = _files_of_run(folder)
    if not all(path.name in BEFORE_TRAINING and path.is_file() and not path.is_symlink() for path in paths):
        return False
    return folder.is_run() or _is_cut_start(folder, paths)


def _is_cut_start(folder: RunFolder, paths: Sequence[Path]) -> bool:
    """Return whether a run was killed before its first event: it has its options at most, or has only claimed it."""
    if not paths:
        return any((folder.path / name).is_file() for name in CLAIM_FILES)  # guard: killed_start
    try:
        return {"config", "python", "command"} <= folder.read_options().keys()
    except (OSError, ValueError, TypeError):
        return False  # somebody else's config.json


def read_options(folder: RunFolder) -> dict[str, Any]:
    """Read the options that a run has saved.

    Args:
        folder: The folder of the run.

    Raises:
        DataError: The folder is not that of a run.
    """
    try:
        return folder.read_options()
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder.path} is not a run that can be resumed: {error}.", hint="Name the folder of an unfinished run."
        ) from error


def read_unfinished(
    resume: str | Path, data: Any, *, folds: int | None, repeats: int, others: Mapping[str, Any]
) -> tuple[Any, TrainConfig]:
    """Return the data and options that an unfinished run goes on with.

    Args:
        resume: The folder of the run.
        data: The data if they have moved or are a DataFrame; None for those of the run.
        folds: Number of folds; None for a single training.
        repeats: Number of repeats of a cross-validation.
        others: All other options that were given. A resumed run keeps its own.

    Raises:
        UsageError: The run is finished, was begun with another function, or other options were given.
        DataError: The folder is not that of a run, or its data do not exist.
    """
    if any(others.values()):
        raise UsageError("A resumed run keeps its own options.", hint="Give no other options together with resume.")
    folder = RunFolder(Path(resume))
    saved = read_options(folder)
    if saved["config"].get("pseudonymise"):
        check_key(folder)
    if (saved.get("folds"), saved.get("repeats", 1)) != (folds, repeats):
        call = "train_classifier"
        if saved.get("folds"):
            call = f"cross_validate(folds={saved['folds']}, repeats={saved.get('repeats', 1)})"
        raise UsageError(f"The run {folder.path} was begun with {call}.", hint="Resume it with the same function.")
    if folder.is_finished():
        raise UsageError(f"The run {folder.path} is finished.", hint="Start a new run.")
    if data is None:
        data = saved["data"]
        if data is None:
            raise UsageError(
                f"The run {folder.path} was begun with a DataFrame.", hint="Give the same DataFrame to resume it."
            )
        if not Path(data).expanduser().exists():  # guard: resume_moved
            raise DataError(
                f"The run {folder.path} was begun with the data {data}, which do not exist (seen from {Path.cwd()}).",
                hint="Restore them. If they have moved, give their new place: "
                f"covid-fastai train NEW_DATA --resume {folder.path}, or "
                f"train_classifier(NEW_DATA, resume={str(folder.path)!r}).",
            )
    elif not isinstance(data, pd.DataFrame):
        find_data(data)
    check_crops(saved, folder)
    return data, _with_moved_root(TrainConfig.from_dict(saved["config"]), saved["data"], data)


def check_crops(saved: Mapping[str, Any], folder: RunFolder) -> None:
    """Raise if a run was begun with crops to the lungs that this version would make otherwise.

    Args:
        saved: What the run has written of its options.
        folder: The run.

    Raises:
        UsageError: The lung segmentation has changed since.
    """
    region = saved["config"].get("region", "frame")
    begun = saved.get("segmentation", "")
    if begun and begun != region_version(region):  # guard: resumed_crops
        raise UsageError(
            f"The run {folder.path} was begun on crops of the lung segmentation {begun}, and this version of "
            f"covid_fastai has {region_version(region)}.",
            hint=f"Go on with the version that began it (see {RunFolder.versions} in the run), or start a new run.",
        )


def _with_moved_root(config: TrainConfig, old: str | None, new: Any) -> TrainConfig:
    """Return the options of a resumed run with an `image_root` that has moved together with the data."""
    root = config.image_root
    if root is None or Path(root).expanduser().is_dir() or old is None or isinstance(new, pd.DataFrame):
        return config
    moved = os.path.normpath(os.path.join(new, os.path.relpath(root, old)))
    if not os.path.isdir(moved):
        raise DataError(
            f"The run was begun with image_root={root}, which does not exist, and neither does {moved}.",
            hint="Put the images back, or at the same place relative to the data as before.",
        )
    return config.replace(image_root=moved)
