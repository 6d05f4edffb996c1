"""Features of a frozen body: the training is the same as with images, and the body runs once."""

from __future__ import annotations

import logging

import pandas as pd
import pytest
import torch
import torchvision
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.callback.tracker import EarlyStoppingCallback
from fastai.torch_core import no_random
from torch import nn

from covid_fastai.data.dataloaders import build_dataloaders
from covid_fastai.errors import UsageError
from covid_fastai.model import features
from covid_fastai.model.features import needs_body
from covid_fastai.model.learner import build_learner, pooled_features
from covid_fastai.model.schedule import fit


class Looks(Callback):
    """A user's callback, which may use images or the body."""


class LooksNot(Callback):
    """A user's callback that declares that it does not use images."""

    needs_body = False


def make_learner(cohort, tmp_path, *, callbacks=(), augmentation="none", dropout=0.0, balance="none", **options):
    with no_random(0):
        dls = build_dataloaders(
            cohort, image_size=32, batch_size=8, augmentation=augmentation, num_workers=0, device="cpu", balance=balance
        )
        learn = build_learner(dls, weights=None, precision="fp32", path=tmp_path, callbacks=callbacks, **options)
    learn.model[1][
        -2
    ].p = dropout  # its random numbers come at other positions of the generator's stream than with images
    return learn


def train(learn, **options):
    """Train, and count the images that the body processes, with the head in training and in evaluation mode."""
    seen = {True: 0, False: 0}
    watched = learn.model[0][0]
    hook = watched.register_forward_hook(
        lambda _, xs, __: seen.update({learn.model.training: seen[learn.model.training] + len(xs[0])})
    )
    with no_random(1):
        fit(learn, **{"frozen_epochs": 3, "unfrozen_epochs": 0, **options})
    hook.remove()
    return sum(seen.values())


def states(learn) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in learn.model.state_dict().items()}


@pytest.mark.parametrize("balance", ["none", "sampler"])
@pytest.mark.slow
def test_training_on_features_gives_the_head_of_training_on_images(balance, phantom_cohort, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="covid_fastai"):
        slow = make_learner(phantom_cohort, tmp_path, callbacks=[Looks()], balance=balance)
        asked_slow = train(slow)
        fast = make_learner(phantom_cohort, tmp_path, balance=balance)
        asked_fast = train(fast, frozen_augmentations=1)
    for key, value in states(slow).items():
        torch.testing.assert_close(states(fast)[key], value, rtol=1e-4, atol=1e-5)
    columns = ["train_loss", "valid_loss", "accuracy"]
    pd.testing.assert_frame_equal(fast.facts.history[columns], slow.facts.history[columns], rtol=1e-4)
    pd.testing.assert_frame_equal(fast.facts.steps, slow.facts.steps, rtol=1e-4)
    images = int(phantom_cohort["split"].isin(["train", "valid"]).sum())
    assert (asked_slow, asked_fast) == (3 * images, images)
    assert "runs in every step: Looks may use them" in caplog.text and "once for each of 1 views" in caplog.text


@pytest.mark.parametrize(("views", "passes"), [(None, 3), (2, 2), (9, 3)])
def test_each_view_is_computed_once(views, passes, phantom_cohort, tmp_path):
    learn = make_learner(phantom_cohort, tmp_path, augmentation="standard", dropout=0.5)
    counts = phantom_cohort["split"].value_counts()
    assert train(learn, frozen_augmentations=views) == passes * counts["train"] + counts["valid"]


def test_views_differ_and_are_repeated(phantom_cohort, tmp_path):
    learn = make_learner(phantom_cohort, tmp_path, augmentation="standard")
    from covid_fastai.model.features import features_of_frozen_body

    learn.freeze()
    with no_random(3), features_of_frozen_body(learn, views=2):
        loader = learn.dls.train
        found = []
        for view in (0, 1, 0):
            loader.choose_view(view, keep=False)
            found.append(next(iter(loader))[0].shape[1:] and loader.cache[view][0])
            before = torch.get_rng_state()
        loader.cache.clear()
        again = loader._compute()[0]
        assert torch.equal(before, torch.get_rng_state()), "a view leaves the training's own generator alone"
    assert torch.equal(found[0], found[2]) and torch.equal(found[0], again) and not torch.allclose(found[0], found[1])
    assert "forward" not in vars(learn.model[0]) and learn.dls.train is not loader


@pytest.mark.slow
def test_the_unfrozen_phase_trains_on_images(phantom_cohort, tmp_path):
    learn = make_learner(phantom_cohort, tmp_path)
    before = states(learn)
    train(learn, frozen_epochs=1, unfrozen_epochs=1)
    assert not torch.equal(before["0.0.weight"], states(learn)["0.0.weight"])


