"""The options that functions, `TrainConfig` and the command line share: one type, one range and one message for each.

An option is an `Annotated` type: a plain type for type checkers, with its bounds and a hint. `checked` checks the
options that a function takes, `check_option` one value, and `parse_option` a text from the command line.
"""

from __future__ import annotations

import csv
import difflib
import functools
import inspect
import io
import numbers
import operator
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

from annotated_types import Ge, Gt, Interval, Le, Lt
from pydantic import AllowInfNan, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from covid_fastai.errors import UsageError

__all__ = [
    "Arch",
    "Augmentation",
    "Balance",
    "BatchSize",
    "Bins",
    "CheckImages",
    "ClassNames",
    "ColumnNames",
    "Count",
    "Device",
    "Engine",
    "Epochs",
    "Finding",
    "Folds",
    "Fraction",
    "FrozenAugmentations",
    "GradientNorm",
    "Hospital",
    "ImageSize",
    "KeptColumns",
    "LabelClasses",
    "LabelSmoothing",
    "LearningRate",
    "LearningRateRatio",
    "Mean",
    "NJobs",
    "NResamples",
    "NegativesPerPositive",
    "NumWorkers",
    "OnProblem",
    "OpenFraction",
    "Option",
    "PathText",
    "PatientPattern",
    "PhantomSize",
    "Pixels",
    "Port",
    "PositiveCount",
    "Precision",
    "Probability",
    "Quantization",
    "Readers",
    "Region",
    "Repeats",
    "SaliencyMethod",
    "SavedTemperature",
    "Seconds",
    "Seed",
    "Severity",
    "Shortcut",
    "SplitUnit",
    "StandardDeviation",
    "Switch",
    "Temperature",
    "TopK",
    "UncertainLabels",
    "Uncertainty",
    "Unit",
    "ValidPct",
    "WeightDecay",
    "WorkerCount",
    "check_option",
    "checked",
    "describe_option",
    "join_names",
    "option_choices",
    "option_names",
    "parse_option",
    "plain_type",
    "refuse_option",
    "translate_name",
]

P = ParamSpec("P")
R = TypeVar("R")

NEAR = 0.7  # difflib's cutoff: "samplr" suggests "sampler", but "gpu" does not suggest "cpu"
FASTAI_NAMES = {  # of fastai's functions, and what they are called here
    "base_lr": "learning_rate",
    "batch_tfms": "augmentation",
    "bs": "batch_size",
    "cbs": "callbacks",
    "df": "data",
    "epochs": "frozen_epochs and unfrozen_epochs",
    "fn_col": "path_column",
    "folder": "image_root",
    "freeze_epochs": "frozen_epochs",
    "item_tfms": "image_size (and augmentation)",
    "label_col": "label_column",
    "label_delim": "labels",
    "lr": "learning_rate",
    "lr_max": "learning_rate",
    "lr_mult": "lr_ratio",
    "max_lr": "learning_rate",
    "model": "arch",
    "n_epoch": "frozen_epochs and unfrozen_epochs",
    "num_epochs": "frozen_epochs and unfrozen_epochs",
    "opt": "opt_func",
    "path": "data",
    "pretrained": "weights",
    "size": "image_size",
    "sz": "image_size",
    "val_bs": "batch_size",
    "valid_col": "split_column",
    "vocab": "classes",
    "wd": "weight_decay",
}
FASTAI_ONLY = {  # of fastai's functions, without a counterpart here: where they can be given all the same
    **dict.fromkeys(
        ("bn_final", "concat_pool", "custom_head", "cut", "first_bn", "init", "lin_first", "lin_ftrs", "model_dir")
        + ("moms", "n_in", "n_out", "normalize", "ps", "splitter", "train_bn", "wd_bn_bias", "y_range"),
        "vision_learner(dls, ...), with dls from build_dataloaders",
    ),
    **dict.fromkeys(
        ("div", "div_final", "pct_start", "reset_opt", "start_epoch"),
        "learn.fit_one_cycle(...), with learn from build_learner",
    ),
}
LONGEST_VALUE = 80  # characters of an invalid value in a message


