"""A trained model in a folder of its own: checked, with its ONNX file and a model card, ready to be shared."""

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
    """Copy a saved model, after checking that it answers as it did when it was saved.

    Args:
        run: A run, a saved model, or a name on the Hub.
        target: The folder to make; it must not exist, or be empty.
        revision: Of a model on the Hub.
        sensitivity: Choose the threshold that finds this share of the positive class's patients, above 0 to 1, on the
            run's held-out patients (`choose_threshold`). Needs torch, and a run of `train_classifier`.
        calibrate: Fit a temperature on them, first (`fit_temperature`). Needs the same.

    Returns:
        The folder, with `config.json`, `model.safetensors`, `model.onnx`, and the model card, `README.md` and
        `findings.json`: the model's own, or one made from its config, whose verdict and limits are still to be written.

    Raises:
        ResourceError: The folder holds something, or cannot be written to.
        ModelFormatError: A file of the model is missing, damaged, or does not give its answer.
        UsageError: A threshold or temperature is asked for, and there are no held-out patients to choose it on, or the
            model knows no positive class.
        DataError: No threshold keeps that sensitivity on so few patients.
    """
    folder = find_model(run, revision=revision)
    if sensitivity is not None or calibrate:
        return _export_judged(folder, Path(target), sensitivity=sensitivity, calibrate=calibrate)
    name = folder.resolve()
    title = name.parent.name if name.name == RunFolder.model else name.name
    config = read_config(folder / CONFIG_FILE)
    findings, card = read_findings(folder, config), folder / CARD_FILE
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
    if card.is_file():
        contents = {CARD_FILE: read_bytes(card, LARGEST_CARD), **contents}
        write_json(target / FINDINGS_FILE, {**findings.model_dump(), "fingerprint": config.fingerprint})
    else:
        write_card(target, config, title=title, verdict=findings.verdict, limits=findings.limits)
    for name, content in contents.items():  # config.json last: without it there is no model
        with atomic_write(target / name, mode="wb") as file:
            file.write(content)
    return target


def _export_judged(folder: Path, target: Path, *, sensitivity: float | None, calibrate: bool) -> Path:
    """Save the model anew with a threshold or a temperature chosen on the run's held-out patients, and say so."""
    from covid_fastai.evaluation.calibration import apply_temperature, fit_temperature
    from covid_fastai.evaluation.prediction_table import read_predictions
    from covid_fastai.evaluation.thresholds import choose_threshold
    from covid_fastai.model.bundle import load_model, save_model

    _check_new(target)
    table = RunFolder(folder.parent).predictions
    if folder.name != RunFolder.model or not table.is_file():
        raise UsageError(
            f"{folder} is not the model of a run: there are no held-out patients to choose on.",
            hint="Name the run's folder, or save_model(learn, folder, threshold=..., temperature=...) in Python.",
        )
    learn = load_model(folder, device="cpu")
    if sensitivity is not None and learn.facts.bundle.positive is None:
        raise UsageError("The model knows no positive class, so there is no sensitivity.", hint="Leave it out.")
    held_out = read_predictions(table)
    held_out = held_out[held_out["split"] == "valid"]
    temperature = fit_temperature(held_out) if calibrate else 1.0
    threshold = None
    if sensitivity is not None:
        scaled = apply_temperature(held_out, temperature)
        threshold = choose_threshold(scaled, sensitivity=sensitivity, positive=learn.facts.bundle.positive)
    save_model(learn, target, threshold=threshold, temperature=temperature)
    findings, n = read_findings(folder, read_config(folder / CONFIG_FILE)), held_out["patient"].nunique()
    what = [f"the temperature {temperature:.3g}"] if calibrate else []
    what += [f"the threshold {threshold:.3g} (for a sensitivity of {sensitivity:g})"] if threshold is not None else []
    said = f"{' and '.join(what)} chosen on the run's {n} held-out patients: figures on those are optimistic."
    write_card(
        target,
        read_config(target / CONFIG_FILE),
        title=folder.parent.name,
        verdict=findings.verdict,
        limits=[*findings.limits, said[0].upper() + said[1:]],
    )
    return target


def _check_new(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ResourceError(f"{target} already holds something.", hint="Name a new folder.")