def test_the_learner_is_restored_after_an_error(phantom_cohort, tmp_path):
    class Fails(LooksNot):
        def after_loss(self):
            raise RuntimeError("stop")

    learn = make_learner(phantom_cohort, tmp_path, callbacks=[Fails()])
    loaders = list(learn.dls.loaders)
    with pytest.raises(RuntimeError, match="stop"):
        train(learn)
    assert learn.dls.loaders == loaders and "forward" not in vars(learn.model[0])


@pytest.mark.parametrize(
    ("callback", "reason"),
    [
        (None, ""),
        (LooksNot(), ""),
        (EarlyStoppingCallback(), ""),
        (Looks(), "Looks may use them"),
        (MixUp(), "MixUp may use them"),
    ],
    ids=["none", "says so", "fastai's", "unknown", "fastai's that mixes images"],
)
def test_callbacks_and_models_that_need_the_body(callback, reason, phantom_cohort, tmp_path):
    assert needs_body(make_learner(phantom_cohort, tmp_path, callbacks=[callback] if callback else [])) == reason


def test_heads_that_use_positions_need_the_body(phantom_cohort, tmp_path):
    learn = make_learner(phantom_cohort, tmp_path)
    learn.model[1][0] = nn.AdaptiveMaxPool2d(1)
    assert "head" in needs_body(learn)
    learn.model = nn.Sequential(*learn.model[0])
    assert needs_body(learn) == "the model is not a body and a head"


@pytest.mark.slow
def test_a_resumed_run_has_the_same_views(phantom_cohort, tmp_path):
    class Dies(LooksNot):
        order = 99

        def before_train(self):
            if self.epoch == 3:
                raise KeyboardInterrupt

    options = {"frozen_epochs": 4, "frozen_augmentations": 2, "augmentation": "standard", "dropout": 0.5}

    def run(name, *, callbacks=(), resume=False):
        learn = make_learner(
            phantom_cohort, tmp_path, callbacks=callbacks, augmentation="standard", dropout=options["dropout"]
        )
        train(
            learn,
            frozen_epochs=4,
            frozen_augmentations=2,
            unfrozen_epochs=1,
            out=tmp_path / name,
            resume=resume,
        )
        return learn

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("killed", callbacks=[Dies()])
    resumed = run("killed", resume=True)
    for key, value in states(whole).items():
        assert torch.equal(states(resumed)[key], value), key
    pd.testing.assert_frame_equal(resumed.facts.steps, whole.facts.steps, check_exact=True)


@pytest.mark.parametrize("views", [0, -1, 1.5])
def test_invalid_numbers_of_views(views, phantom_cohort, tmp_path):
    with pytest.raises(UsageError, match="frozen_augmentations="):
        fit(make_learner(phantom_cohort, tmp_path), frozen_augmentations=views)


def test_onnx_runtime_computes_the_features_where_it_is_faster(phantom_cohort, tmp_path, monkeypatch):
    opened, open_onnx = [], features._onnx_body
    monkeypatch.setattr(features, "_onnx_body", lambda body: opened.append(body) or open_onnx(body))
    heads = {}
    for capability in ("AVX512", "AVX2"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        learn = make_learner(phantom_cohort, tmp_path, augmentation="standard")
        with no_random(1):
            fit(learn, frozen_epochs=2, unfrozen_epochs=0)
        heads[capability] = states(learn)
    assert len(opened) == 3  # for validation, and for a view in each epoch
    for key, value in heads["AVX512"].items():
        torch.testing.assert_close(heads["AVX2"][key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_a_body_in_onnx_has_the_features_of_torch(arch):
    with no_random(0), torch.no_grad():
        body = nn.Sequential(*list(getattr(torchvision.models, arch)().children())[:-2]).eval()
        body.to(memory_format=torch.channels_last)
        for norm in body.modules():
            if isinstance(norm, nn.BatchNorm2d):  # the initial statistics could hide an error
                norm.running_mean.uniform_(-0.2, 0.2)
                norm.running_var.uniform_(0.5, 1.5)
        pooled = features._onnx_body(body)
        for n, side in ((1, 32), (3, 64), (5, 96)):
            images = torch.randn(n, 3, side, side).to(memory_format=torch.channels_last)
            expected = pooled_features(body(images))
            torch.testing.assert_close(pooled(images), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("change", ["hook", "64 bits", "other layer"])
def test_torch_computes_what_the_graph_could_not(change):
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    assert features._onnx_is_faster(body) == (torch.backends.cpu.get_cpu_capability() == "AVX2")
    if change == "hook":
        body[0].register_forward_hook(lambda *_: None)
    elif change == "64 bits":
        body.double()
    else:
        body.append(nn.SiLU())
    assert not features._onnx_is_faster(body)