@dataclass(frozen=True)
class Option:
    """Metadata of an option: the hint, the unit and the names that its bounds do not contain.

    Attributes:
        hint: A value to give, or the reason for the range; one sentence.
        unit: The unit of a number, such as `"pixels"`.
        allowed: The allowed values, as words that complete "is not ..."; "" to derive them from the bounds.
        names: Values for suggestions, in addition to those of a `Literal`.
        fault: Returns the reason why a value is not allowed, where the allowed values do not show it; "" for none.
    """

    hint: str
    unit: str = ""
    allowed: str = ""
    names: tuple[str, ...] = ()
    fault: Callable[[Any], str] | None = None


def _parse_number(text: str) -> int | float | str:
    """Return a text as the number that Python would read, else as it is."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _as_whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ValueError("not a whole number")
    return int(value)  # numpy's integers too, which JSON does not know


def _as_number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError("not a number")
    return float(value)


def _as_switch(value: Any) -> bool:
    if type(value).__name__ not in ("bool", "bool_"):  # numpy's has either name
        raise ValueError("neither True nor False")
    return bool(value)


def _as_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _as_names(value: Any) -> tuple[str, ...]:
    """Return names from a sequence, or from a text with commas in which quotes protect a comma, as in a CSV."""
    if isinstance(value, str):
        value = next(csv.reader([value], skipinitialspace=True), [])
    names = list(value) if isinstance(value, Iterable) else []
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError("not names")
    return tuple(name.strip() for name in names)


def _as_label_classes(value: Any) -> dict[str, str]:
    """Return the class of each label, from a mapping or from texts `THEIRS=OURS`."""
    if isinstance(value, Mapping):
        pairs = [(str(theirs), ours) for theirs, ours in value.items()]  # labels can be 0 and 1
    else:
        texts = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else []
        pairs = [text.rpartition("=")[::2] for text in texts if isinstance(text, str) and "=" in text]
        if len(pairs) < len(texts):
            raise ValueError("a text without =")
    classes: dict[str, str] = {}
    for theirs, ours in pairs:
        if not isinstance(ours, str) or "=" in ours or classes.setdefault(theirs.strip(), ours.strip()) != ours.strip():
            raise ValueError("no class, or two classes of one label")
    if not classes:
        raise ValueError("no label")
    return classes


def _pattern_fault(value: Any) -> str:
    """Return what is wrong with a pattern of the patient, "" for a valid one."""
    try:
        return "" if re.compile(value).groups else "it has no group in parentheses"
    except (re.error, TypeError) as error:
        return str(error)


def _as_pattern(value: Any) -> str:
    if fault := _pattern_fault(value):
        raise ValueError(fault)
    return value


# Pydantic alone would take "5", 5.0 and True for 5; a text is parsed by `parse_option`, and only there.
def _as_arch(value: Any) -> Any:
    """Return the name of an architecture that is given as a function of torchvision or timm, such as `resnet34`."""
    if not callable(value):
        return value
    module, name = getattr(value, "__module__", ""), getattr(value, "__name__", repr(value))
    if module.startswith("torchvision.models"):
        return name
    return f"timm/{name}" if module.startswith("timm.") else f"{module}.{name}"


_WHOLE = BeforeValidator(_as_whole)
_NUMBER = (AllowInfNan(False), BeforeValidator(_as_number))

Switch = Annotated[bool, BeforeValidator(_as_switch), Option("Give one of the two.", allowed="True or False")]
PathText = Annotated[str, BeforeValidator(_as_text), Option("Give a path or a name.", allowed="a text or a path")]

# of a cohort and its split
OnProblem = Annotated[Literal["error", "skip"], Option("'skip' leaves faulty rows out and lists them.")]
NegativesPerPositive = Annotated[float, Gt(0), *_NUMBER, Option("1 samples as many negative images as positive ones.")]
LabelClasses = Annotated[
    dict[str, str],
    BeforeValidator(_as_label_classes),
    Option(
        "Write labels={'Lung_Opacity': 'Pneumonia'}; an empty class excludes the label.",
        allowed="one class for each label",
    ),
]
ClassNames = Annotated[
    tuple[str, ...],
    BeforeValidator(_as_names),
    Option("Write classes=('Normal', 'Pneumonia').", allowed="names of classes"),
]
ColumnNames = Annotated[
    tuple[str, ...],
    BeforeValidator(_as_names),
    Option("Write label_columns=('No Finding', 'Pneumonia').", allowed="names of columns"),
]
KeptColumns = Annotated[
    tuple[str, ...],
    BeforeValidator(_as_names),
    Option("Write keep_columns=('scanner', 'ward').", allowed="names of columns"),
]
UncertainLabels = Annotated[
    Literal["exclude", "positive", "negative"], Option("'exclude' leaves out images that are stated to be uncertain.")
]
Readers = Annotated[
    Literal["error", "agreement", "majority"], Option("'agreement' excludes images that are labelled differently.")
]
PatientPattern = Annotated[
    str,
    BeforeValidator(_as_pattern),
    Option(
        r"Such as 'patient(\d+)': the group is the patient.",
        allowed="a regular expression with a group",
        fault=_pattern_fault,
    ),
]
SplitUnit = Annotated[
    Literal["patient", "image", "official"],
    Option("'patient' keeps every patient on one side, 'official' keeps the data's own validation part."),
]
ValidPct = Annotated[float, Interval(gt=0, lt=1), *_NUMBER, Option("0.2 holds out a fifth of the images.")]
Folds = Annotated[int, Ge(2), _WHOLE, Option("5 is usual.")]
Seed = Annotated[int, Interval(ge=0, lt=2**32), _WHOLE, Option("Any seed in this range will do; 42 is the default.")]

# of images and loaders
ImageSize = Annotated[
    int,
    Interval(ge=32, le=1024),
    _WHOLE,
    Option("128 and 224 are usual.", "pixels"),
]
Region = Annotated[
    Literal["frame", "lungs"], Option("'lungs' crops every image to the box around its lungs, 'frame' to nothing.")
]
PhantomSize = Annotated[int, Ge(32), _WHOLE, Option("128 is the default.", "pixels")]
Severity = Annotated[float, Ge(0), *_NUMBER, Option("1 is well visible, 0 shows no opacity.")]
Augmentation = Annotated[Literal["standard", "strong", "article", "none"], Option("AUGMENTATIONS describes each one.")]
BatchSize = Annotated[int, Interval(ge=2, le=4096), _WHOLE, Option("BatchNorm cannot learn from one image.", "images")]
Balance = Annotated[
    Literal["none", "loss", "sampler"], Option("'loss' weights classes, 'sampler' samples them equally.")
]
NumWorkers = Annotated[
    Annotated[int, Ge(0), _WHOLE] | Literal["auto"], Option("'auto' suits the machine; 0 loads in this process.")
]
Device = Annotated[
    str,
    Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$"),
    Option(
        "'auto' uses a GPU if there is one.",
        allowed="one of 'auto', 'cpu', 'cuda', 'cuda:<number>', 'mps'",
        names=("auto", "cpu", "cuda", "mps"),
    ),
]

Mean = Annotated[float, Interval(ge=0, le=1), *_NUMBER, Option("Intensities are scaled to 0 (black) to 1 (white).")]
StandardDeviation = Annotated[
    float, Interval(ge=0.01, le=10), *_NUMBER, Option("Intensities are scaled to 0 (black) to 1 (white).")
]

# of synthetic radiographs
Finding = Annotated[Literal["COVID-19", "Normal", "bacteria", "virus"], Option("'Normal' has no opacity.")]
Hospital = Annotated[
    Literal["hospital-A", "hospital-B", "hospital-C", "hospital-D"], Option("HOSPITALS lists their differences.")
]
Shortcut = Annotated[Literal["corner", "border", "jpeg_quality", "aspect", "gain"], Option("None plants no shortcut.")]

# of a model and its training
Arch = Annotated[
    str,
    Field(pattern=r"^(resnet(18|34|50)|timm/.+)$"),
    BeforeValidator(_as_arch),
    Option(
        "A convolutional network of timm is named 'timm/<name>', such as 'timm/densenet121'.",
        allowed="one of 'resnet18', 'resnet34', 'resnet50', 'timm/<name>'",
        names=("resnet18", "resnet34", "resnet50"),
    ),
]
Epochs = Annotated[int, Interval(ge=0, le=1000), _WHOLE, Option("0 omits the phase.", "epochs")]
LearningRate = Annotated[float, Gt(0), *_NUMBER, Option("2e-3 is usual; learn.lr_find() suggests one.")]
LearningRateRatio = Annotated[float, Ge(1), *_NUMBER, Option("1 gives all layers the same rate.")]
FrozenAugmentations = Annotated[int, Ge(1), _WHOLE, Option("None samples a new view in each epoch.", "views")]
WeightDecay = Annotated[float, Ge(0), *_NUMBER, Option("1e-2 is usual; 0 turns it off.")]
GradientNorm = Annotated[float, Gt(0), *_NUMBER, Option("0.1 is the article's norm; None does not clip.")]
LabelSmoothing = Annotated[float, Interval(ge=0, lt=1), *_NUMBER, Option("0.1 is usual; 0 turns it off.")]
Precision = Annotated[Literal["auto", "fp32", "fp16", "bf16"], Option("'auto' uses 16 bits where they are faster.")]

# of an evaluation
Probability = Annotated[float, Interval(ge=0, le=1), *_NUMBER, Option("0.5 is usual.")]
Fraction = Annotated[float, Interval(gt=0, le=1), *_NUMBER, Option("0.9 is usual.")]
OpenFraction = Annotated[float, Interval(gt=0, lt=1), *_NUMBER, Option("Such as 0.05.")]
NResamples = Annotated[int, Ge(100), _WHOLE, Option("2000 is usual; fewer make the interval depend on the seed.")]
Unit = Annotated[Literal["patient", "image"], Option("'patient' counts each patient once.")]
Uncertainty = Annotated[Literal["probability", "spread"], Option("'spread' needs a column of that name.")]
Bins = Annotated[int, Ge(2), _WHOLE, Option("10 is usual.")]
Temperature = Annotated[float, Gt(0), *_NUMBER, Option("1 changes nothing.")]
TopK = Annotated[int, Ge(1), _WHOLE, Option("9 fill a page.", "images")]
Repeats = Annotated[int, Ge(1), _WHOLE, Option("With more repeats, the result depends less on the seed.")]

# of saved models, explanations and audits
SaliencyMethod = Annotated[Literal["cam", "grad_cam", "occlusion"], Option("'cam' is exact for this package's models.")]
SavedTemperature = Annotated[float, Interval(ge=0.01, le=100), *_NUMBER, Option("1 changes nothing.")]
CheckImages = Annotated[
    Switch | Annotated[int, Ge(0), _WHOLE],
    Option("True opens all images.", allowed="True, False or a whole number of images, 0 or more"),
]

# of processes and servers
NJobs = Annotated[int, Ge(1), _WHOLE, Option("1 trains the folds one after the other.")]
WorkerCount = Annotated[int, Ge(1), _WHOLE, Option("The number of processor cores is a good choice.")]
Quantization = Annotated[Literal["int8"], Option("'int8' is faster, and changes probabilities a little.")]
Engine = Annotated[Literal["local", "ray"], Option("'ray' is for a cluster.")]
PositiveCount = Annotated[int, Ge(1), _WHOLE, Option("Give 1 or more.")]
Count = Annotated[int, Ge(0), _WHOLE, Option("Give 0 or more.")]
Seconds = Annotated[float, Gt(0), *_NUMBER, Option("20 to 60 are usual.", "seconds")]
Pixels = Annotated[int, Ge(1024), _WHOLE, Option("25 million suit the largest usual detectors.", "pixels")]
Port = Annotated[int, Interval(ge=1, le=65535), _WHOLE, Option("8000 is the default.")]


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check the options among a function's keyword arguments before it runs.

    An option is a parameter whose annotation is one of the types above, alone or in a union. Its value is passed as the
    plain type (numpy numbers become Python numbers); other arguments are passed unchanged. Defaults are not checked.

    Args:
        function: A function or method whose options are keyword-only.

    Returns:
        The function, which raises `UsageError` where a value is not allowed. Its signature shows plain types.
    """
    signature = inspect.signature(function)
    options = _options_of(function, signature)
    shown = [
        parameter.replace(annotation=plain_type(options[name])) if name in options else parameter
        for name, parameter in signature.parameters.items()
    ]

    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in () if takes_any else kwargs.keys() - signature.parameters.keys():
            if hint := translate_name(name):
                raise UsageError(f"{function.__name__} has no option {name!r}.", hint=hint)
        for name in kwargs.keys() & options.keys():
            kwargs[name] = check_option(name, kwargs[name], options[name])
        return function(*args, **kwargs)

    call.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    return call


