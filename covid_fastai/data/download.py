"""Download of the CoronaHack data set with kagglehub (the extra `data`)."""

from __future__ import annotations

import errno
import importlib
import logging
from pathlib import Path

from covid_fastai.data.layouts import CORONAHACK_CSV
from covid_fastai.errors import DataError, OfflineError, ResourceError, UnavailableError

__all__ = ["DATASET", "MANUAL_DOWNLOAD", "TERMS", "download_coronahack"]

logger = logging.getLogger("covid_fastai")

DATASET = "praveengovi/coronahack-chest-xraydataset"
PAGE = f"https://www.kaggle.com/datasets/{DATASET}"
FULL_OR_FORBIDDEN = (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS)
MANUAL_DOWNLOAD = (
    f"To download it manually: open {PAGE}, download the archive, unzip it, and give the folder: read_cohort('FOLDER')."
)
TERMS = (
    f"CoronaHack-Chest-XRay-Dataset, compiled by P. Govi on Kaggle: {PAGE}. Kaggle's terms of use and the licence "
    "stated on that page apply. Its images come from Kermany, Zhang, Goldbaum 2018 (Mendeley Data, "
    "doi:10.17632/rscbjbr9sj, CC BY 4.0) and Cohen, Morrison, Dao 2020 (COVID-19 Image Data Collection, each image "
    "under a licence of its own; its metadata CC BY-NC-SA 4.0, as far as is known). Cite them. Research use only."
)


def download_coronahack(folder: str | Path | None = None) -> Path:
    """Download CoronaHack from Kaggle, about 1.2 GB, and return its folder for `read_cohort`.

    A data set in kagglehub's cache is not downloaded again. Licence and terms (`TERMS`) are logged before the download.

    Args:
        folder: Destination, a new or empty folder; None for kagglehub's cache.

    Returns:
        The folder that holds the metadata CSV.

    Raises:
        UnavailableError: kagglehub is not installed, or Kaggle refuses the request (an account may be required).
        OfflineError: Kaggle cannot be reached; the hint explains the manual download.
        ResourceError: The disk is full, the folder is not writable, or it is not empty.
        DataError: The downloaded files are not the data set.
    """
    kagglehub = _import_kagglehub()
    logger.info("%s", TERMS)
    destination = {} if folder is None else {"output_dir": str(Path(folder).expanduser().resolve())}
    try:
        root = Path(kagglehub.dataset_download(DATASET, **destination))
    except Exception as error:  # kagglehub, requests and urllib3 share no base class
        raise _explain(error) from error
    tables = sorted(root.rglob(CORONAHACK_CSV))
    if not tables:
        raise DataError(f"{root} has no {CORONAHACK_CSV}: it is not CoronaHack, or incomplete.", hint=MANUAL_DOWNLOAD)
    logger.info("CoronaHack is in %s.", tables[0].parent)
    return tables[0].parent


def _import_kagglehub():
    try:
        return importlib.import_module("kagglehub")
    except ImportError as error:
        raise UnavailableError(
            "The download requires the package kagglehub, which is not installed.",
            hint=f'Install it: pip install "covid_fastai[data]". {MANUAL_DOWNLOAD}',
        ) from error


def _explain(error: Exception) -> UnavailableError:
    """Return the package's error for an error that kagglehub raised."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        login = "Kaggle may require an account: kagglehub.login(). " if status in (401, 403) else ""
        return UnavailableError(f"Kaggle answers {status}: {_line(error)}.", hint=f"{login}{MANUAL_DOWNLOAD}")
    if isinstance(error, FileExistsError):  # kagglehub refuses a folder that is not empty
        return ResourceError(f"CoronaHack cannot be written: {_line(error)}.", hint="Name a new or empty folder.")
    if isinstance(error, OSError) and (error.filename is not None or error.errno in FULL_OR_FORBIDDEN):
        return ResourceError(
            f"CoronaHack cannot be written: {error.strerror or _line(error)}.", hint="Choose another folder."
        )
    if isinstance(error, OSError):  # connection errors and timeouts of requests and urllib are OSErrors
        return OfflineError(f"Kaggle cannot be reached: {_line(error)}.", hint=MANUAL_DOWNLOAD)
    return UnavailableError(f"kagglehub failed: {type(error).__name__}: {_line(error)}.", hint=MANUAL_DOWNLOAD)


def _line(error: Exception) -> str:
    """Return the error's first line, shortened: kagglehub and urllib3 write paragraphs."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
