"""The learner: its head, its normalisation, its frozen body, and its use by fastai's methods."""

from __future__ import annotations

import hashlib

import matplotlib
import numpy as np
import pytest
import torch
import torchvision
from fastai.callback.core import Callback
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import Normalize, RandomSplitter, get_image_files, parent_label
from fastai.interpret import ClassificationInterpretation
from fastai.layers import flatten_model
from fastai.vision.augment import Resize
from fastai.vision.core import PILImageBW
from fastai.vision.data import ImageBlock
from PIL import Image

from covid_fastai.data.dataloaders import LoaderFacts
from covid_fastai.errors import UsageError
from covid_fastai.model.learner import FrozenBody, build_learner, linear_head, map_weights
from covid_fastai.model.norms import BATCH_NORMS
from covid_fastai.model.precision import choose_precision
from tests.simulated_device import DEVICE, SimulatedDevice

matplotlib.use("Agg")

FACTS = {"classes": ["a", "b"], "image_size": 32, "mean": 0.5, "std": 0.25, "augmentation": "none", "batch_size": 7}
FACTS |= {"balance": "none"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Return loaders of 24 grey images of 40 pixels in two classes, one of them brighter."""
    root, numbers = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(24):
        folder = root / "ab"[number % 2]
        folder.mkdir(exist_ok=True)
        grey = numbers.random((40, 40)) * 128 + number % 2 * 60
        Image.fromarray(grey.astype("uint8")).save(folder / f"{number}.png")
    return root


@pytest.fixture
def dls(images):
    block = DataBlock(
        (ImageBlock(PILImageBW), CategoryBlock),
        get_items=get_image_files,
        get_y=parent_label,
        splitter=RandomSplitter(0.4, seed=0),
        item_tfms=Resize(32),
    )
    return block.dataloaders(images, bs=7, num_workers=0, device="cpu")


@pytest.fixture(scope="module")
def imagenet_like(tmp_path_factory):
    """Write a file of three-channel ResNet-18 weights, for which ImageNet's grey mean and std are used."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    return path


def normalisations(dls):
    found = [t for loader in dls.loaders for t in loader.after_batch.fs if isinstance(t, Normalize)]
    return [(round(float(t.mean), 4), round(float(t.std), 4)) for t in found]


def body_digest(learn) -> str:
    state = learn.model[0].state_dict()
    return hashlib.sha256(b"".join(value.contiguous().numpy().tobytes() for value in state.values())).hexdigest()


def test_the_learner_has_the_expected_model_and_options(dls, tmp_path):
    learn = build_learner(dls, weights=None, path=tmp_path / "run", weight_decay=0.05, gradient_clip=0.1)
    assert learn.facts.arch == "resnet18" and learn.facts.weights.name == "random" and learn.facts.weights.state is None
    assert learn.path == tmp_path / "run" and learn.wd == 0.05 and learn.gradient_clip.max_norm == 0.1
    assert [type(layer).__name__ for layer in learn.model[1]][-3:] == ["BatchNorm1d", "Dropout", "Linear"]
    assert not any(isinstance(layer, (torch.nn.Softmax, torch.nn.LogSoftmax)) for layer in flatten_model(learn.model))
    assert learn.model[0][0].weight.shape[1] == 1
    assert learn.model(torch.rand(2, 1, 32, 32)).shape == (2, 2)
    assert hasattr(learn, "training_precision") == (choose_precision("auto", torch.device("cpu")).precision == "bf16")


def test_nothing_is_written_into_the_folder_of_the_data(dls, images, tmp_path):
    before = sorted(images.rglob("*"))
    dls.path = images
    learn = build_learner(dls, weights=None, path=tmp_path / "run")
    learn.save("weights")
    assert (tmp_path / "run" / "models" / "weights.pth").exists() and sorted(images.rglob("*")) == before


def test_weights_are_loaded_with_their_normalisation(dls, imagenet_like):
    learn = build_learner(dls, weights=imagenet_like)
    state = torch.load(imagenet_like, weights_only=True)
    assert torch.equal(learn.model[0][0].weight, state["conv1.weight"].sum(1, keepdim=True))
    assert torch.equal(learn.model[0][7][1].bn2.weight, state["layer4.1.bn2.weight"])
    assert normalisations(dls) == [(0.449, 0.226)] * 2
    x, _ = dls.valid.one_batch()
    raw = torch.stack([torch.from_numpy(np.array(dls.valid_ds[i][0].resize((32, 32)))) for i in range(len(x))])
    assert abs(float(x.mean()) - (float(raw.float().mean()) / 255 - 0.449) / 0.226) < 0.02


def test_the_log_names_the_initial_weights(dls, imagenet_like, caplog):
    with caplog.at_level("INFO", logger="covid_fastai"):
        build_learner(dls, weights="cxr")
        assert "are the package's own (cxr" in caplog.text and "no JSON file" not in caplog.text
        build_learner(dls, weights=imagenet_like)
    assert f"{imagenet_like} has no JSON file with mean and std" in caplog.text


def test_a_learner_refuses_loaders_with_the_normalisation_of_other_weights(dls, imagenet_like, caplog):
    first = build_learner(dls, weights=None)
    assert normalisations(dls) == [(0.5, 0.25)] * 2
    with caplog.at_level("INFO", logger="covid_fastai"):
        second = build_learner(dls, weights=imagenet_like)
    assert "mean 0.449" in caplog.text and normalisations(dls) == [(0.449, 0.226)] * 2
    with second.no_bar():
        second.get_preds()
    with first.no_bar(), pytest.raises(UsageError, match="Build new loaders"):
        first.get_preds()


def test_class_activation_maps_are_exact(dls):
    learn = build_learner(dls, weights=None)
    norm = learn.model[1][-3]
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        tensor.data.uniform_(0.5, 2)
    model, x = learn.model.eval(), torch.rand(3, 1, 96, 64)
    weight, bias = map_weights(model)
    with torch.no_grad():
        maps = torch.einsum("ck,nkhw->nchw", weight, model[0](x))
        assert maps.shape[2:] == (3, 2)
        assert torch.allclose(maps.mean((2, 3)) + bias, model(x), atol=1e-4)


def test_linear_head_without_pooling():
    assert linear_head(8, False, classes=3)(torch.rand(2, 8)).shape == (2, 3)


def test_frozen_body_stays_bit_identical(dls):
    learn = build_learner(dls, weights=None)
    learn.freeze()
    body, head = body_digest(learn), learn.model[1][-1].weight.clone()
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2)
    assert body_digest(learn) == body and not torch.equal(head, learn.model[1][-1].weight)
    learn.unfreeze()
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2)
    assert body_digest(learn) != body


