"""Export the lung segmentation as the package reads it: `python -m pretraining.lung_export --out OUT`.

The network is that of the last stage of a training, unless another stage is named.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from covid_fastai.files import atomic_write, utc_now, write_json
from covid_fastai.model.onnx_export import export_graph
from pretraining.lungs import LungNet

__all__ = ["export_lungs"]

SOURCES = {
    "montgomery": "Montgomery County chest X-ray set, USA (Jaeger et al. 2014, National Library of Medicine): images "
    "and lung masks, public",
    "shenzhen": "Shenzhen chest X-ray set, China (Jaeger et al. 2014, National Library of Medicine): images, public; "
    "masks of Stirenko et al. 2018, CC BY-NC-SA 4.0 as far as is known",
    "kermany": "Kermany, Zhang, Goldbaum 2018, Mendeley Data, doi:10.17632/rscbjbr9sj, CC BY 4.0: images without masks",
    "radiography": "COVID-19 Radiography Database (Chowdhury et al. 2020, Rahman et al. 2021, Kaggle): images without "
    "masks; the terms of its page apply",
}


class _Graph(nn.Module):
    """The graph: 8-bit images to the probabilities of both lungs, `(n, 2, h, w)`.

    It is the mean over the image and its mirror image, in which the lungs exchange their sides.
    """

    def __init__(self, model: LungNet):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the probabilities of images `(n, 1, h, w)`."""
        x = images.float() / 255
        mirrored = self.model(x.flip(3)).softmax(1)[:, :2]
        return (self.model(x).softmax(1)[:, :2] + mirrored.flip((1, 3))) / 2


def main() -> None:
    """Write `lungs.onnx` and `lungs.json` into the folder of a training."""
    parser = argparse.ArgumentParser(prog="python -m pretraining.lung_export", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder of the training")
    parser.add_argument(
        "--stage", default="final-2", help="the folder of the stage: teacher, student, final-1, final-2"
    )
    options = parser.parse_args()
    print(export_lungs(options.out, options.stage))


def export_lungs(out: Path, name: str) -> Path:
    """Write the best epoch of a network as ONNX with 16-bit weights, and its facts as JSON.

    Args:
        out: The folder of the training.
        name: The folder of the stage: teacher, student or final.

    Returns:
        The path of the ONNX file.
    """
    saved = torch.load(out / name / "checkpoint.pt", weights_only=True)
    recipe, *_ = json.loads(saved["facts"])
    model = LungNet(tuple(recipe["widths"]))
    model.load_state_dict(saved["best"]["weights"])
    graph = _Graph(model).eval()
    metadata = {"use": "research only"}
    proto = export_graph(graph, image_size=recipe["size"], output_names=["lungs"], metadata=metadata)
    _store_half(proto)
    content = proto.SerializeToString(deterministic=True)
    path = out / "lungs.onnx"
    with atomic_write(path, mode="wb") as file:
        file.write(content)
    masked = pd.read_csv(out / "masked.csv")
    masked = masked[
        (masked["part"] == "train") & masked["bank"].isin(recipe["masks" if name == "teacher" else "student_masks"])
    ]
    facts = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "image_size": recipe["size"],
        "made": utc_now(),
        "torch": torch.__version__,
        "network": name,
        "epochs": len(saved["history"]),
        "best_epoch": saved["best"]["epoch"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "recipe": recipe,
        "images_with_masks": masked["bank"].value_counts().to_dict(),
        "sources": SOURCES,
        "use": "Research use only; not a medical device.",
    }
    if name != "teacher":
        unmasked = pd.read_csv(out / "unmasked.csv")
        facts["images_without_masks"] = unmasked["bank"].value_counts().to_dict()
    write_json(path.with_suffix(".json"), facts)
    return path


def _store_half(proto: onnx.ModelProto) -> None:
    """Store weights in 16 bits, with a cast to 32 bits that ONNX Runtime computes once when it opens the file."""
    graph, casts = proto.graph, []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < 64:
            continue
        values = numpy_helper.to_array(tensor).astype(np.float16)
        assert np.isfinite(values).all()
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values, f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], name=f"{name}.cast", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(proto)


if __name__ == "__main__":
    main()