def translate_name(name: str) -> str:
    """Return a hint for an option of fastai that has another name here, or none; empty for any other name.

    Args:
        name: fastai's name, such as `"bs"`.
    """
    if name in FASTAI_ONLY:
        return f"fastai's {name} is an option of {FASTAI_ONLY[name]}."
    ours = FASTAI_NAMES.get(name)
    return f"fastai's {name} is called {ours} here." if ours else ""


def check_option(name: str, value: Any, option: Any) -> Any:
    """Return an option's value as its plain type.

    Args:
        name: The option's name, for the message.
        value: The value.
        option: Its type.

    Raises:
        UsageError: The value is not allowed; the message has it and the allowed values.
    """
    try:
        return _adapter(option).validate_python(value)
    except ValidationError:
        raise refuse_option(name, value, option) from None


def refuse_option(name: str, value: Any, option: Any) -> UsageError:
    """Return the error for a value that is not allowed, the same in Python and on the command line.

    Args:
        name: The option's name.
        value: The value that is not allowed.
        option: Its type.
    """
    if type(value).__module__ == "numpy" and hasattr(value, "item"):
        value = value.item() if getattr(value, "size", 1) == 1 else value
    named = getattr(value, "__name__", "") if callable(value) else ""  # a function's repr has an address in memory
    text = str(named) or " ".join(repr(value).split())
    shown = text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."
    near = (
        difflib.get_close_matches(str(value).lower(), option_names(option), n=1, cutoff=NEAR)
        if isinstance(value, str)
        else []
    )
    hint = f"Did you mean {near[0]!r}?" if near else " ".join(mark.hint for mark in _marks(option)[:1])
    fault = next((mark.fault(value) for mark in _marks(option) if mark.fault is not None), "")
    return UsageError(f"{name}={shown} is not {describe_option(option)}{fault and f': {fault}'}.", hint=hint)


