"""The parts of a batch on a Ray cluster: the same predictor, mapped by Ray Data over the parts."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covid_fastai.app.batch.local import predict_paths
from covid_fastai.errors import UnavailableError
from covid_fastai.model.bundle_config import CONFIG_FILE, ONNX_FILE
from covid_fastai.model.predictor import Predictor

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PartPredictor", "run_on_ray"]


class PartPredictor:
    """The predictor as Ray Data's `map_batches` takes it: made once in each of its processes.

    Args:
        files: `config.json` and `model.onnx` by name; so the machines need not share a disk with the model.
    """

    def __init__(self, files: dict[str, bytes]):
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                Path(folder, name).write_bytes(content)
            self.predictor = Predictor(folder, threads=1)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list]:
        """Predict one part: `number` and `paths` become `number` and `table`, its columns as JSON."""
        tables = [json.dumps(predict_paths(self.predictor, list(paths)).to_dict("list")) for paths in batch["paths"]]
        return {"number": list(batch["number"]), "table": tables}


def run_on_ray(
    folder: Path, jobs: Iterator[tuple[int, list[str]]], *, workers: int
) -> Iterator[tuple[int, pd.DataFrame]]:
    """Predict parts on the Ray cluster that this process belongs to (`ray.init`), or on one that Ray starts here.

    A process that dies is replaced by Ray, and the part that it had is done again: a part's table is a value that Ray
    keeps once, so that nothing is lost and nothing comes twice. A file that kills every process that reads it ends the
    batch, with what was done kept: find it with the local engine, which gives it a row.

    Args:
        folder: The saved model.
        jobs: Number and paths of each part. The list of all paths is held here.
        workers: Processes, one processor core each; what the cluster has not waits.

    Yields:
        Number and table of each part, as they come.

    Raises:
        UnavailableError: Ray is not installed.
    """
    try:
        import ray.data
    except ImportError as error:
        raise UnavailableError("engine='ray' needs Ray.", hint="pip install 'covid_fastai[ray]'") from error
    import pandas as pd

    Predictor(folder, threads=1)
    parts = [{"number": number, "paths": paths} for number, paths in jobs]
    if not parts:
        return
    files = {name: (folder / name).read_bytes() for name in (CONFIG_FILE, ONNX_FILE)}
    found = ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(
        PartPredictor,
        fn_constructor_args=(files,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(workers, len(parts))),
        num_cpus=1,
    )
    for row in found.iter_rows():
        yield int(row["number"]), pd.DataFrame(json.loads(row["table"]))
