"""Export a trained model, with its ONNX file and model card, into a folder that can be shared."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from covid_fastai.errors import ResourceError, UsageError
from covid_fastai.files import atomic_write, new_run_folder, write_json
from covid_fastai.model.bundle_config import (
    CONFIG_FILE,
    LARGEST_CONFIG,
    LARGEST_WEIGHTS,
    ONNX_FILE,
    WEIGHTS_FILE,
    parse_config,
    read_bytes,
    read_config,
    read_verified,
    require_weights,
)
from covid_fastai.model.card import CARD_FILE, FINDINGS_FILE, LARGEST_CARD, read_findings, write_card
from covid_fastai.model.hub import find_model
from covid_fastai.model.predictor import Predictor
from covid_fastai.options import Fraction, Quantization, checked
from covid_fastai.run_folder import RunFolder

__all__ = ["export_model"]

logger = logging.getLogger("covid_fastai")


@checked
def export_model(
    run: str | Path,
    target: str | Path,
    *,
    revision: str | None = None,
    sensitivity: Fraction | None = None,
    calibrate: bool = False,
    quantize: Quantization | None = None,
) -> Path:
    """Verify that a saved model gives the same output as when it was saved, and copy it.

    With `quantize="int8"`, the ONNX file is rewritten in 8-bit integers: about twice as fast where the processor
    multiplies them (AVX512-VNNI, AMX, ARM's dot product), and slower elsewhere. Both files are run on the held-out
    images of the run, the model card states the differences, and nothing is written if a probability changes by more
    than 0.01 on average or 0.15 at most, or the AUC by more than 0.005. The weights in `model.safetensors` remain in 32
    bits.

    Args:
        run: The folder of a run or of a saved model, or `"user/model"` on the Hugging Face Hub.
        target: The folder to create; it must not exist, or be empty.
        revision: The commit, tag or branch of a model on the Hub.
        sensitivity: Choose the threshold with this sensitivity, above 0 to 1, on the held-out patients of the run
            (`choose_threshold`). This needs torch and a run of `train_classifier`.
        calibrate: Whether to fit a temperature on the held-out patients (`fit_temperature`), before the threshold is
            chosen. This needs the same.
        quantize: `"int8"` to compute in 8-bit integers; None for 32 bits, the reference. This needs the same, with the
            images where the run read them.

    Returns:
        The folder with `config.json`, `model.safetensors`, `model.onnx`, and the model card in `README.md` and
        `findings.json`. A model without a card gets one from its config, whose verdict and limits are not stated.

    Raises:
        ResourceError: The folder is not empty, or cannot be written to.
        ModelFormatError: A file of the model is missing or damaged, or the output of the model has changed.
        UsageError: A threshold or temperature is requested, but the run has no held-out patients or the model no
            positive class.
        DataError: No threshold reaches that sensitivity on the held-out patients, an image of the run is missing, or
            8-bit integers change the answers too much.
    """
    folder, target = find_model(run, revision=revision), Path(target)
    require_weights(folder)
    if quantize is not None:
        return _export_quantized(folder, target, sensitivity=sensitivity, calibrate=calibrate)
    if sensitivity is not None or calibrate:
        return _export_calibrated(folder, target, sensitivity=sensitivity, calibrate=calibrate)
    return _export_unchanged(folder, target)


def _export_unchanged(folder: Path, target: Path) -> Path:
    path = folder.resolve()
    title = path.parent.name if path.name == RunFolder.model else path.name
    config_content = read_bytes(folder / CONFIG_FILE, LARGEST_CONFIG)  # read once: it names the hash of each file
    config = parse_config(config_content, folder / CONFIG_FILE)
    findings, card = read_findings(folder, config), folder / CARD_FILE
    if config.onnx is None:  # only the export of a missing ONNX file needs torch
        from covid_fastai.model.bundle import load_model, save_model

        _check_new(target)
        target = save_model(load_model(folder, device="cpu"), target)
        config, contents = read_config(target / CONFIG_FILE), {}
    else:
        Predictor(folder, threads=1, fingerprint=config.fingerprint)  # verifies the output of the model
        contents = {WEIGHTS_FILE: read_verified(folder / WEIGHTS_FILE, config.sha256)}
        contents[ONNX_FILE] = read_verified(folder / ONNX_FILE, config.onnx.sha256)
        contents[CONFIG_FILE] = config_content
        target = new_run_folder(target, task="")
    if card.is_file():
        contents = {CARD_FILE: read_bytes(card, LARGEST_CARD), **contents}
        write_json(target / FINDINGS_FILE, {**findings.model_dump(), "fingerprint": config.fingerprint})
    else:
        write_card(target, config, title=title, **findings.model_dump(exclude={"fingerprint"}))
    _write_files(target, contents)
    return target


def _write_files(target: Path, contents: dict[str, bytes]) -> None:
    """Write the files of a model; config.json is the last, since a folder without it is not a model."""
    for name, content in contents.items():
        with atomic_write(target / name, mode="wb") as file:
            file.write(content)


def _export_quantized(folder: Path, target: Path, *, sensitivity: float | None, calibrate: bool) -> Path:
    """Export a model in 8-bit integers, with their change of its answers on its card."""
    from covid_fastai.app.quantized import quantize_model
    from covid_fastai.evaluation.runs import Run

    _check_new(target)
    run = Run(_run_of(folder, "to compare 8-bit integers with 32 bits on", "Give the folder of its run.").path)
    with tempfile.TemporaryDirectory() as temporary:
        reference = Path(temporary) / "reference"
        if sensitivity is not None or calibrate:
            _export_calibrated(folder, reference, sensitivity=sensitivity, calibrate=calibrate)
        else:
            _export_unchanged(folder, reference)
        contents, change = quantize_model(reference, run)
        findings = read_findings(reference, read_config(reference / CONFIG_FILE))
        weights = read_bytes(reference / WEIGHTS_FILE, LARGEST_WEIGHTS)
    target = new_run_folder(target, task="")
    _write_files(target, {WEIGHTS_FILE: weights, **contents})
    write_card(
        target,
        read_config(target / CONFIG_FILE),
        title=run.path.resolve().name,
        **findings.model_dump(exclude={"fingerprint", "limits"}),
        limits=[*findings.limits, change.sentence()],
    )
    return target


def _run_of(folder: Path, purpose: str, hint: str) -> RunFolder:
    """Return the run that a saved model belongs to.

    Raises:
        UsageError: The model is not that of a run.
    """
    run = RunFolder(folder.parent)
    if folder.name != RunFolder.model or not run.predictions.is_file():
        raise UsageError(f"{folder} is not the model of a run, so there are no held-out patients {purpose}.", hint=hint)
    return run


def _export_calibrated(folder: Path, target: Path, *, sensitivity: float | None, calibrate: bool) -> Path:
    """Save a model with a threshold or temperature chosen on the held-out patients, and note that on its card."""
    from covid_fastai.evaluation.calibration import apply_temperature, fit_temperature
    from covid_fastai.evaluation.prediction_table import read_predictions
    from covid_fastai.evaluation.thresholds import choose_threshold
    from covid_fastai.model.bundle import load_model, save_model

    _check_new(target)
    hint = "Give the folder of a run, or call save_model(learn, folder, threshold=..., temperature=...)."
    table = _run_of(folder, "to choose a threshold or temperature on", hint).predictions
    logger.info("Choosing on the held-out patients, then saving and verifying the model.")
    learn = load_model(folder, device="cpu")
    if sensitivity is not None and learn.facts.bundle.positive is None:
        raise UsageError(
            f"sensitivity={sensitivity:g} needs a positive class, and the model has none.",
            hint="Omit `sensitivity`.",
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
        **findings.model_dump(exclude={"fingerprint", "limits"}),
        limits=[*findings.limits, limit],
    )
    return target


def _check_new(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ResourceError(f"{target} is not an empty folder.", hint="Choose a new folder.")