def describe_option(option: Any) -> str:
    """Return the allowed values of an option as text: `"a whole number of pixels from 32 to 1024"`.

    Args:
        option: Its type.
    """
    return _describe(option, "")


def join_names(names: Iterable[str]) -> str:
    """Return names as one text of the command line, with commas between them; quotes protect a comma in a name.

    Args:
        names: The names.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(names)
    return text.getvalue()


def option_choices(option: Any) -> tuple[str, ...]:
    """Return the allowed texts of a `Literal` option; an empty tuple for any other option.

    Args:
        option: Its type.
    """
    inner = _without_marks(option)
    return typing.get_args(inner) if typing.get_origin(inner) is Literal else ()


def parse_option(name: str, value: Any, option: Any) -> Any:
    """Return the value of an option that was given as text, or its default.

    Args:
        name: The option's name, for the message.
        value: The text on the command line; any other value is a default, and only checked.
        option: Its type.

    Raises:
        UsageError: The text is not a value of the type, or the value is not allowed.
    """
    is_number = isinstance(value, str) and _kinds(option) & {int, float}  # guard: default_as_it_is
    return check_option(name, _parse_number(value) if is_number else value, option)


def plain_type(annotation: Any) -> Any:
    """Return an annotation without the metadata of `Annotated`, as signatures show it.

    Args:
        annotation: A type, or a union of types.
    """
    if typing.get_origin(annotation) is Annotated:
        return plain_type(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return functools.reduce(operator.or_, map(plain_type, typing.get_args(annotation)))
    return annotation


@functools.cache
def _adapter(option: Any) -> TypeAdapter[Any]:
    return TypeAdapter(option, config=ConfigDict(arbitrary_types_allowed=True))


def _options_of(function: Callable[..., Any], signature: inspect.Signature) -> dict[str, Any]:
    """Return the parameters that are options, with their types; other annotations are not resolved."""
    named = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if isinstance(parameter.annotation, str) and set(_words(parameter.annotation)) & set(__all__)
    }
    holder = types.SimpleNamespace(__annotations__=named)
    hints = typing.get_type_hints(holder, globalns=function.__globals__, include_extras=True)
    options = {name: hint for name, hint in hints.items() if _marks(hint)}
    for name in options:
        if signature.parameters[name].kind is not inspect.Parameter.KEYWORD_ONLY:
            raise TypeError(f"{function.__qualname__}: the option {name} is not keyword-only")
    return options


def _words(text: str) -> list[str]:
    return "".join(letter if letter.isidentifier() or letter.isdigit() else " " for letter in text).split()


def _members(option: Any) -> tuple[Any, ...]:
    """Return the members of a union, else the type itself."""
    inner = _without_marks(option)
    return typing.get_args(inner) if typing.get_origin(inner) in (typing.Union, types.UnionType) else (inner,)


def _without_marks(option: Any) -> Any:
    return typing.get_args(option)[0] if typing.get_origin(option) is Annotated else option


def _marks(option: Any) -> list[Option]:
    """Return the marks of an option and of the members of its union."""
    metadata = typing.get_args(option)[1:] if typing.get_origin(option) is Annotated else ()
    marks = [mark for mark in metadata if isinstance(mark, Option)]
    inner = _without_marks(option)
    if typing.get_origin(inner) in (typing.Union, types.UnionType):
        marks += [mark for member in typing.get_args(inner) for mark in _marks(member)]
    return marks


def option_names(option: Any) -> list[str]:
    """Return the names that a value of an option can have, for suggestions and completion.

    Args:
        option: Its type.
    """
    literals = [text for member in _members(option) for text in option_choices(member)]
    return [*literals, *(name for mark in _marks(option) for name in mark.names)]


def _kinds(option: Any) -> set[Any]:
    """Return the plain types that an option's value can have."""
    members = _members(option)
    return set(members) if len(members) == 1 else {kind for member in members for kind in _kinds(member)}


