"""Export a trained model, with its ONNX file and model card, into a folder that can be shared."""

from __future__ import annotations

from pathlib import Path

from covid_fastai.errors import ResourceError, UsageError
from covid_fastai.files import atomic_write, new_run_folder, write_json
from covid_fastai.model.bundle_config import (
    CONFIG_FILE,
    ONNX_FILE,
    WEIGHTS_FILE,
    read_bytes,
    read_config,
    read_verified,
)
from covid_fastai.model.card import CARD_FILE, FINDINGS_FILE, LARGEST_CARD, read_findings, write_card
from covid_fastai.model.hub import find_model
from covid_fastai.model.predictor import Predictor
from covid_fastai.options import Fraction, checked
from covid_fastai.run_folder import RunFolder

__all__ = ["export_model"]


@checked
def export_model(
    run: str | Path,
    target: str | Path,
    *,
    revision: str | None = None,
    sensitivity: Fraction | None = None,
    calibrate: bool = False,
) -> Path:
    """Verify that a saved model gives the same output as when it was saved, and copy it.

    Args:
        run: The folder of a run or of a saved model, or `"user/model"` on the Hugging Face Hub.
        target: The folder to create; it must not exist, or be empty.
        revision: The commit, tag or branch of a model on the Hub.
        sensitivity: Choose the threshold with this sensitivity, above 0 to 1, on the held-out patients of the run
            (`choose_threshold`). This needs torch and a run of `train_classifier`.
        calibrate: Whether to fit a temperature on the held-out patients (`fit_temperature`), before the threshold is
            chosen. This needs the same.

    Returns:
        The folder with `config.json`, `model.safetensors`, `model.onnx`, and the model card in `README.md` and
        `findings.json`. A model without a card gets one from its config, whose verdict and limits are not stated.

    Raises:
        ResourceError: The folder is not empty, or cannot be written to.
        ModelFormatError: A file of the model is missing or damaged, or the output of the model has changed.
        UsageError: A threshold or temperature is requested, but the run has no held-out patients or the model no
            positive class.
        DataError: No threshold reaches that sensitivity on the held-out patients.
    """
    folder = find_model(run, revision=revision)
    if sensitivity is not None or calibrate:
        return _export_calibrated(folder, Path(target), sensitivity=sensitivity, calibrate=calibrate)
    path = folder.resolve()
    title = path.parent.name if path.name == RunFolder.model else path.name
    config = read_config(folder / CONFIG_FILE)
    findings, card = read_findings(folder, config), folder / CARD_FILE
    if config.onnx is None:  # only the export of a missing ONNX file needs torch
        from covid_fastai.model.bundle import load_model, save_model

        _check_new(Path(target))
        target = save_model(load_model(folder, device="cpu"), target)
        config, contents = read_config(target / CONFIG_FILE), {}
    else:
        Predictor(folder, threads=1)  # verifies the output of the model
        contents = {WEIGHTS_FILE: read_verified(folder / WEIGHTS_FILE, config.sha256)}
        contents[ONNX_FILE] = read_verified(folder / ONNX_FILE, config.onnx.sha256)
        contents[CONFIG_FILE] = (folder / CONFIG_FILE).read_bytes()
        target = new_run_folder(target, task="")
    if card.is_file():
        contents = {CARD_FILE: read_bytes(card, LARGEST_CARD), **contents}
        write_json(target / FINDINGS_FILE, {**findings.model_dump(), "fingerprint": config.fingerprint})
    else:
        write_card(target, config, title=title, verdict=findings.verdict, limits=findings.limits)
    for name, content in contents.items():  # config.json is the last: a folder without it is not a model
        with atomic_write(target / name, mode="wb") as file:
            file.write(content)
    return target


def _export_calibrated(folder: Path, target: Path, *, sensitivity: float | None, calibrate: bool) -> Path:
    """Save a model with a threshold or temperature chosen on the held-out patients, and note that on its card."""
    from covid_fastai.evaluation.calibration import apply_temperature, fit_temperature
    from covid_fastai.evaluation.prediction_table import read_predictions
    from covid_fastai.evaluation.thresholds import choose_threshold
    from covid_fastai.model.bundle import load_model, save_model

    _check_new(target)
    table = RunFolder(folder.parent).predictions
    if folder.name != RunFolder.model or not table.is_file():
        raise UsageError(
            f"{folder} is not the model of a run, so there are no held-out patients to choose a threshold or "
            "temperature on.",
            hint="Give the folder of a run, or call save_model(learn, folder, threshold=..., temperature=...).",
        )
    learn = load_model(folder, device="cpu")
    if sensitivity is not None and learn.facts.bundle.positive is None:
        raise UsageError(
            f"sensitivity={sensitivity:g} needs a positive class, and the model has none.",
            hint="Omit sensitivity (--sensitivity).",
        )
    held_out = read_predictions(table, every_split=True)
    held_out = held_out[held_out["split"] == "valid"]
    temperature = fit_temperature(held_out) if calibrate else 1.0
    threshold = None
    if sensitivity is not None:
        scaled = apply_temperature(held_out, temperature)
        threshold = choose_threshold(scaled, sensitivity=sensitivity, positive=learn.facts.bundle.positive)
    save_model(learn, target, threshold=threshold, temperature=temperature)
    findings, n = read_findings(folder, read_config(folder / CONFIG_FILE)), held_out["patient"].nunique()
    choices = [f"temperature {temperature:.3g}"] if calibrate else []
    choices += [f"threshold {threshold:.3g} (for a sensitivity of {sensitivity:g})"] if threshold is not None else []
    limit = (
        f"The {' and the '.join(choices)} {'were' if len(choices) == 2 else 'was'} chosen on the {n} held-out patients "
        "of the run. Metrics on these patients are optimistic."
    )
    write_card(
        target,
        read_config(target / CONFIG_FILE),
        title=folder.parent.name,
        verdict=findings.verdict,
        limits=[*findings.limits, limit],
    )
    return target


def _check_new(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ResourceError(f"{target} is not an empty folder.", hint="Choose a new folder.")
