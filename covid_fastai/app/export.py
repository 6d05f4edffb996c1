"""A trained model in a folder of its own: checked, with its ONNX file and a model card, ready to be shared."""

from __future__ import annotations

from pathlib import Path

from covid_fastai.errors import ResourceError
from covid_fastai.files import atomic_write, new_run_folder
from covid_fastai.model.bundle_config import (
    CONFIG_FILE,
    ONNX_FILE,
    WEIGHTS_FILE,
    read_bytes,
    read_config,
    read_verified,
)
from covid_fastai.model.card import CARD_FILE, LARGEST_CARD, build_card
from covid_fastai.model.hub import find_model
from covid_fastai.model.predictor import Predictor

__all__ = ["export_model"]


def export_model(run: str | Path, target: str | Path, *, revision: str | None = None) -> Path:
    """Copy a saved model, after checking that it answers as it did when it was saved.

    Args:
        run: A run, a saved model, or a name on the Hub.
        target: The folder to make; it must not exist, or be empty.
        revision: Of a model on the Hub.

    Returns:
        The folder, with `config.json`, `model.safetensors`, `model.onnx` and `README.md`, the model card: the model's
        own, or one made from its config, in which the verdict and the limits are still to be written.

    Raises:
        ResourceError: The folder holds something, or cannot be written to.
        ModelFormatError: A file of the model is missing, damaged, or does not give its answer.
    """
    folder = find_model(run, revision=revision)
    name = folder.resolve()
    title = name.parent.name if name.name == "model" else name.name
    config = read_config(folder / CONFIG_FILE)
    card = folder / CARD_FILE
    if config.onnx is None:  # what has to be made by torch is made by it; all else needs none
        from covid_fastai.model.bundle import load_model, save_model

        _check_new(Path(target))
        target = save_model(load_model(folder, device="cpu"), target)
        config, contents = read_config(target / CONFIG_FILE), {}
    else:
        Predictor(folder, threads=1)
        contents = {WEIGHTS_FILE: read_verified(folder / WEIGHTS_FILE, config.sha256)}
        contents[ONNX_FILE] = read_verified(folder / ONNX_FILE, config.onnx.sha256)
        contents[CONFIG_FILE] = (folder / CONFIG_FILE).read_bytes()
        target = new_run_folder(target, task="")
    own = read_bytes(card, LARGEST_CARD) if card.is_file() else build_card(config, title=title).encode()
    for name, content in {CARD_FILE: own, **contents}.items():  # config.json last: without it there is no model
        with atomic_write(target / name, mode="wb") as file:
            file.write(content)
    return target


def _check_new(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ResourceError(f"{target} already holds something.", hint="Name a new folder.")
