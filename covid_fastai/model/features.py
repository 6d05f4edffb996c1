"""The frozen phase: compute the features of the frozen body once, and train the head on them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from fastai.callback.core import Callback, TrainEvalCallback
from fastai.callback.progress import CSVLogger, ProgressCallback, ShowGraphCallback
from fastai.callback.schedule import ParamScheduler
from fastai.callback.tracker import TrackerCallback
from fastai.callback.training import GradientClip
from fastai.data.core import TfmdDL
from fastai.learner import CastToTensor, Learner, Recorder
from fastai.torch_core import get_model, num_distrib
from fastcore.foundation import GetAttr
from torch import nn

from covid_fastai.model.bundle_config import ONNX_INPUT
from covid_fastai.model.learner import pooled_features
from covid_fastai.model.onnx_export import OPSET
from covid_fastai.model.onnx_resnet import is_plain_resnet, write_body
from covid_fastai.model.precision import TrainingPrecision
from covid_fastai.model.random_states import seeded
from covid_fastai.progress import logged
from covid_fastai.runtime import onnxruntime

__all__ = ["FeatureLoader", "features_of_frozen_body", "needs_body"]

logger = logging.getLogger("covid_fastai")

# fastai's callbacks that use losses, metrics, gradients and weights only, not images or activations of the body
BODILESS = (TrainEvalCallback, CastToTensor, Recorder, ProgressCallback, ParamScheduler, TrackerCallback, CSVLogger)
BODILESS += (GradientClip, ShowGraphCallback)


def needs_body(learn: Learner) -> str:
    """Return why a learner with a frozen body needs images and the body in every step.

    Args:
        learn: The learner.

    Returns:
        The reason, as part of a sentence; empty if precomputed features are enough. They are if the model is a body
        and a head that starts with the mean over positions (or pools nothing), the loaders are fastai's, there is one
        process, and each callback is this package's, one of `BODILESS`, or has `needs_body = False`.
    """
    if num_distrib() > 1:
        return "there are several processes"
    model = get_model(learn.model)
    if not (isinstance(model, nn.Sequential) and len(model) == 2 and isinstance(head := model[1], nn.Sequential)):
        return "the model is not a body and a head"
    first = head[0]
    pooled = isinstance(first, nn.AdaptiveAvgPool2d) and first.output_size in (1, (1, 1))
    if not pooled and any(isinstance(layer, nn.modules.pooling._AdaptiveAvgPoolNd) for layer in head.modules()):
        return "the head does not begin with the mean over positions"
    if not pooled and not isinstance(first, (nn.BatchNorm1d, nn.Linear)):
        return f"the head begins with {type(first).__name__}"
    if not all(isinstance(loader, TfmdDL) for loader in learn.dls.loaders):
        return "the loaders are not fastai's TfmdDL"
    for callback in learn.cbs:
        own = type(callback).__module__.partition(".")[0] == "covid_fastai"
        harmless = own or type(callback) in BODILESS or isinstance(callback, TrackerCallback)
        if getattr(callback, "needs_body", not harmless):
            return f"{type(callback).__name__} may use them"
    return ""


@contextmanager
def features_of_frozen_body(learn: Learner, *, views: int) -> Iterator[Callback]:
    """Train a learner with a frozen body on features instead of images during a `with` block.

    In the block, the loaders yield features `(n, features, 1, 1)` and the body returns its input, so the head, its
    optimiser, dropout and all callbacks work as usual. Features of the validation images are computed once. Features
    of the training images are computed once per view, a random augmentation of every image, when the view is first
    used. The generator of a view depends only on the learner's seed and the view's number, so a resumed run has the
    same views. Memory: 4 bytes per feature, image and view (2 KB per image and view for ResNet-18).

    Args:
        learn: The learner with a frozen body, for which `needs_body` returns no reason.
        views: Number of views; epoch `e` of the phase trains on view `e % views`.

    Yields:
        The callback that `fit` needs.
    """
    body, images = get_model(learn.model)[0], list(learn.dls.loaders)
    loaders = [FeatureLoader(loader, learn, augmented=number == 0) for number, loader in enumerate(images)]
    learn.dls.loaders[:] = loaders
    # set on the instance, so that the names of the weights and the optimiser's parameters do not change
    body.forward = _identity
    try:
        yield _ViewChooser(loaders[0], views)
    finally:
        del body.forward
        learn.dls.loaders[:] = images  # guard: features_back


def _identity(features: torch.Tensor) -> torch.Tensor:
    return features


class _ViewChooser(Callback):
    """Choose the view of each epoch."""

    order, run_valid = -20, False

    def __init__(self, loader: FeatureLoader, views: int):
        self.loader, self.views = loader, views

    def before_train(self):
        """Choose the view; with as many views as epochs, each is used once and its features are then discarded."""
        self.loader.choose_view(self.epoch % self.views, keep=self.views < self.n_epoch)


class FeatureLoader(GetAttr):
    """Yield the frozen body's features of a loader's images, in the loader's order.

    All other attributes (`vocab`, `n`, `rng`, ...) are those of the loader.

    Args:
        loader: fastai's loader of images.
        learn: The learner with the frozen body.
        augmented: Whether the loader augments its images at random.
    """

    _default = "loader"

    def __init__(self, loader: TfmdDL, learn: Learner, *, augmented: bool):
        self.loader, self.learn, self.augmented = loader, learn, augmented
        self.view, self.keep, self.cache = 0, True, {}
        self.after_batch = None  # features are not normalised, so CheckNormalisation has nothing to check

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def rng(self):
        """The random generator of the loader, which a checkpoint saves."""
        return self.loader.rng

    def choose_view(self, view: int, *, keep: bool) -> None:
        """Yield that view from now on; discard the features of the others unless `keep`."""
        if not keep and view != self.view:
            self.cache = {}
        self.view, self.keep = view, keep

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if self.view not in self.cache:
            self.cache[self.view] = self._compute()
        features, targets = self.cache[self.view]
        self.loader.randomize()
        order = torch.tensor(list(self.loader.get_idxs()), device=features.device)
        size = self.loader.bs
        last = len(order) - len(order) % size if self.loader.drop_last else len(order)
        for start in range(0, last, size):
            indices = order[start : start + size]
            yield features[indices], targets[indices]

    def _compute(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the features of all images in order, with the body frozen and in the precision of the training."""
        body = get_model(self.learn.model)[0]
        was_training, identity = body.training, body.__dict__.pop("forward")
        features, targets = [], []
        seed = (torch.initial_seed() + self.view) % 2**32  # NumPy's seeds have 32 bits
        try:
            body.eval()
            with seeded(seed), torch.no_grad():  # guard: same_views
                loader = self.loader.new(shuffle=False, drop_last=False)
                pooled = _pooled_body(body, getattr(self.learn, "training_precision", None))
                for images, target in logged(loader, "Batches through the frozen body", len(loader)):
                    features.append(pooled(images))
                    targets.append(target)
        finally:
            body.train(was_training)
            body.forward = identity
        return torch.cat(features), torch.cat(targets)


