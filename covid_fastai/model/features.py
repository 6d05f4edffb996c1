"""The frozen phase: what a frozen body says of an image is computed once, and the head learns from that."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from fastai.callback.core import Callback, TrainEvalCallback
from fastai.callback.progress import CSVLogger, ProgressCallback, ShowGraphCallback
from fastai.callback.schedule import ParamScheduler
from fastai.callback.tracker import TrackerCallback
from fastai.callback.training import GradientClip
from fastai.data.core import TfmdDL
from fastai.learner import CastToTensor, Learner, Recorder
from fastai.torch_core import get_model, no_random, num_distrib
from fastcore.foundation import GetAttr
from torch import nn

__all__ = ["FeatureLoader", "features_of_frozen_body", "needs_body"]

logger = logging.getLogger("covid_fastai")

# fastai's own that look at losses, figures, gradients and weights only, never at an image or into the body
BODILESS = (TrainEvalCallback, CastToTensor, Recorder, ProgressCallback, ParamScheduler, TrackerCallback, CSVLogger)
BODILESS += (GradientClip, ShowGraphCallback)


def needs_body(learn: Learner) -> str:
    """Say what in a learner needs images and the body in every step, though the body is frozen.

    Args:
        learn: The learner.

    Returns:
        The reason, as part of a sentence; empty where features that were computed once will do: the model is a body
        and a head that begins with the mean over positions (or has nothing to pool), the loaders are fastai's, there is
        one process, and every callback is fastai's or this package's own of those that look at neither, or says
        `needs_body = False` of itself.
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
            return f"{type(callback).__name__} may look at it"
    return ""


@contextmanager
def features_of_frozen_body(learn: Learner, *, views: int) -> Iterator[Callback]:
    """Let a learner whose body is frozen train on features instead of images, for the time of a `with` block.

    Within it the loaders give `(n, features, 1, 1)` rather than images, and the body passes them on, so that the head,
    its optimiser, its dropout and all callbacks do what they always do. Features of the validation images are computed
    once; those of the training images once for each view, a fresh draw of the augmentation, when it is first needed.
    Views are drawn from generators of their own, that depend on the learner's seed and the view's number alone: a run
    that was interrupted sees the same ones again. In memory stand 4 bytes a feature, image and view (ResNet-18: 2 KB).

    Args:
        learn: The learner, its body frozen, of whom `needs_body` says nothing.
        views: How many views there are; epoch `e` of the phase learns from view `e % views`.

    Yields:
        A callback that the fit needs.
    """
    body, images = get_model(learn.model)[0], list(learn.dls.loaders)
    loaders = [FeatureLoader(loader, learn, augmented=number == 0) for number, loader in enumerate(images)]
    learn.dls.loaders[:] = loaders
    body.forward = (
        _pass_on  # the instance's own shadows the class's: names of weights and the optimiser stay as they are
    )
    try:
        yield _Views(loaders[0], views)
    finally:
        del body.forward
        learn.dls.loaders[:] = images  # guard: features_back


def _pass_on(features: torch.Tensor) -> torch.Tensor:
    return features


class _Views(Callback):
    """Say before each epoch which view it learns from."""

    order, run_valid = -20, False

    def __init__(self, loader: FeatureLoader, views: int):
        self.loader, self.views = loader, views

    def before_train(self):
        """Choose the view; each is used once where there are as many as epochs, and forgotten then."""
        self.loader.choose_view(self.epoch % self.views, keep=self.views < self.n_epoch)


class FeatureLoader(GetAttr):
    """Give what a frozen body says of a loader's images, in the order that the loader itself would take.

    Everything else (`vocab`, `n`, `rng`, ...) is that of the loader.

    Args:
        loader: fastai's loader of images.
        learn: The learner whose body is asked.
        augmented: Whether the loader's images are drawn anew each time.
    """

    _default = "loader"

    def __init__(self, loader: TfmdDL, learn: Learner, *, augmented: bool):
        self.loader, self.learn, self.augmented = loader, learn, augmented
        self.view, self.keep, self.known = 0, True, {}
        self.after_batch = None  # nothing is normalised here: CheckNormalisation has nothing to check

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def rng(self):
        """The loader's own generator, which a checkpoint holds."""
        return self.loader.rng

    def choose_view(self, view: int, *, keep: bool) -> None:
        """Learn from that view from now on, and forget the others unless they are kept."""
        if not keep and view != self.view:
            self.known = {}
        self.view, self.keep = view, keep

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if self.view not in self.known:
            self.known[self.view] = self._compute()
        features, targets = self.known[self.view]
        self.loader.randomize()
        order = torch.tensor(list(self.loader.get_idxs()), device=features.device)
        size = self.loader.bs
        last = len(order) - len(order) % size if self.loader.drop_last else len(order)
        for start in range(0, last, size):
            places = order[start : start + size]
            yield features[places], targets[places]

    def _compute(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the body over all images in their own order, as training would: frozen, in training's number format."""
        body = get_model(self.learn.model)[0]
        was_training, passing = body.training, body.__dict__.pop("forward")
        features, targets = [], []
        seed = (torch.initial_seed() + self.view) % 2**32  # numpy's generator takes 32 bits
        try:
            body.eval()
            with no_random(seed, reproducible=False), torch.no_grad():  # guard: same_views
                for images, target in self.loader.new(shuffle=False, drop_last=False):
                    with self._autocast():
                        found = body(images).float()
                    features.append(found if found.ndim == 2 else found.mean((2, 3), keepdim=True))
                    targets.append(target)
        finally:
            body.train(was_training)
            body.forward = passing
        return torch.cat(features), torch.cat(targets)

    def _autocast(self):
        precision = getattr(self.learn, "training_precision", None)
        return nullcontext() if precision is None else precision.new_autocast()
