"""Make the model `pneumonia-children`: `python -m pretraining.pneumonia_children --data DATA --out OUT`.

The same command resumes it. The convolutions are stored with 8 bits per weight, so that the model has a quarter of the
size; every metric is that of the stored model. The official TEST is evaluated once, at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import nn

from covid_fastai import (
    TrainConfig,
    evaluate,
    load_model,
    read_cohort,
    read_run,
    save_model,
    split_by_patient,
    train_classifier,
)
from covid_fastai.data.images import open_image
from covid_fastai.data.input_check import rank_pixels, shrink_picture
from covid_fastai.data.phantom import draw_phantom
from covid_fastai.evaluation.metrics import Evaluation
from covid_fastai.files import atomic_write, make_folder, write_csv, write_json
from covid_fastai.model.bundle_config import CONFIG_FILE, ONNX_FILE, WEIGHTS_FILE, read_config, seal_config
from covid_fastai.model.card import CARD_FILE, FINDINGS_FILE, Population, read_findings, write_card
from covid_fastai.model.package_models import package_models
from covid_fastai.model.predictor import Predictor
from covid_fastai.run_folder import RunFolder

__all__ = [
    "NAME",
    "add_population",
    "describe_withheld",
    "evaluate_stored",
    "fit_population",
    "measure_withheld",
    "round_weights",
]
__all__ += ["store_in_8_bits", "store_model"]

NAME = "pneumonia-children"
COMMAND = "python -m pretraining.pneumonia_children"
PURPOSE = (
    "Normal against pneumonia in frontal chest radiographs of children aged one to five of one hospital (Guangzhou "
    "Women and Children's Medical Center, China; Kermany et al. 2018). It is a model to try the package with."
)
LIMITS = (
    "Research use only. The labels of one hospital say whether an image was filed as pneumonia, not what a child had.",
    "Adults: an output says nothing about them. Images that do not look like those of its training are withheld, as "
    "those of most adults are; what recognises them sees framing and processing as well as bodies, because age and "
    "hospital are confounded in the public images.",
    "COVID-19 and any other finding than pneumonia: they were not in the training images.",
    "Another hospital: the model was not evaluated at one.",
)
CONFIG = {"task": "pneumonia", "image_size": 128, "augmentation": "strong", "precision": "bf16", "seed": 0}
CONFIG |= {"frozen_epochs": 1, "unfrozen_epochs": 4}
TEST = "coronahack-224/Coronahack-Chest-XRay-Dataset/Coronahack-Chest-XRay-Dataset/test"
OTHERS = ("radiography-224/Normal", "radiography-224/COVID")  # what the population is told from
ADULTS = {  # of the shared data, by title; not among the others
    "NIH and Figure 1": "external-adult",
    "Actualmed": "external-actualmed",
    "Montgomery and Shenzhen": "lungs-256/images",
}
WITHHELD = "Images whose class is withheld:"
SETS = {"valid": "held-out patients of TRAIN", "test": "official TEST"}  # by split
LARGEST = 127  # of an 8-bit weight


def main() -> None:
    """Train, or take a trained run, then store the model, evaluate it, and write its card."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Make the model pneumonia-children.")
    parser.add_argument("--data", type=Path, required=True, help="the folder with coronahack-224")
    parser.add_argument("--out", type=Path, help="the folder of this training")
    parser.add_argument(
        "--withheld", action="store_true", help="only fit again what the model of the package withholds"
    )
    parser.add_argument("--run", type=Path, help="a run of the task pneumonia to take in place of a training")
    parser.add_argument("--options", type=json.loads, default={}, help="fields of TrainConfig as JSON")
    parser.add_argument("--metrics", type=Path, default=Path(__file__).with_name("pneumonia-children.csv"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if options.withheld:
        cohort = read_cohort(options.data / "coronahack-224", task=CONFIG["task"], check_images=False)
        cohort = split_by_patient(cohort, seed=CONFIG["seed"])
        print(add_population(package_models()[NAME], options.data, cohort).to_string(index=False))
        return
    if options.out is None:
        parser.error("--out names the folder of the training")
    out = make_folder(options.out)
    run = options.run or _train(options.data / "coronahack-224", out / "run", CONFIG | options.options)
    model = store_model(run, out / NAME)
    metrics = evaluate_stored(run, model, out)
    write_csv(options.metrics, metrics)
    trained = read_run(run)
    config = read_config(model / CONFIG_FILE)
    limits = (*LIMITS, _compare_sets(metrics))
    about = {"purpose": PURPOSE, "limits": limits, "headline": trained.plain_verdict.headline}
    if trained.verdict is not None:
        about |= {"level": trained.verdict.level, "verdict": trained.verdict.sentence}
    _adapt_card(write_card(model, config, title=NAME, metrics=_describe(metrics, run), **about))
    add_population(model, options.data, trained.cohort)
    (model / WEIGHTS_FILE).unlink(missing_ok=True)
    print(metrics.to_string(index=False))
    print(f"cp -r {model} covid_fastai/model/trained/")


def _train(data: Path, folder: Path, choices: dict) -> Path:
    """Train, or continue or take the training that is in the folder."""
    run = RunFolder(folder)
    if run.is_run() and run.is_finished():
        return folder
    if run.is_run():
        train_classifier(resume=folder)
    else:
        train_classifier(data, config=TrainConfig.build(**choices), out=folder)
    return folder


# storing with 8 bits


@torch.no_grad()
def round_weights(model: nn.Module) -> None:
    """Round the weights of the convolutions, in place, to 255 equidistant values per output channel."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            step = layer.weight.abs().amax(dim=(1, 2, 3), keepdim=True) / LARGEST
            step[step == 0] = 1
            layer.weight.copy_((layer.weight / step).round() * step)


def store_in_8_bits(content: bytes) -> bytes:
    """Store the rounded weights of an ONNX file's convolutions as 8-bit integers and one factor per output channel.

    ONNX Runtime multiplies them once, when it opens the file, so predictions take as long as with 32 bits.

    Args:
        content: The file, as `export_onnx` writes the model of `round_weights`.

    Returns:
        The smaller file, which gives the same output up to the rounding of 32-bit numbers.
    """
    proto = onnx.load_from_string(content)
    graph, nodes = proto.graph, []
    for tensor in list(graph.initializer):
        weights = numpy_helper.to_array(tensor)
        if weights.ndim != 4:
            continue
        steps = abs(weights).max(axis=(1, 2, 3), keepdims=True) / LARGEST
        steps[steps == 0] = 1
        rounded = (weights / steps).round()
        if abs(rounded * steps - weights).max() > 1e-5 * abs(weights).max():
            continue  # weights that were not rounded, such as those of the class activation maps
        graph.initializer.remove(tensor)
        name = tensor.name
        stored = {f"{name}.integers": rounded.astype("int8"), f"{name}.steps": steps.astype("float32")}
        graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in stored.items())
        nodes.append(helper.make_node("Cast", [f"{name}.integers"], [f"{name}.cast"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [f"{name}.cast", f"{name}.steps"], [name]))
    others = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *others])
    return proto.SerializeToString(deterministic=True)


def store_model(run: Path, target: Path) -> Path:
    """Save the model of a run with 8-bit weights; a model that is already there is kept."""
    if (target / CONFIG_FILE).is_file():
        return target
    learn = load_model(run, device="cpu")
    round_weights(learn.model)
    manifest = RunFolder(run).training_manifest
    save_model(learn, target, training_manifest=manifest if manifest.is_file() else None)
    content = store_in_8_bits((target / ONNX_FILE).read_bytes())
    fields = json.loads((target / CONFIG_FILE).read_text(encoding="utf-8"))
    findings = read_findings(target, read_config(target / CONFIG_FILE))
    fields.pop("fingerprint")
    fields["onnx"]["sha256"] = hashlib.sha256(content).hexdigest()
    with atomic_write(target / ONNX_FILE, mode="wb") as file:
        file.write(content)
    config = seal_config(fields)
    write_json(target / CONFIG_FILE, config)
    if findings.synthetic:  # `save_model` wrote them
        write_json(target / FINDINGS_FILE, findings.model_dump() | {"fingerprint": config["fingerprint"]})
    Predictor(target)  # its self-test compares the output with that of the 32-bit model
    return target


# evaluation


def evaluate_stored(run: Path, model: Path, out: Path, *, sets: Mapping[str, str] = SETS) -> pd.DataFrame:
    """Evaluate the stored model on the held-out patients of TRAIN, and once on the official TEST.

    Args:
        run: The run, with its cohort.
        model: The stored model.
        out: The folder of the predictions; those that are already there are not made again.
        sets: The titles of the splits to evaluate.

    Returns:
        One row per set of images, unit and metric.
    """
    cohort, positive = read_run(run).cohort, read_config(model / CONFIG_FILE).positive
    tables = []
    for split, title in sets.items():
        path = out / f"{split}-{read_config(model / CONFIG_FILE).fingerprint[:8]}.csv"
        rows = cohort[cohort["split"] == split]
        if not path.is_file():
            table = Predictor(model).predict(rows)
            about = rows[["label", "patient", "patient_known", "split", "source", "view"]].reset_index(drop=True)
            write_csv(path, pd.concat([table, about], axis=1).assign(fold=0))
        predictions = pd.read_csv(path, dtype={"patient": str}, keep_default_na=False)
        for unit in ("patient", "image"):
            by_unit = predictions if unit == "patient" else predictions.assign(patient=predictions["path"])
            tables.append(_metrics(evaluate(by_unit, split=split, positive=positive), title, unit))
    return pd.concat(tables, ignore_index=True)


def _metrics(result: Evaluation, title: str, unit: str) -> pd.DataFrame:
    rows = [result.row(name) for name in ("auc", "accuracy", "sensitivity", "specificity")]
    table = pd.DataFrame(rows)[["metric", "value", "low", "high", "n"]].round(4)
    table.insert(0, "images", title)
    table.insert(1, "by", unit)
    return table


def _compare_sets(metrics: pd.DataFrame) -> str:
    """Return a limit: the specificity on both sets of images, by patient."""
    by_patient = metrics[(metrics["by"] == "patient") & (metrics["metric"] == "specificity")].set_index("images")
    valid, test = (by_patient.loc[title, "value"] for title in SETS.values())
    return (
        f"Images made in another way: the official TEST of the same hospital differs from TRAIN in the framing of the "
        f"images, and {1 - test:.0%} of its healthy children are called pneumonia, against {1 - valid:.0%} of the "
        "held-out healthy children of TRAIN."
    )


def fit_population(data: Path, cohort: pd.DataFrame, *, others: int = 700) -> Population:
    """Fit what recognises images outside of the population: children of this hospital against adults and drawings.

    The limit is the value that 1 in 100 of the held-out children exceed, so that their class is withheld.

    Args:
        data: The folder of the shared data sets.
        cohort: The cohort of the model's run, with its split.
        others: Number of images of each class of the radiography database; drawings are 300.
    """
    of_split = {split: cohort.loc[cohort["split"] == split, "path"].tolist() for split in ("train", "valid")}
    adults = [path for folder in OTHERS for path in _sample(data / folder, others, seed=3)]
    drawings = [
        Image.fromarray(draw_phantom(np.random.default_rng([2, number]), image_size=128).image) for number in range(300)
    ]
    inside, held_out, outside = (_ranks(images) for images in (of_split["train"], of_split["valid"], adults + drawings))
    labels = np.r_[np.zeros(len(inside)), np.ones(len(outside))]
    model = LogisticRegression(max_iter=2000, class_weight="balanced").fit(np.concatenate([inside, outside]), labels)
    weights = tuple(round(float(weight), 3) for weight in model.coef_[0])
    limit = round(float(np.quantile(held_out @ np.array(weights), 0.99)), 3)
    return Population(weights=weights, limit=limit)


def _ranks(images: Sequence[Any]) -> np.ndarray:
    opened = (image if isinstance(image, Image.Image) else open_image(image) for image in images)
    return rank_pixels(np.stack([shrink_picture(image) for image in opened]))


def _sample(folder: Path, most: int, *, seed: int) -> list[Path]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    return [paths[place] for place in sorted(np.random.default_rng(seed).permutation(len(paths))[:most])]


def measure_withheld(data: Path, *, model: str | Path = NAME, most: int = 200) -> pd.DataFrame:
    """Count the answers that the input check withholds, in the model's population and outside of it.

    Args:
        data: The folder of the shared data sets.
        model: The model.
        most: Number of images of each population, sampled with a fixed seed.

    Returns:
        One row per population: `images`, `n`, `withheld` (a number of images), and `remarked` (those with any remark).
    """
    predictor, rows = Predictor(model), []
    test = _sample(data / TEST, most, seed=0)
    children = [np.asarray(open_image(path)) for path in test]
    populations: dict[str, Sequence[Any]] = {"children of the official TEST": test}
    changes = {"upside down": lambda x: np.rot90(x, 2), "on their side": np.rot90, "inverted": lambda x: 255 - x}
    populations |= {f"of these {name}": [change(x) for x in children] for name, change in changes.items()}
    for title, folder in ADULTS.items():
        populations[f"adults ({title})"] = _sample(data / folder, most, seed=0)
    drawings = [draw_phantom(np.random.default_rng([1, number]), image_size=320).image for number in range(most)]
    populations["drawings"] = drawings
    for title, images in populations.items():
        table = predictor.predict([np.ascontiguousarray(x) if isinstance(x, np.ndarray) else x for x in images])
        remarked = int((table["remark"] != "").sum())
        rows.append({"images": title, "n": len(table), "withheld": int(table["withheld"].sum()), "remarked": remarked})
    return pd.DataFrame(rows)


def add_population(model: Path, data: Path, cohort: pd.DataFrame) -> pd.DataFrame:
    """Fit what recognises the population, write it into the model's findings, and state in them what is withheld.

    Args:
        model: The stored model, with its card.
        data: The folder of the shared data sets.
        cohort: As in `fit_population`.

    Returns:
        The table of `measure_withheld`.
    """
    findings = read_findings(model, read_config(model / CONFIG_FILE))
    findings = findings.model_copy(update={"population": fit_population(data, cohort)})
    write_json(model / FINDINGS_FILE, findings.model_dump())
    table = measure_withheld(data, model=model)
    write_csv(Path(__file__).with_name(f"{NAME}-withheld.csv"), table)
    others = [
        limit for limit in findings.limits if not limit.startswith(("Adults: ", WITHHELD)) and limit not in LIMITS
    ]
    findings = findings.model_copy(update={"limits": (*LIMITS, *others, describe_withheld(table))})
    write_json(model / FINDINGS_FILE, findings.model_dump())
    head, _, rest = (model / CARD_FILE).read_text(encoding="utf-8").partition("## Limits\n\n")
    tail = rest[rest.index("\n## ") :]
    with atomic_write(model / CARD_FILE) as file:
        file.write(head + "## Limits\n\n" + "".join(f"- {limit}\n" for limit in findings.limits) + tail)
    return table


def describe_withheld(table: pd.DataFrame) -> str:
    """Return a limit: of how many images the class is withheld."""
    counts = "; ".join(f"{row['withheld']} of {row['n']} {row['images']}" for row in table.to_dict("records"))
    return f"{WITHHELD} {counts} (`{COMMAND} --withheld`)."


def _adapt_card(card: Path) -> None:
    """Say in the card that the model comes by its name and without weights to train further."""
    text = card.read_text(encoding="utf-8")
    changes = {
        f"`{WEIGHTS_FILE}` (plain tensors), `{CONFIG_FILE}`, ": f"`{CONFIG_FILE}`, ",
        "(the same model; input:": "(8 bits per weight; input:",
        "- safetensors\n": "",
        'Predictor("this folder")': f'Predictor("{NAME}")',
    }
    for old, new in changes.items():
        assert old in text, old  # `build_card` has changed
        text = text.replace(old, new)
    with atomic_write(card) as file:
        file.write(text)


def _describe(metrics: pd.DataFrame, run: Path) -> str:
    """Return the section of the card with the metrics, as Markdown."""
    lines = ["| images | by | metric | value (95% interval) | n |", "| --- | --- | --- | --- | --- |"]
    for row in metrics.to_dict("records"):
        value = f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
        lines.append(f"| {row['images']} | {row['by']} | {row['metric']} | {value} | {row['n']} |")
    trained = read_run(run).cohort
    trained = trained[trained["split"] == "train"]
    counts = ", ".join(f"{n:,} {name}" for name, n in trained["label"].value_counts().items())
    options = (read_run(run).config.get("config") or {}).items()
    defaults = TrainConfig().to_dict()
    changed = {name: value for name, value in options if value != defaults.get(name)}
    lines += ["", f"Measured with `{COMMAND}`, on the stored model with 8-bit weights, at the most probable class."]
    lines += [
        "The official TEST was evaluated once with this model. The kind of augmentation was known from a trial that "
        "evaluated four other models on it, so its metrics may be optimistic.",
        "",
        "## Training",
        "",
    ]
    lines += [
        f"- **Images**: {len(trained):,} images of {trained['patient'].nunique():,} patients of CoronaHack's TRAIN "
        f"({counts}), all of Kermany, Zhang, Goldbaum 2018, doi:10.17632/rscbjbr9sj, CC BY 4.0, at 224 x 224 pixels.",
        "- **Initial weights**: `cxr-resnet18` of the package; its card names its images and their terms, which apply "
        "to this model too.",
        f"- **Options** other than the defaults of `train_classifier`: `{json.dumps(changed)}`.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
