"""All options of a training in one immutable object, shared by Python and the command line."""

from __future__ import annotations

import difflib
import functools
import inspect
import shlex
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict, Unpack

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from covid_fastai.errors import UsageError
from covid_fastai.options import (
    Arch,
    Augmentation,
    Balance,
    BatchSize,
    ClassNames,
    ColumnNames,
    Device,
    Epochs,
    FrozenAugmentations,
    GradientNorm,
    ImageSize,
    KeptColumns,
    LabelClasses,
    LearningRate,
    LearningRateRatio,
    NegativesPerPositive,
    NumWorkers,
    OnProblem,
    PathText,
    PatientPattern,
    Precision,
    Readers,
    Region,
    Seed,
    SplitUnit,
    Switch,
    UncertainLabels,
    ValidPct,
    WeightDecay,
    describe_option,
    join_names,
    plain_type,
    refuse_option,
    translate_name,
)

__all__ = ["PRESETS", "TrainConfig", "TrainOptions", "merge_options"]

# The article "COVID-19 Classifier With Transfer Learning", without its errors: softmax before the cross-entropy,
# a misspelt `requires_grad` (so that the body was not frozen), the split by image, 4 lateral views, no intervals. 61
# Normal images are sampled as in the article; 54 of its 58 COVID-19 images are frontal.
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


# what train_classifier and cross_validate take beside the fields of a config, for suggestions
ARGUMENTS = ("config", "preset", "out", "resume", "callbacks", "loss_func", "metrics", "opt_func", "quiet")
FOLD_ARGUMENTS = ("folds", "repeats", "n_jobs")
ARGUMENTS += FOLD_ARGUMENTS


class TrainOptions(TypedDict, total=False):
    """The fields of `TrainConfig` as keyword arguments, for editors and type checkers."""

    recipe: str | None
    task: Any
    labels: LabelClasses | None
    classes: ClassNames | None
    positive: str | None
    label_columns: ColumnNames | None
    uncertain: UncertainLabels
    readers: Readers
    image_root: str | Path | None
    path_column: str | None
    label_column: str | None
    patient_column: str | None
    patient_pattern: PatientPattern | None
    split_column: str | None
    source_column: str | None
    view_column: str | None
    path_template: str | None
    join: str | Path | None
    on: str | None
    encoding: str | None
    negatives_per_positive: NegativesPerPositive | None
    on_problem: OnProblem
    check_lungs: Switch
    exclude_pretraining_overlap: Switch
    split: SplitUnit
    valid_pct: ValidPct
    evaluate_test: Switch
    keep_columns: KeptColumns | None
    pseudonymise: Switch
    image_size: ImageSize
    region: Region
    augmentation: Augmentation
    batch_size: BatchSize
    balance: Balance
    arch: Arch
    weights: str | Path | None
    frozen_epochs: Epochs
    unfrozen_epochs: Epochs
    learning_rate: LearningRate
    unfrozen_learning_rate: LearningRate | None
    lr_ratio: LearningRateRatio | None
    initial_image_size: ImageSize | None
    frozen_augmentations: FrozenAugmentations | None
    weight_decay: WeightDecay
    gradient_clip: GradientNorm | None
    audit: Switch
    seed: Seed
    device: Device
    precision: Precision
    num_workers: NumWorkers


def check_row_options(
    *, path_column: str | None, path_template: str | None, join: str | Path | None, on: str | None
) -> None:
    """Raise for options of reading rows that exclude each other, or need each other.

    Args:
        path_column: The column with the path.
        path_template: The template of the path.
        join: The other table.
        on: The key of the other table.

    Raises:
        UsageError: `path_column` and `path_template`, or only one of `join` and `on`, are given.
    """
    if path_column is not None and path_template is not None:
        raise UsageError(
            f"path_column={path_column!r} and path_template={path_template!r} are mutually exclusive.",
            hint="Give the template if the path is made from several columns.",
        )
    if (join is None) != (on is None):
        given = f"join={str(join)!r}" if on is None else f"on={on!r}"
        hint = "`on`, a column or LEFT=RIGHT" if on is None else "`join`, the path of the other table"
        raise UsageError(f"{given} is only one of two options that belong together.", hint=f"Give {hint}, as well.")


