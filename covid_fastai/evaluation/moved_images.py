"""The images of a run that were moved after the training: recognise that, and write their new paths into the run."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from covid_fastai.data.cohort import Cohort, as_cohort, load_cohort, save_cohort
from covid_fastai.data.file_locations import locate_files
from covid_fastai.data.fingerprints import fingerprint_images
from covid_fastai.data.layouts import find_data
from covid_fastai.data.pretraining_overlap import mark_pretraining_overlap, read_manifest
from covid_fastai.data.pseudonymise import check_key, real_paths, relink
from covid_fastai.data.reach import Reach
from covid_fastai.errors import DataError
from covid_fastai.evaluation.runs import Run, read_run
from covid_fastai.files import read_csv, write_csv
from covid_fastai.pseudonyms import read_private
from covid_fastai.run_folder import RunFolder

__all__ = ["move_images", "record_move", "require_images"]

logger = logging.getLogger("covid_fastai")

COMPARED = 32  # training images whose content is compared with the run's fingerprints
PATH_COLUMNS = ("path", "original")


def require_images(run: Run) -> None:
    """Raise if images of a run are no longer at their paths.

    Args:
        run: A run with its cohort.

    Raises:
        DataError: Images are missing; the hint says how to give their new place.
    """
    if run.is_pseudonymised:
        check_key(run.folder)  # guard: key_beside
    cohort = run.cohort
    root = read_private(run.path).get("root") or cohort.facts.root
    used = cohort.loc[cohort["split"] != "excluded", "path"]
    missing = [path for path in used if not os.path.isfile(path)]
    if missing:  # guard: moved_images
        raise DataError(
            f"{len(missing)} of {len(used)} images of the run {run.path} are missing, such as {missing[0]}. They were "
            f"read from {root or os.path.dirname(missing[0])}.",
            hint="Restore them. If they have moved, name the folder that now holds them: "
            f"covid-fastai audit {run.path} --data FOLDER, or audit_run({str(run.path)!r}, data=FOLDER). Their new "
            "paths are then written into the tables of the run.",
        )


def move_images(run: str | Path | Run, data: str | Path) -> Run:
    """Write the new paths of a run's images into its tables, after the images have been moved.

    Each image is found below the new folder by its path relative to the old one. The content of some training images
    is compared with the fingerprints that the run has kept.

    Args:
        run: The run, or its folder.
        data: The folder that now holds the images, or the CSV in it.

    Returns:
        The run, read again.

    Raises:
        DataError: There is no such folder, an image is not in it or lies outside of it, or it holds other images under
            the same names.
    """
    run = run if isinstance(run, Run) else read_run(run)
    cohort, place = run.cohort, find_data(data).resolve()
    place = place if place.is_dir() else place.parent
    key = real_paths(run.folder) if run.is_pseudonymised else None
    old = cohort.facts.root if key is None else read_private(run.path)["root"]
    names = [_relative(path, old) for path in (cohort if key is None else key)["path"]]
    located = locate_files(names, place, search=True)
    used = cohort["split"] != "excluded"  # the file of an excluded row may have been missing from the beginning
    gone = [
        name for name, path, needed in zip(names, located.paths, used, strict=True) if needed and not _is_file(path)
    ]
    if gone:
        raise DataError(
            f"{len(gone)} of {int(used.sum())} images of the run {run.path} are not in {place}, such as {gone[0]}.",
            hint=f"Give the folder that now has the content of {old or 'the data'}.",
        )
    reach = Reach(place)
    outside = [path for path, needed in zip(located.paths, used, strict=True) if needed and reach.path_fault(path)]
    if outside:  # guard: moved_outside
        raise DataError(
            f"{len(outside)} of {int(used.sum())} images of the run {run.path} lie outside of {place}, such as "
            f"{outside[0]}.",
            hint="Give the folder that contains all images of the run.",
        )
    if located.rule:
        logger.info("%s.", located.rule)
    moved = as_cohort(cohort.assign(path=located.paths)).with_facts(root=str(place))
    if key is not None:  # only its links change
        _compare_content(run.folder, moved)
        relink(run.folder, key, located.paths, root=str(place))
        run.folder.log("images moved", images=len(key))
        return read_run(run.path)
    record_move(run.folder, cohort, moved)
    save_cohort(moved, run.path)  # last: if anything fails before, the call can be repeated
    return read_run(run.path)


def record_move(folder: RunFolder, old: Cohort, new: Cohort) -> None:
    """Check that the images of two cohorts are the same, and replace the paths in all tables of a run but its cohort.

    Args:
        folder: The run.
        old: The rows with the paths that the tables have.
        new: The same rows, in the same order, with the new paths.

    Raises:
        DataError: Images differ from those that the run was trained on.
    """
    paths = {before: after for before, after in zip(old["path"], new["path"], strict=True) if before != after}
    if not paths:
        return
    _compare_content(folder, new)
    for file in sorted(folder.path.rglob("*.csv")):
        if file.name == RunFolder.cohort and file.parent != folder.path:
            _replace_in_cohort(file.parent, paths, root=new.facts.root)
        elif file.name in (RunFolder.predictions, RunFolder.probes, RunFolder.saliency):
            _replace_in_table(file, paths)
    folder.log("images moved", before=old.facts.root, after=new.facts.root, images=len(paths))
    logger.info("The run %s now reads its images from %s.", folder.path, new.facts.root)


def _compare_content(folder: RunFolder, cohort: Cohort) -> None:
    """Raise if some training images are not those whose fingerprints the run has kept."""
    trained = cohort[cohort["split"] == "train"]
    if trained.empty or not folder.training_manifest.is_file():
        return
    paths = trained["path"].sample(min(COMPARED, len(trained)), random_state=0).tolist()
    prints = fingerprint_images(paths)
    # by content alone: neither names nor patients
    rows = pd.DataFrame({"path": "", "patient": ""}, index=prints.index)
    known = mark_pretraining_overlap(rows, prints["phash"], [read_manifest(folder.training_manifest)])
    others = [path for path, same in zip(paths, known, strict=True) if not same]
    if others:  # guard: other_content
        raise DataError(
            f"{len(others)} of {len(paths)} images that were compared are not those that {folder.path} was trained on, "
            f"such as {others[0]}.",
            hint="Give the folder with the images of the run, or start a new run on these.",
        )


def _replace_in_table(file: Path, paths: Mapping[str, str]) -> None:
    table = read_csv(file, dtype=str, keep_default_na=False)
    for name in table.columns.intersection(list(PATH_COLUMNS)):
        table[name] = [paths.get(path, path) for path in table[name].tolist()]
    write_csv(file, table)


def _replace_in_cohort(folder: Path, paths: Mapping[str, str], *, root: str) -> None:
    """Replace the paths in the cohort of a fold."""
    cohort = load_cohort(folder)
    save_cohort(
        cohort.assign(path=cohort["path"].map(lambda path: paths.get(str(path), path))).with_facts(root=root), folder
    )


def _relative(path: str, root: str) -> str:
    return os.path.relpath(path, root) if root and path.startswith(os.path.join(root, "")) else path


def _is_file(path: str) -> bool:
    return bool(path) and os.path.isfile(path)
