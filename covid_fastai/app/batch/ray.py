"""Predict the parts of a batch on a Ray cluster: Ray Data maps a predictor over the parts."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covid_fastai.app.batch.local import predict_paths
from covid_fastai.errors import UnavailableError
from covid_fastai.model.bundle_config import CONFIG_FILE, ONNX_FILE
from covid_fastai.model.card import FINDINGS_FILE
from covid_fastai.model.predictor import Predictor

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PartPredictor", "run_on_ray"]


class PartPredictor:
    """A predictor for `map_batches` of Ray Data, which creates one in each of its processes.

    Args:
        files: The contents of `config.json`, `model.onnx` and, if there is one, `findings.json` by file name, so that
            the machines of the cluster need no access to the folder of the model.
        fingerprint: The fingerprint of the model, which is compared with that of the files.

    Raises:
        ModelFormatError: The files are not a model, or those of another one.
    """

    def __init__(self, files: dict[str, bytes], fingerprint: str):
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                Path(folder, name).write_bytes(content)
            self.predictor = Predictor(folder, threads=1, fingerprint=fingerprint)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list]:
        """Predict the parts of a batch.

        Args:
            batch: The `number` and the `paths` of each part.

        Returns:
            The `number` of each part and its `table`, as JSON of the columns.
        """
        tables = [json.dumps(predict_paths(self.predictor, list(paths)).to_dict("list")) for paths in batch["paths"]]
        return {"number": list(batch["number"]), "table": tables}


def run_on_ray(
    folder: Path, jobs: Iterator[tuple[int, list[str]]], *, workers: int, fingerprint: str
) -> Iterator[tuple[int, pd.DataFrame]]:
    """Predict parts on the Ray cluster of this process (`ray.init`), or on a local one that Ray starts.

    Ray replaces a process that dies and repeats its part; each part yields exactly one table. A file that kills every
    process that reads it ends the batch, and the completed parts remain. The local engine finds such a file: it gives
    it a row with the status `failed`.

    Args:
        folder: The folder of the saved model.
        jobs: The number and the paths of each part. The list of all paths is held in memory.
        workers: The number of processes, with one processor core each. If the cluster has fewer cores, parts wait.
        fingerprint: The fingerprint of the model.

    Yields:
        The number and the table of each part, in the order of completion.

    Raises:
        ModelFormatError: The model cannot be used, or was exchanged.
        UnavailableError: Ray is not installed.
    """
    try:
        import ray.data
    except ImportError as error:
        raise UnavailableError(
            "engine='ray' needs the package ray, which is not installed.", hint="pip install 'covid_fastai[ray]'"
        ) from error
    import pandas as pd

    names = (CONFIG_FILE, ONNX_FILE, FINDINGS_FILE)
    files = {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
    PartPredictor(files, fingerprint)  # reports an unusable model once here instead of once per process
    parts = [{"number": number, "paths": paths} for number, paths in jobs]
    if not parts:
        return
    tables = ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(
        PartPredictor,
        fn_constructor_args=(files, fingerprint),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(workers, len(parts))),
        num_cpus=1,
    )
    for row in tables.iter_rows():
        yield int(row["number"]), pd.DataFrame(json.loads(row["table"]))