class TrainConfig(BaseModel):
    """All options of a training, checked; unknown names and values that are not allowed raise `UsageError`.

    Each field is a keyword of `train_classifier` and an option of `covid-fastai train`, under the same name.

    Examples:
        >>> config = TrainConfig(arch="resnet34", seed=1)
        >>> config.replace(seed=2).changed()
        {'arch': 'resnet34', 'seed': 2}
        >>> print(config.to_command("data"))
        covid-fastai train data --arch resnet34 --seed 1
        >>> TrainConfig(valid_pct=1.5)
        Traceback (most recent call last):
        covid_fastai.errors.UsageError: valid_pct=1.5 is not a number above 0 and below 1. ...
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    recipe: str | None = Field(
        None,
        description="Name of a public data set whose files and columns are known; covid-fastai recipes lists them.",
    )
    task: Any = Field("covid", description="covid, pneumonia or etiology; in Python also a Task object, or its fields.")
    labels: LabelClasses | None = Field(
        None,
        description="Class of a label of the data: THEIRS=OURS, repeatable; in THEIRS, * and ? are wildcards; THEIRS= "
        "excludes the label.",
    )
    classes: ClassNames | None = Field(
        None, description="Classes of a task of your own, the negative one first, separated by commas."
    )
    positive: str | None = Field(
        None, description="Positive class; without classes, a task is made of it and the images without findings."
    )
    label_columns: ColumnNames | None = Field(
        None, description="CSV columns with one finding each (1, 0, -1, blank), separated by commas."
    )
    uncertain: UncertainLabels = Field(
        "exclude", description="Meaning of -1 in label_columns; unless excluded, a blank counts as 0."
    )
    readers: Readers = Field(
        "error", description="For images whose rows have different labels: an error, exclusion, or the majority."
    )
    image_root: PathText | None = Field(None, description="Folder that the image paths in the CSV are relative to.")
    path_column: str | None = Field(None, description="CSV column with the path of the image.")
    label_column: str | None = Field(None, description="CSV column with the label.")
    patient_column: str | None = Field(None, description="CSV column with the patient.")
    patient_pattern: PatientPattern | None = Field(
        None, description="Regular expression whose group is the patient in the paths of the images."
    )
    split_column: str | None = Field(None, description="CSV column with the split: train, valid or test.")
    source_column: str | None = Field(None, description="CSV column with the hospital or collection.")
    view_column: str | None = Field(None, description="CSV column with the projection (PA, AP, L).")
    path_template: str | None = Field(
        None, description="Path of the image from columns of its row, such as p{subject_id:.2}/{dicom_id}.jpg."
    )
    join: PathText | None = Field(None, description="Another table, whose columns are added to the rows by a key.")
    on: str | None = Field(
        None, description="Column of the key of join; LEFT=RIGHT if its name differs in the other table."
    )
    encoding: str | None = Field(None, description="Encoding of the CSV, if it is neither UTF-8 nor UTF-16.")
    negatives_per_positive: NegativesPerPositive | None = Field(
        None, description="Number of sampled negative images per positive image; all if not given."
    )
    on_problem: OnProblem = Field(
        "error", description="For faulty rows: error raises an error, skip excludes and lists them."
    )
    check_lungs: Switch = Field(
        False, description="Segment the lungs of every image, and add their quality, area and box to the cohort."
    )
    exclude_pretraining_overlap: Switch = Field(
        True,
        description="Exclude the images that the weights of the package were trained on from the evaluation.",
    )
    split: SplitUnit = Field(
        "patient",
        description="Split by patient, by image (a patient can be on both sides), or official: as the data state it.",
    )
    valid_pct: ValidPct = Field(0.2, description="Fraction of the images held out for validation.")
    evaluate_test: Switch = Field(
        False, description="Also evaluate on the official test set; the run logs each use of it."
    )
    keep_columns: KeptColumns | None = Field(
        None, description="CSV columns that the run keeps beside those that it needs, separated by commas."
    )
    pseudonymise: Switch = Field(
        False,
        description="Write numbers in place of the names of files and patients; the key lies beside the run.",
    )
    # 128: ten epochs on CoronaHack's 5,000 images end within half an hour on two CPU cores; at 224 within two hours
    image_size: ImageSize = Field(128, description="Side of the square input image.")
    region: Region = Field("frame", description="What the model sees: the whole frame, or the box around the lungs.")
    augmentation: Augmentation = Field("standard", description="Random changes of the training images.")
    batch_size: BatchSize = Field(32, description="Number of images per training step.")
    balance: Balance = Field(
        "none", description="Remedy for class imbalance: class weights in the loss, or a weighted sampler."
    )
    arch: Arch = Field("resnet18", description="The architecture.")
    weights: PathText | None = Field("auto", description="auto, imagenet, cxr, a file, or none for random weights.")
    frozen_epochs: Epochs = Field(5, description="Epochs with the body frozen.")
    unfrozen_epochs: Epochs = Field(5, description="Epochs with all layers trained.")
    learning_rate: LearningRate = Field(2e-3, description="Maximum learning rate of the frozen phase (one-cycle).")
    unfrozen_learning_rate: LearningRate | None = Field(
        None, description="Maximum learning rate of the head in the unfrozen phase; half of learning_rate if not given."
    )
    lr_ratio: LearningRateRatio | None = Field(
        None,
        description="Ratio of the learning rates of head and first layers; if not given 100, or 1 for random weights.",
    )
    initial_image_size: ImageSize | None = Field(
        None, description="Side of the input image in the first half of the unfrozen epochs; image_size if not given."
    )
    frozen_augmentations: FrozenAugmentations | None = Field(
        None,
        description="Number of augmented versions of each image in the frozen epochs; new ones per epoch if not given.",
    )
    weight_decay: WeightDecay = Field(1e-2, description="Decoupled weight decay.")
    gradient_clip: GradientNorm | None = Field(
        None, description="Largest norm of the gradient; no clipping if not given."
    )
    audit: Switch = Field(True, description="Test for shortcuts after training, and write a verdict.")
    seed: Seed = Field(42, description="Seed of the sampling, the split and the training.")
    device: Device = Field("auto", description="Device for training.")
    precision: Precision = Field(
        "auto", description="Number format of training; auto is 16-bit on a GPU or a CPU that is faster with bfloat16."
    )
    num_workers: NumWorkers = Field("auto", description="Number of processes that load images.")

    def __init__(self, **choices: Unpack[TrainOptions]) -> None:
        """Check the options.

        Args:
            **choices: Fields by name.

        Raises:
            UsageError: A field does not exist, a value is not allowed, or two values exclude each other.
        """
        for name in choices:
            if name not in type(self).model_fields:
                if hint := translate_name(name):
                    raise UsageError(f"There is no option {name!r}.", hint=hint)
                if name in ARGUMENTS:
                    function = "cross_validate" if name in FOLD_ARGUMENTS else "train_classifier"
                    raise UsageError(f"There is no option {name!r}.", hint=f"{function}(data, {name}=...) takes it.")
                near = difflib.get_close_matches(name, [*type(self).model_fields, *ARGUMENTS], n=1)
                hint = f"Did you mean {near[0]!r}?" if near else f"Options: {', '.join(type(self).model_fields)}."
                raise UsageError(f"There is no option {name!r}.", hint=hint)
        try:
            super().__init__(**choices)
        except ValidationError as error:
            names = dict.fromkeys(str(fault["loc"][0]) for fault in error.errors())
            refusals = [refuse_option(name, choices.get(name), type(self).option_types()[name]) for name in names]
            hints = dict.fromkeys(refusal.hint for refusal in refusals)
            raise UsageError(" ".join(refusal.message for refusal in refusals), hint=" ".join(hints)) from None
        self._check_together()

    def _check_together(self) -> None:
        """Raise for values that are allowed individually but not together."""
        for name, value in self:
            # a shell gives an empty text for a variable that is not set; as a path, it would be the current folder
            if isinstance(value, str) and not value.strip():
                raise UsageError(f"{name}={value!r} is empty.", hint="Give a value, or omit the option.")
        if self.frozen_epochs + self.unfrozen_epochs == 0:
            raise UsageError("frozen_epochs and unfrozen_epochs are both 0.", hint="Train for at least one epoch.")
        if self.initial_image_size is not None and self.initial_image_size >= self.image_size:
            raise UsageError(
                f"initial_image_size={self.initial_image_size} is not below image_size={self.image_size}.",
                hint="Omit it.",
            )
        check_row_options(path_column=self.path_column, path_template=self.path_template, join=self.join, on=self.on)

    @classmethod
    @functools.cache
    def option_types(cls) -> dict[str, Any]:
        """Return the type of each field, with its bounds, by name."""
        hints = typing.get_type_hints(cls, include_extras=True)
        return {name: hints[name] for name in cls.model_fields}

    @classmethod
    def describe(cls, name: str) -> str:
        """Return the description of a field with its allowed values, for help texts and docstrings.

        Args:
            name: The field.
        """
        option, text = cls.option_types()[name], cls.model_fields[name].description or ""
        if plain_type(option) in (bool, Any, str | None):  # the allowed values are obvious or in the text
            return text
        return f"{text[:-1]} ({describe_option(option).removesuffix(', or None')})."

    @classmethod
    def build(cls, *, preset: str | None = None, **choices: Any) -> TrainConfig:
        """Make a config from the values of a preset and the options that replace them.

        Args:
            preset: A name in `PRESETS`, or None.
            **choices: Fields by name.

        Raises:
            UsageError: The preset or a field does not exist, or a value is not allowed.
        """
        if preset is not None and preset not in PRESETS:
            raise UsageError(f"There is no preset {preset!r}.", hint=f"Presets: {', '.join(PRESETS)}.")
        return cls(**{**(PRESETS[preset] if preset else {}), **choices})

    def replace(self, **choices: Unpack[TrainOptions]) -> TrainConfig:
        """Return a checked config with some options replaced.

        Args:
            **choices: Fields by name.
        """
        fields: dict[str, Any] = {**dict(self), **choices}
        return type(self)(**fields)

    def options_of(self, function: Callable[..., Any], **replaced: Any) -> dict[str, Any]:
        """Return the fields that a function has as keywords of the same name.

        Args:
            function: Such as `read_cohort`, `build_dataloaders`, `build_learner` or `fit`.
            **replaced: Values that replace those of the fields.
        """
        names = inspect.signature(function).parameters.keys() & type(self).model_fields.keys()
        return {name: getattr(self, name) for name in sorted(names)} | replaced

    @property
    def task_name(self) -> str:
        """The name of the task, which can be a name, an object or its fields."""
        if isinstance(self.task, Mapping):
            return self.task["name"]
        return self.task if isinstance(self.task, str) else self.task.name

    def changed(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults."""
        return {name: value for name, value in self if value != type(self).model_fields[name].default}

    def to_python(self, data: str | Path, out: str | Path | None = None) -> str:
        """Return the Python call with these options."""
        arguments = [repr(str(data)), *(f"{name}={value!r}" for name, value in self.changed().items())]
        if out is not None:
            arguments.append(f"out={str(out)!r}")
        return f"train_classifier({', '.join(arguments)})"

    def to_command(self, data: str | Path, out: str | Path | None = None) -> str:
        """Return the command line with these options; a task object is given by its name only."""
        words = ["covid-fastai", "train", str(data)]
        for name, value in self.changed().items():
            option = f"--{name.replace('_', '-')}"
            if isinstance(value, bool):
                words.append(option if value else f"--no-{option[2:]}")
            elif isinstance(value, tuple):
                words += [option, join_names(value)]
            elif name == "labels":
                words += [word for theirs, ours in value.items() for word in ("--label", f"{theirs}={ours}")]
            else:
                words += [option, self.task_name if name == "task" else "none" if value is None else str(value)]
        if out is not None:
            words += ["--out", str(out)]
        return shlex.join(words)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for `config.json`; a task object becomes its fields."""
        fields = dict(self)
        if not isinstance(self.task, str | Mapping):
            fields["task"] = self.task.to_dict()
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TrainConfig:
        """Make a config from the result of `to_dict`."""
        return cls.build(**fields)


def merge_options(
    config: TrainConfig | None, options: TrainOptions, *, preset: str | None = None, resume: str | Path | None = None
) -> dict[str, Any]:
    """Return the options of a config, with those that replace some of them.

    Args:
        config: All options of a training, or None.
        options: Options by name, not yet checked.
        preset: The name of the preset, or None.
        resume: The run to resume, or None.

    Raises:
        UsageError: A config is given together with a preset or a run to resume, or it is not a `TrainConfig`.
    """
    if config is None:
        return dict(options)
    if not isinstance(config, TrainConfig):
        raise UsageError(f"config is a {type(config).__name__}.", hint="Give a TrainConfig, or options by name.")
    for name, value in {"preset": preset, "resume": resume}.items():
        if value is not None:
            hint = "Make the config with TrainConfig.build(preset=...)." if name == "preset" else "Omit config."
            raise UsageError(f"config and {name}={str(value)!r} are mutually exclusive.", hint=hint)
    return {**dict(config), **options}


TrainConfig.__signature__ = inspect.Signature(  # pydantic's signature shows the bounds as Python objects
    [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=plain_type(TrainConfig.option_types()[name]),
        )
        for name, field in TrainConfig.model_fields.items()
    ]
)
