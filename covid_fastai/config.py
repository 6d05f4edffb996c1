"""Every choice of a training in one frozen object, shared by Python and the command line."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from covid_fastai.errors import UsageError

__all__ = ["PRESETS", "TrainConfig"]

PositiveRate = Annotated[float, Field(gt=0, allow_inf_nan=False)]

# The article "COVID-19 Classifier With Transfer Learning", its faults left out: its softmax before the cross-entropy,
# its misspelt `requires_grad` (here the frozen body is frozen), its image-level split, its 4 lateral views, its
# missing interval. 61 Normal images are drawn as there; 54 of its 58 COVID-19 images are frontal.
PRESETS: dict[str, dict[str, Any]] = {
    "article": {
        "task": "covid",
        "arch": "resnet50",
        "image_size": 256,
        "augmentation": "article",
        "batch_size": 8,
        "frozen_epochs": 5,
        "unfrozen_epochs": 5,
        "learning_rate": 1e-2,
        "unfrozen_learning_rate": 1e-3,
        "weight_decay": 1e-4,
        "gradient_clip": 0.1,
        "valid_pct": 0.1,
        "negatives_per_positive": 61 / 54,
    },
}


class TrainConfig(BaseModel):
    """Hold every choice of a training, checked; unknown names and impossible values are refused.

    Each field is a keyword of `train_classifier` and an option of `covid-fastai train`, under the same name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    task: Any = Field("covid", description="covid, pneumonia or etiology; in Python also a Task object, or its fields.")
    image_root: str | None = Field(None, description="Folder that the CSV's image names are relative to.")
    path_column: str | None = Field(None, description="CSV column with the image's path.")
    label_column: str | None = Field(None, description="CSV column with the label.")
    patient_column: str | None = Field(None, description="CSV column with the patient.")
    split_column: str | None = Field(None, description="CSV column with train/test.")
    source_column: str | None = Field(None, description="CSV column with the hospital or collection.")
    view_column: str | None = Field(None, description="CSV column with the projection (PA, AP, L).")
    encoding: str | None = Field(None, description="The CSV's encoding, where it is neither UTF-8 nor UTF-16.")
    negatives_per_positive: PositiveRate | None = Field(
        None, description="Images of the negative class drawn for each positive image; all if not given."
    )
    on_problem: Literal["error", "skip"] = Field(
        "error", description="Stop at faulty rows (error), or leave them out and list them (skip)."
    )
    exclude_pretraining_overlap: bool = Field(
        True,
        description="Keep what the package's own weights have seen out of evaluation, whatever weights are chosen.",
    )
    split: Literal["patient", "image"] = Field(
        "patient", description="Unit of the split; image lets one patient stand on both sides."
    )
    valid_pct: float = Field(0.2, gt=0, lt=1, description="Share held out for validation, 0 to 1.")
    evaluate_test: bool = Field(False, description="Evaluate the official TEST too; each touch is logged in the run.")
    # 128: ten epochs on CoronaHack's 5,000 images end within half an hour on two CPU cores; at 224 within two hours
    image_size: int = Field(128, ge=32, le=1024, description="Side of the square that images are resized to, pixels.")
    augmentation: str = Field("default", description="default, article or none.")
    batch_size: int = Field(32, ge=2, le=4096, description="Images in a training step.")
    balance: Literal["none", "loss", "sampler"] = Field(
        "none", description="Answer to class imbalance: none, weights in the loss, or a weighted sampler."
    )
    arch: str = Field("resnet18", description="resnet18, resnet34, resnet50, or timm/<name>.")
    weights: str | None = Field("auto", description="auto, imagenet, cxr, a file, or none for random weights.")
    frozen_epochs: int = Field(5, ge=0, le=1000, description="Epochs with the body frozen.")
    unfrozen_epochs: int = Field(5, ge=0, le=1000, description="Epochs with the whole model training.")
    learning_rate: PositiveRate = Field(2e-3, description="Peak of the one-cycle in the frozen phase.")
    unfrozen_learning_rate: PositiveRate | None = Field(
        None, description="Peak for the head in the unfrozen phase; half of learning_rate if not given."
    )
    lr_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = Field(
        None, description="How many times slower the first layers learn than the head; 100, or 1 for random weights."
    )
    initial_image_size: Annotated[int, Field(ge=32)] | None = Field(
        None, description="Side of the images in the first half of the unfrozen epochs, pixels; all alike if not given."
    )
    frozen_augmentations: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Augmented views of each image that the frozen epochs share; a fresh one each if not given."
    )
    weight_decay: float = Field(1e-2, ge=0, allow_inf_nan=False, description="Decoupled weight decay.")
    gradient_clip: PositiveRate | None = Field(None, description="Largest norm of the gradient; not clipped if absent.")
    audit: bool = Field(True, description="Look for shortcuts after training: baselines that see no lung, a verdict.")
    seed: int = Field(42, ge=0, lt=2**32, description="Seed of the draw, the split and the training.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Where to compute.")
    precision: Literal["auto", "fp32", "fp16", "bf16"] = Field(
        "auto", description="What training computes in; auto is 16-bit on a GPU, or a CPU with AMX."
    )
    num_workers: int | Literal["auto"] = Field("auto", description="Processes that open images.")

    @classmethod
    def build(cls, *, preset: str | None = None, **choices: Any) -> TrainConfig:
        """Make a config from a preset's values and the choices that replace them.

        Args:
            preset: A name in `PRESETS`, or None.
            **choices: Fields by name.

        Raises:
            UsageError: A preset or field has no such name, or a value is not allowed.
        """
        if preset is not None and preset not in PRESETS:
            raise UsageError(f"There is no preset {preset!r}.", hint=f"Presets: {', '.join(PRESETS)}.")
        for name in choices:
            if name not in cls.model_fields:
                near = difflib.get_close_matches(name, cls.model_fields, n=1)
                hint = f"Did you mean {near[0]!r}?" if near else f"Options: {', '.join(cls.model_fields)}."
                raise UsageError(f"There is no option {name!r}.", hint=hint)
        try:
            return cls(**{**(PRESETS[preset] if preset else {}), **choices})
        except ValidationError as error:
            faults = [f"{fault['loc'][0]}={fault['input']!r}: {fault['msg']}" for fault in error.errors()]
            raise UsageError(
                "; ".join(faults) + ".", hint="See `covid-fastai train --help` for what is allowed."
            ) from None

    @property
    def task_name(self) -> str:
        """The task's name, also where the task is an object or its fields."""
        if isinstance(self.task, Mapping):
            return self.task["name"]
        return self.task if isinstance(self.task, str) else self.task.name

    def changed(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults."""
        return {name: value for name, value in self if value != type(self).model_fields[name].default}

    def to_python(self, data: str | Path, out: str | Path | None = None) -> str:
        """Return the Python call that does the same."""
        arguments = [repr(str(data)), *(f"{name}={value!r}" for name, value in self.changed().items())]
        if out is not None:
            arguments.append(f"out={str(out)!r}")
        return f"train_classifier({', '.join(arguments)})"

    def to_command(self, data: str | Path, out: str | Path | None = None) -> str:
        """Return the command line that does the same; a task made in Python has none and is named as such."""
        words = ["covid-fastai", "train", str(data)]
        for name, value in self.changed().items():
            option = f"--{name.replace('_', '-')}"
            if isinstance(value, bool):
                words.append(option if value else f"--no-{option[2:]}")
            else:
                words += [option, self.task_name if name == "task" else "none" if value is None else str(value)]
        if out is not None:
            words += ["--out", str(out)]
        return shlex.join(words)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for `config.json`; a task object is written out field by field."""
        fields = dict(self)
        if not isinstance(self.task, str | Mapping):
            fields["task"] = self.task.to_dict()
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TrainConfig:
        """Make a config from what `to_dict` returned."""
        return cls.build(**fields)