def test_partly_frozen_body_keeps_its_statistics(dls):
    learn = build_learner(dls, weights=None)
    learn.freeze_to(1)
    low, high = learn.model[0][1].running_mean.clone(), learn.model[0][7][0].bn1.running_mean.clone()
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2)
    assert torch.equal(low, learn.model[0][1].running_mean)
    assert not torch.equal(high, learn.model[0][7][0].bn1.running_mean)


def test_fine_tune_freezes_the_body_completely(dls):
    learn = build_learner(dls, weights=None)
    digests = []

    class Watch(Callback):
        def after_train(self):
            digests.append(body_digest(self.learn))

    body = body_digest(learn)
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(1, cbs=Watch())
    assert digests[0] == body and digests[1] != body


def test_class_weights_and_label_smoothing(dls, caplog):
    with pytest.raises(UsageError, match="needs class weights"):
        build_learner(dls, weights=None, balance="loss")
    dls.facts = LoaderFacts(None, **FACTS, class_weights=torch.tensor([3.0, 1.0]))
    learn = build_learner(dls, weights=None, balance="loss", label_smoothing=0.1)
    logits, target = torch.randn(5, 2), torch.tensor([0, 1, 1, 0, 1])
    oracle = torch.nn.functional.cross_entropy(logits, target, torch.tensor([3.0, 1.0]), label_smoothing=0.1)
    assert learn.loss_func(logits, target) == pytest.approx(float(oracle))
    build_learner(dls, weights=None)
    assert "not weighted" in caplog.text


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"balance": "weights"}, "balance='weights'"),
        ({"precision": "fp8"}, "precision='fp8'"),
        ({"gradient_clip": 0}, "gradient_clip=0"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"arch": "resnet19"}, "Did you mean 'resnet1?8'"),
    ],
)
def test_options_that_are_not_allowed(dls, option, message):
    with pytest.raises(UsageError, match=message):
        build_learner(dls, weights=None, **option)


@pytest.mark.slow
def test_fastai_methods_work(dls, images, tmp_path):
    learn = build_learner(dls, weights=None, path=tmp_path)
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(1)
        assert learn.lr_find(end_lr=1e-3, num_it=20, stop_div=False, show_plot=False).valley > 0
        probabilities, targets = learn.tta(n=2)
        assert probabilities.shape == (9, 2) and torch.allclose(probabilities.sum(1), torch.ones(9), atol=1e-5)
        interpretation = ClassificationInterpretation.from_learner(learn)
        interpretation.plot_top_losses(9)
        assert interpretation.confusion_matrix().sum() == 9
        learn.show_results()
        name, index, values = learn.predict(next(images.rglob("*.png")))
        assert name == dls.vocab[int(index)] and len(values) == 2
        learn.export()
    matplotlib.pyplot.close("all")


@pytest.mark.slow  # needs an extra that [dev] does not have
def test_timm_network(dls):
    pytest.importorskip("timm")
    dls.facts = LoaderFacts(None, **FACTS, class_weights=None)
    learn = build_learner(dls, arch="timm/convnext_atto", weights=None)
    assert learn.model(torch.rand(2, 1, 32, 32)).shape == (2, 2) and len(list(learn.splitter(learn.model))) == 2
    with pytest.raises(UsageError, match="convolutional"):
        build_learner(dls, arch="timm/swin_tiny_patch4_window7_224", weights=None)


def test_the_model_is_on_the_device_of_its_loaders_when_it_is_built(dls):
    with SimulatedDevice():
        learn = build_learner(dls.to(DEVICE), weights=None)
        tensors = [*learn.model.parameters(), *learn.model.buffers()]
        assert {tensor.device for tensor in tensors} == {DEVICE}
        learn.model.eval()(torch.zeros(2, 1, 32, 32, device=DEVICE))


def test_the_norms_of_a_frozen_body_stay_in_the_model_of_several_gpus(dls):
    """What fastai's DistributedTrainer does to a model on GPUs, without the GPUs."""
    learn = build_learner(dls, weights=None)
    learn.freeze()
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(learn.model)
    learn.model = torch.nn.Module()
    learn.model.module = model
    next(callback for callback in learn.cbs if isinstance(callback, FrozenBody)).learn = learn
    for frozen, learning in ((2, 1), (1, 11)):  # the head has one norm, the second group of the body ten
        for number, group in enumerate(learn.splitter(model)):
            for parameter in group:
                parameter.requires_grad_(number >= frozen)
        learn.model.train()
        next(callback for callback in learn.cbs if isinstance(callback, FrozenBody)).before_train()
        assert sum(norm.training for norm in model.modules() if isinstance(norm, BATCH_NORMS)) == learning