def _describe(option: Any, unit: str) -> str:
    marks = [mark for mark in typing.get_args(option)[1:] if isinstance(mark, Option)]
    if marks and marks[0].allowed:
        return marks[0].allowed
    inner = _without_marks(option)
    if typing.get_origin(inner) in (typing.Union, types.UnionType):
        return ", or ".join(_describe(member, unit) for member in typing.get_args(inner))
    if typing.get_origin(inner) is Literal:
        texts = [repr(text) for text in typing.get_args(inner)]
        return texts[0] if len(texts) == 1 else f"one of {', '.join(texts)}"
    if inner in (int, float):
        return _describe_number(option, whole=inner is int, unit=marks[0].unit if marks else unit)
    if inner is types.NoneType:
        return "None"
    name = getattr(inner, "__name__", str(inner))
    return f"a {inner.__module__}.{name}" if isinstance(inner, type) and inner.__module__ != "builtins" else f"a {name}"


def _describe_number(option: Any, *, whole: bool, unit: str) -> str:
    bounds = [
        bound
        for mark in typing.get_args(option)[1:]
        for bound in (mark if isinstance(mark, Interval) else (mark,))  # an Interval yields its bounds
    ]
    noun = f"a {'whole ' if whole else ''}number{f' of {unit}' if unit else ''}"
    ge, gt, le, lt = (
        next((getattr(bound, kind.__name__.lower()) for bound in bounds if isinstance(bound, kind)), None)
        for kind in (Ge, Gt, Le, Lt)
    )
    if whole and lt is not None:
        le, lt = lt - 1, None
    if ge is not None and le is not None:
        return f"{noun} from {ge:g} to {le:g}" if not whole else f"{noun} from {ge} to {le}"
    low = f", {ge:g} or more" if ge is not None else f" above {gt:g}" if gt is not None else ""
    high = f"up to {le:g}" if le is not None else f"below {lt:g}" if lt is not None else ""
    return f"{noun}{low}{' and ' if low and high else ' ' if high else ''}{high}"