def _pooled_body(body: nn.Module, precision: TrainingPrecision | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that computes the features of a batch of images, pooled as the head would pool them."""
    if precision is None and _onnx_is_faster(body):
        return _onnx_body(body)

    def pooled(images: torch.Tensor) -> torch.Tensor:
        with nullcontext() if precision is None else precision.new_autocast():
            output = body(images).float()
        return pooled_features(output)

    return pooled


def _onnx_is_faster(body: nn.Module) -> bool:
    """Return whether ONNX Runtime computes a body in 32 bits in three quarters of torch's time.

    Measured with ResNet-18 at 256 pixels on a processor that has AVX2 and not AVX512; unknown for others.
    """
    parameters = list(body.parameters())
    in_32_bits = all(p.device.type == "cpu" and p.dtype == torch.float32 for p in parameters)
    return in_32_bits and torch.backends.cpu.get_cpu_capability() == "AVX2" and is_plain_resnet(body)


def _onnx_body(body: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # torch augments between two batches
    graph = write_body(body, opset=OPSET).SerializeToString()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def pooled(images: torch.Tensor) -> torch.Tensor:
        given = images.as_subclass(torch.Tensor).contiguous().numpy()
        return torch.from_numpy(session.run(None, {ONNX_INPUT: given})[0])

    return pooled
