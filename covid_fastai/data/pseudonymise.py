"""Replace the files and patients of a run or page by numbers, with the key in a folder beside it."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from covid_fastai.data.cohort import Cohort, as_cohort
from covid_fastai.data.image_files import has_image_suffix, suffix_of
from covid_fastai.data.phantom import is_synthetic
from covid_fastai.data.pretraining_overlap import write_manifest
from covid_fastai.errors import DataError, ResourceError
from covid_fastai.files import is_unfinished, read_csv, write_csv, write_json
from covid_fastai.pseudonyms import IMAGES, KEY_TABLE, PRIVATE, SYNTHETIC, find_key, read_private
from covid_fastai.run_folder import RunFolder

__all__ = [
    "DATA",
    "begin_key",
    "check_key",
    "hide_files",
    "number_data",
    "numbered_page",
    "patient_manifest",
    "pseudonymise",
    "real_names",
    "real_paths",
    "relink",
    "remove_key",
]

COLUMNS = ["image", "path", "patient", "patient_in_data"]
DATA = "DATA"  # stands for the data, in place of their folder


def begin_key(run: RunFolder, *, data: str | None, config: Mapping[str, Any], files: Mapping[str, str]) -> None:
    """Create the folder of the key of a new run, which only its owner can read.

    Args:
        run: The run.
        data: The data as given; None for a table in memory.
        config: The options of the run.
        files: Words that stand for files and folders in what the run writes, by the files and folders.

    Raises:
        ResourceError: The folder exists already, or cannot be created.
    """
    if os.path.lexists(run.key):
        raise ResourceError(
            f"{run.key} exists; it may be the key of another run or page.",
            hint="Move it away, or name another folder or page.",
        )
    try:
        run.key.mkdir(mode=0o700)  # guard: private_key
        (run.key / IMAGES).mkdir(mode=0o700)
    except OSError as error:
        raise ResourceError(
            f"The folder {run.key} cannot be created: {error.strerror}.",
            hint="Name another run or page.",
        ) from error
    # two runs must not give one number to two patients
    _hide(run, {"data": data, "config": dict(config), "root": "", "tag": 100_000 + secrets.randbelow(900_000)}, files)


def _hide(run: RunFolder, private: Mapping[str, Any], files: Mapping[str, str]) -> None:
    """Write the private facts of a run, with the folders that it hides in every spelling."""
    hidden = dict(private.get("hidden", {}))
    for file, word in {**files, os.path.expanduser("~"): "~"}.items():
        for place in (os.path.abspath(os.path.expanduser(file)), os.path.realpath(os.path.expanduser(file))):
            if place != os.path.dirname(place):  # not the root of the disk
                hidden.setdefault(place, word)
    write_json(_private(run.key / PRIVATE), {**private, "hidden": hidden})


def hide_files(run: RunFolder, files: Mapping[str, str]) -> None:
    """Hide further files and folders in what a run writes, such as the new place of its data.

    Args:
        run: The run.
        files: As in `begin_key`.
    """
    _hide(run, read_private(run.path), files)


def _private(path: Path) -> Path:
    """Return a file that only its owner can read and that `atomic_write` then keeps so."""
    path.touch(mode=0o600)
    return path


def check_key(run: RunFolder) -> None:
    """Raise if the key of a pseudonymised run is not beside it.

    Raises:
        DataError: It is missing.
    """
    if not (run.key / PRIVATE).is_file():
        raise DataError(
            f"The images of the run {run.path} are replaced by numbers, and the key is not there: {run.key}.",
            hint="Put the folder of the key back beside the run.",
        )


def pseudonymise(cohort: pd.DataFrame, run: RunFolder, *, write: bool = True) -> Cohort:
    """Return a cohort with numbers in place of the names of files and patients, and write the key.

    A path of the result is a link in the folder of the key, through which the image is opened. Rows, classes, split
    and all other columns do not change. The key of a resumed run gives the same numbers again.

    Args:
        cohort: The cohort with its split.
        run: The run, whose key `begin_key` has begun.
        write: Whether to write the key; False in the other processes of a training, after the main one.

    Returns:
        The cohort, whose facts name no folder, and whose problems name no file.

    Raises:
        DataError: The rows are not those of the key.
        ResourceError: The links cannot be made.
    """
    cohort = as_cohort(cohort)
    check_key(run)
    file, tag = run.key / KEY_TABLE, read_private(run.path)["tag"]
    if file.is_file():
        key = read_csv(file, dtype=str, keep_default_na=False)
        if [os.path.basename(path) for path in key["path"]] != [os.path.basename(path) for path in cohort["path"]]:
            raise DataError(f"The data have changed since the run {run.path} began.", hint="Start a new run.")
    else:
        key = _new_key(cohort, tag)
    if write:
        relink(run, key, cohort["path"], root=cohort.facts.root)
        write_csv(_private(run.key / RunFolder.problems), cohort.facts.problem_table())
        write_manifest(cohort[cohort["split"] == "train"], _private(patient_manifest(run)))
    replaced = cohort.assign(path=_links(run, key["image"]), patient=key["patient"].to_numpy())
    return _hide_facts(cohort, replaced, dict(zip(cohort["path"], key["image"], strict=True)), tag)


def _new_key(rows: pd.DataFrame, tag: int) -> pd.DataFrame:
    """Return the key of rows, one for each: numbers that begin with a tag, and what they stand for."""
    patients = _number(rows["patient"], f"P{tag}-")
    images = [f"{tag}-{_image_name(number, path)}" for number, path in enumerate(rows["path"], start=1)]
    key = pd.DataFrame({"image": images, "patient": rows["patient"].map(patients).to_numpy()})
    return key.assign(path=rows["path"].to_numpy(), patient_in_data=rows["patient"].to_numpy())


def _hide_facts(cohort: Cohort, replaced: pd.DataFrame, numbers: Mapping[str, str], tag: int) -> Cohort:
    """Return the replaced rows of a cohort with facts that name no file, and with numbers for groups."""
    if "group" in cohort:
        replaced["group"] = cohort["group"].map(_number(cohort["group"], f"G{tag}-"))
    problems = tuple(_without_names(row, numbers) for row in cohort.facts.problems)
    return as_cohort(replaced).with_facts(data=DATA, root="", problems=problems)


@contextmanager
def numbered_page(
    rows: pd.DataFrame, page: str | Path, *, numbered: bool, files: Mapping[str, str]
) -> Iterator[pd.DataFrame]:
    """Give the rows of a page, with numbers in place of files and patients if it shall name nobody.

    The key is written beside the page, and removed again if the page is not written.

    Args:
        rows: A cohort, or predictions: `path` and `patient`.
        page: The page that is written during the `with` block.
        numbered: Whether numbers stand for files and patients.
        files: Words that stand for files and folders in the page, as in `begin_key`.

    Yields:
        The rows; a numbered path is a link to the image.

    Raises:
        ResourceError: There is a key beside the page already, which belongs to an earlier page.
    """
    run = RunFolder(page)
    if not numbered:
        if (run.key / PRIVATE).is_file():  # guard: page_of_key
            raise ResourceError(
                f"{run.path} is a page with numbers, and {run.key} is its key.", hint="Name another page."
            )
        yield rows
        return
    begin_key(run, data=None, config={}, files={os.getcwd(): ".", **files})
    try:
        tag = read_private(run.path)["tag"]
        key = _new_key(rows, tag).drop_duplicates("path")
        relink(run, key, key["path"], root="")
        numbers = dict(zip(key["path"], key["image"], strict=True))
        patients = _number(rows["patient"], f"P{tag}-")
        replaced = rows.assign(path=_links(run, rows["path"].map(numbers)), patient=rows["patient"].map(patients))
        yield _hide_facts(rows, replaced, numbers, tag) if isinstance(rows, Cohort) else replaced
    except BaseException:
        remove_key(run)
        raise


def patient_manifest(run: RunFolder) -> Path:
    """Return the manifest with hashes of the patients, which stays with the key: a hash can be guessed."""
    return run.key / RunFolder.training_manifest


def relink(run: RunFolder, key: pd.DataFrame, paths: Iterable[str], *, root: str) -> None:
    """Make the links of a key anew, for files that may have moved, and write the key.

    Args:
        run: The run.
        key: The key, one row for each row of the cohort.
        paths: The files, in the same order.
        root: The folder that holds them.
    """
    key = key.assign(path=list(paths))[COLUMNS]
    for image, path in zip(key["image"], key["path"], strict=True):
        link = run.key / IMAGES / image
        try:
            if link.is_symlink():
                link.unlink()
            link.symlink_to(os.path.abspath(path))
        except OSError as error:
            raise ResourceError(
                f"The link {link} cannot be made: {error.strerror}.",
                hint="Choose a disk with links; on Windows, turn on its developer mode.",
            ) from error
    write_csv(_private(run.key / KEY_TABLE), key)
    private = read_private(run.path)
    _hide(run, {**private, "root": root}, {root: "IMAGES"} if root else {})


def number_data(run: RunFolder, data: str) -> str:
    """Return the name of external data in a pseudonymised run, such as `data-1`; the same data have the same name.

    Args:
        run: The run.
        data: The path of the data.
    """
    check_key(run)
    private = read_private(run.path)
    known = private.setdefault("external", {})
    name = f"data-{known.setdefault(data, len(known) + 1)}"
    _hide(run, private, {data: name})
    return name


def real_paths(run: RunFolder) -> pd.DataFrame:
    """Return the key of a run: `image`, `path`, `patient` and `patient_in_data`, one row for each row of its cohort."""
    check_key(run)
    return read_csv(run.key / KEY_TABLE, dtype=str, keep_default_na=False)


def real_names(table: pd.DataFrame, file: str | Path) -> pd.DataFrame:
    """Return predictions of a pseudonymised run with their files and patients, to match them with those of other runs.

    Args:
        table: The rows as read; without the key of their run they are returned as they are.
        file: The file that they were read from.
    """
    key = find_key(file)
    if key is None:
        return table
    rows = read_csv(key / KEY_TABLE, dtype=str, keep_default_na=False)
    paths = {str(key / IMAGES / image): path for image, path in zip(rows["image"], rows["path"], strict=True)}
    patients = dict(zip(rows["patient"], rows["patient_in_data"], strict=True))
    renamed = {name: table[name].replace(names) for name, names in (("path", paths), ("patient", patients))}
    return table.assign(**renamed)


def remove_key(run: RunFolder) -> None:
    """Remove the key of a run that has trained nothing; the images behind its links stay."""
    if run.key.is_symlink() or not run.key.is_dir():
        return
    is_empty = all(path.name == IMAGES or is_unfinished(path) for path in run.key.iterdir())
    if is_empty or (run.key / PRIVATE).is_file():  # guard: own_key
        shutil.rmtree(run.key)


def _links(run: RunFolder, images: Iterable[str]) -> list[str]:
    return [str(run.key / IMAGES / image) for image in images]


def _number(values: pd.Series, prefix: str) -> dict[Any, str]:
    """Return a number for each value, in the order in which they appear."""
    unique: Sequence[Any] = values.unique().tolist()
    return {value: f"{prefix}{number:05d}" for number, value in enumerate(unique, start=1)}


def _image_name(number: int, path: str) -> str:
    kind = SYNTHETIC if is_synthetic(path) else ""  # guard: synthetic_number
    return f"{number:06d}{kind}{suffix_of(path) if has_image_suffix(path) else ''}"


def _without_names(row: Mapping[str, Any], numbers: Mapping[str, str]) -> dict[str, Any]:
    """Return a problem without its reason, which can name files, patients and values."""
    where = f"See {RunFolder.problems} beside the key."
    return {**row, "path": numbers.get(row["path"], ""), "reason": row["kind"].replace("_", " "), "remedy": where}
