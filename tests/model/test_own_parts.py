"""Parts that users of fastai bring: losses, metrics, optimisers, transforms, architectures, learners made by hand."""

from __future__ import annotations

import inspect
import re
import sys
import types
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.progress import CSVLogger, ShowGraphCallback
from fastai.callback.tracker import SaveModelCallback
from fastai.learner import Learner, mk_metric
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, FocalLossFlat
from fastai.metrics import F1Score, Perplexity, RocAucBinary, accuracy, error_rate
from fastai.optimizer import SGD, OptimWrapper, ranger
from fastai.torch_core import no_random
from fastai.vision.augment import Flip
from fastai.vision.learner import create_vision_model, vision_learner
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision.models import densenet121, resnet18, resnet34

from covid_fastai import (
    Predictor,
    TrainConfig,
    build_dataloaders,
    build_learner,
    cross_validate,
    evaluate,
    fit,
    load_model,
    predict,
    save_model,
    train_classifier,
    write_report,
)
from covid_fastai.config import ARGUMENTS
from covid_fastai.errors import UsageError
from covid_fastai.model.learner import linear_head
from covid_fastai.model.own_parts import LossOfLogits, check_loss, check_metrics, check_optimiser, describe_part
from covid_fastai.options import FASTAI_NAMES, FASTAI_ONLY
from covid_fastai.saliency.methods import class_activation_map, grad_cam
from tests.simulated_device import DEVICE, SimulatedDevice


@pytest.fixture
def loaders(phantom_cohort, tmp_path):
    rows = phantom_cohort[phantom_cohort["split"].isin(["train", "valid"])].groupby(["split", "label"]).head(6)
    return build_dataloaders(rows, image_size=32, batch_size=8, num_workers=0, device="cpu", path=tmp_path)


def test_an_architecture_may_be_its_function(loaders):
    assert TrainConfig(arch=resnet34).arch == "resnet34"
    assert build_learner(loaders, arch=resnet18, weights=None).facts.arch == "resnet18"
    for wrong in (densenet121, lambda: None):
        with pytest.raises(UsageError, match="is not one of 'resnet18'"):
            TrainConfig(arch=wrong)


@pytest.mark.parametrize("name", FASTAI_NAMES)
def test_the_names_of_fastai_are_hints(name):
    with pytest.raises(UsageError) as caught:
        TrainConfig(**{name: 1})
    assert FASTAI_NAMES[name] in caught.value.hint
    for ours in FASTAI_NAMES[name].replace("(", "").replace(")", "").split(" and "):
        assert ours.split()[0] in inspect.signature(train_classifier).parameters  # the remedy works


@pytest.mark.parametrize(("name", "ours"), [("fold", "folds"), ("callback", "callbacks"), ("metric", "metrics")])
def test_a_misspelt_argument_is_named_as_an_option_is(name, ours):
    both = inspect.signature(train_classifier).parameters.keys() | inspect.signature(cross_validate).parameters.keys()
    assert set(ARGUMENTS) == both - set(TrainConfig.model_fields) - {"data"}
    with pytest.raises(UsageError, match=f"no option '{name}'") as caught:
        TrainConfig(**{name: 1})
    assert f"Did you mean '{ours}'?" == caught.value.hint


@pytest.mark.parametrize("name", FASTAI_ONLY)
def test_the_hint_of_an_option_that_only_fastai_has_names_a_function_that_takes_it(name):
    with pytest.raises(UsageError) as caught:
        TrainConfig(**{name: 1})
    functions = {
        "vision_learner": (vision_learner, create_vision_model),
        "learn.fit_one_cycle": (Learner.fit_one_cycle,),
    }
    (named,) = (functions[key] for key in functions if f"option of {key}(" in caught.value.hint)
    assert any(name in inspect.signature(function).parameters for function in named)


def test_the_names_of_fastai_are_hints_of_single_steps(loaders):
    with pytest.raises(UsageError, match="build_learner has no option 'lr'") as caught:
        build_learner(loaders, lr=1)
    assert "learning_rate" in caught.value.hint


@pytest.mark.parametrize(
    "loss", [cross_entropy, FocalLossFlat(gamma=1), CrossEntropyLossFlat(), torch.nn.CrossEntropyLoss()]
)
def test_a_loss_of_logits_gives_probabilities(loaders, loss):
    learn = build_learner(loaders, weights=None, loss_func=loss)
    table = predict(learn)
    p = table[["p_Normal", "p_COVID-19"]].to_numpy()
    with torch.no_grad():
        logits = learn.model.eval()(torch.cat([x for x, _ in loaders.valid]))
    np.testing.assert_allclose(p, logits.softmax(1).numpy(), atol=1e-5)
    assert learn.facts.parts["loss_func"] == describe_part(loss)


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (CrossEntropyLossFlat, "cannot be called"),
        (BCEWithLogitsLossFlat(), "cannot be computed|not the softmax"),
        (partial(cross_entropy, reduction="none"), "2 numbers for two images, not one"),
        (lambda logits, targets: 1 / 0, "division by zero"),
        (lambda logits, targets: logits.mean() * float("nan"), "not one finite number"),
    ],
)
def test_a_loss_that_gives_no_probabilities_is_refused(loss, reason):
    with pytest.raises(UsageError, match=reason):
        check_loss(loss, classes=2)


@pytest.mark.parametrize(
    ("metric", "classes", "reason", "hint"),
    [
        (F1Score, 2, "F1Score, a function that makes a metric", r"metrics=\[F1Score\(\)\]"),
        (F1Score(average=None), 2, "f1_score, which cannot be computed for 2 classes as one number", "F1Score"),
        (F1Score(), 3, "Target is multiclass", "average='macro'"),
        (lambda predictions, targets: predictions, 2, "cannot be computed", "error_rate"),
        (partial(cross_entropy, reduction="none"), 2, "cannot be computed", "error_rate"),
    ],
)
def test_a_metric_that_would_end_a_training_is_refused_before_it(metric, classes, reason, hint):
    with pytest.raises(UsageError, match=reason) as caught:
        check_metrics([mk_metric(metric)], classes=classes)
    assert re.search(hint, caught.value.hint)


def test_metrics_that_can_be_computed_are_left_as_they_are(loaders):
    metrics = [accuracy, partial(cross_entropy, reduction="mean"), F1Score(), RocAucBinary(), Perplexity]
    learn = build_learner(loaders, weights=None, metrics=metrics, callbacks=SaveModelCallback)
    assert [metric.name for metric in learn.metrics][0] == "accuracy" and learn.metrics[2].preds == []
    assert any(isinstance(callback, SaveModelCallback) for callback in learn.cbs)
    with pytest.raises(UsageError, match="F1Score, a function"):
        build_learner(loaders, weights=None, metrics=[F1Score])
    check_metrics([F1Score(average="macro")], classes=3)


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"metrics": "accuracy"}, "metrics has 'accuracy', which is no metric"),
        ({"opt_func": "adam"}, "opt_func='adam' makes no optimiser: it cannot be called"),
        ({"opt_func": torch.optim.AdamW}, "makes a AdamW, which is no optimiser of fastai"),
        ({"opt_func": OptimWrapper}, "opt_func=OptimWrapper makes no optimiser"),
        ({"loss_func": CrossEntropyLossFlat}, "is not a loss: it cannot be called"),
        ({"callbacks": ["SaveModelCallback"]}, "callbacks has 'SaveModelCallback', which is no callback"),
        ({"callbacks": [ShowGraphCallback()]}, "draws beside the progress bar of a notebook"),
        ({"metrics": [F1Score]}, "F1Score, a function that makes a metric"),
        ({"loss_func": CrossEntropyLossFlat(reduction="none")}, "returns 2 numbers for two images, not one"),
        ({"augmentation": [Flip]}, "is not one of|is not a list of fastai transforms"),
        ({"augmentation": Flip()}, "is not one of|is not a list of fastai transforms"),
    ],
)
def test_what_is_no_part_is_refused_before_anything_is_read(part, reason, tmp_path):
    """Before the data, which are not there, and before a folder is made."""
    with pytest.raises(UsageError, match=reason):
        train_classifier(tmp_path / "nowhere", out=tmp_path / "run", **part)
    assert not (tmp_path / "run").exists()


def test_a_loss_excludes_other_weights_of_classes(loaders):
    with pytest.raises(UsageError, match="mutually exclusive"):
        build_learner(loaders, weights=None, loss_func=cross_entropy, label_smoothing=0.1)


@pytest.mark.parametrize(
    "opt", [SGD, ranger, partial(OptimWrapper, opt=torch.optim.AdamW)], ids=["sgd", "ranger", "torch"]
)
@pytest.mark.slow
def test_own_parts_train_and_are_recorded(loaders, tmp_path, opt):
    learn = build_learner(
        loaders, weights=None, loss_func=FocalLossFlat(), metrics=[error_rate, F1Score()], opt_func=opt, path=tmp_path
    )
    before = learn.model[1][-1].weight.clone()
    if isinstance(opt, partial):  # checkpoints hold the state of fastai's optimisers only
        with pytest.raises(UsageError, match="cannot be saved") as caught:
            check_optimiser(opt)
        assert "out=None" in caught.value.hint
        fit(learn, frozen_epochs=1, unfrozen_epochs=1)
        assert not torch.equal(before, learn.model[1][-1].weight)
        return
    check_optimiser(opt)
    fit(learn, frozen_epochs=1, unfrozen_epochs=1, out=tmp_path)
    assert not torch.equal(before, learn.model[1][-1].weight)
    assert {"error_rate", "f1_score"} <= set(learn.facts.history) and len(learn.facts.history) == 2
    record = (tmp_path / "record.jsonl").read_text()
    assert "FocalLossFlat" in record and "error_rate, f1_score" in record
    other = build_learner(loaders, weights=None, path=tmp_path)
    with pytest.raises(UsageError):  # a run that was begun with other parts is not continued
        fit(other, frozen_epochs=1, unfrozen_epochs=2, out=tmp_path, resume=True)


def test_own_transforms_change_training_images_only(phantom_cohort, tmp_path):
    options = {"image_size": 32, "batch_size": 8, "num_workers": 0, "device": "cpu", "path": tmp_path}
    dls = build_dataloaders(phantom_cohort, augmentation=[Flip(p=1.0)], **options)
    plain = build_dataloaders(phantom_cohort, augmentation="none", **options)
    assert dls.facts.augmentation == "own"
    images, wanted = (torch.cat([x for x, _ in loaders.valid]) for loaders in (dls, plain))
    torch.testing.assert_close(images, wanted, atol=1e-4, rtol=0)
    train = next(iter(dls.train))[0]
    one = plain.test_dl(phantom_cohort[phantom_cohort["split"] == "train"]).one_batch()
    one = one[0] if isinstance(one, tuple) else one
    assert train.shape == one.shape
    learn = build_learner(dls, weights=None)
    assert learn.facts.parts == {"augmentation": "Flip"}
    folder = save_model(learn, tmp_path / "model", onnx=False)
    assert load_model(folder, device="cpu").dls.facts.augmentation == "none"  # code is never saved


@pytest.mark.parametrize("wrong", [[Flip], ["flip"], "flip", 3])
def test_what_is_no_transform_is_refused(phantom_cohort, wrong):
    with pytest.raises(UsageError, match="augmentation="):
        build_dataloaders(phantom_cohort, augmentation=wrong, image_size=32, num_workers=0)


@pytest.mark.slow
def test_a_learner_made_by_hand_is_predicted_saved_explained_and_reported(loaders, tmp_path):
    head = linear_head(512, classes=2)
    learn = vision_learner(
        loaders, resnet18, n_in=1, pretrained=False, custom_head=head, metrics=accuracy, path=tmp_path
    )
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1)
    trained = [float(value) for value in learn.recorder.values[-1]]
    table = predict(learn)
    assert (table["status"] == "ok").all() and np.allclose(table[["p_Normal", "p_COVID-19"]].sum(axis=1), 1)
    again = predict(
        load_model(save_model(learn, tmp_path / "model"), device="cpu"), loaders.facts.cohort, split="valid"
    )
    np.testing.assert_allclose(table["p_COVID-19"], again["p_COVID-19"], atol=1e-5)
    assert class_activation_map(learn, table["path"].head(2).tolist()).shape[0] == 2
    page = write_report(learn, evaluate(table, n_resamples=100)).read_text()
    assert "This shows nothing about COVID-19 in patients." in page and "resnet18" in page
    history = pd.read_csv(tmp_path / "history.csv")
    assert history.loc[0, ["train_loss", "valid_loss", "accuracy"]].tolist() == pytest.approx(trained, abs=1e-6)


def test_the_head_of_fastai_is_predicted_and_refused_where_a_linear_head_is_needed(loaders, tmp_path):
    learn = vision_learner(loaders, resnet18, n_in=1, pretrained=False, path=tmp_path)
    paths = predict(learn)["path"].head(1).tolist()
    with pytest.raises(UsageError, match="no class activation map") as caught:
        class_activation_map(learn, paths)
    assert "custom_head=linear_head(512, classes=2)" in caught.value.hint
    with pytest.raises(UsageError, match="this package's head"):
        save_model(learn, tmp_path / "model")
    assert np.isfinite(grad_cam(learn, paths)).all()


def test_outputs_that_are_no_probabilities_are_refused(loaders, tmp_path):
    learn = vision_learner(loaders, resnet18, n_in=1, pretrained=False, loss_func=cross_entropy, path=tmp_path)
    with pytest.raises(UsageError, match="not probabilities"):
        predict(learn)
    learn.loss_func = LossOfLogits(cross_entropy)  # the remedy
    assert np.allclose(predict(learn)[["p_Normal", "p_COVID-19"]].sum(axis=1), 1)


@pytest.mark.slow
def test_tensorboard_follows_a_training(loaders, tmp_path):
    from fastai.callback.tensorboard import TensorBoardCallback
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoardCallback(log_dir=tmp_path / "logs", trace_model=False, log_preds=False)
    learn = build_learner(loaders, weights=None, callbacks=[board], precision="fp32", path=tmp_path)
    fit(learn, frozen_epochs=0, unfrozen_epochs=2)
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    losses = {event.step: event.value for event in events.Scalars("train_loss")}  # also logged in validation
    np.testing.assert_allclose(list(losses.values()), learn.facts.steps["train_loss"], rtol=1e-4)
    assert len(events.Scalars("accuracy")) == len(events.Scalars("valid_loss")) > 0


@pytest.mark.slow
def test_the_recipe_for_weights_and_biases_logs_every_step_and_epoch(loaders, tmp_path, monkeypatch):
    """The callback of docs/faq.md, which was tried with wandb 0.31; a list takes the place of its log here."""
    recipe = (Path(__file__).parents[2] / "docs/faq.md").read_text(encoding="utf-8").partition("import wandb\n")[2]
    logged = []
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(log=logged.append))
    scope = {"wandb": sys.modules["wandb"]}
    exec(compile(recipe.partition("wandb.init")[0], "faq.md", "exec"), scope)
    learn = build_learner(loaders, weights=None, callbacks=[scope["LogToWandb"]()], precision="fp32", path=tmp_path)
    fit(learn, frozen_epochs=0, unfrozen_epochs=2)
    losses = [row["train_loss"] for row in logged if "lr" in row]
    np.testing.assert_allclose(losses, learn.facts.steps["train_loss"], rtol=1e-4)
    epochs = [row for row in logged if "valid_loss" in row]
    assert [row["valid_loss"] for row in epochs] == pytest.approx(list(learn.facts.history["valid_loss"]), rel=1e-4)


@pytest.mark.slow
def test_an_export_leaves_the_learner_whole(loaders, tmp_path):
    class Holder(Callback):
        held = None

    log, holder = CSVLogger("log.csv"), Holder()
    learn = build_learner(loaders, weights=None, callbacks=[log, holder], path=tmp_path)
    fit(learn, frozen_epochs=0, unfrozen_epochs=1)
    assert log.file.closed  # as CSVLogger leaves it; a closed file cannot be pickled
    learn.export("learner.pkl")
    assert (tmp_path / "learner.pkl").stat().st_size > 0 and log.file.closed
    state, optimiser = len(predict(learn)), learn.opt
    with (
        (tmp_path / "open.txt").open("w") as holder.held,
        pytest.raises(UsageError, match="cannot be exported") as caught,
    ):
        learn.export("again.pkl")
    assert "Holder" in caught.value.hint
    assert learn.dls is loaders and learn.opt is optimiser and len(predict(learn)) == state
    learn.remove_cb(Holder)
    learn.export("again.pkl")
    fit(learn, frozen_epochs=0, unfrozen_epochs=1)


@pytest.mark.parametrize("logger", [CSVLogger, CSVLogger()])
def test_a_log_with_the_name_of_the_history_is_refused(logger, phantom_root, tmp_path):
    with pytest.raises(UsageError, match="writes history.csv") as caught:
        train_classifier(phantom_root, out=tmp_path / "run", callbacks=[logger])
    assert 'CSVLogger("log.csv")' in caught.value.hint and not (tmp_path / "run").exists()


def test_a_model_of_drawings_says_so_wherever_it_is_saved(loaders, tmp_path):
    learn = vision_learner(loaders, resnet18, n_in=1, pretrained=False, custom_head=linear_head(512, classes=2))
    predictor = Predictor(save_model(learn, tmp_path / "model"))
    assert predictor.findings.synthetic and "model of drawings" in repr(predictor)


def test_arguments_are_told_from_options():
    for name, function in {"folds": "cross_validate", "out": "train_classifier"}.items():
        with pytest.raises(UsageError, match=f"no option '{name}'") as caught:
            TrainConfig(**{name: 5})
        assert caught.value.hint == f"{function}(data, {name}=...) takes it."
    with pytest.raises(UsageError, match="is not one of 'standard', .*, 'none', or a list of fastai transforms"):
        train_classifier("data", augmentation=None)


@pytest.mark.filterwarnings("ignore:for .*meta parameter in the current model")
@pytest.mark.parametrize("make", [CrossEntropyLossFlat, FocalLossFlat, nn.CrossEntropyLoss])
def test_the_weights_of_a_loss_go_to_the_device(make, monkeypatch):
    monkeypatch.setattr(torch, "allclose", lambda *values, **options: True)  # a simulated device has no numbers
    with SimulatedDevice():
        check_loss(make(weight=torch.tensor([1.0, 2.0])), classes=2, device=DEVICE)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_loss_of_any_operations_is_computed_in_32_bits(precision, covid_cohort, tmp_path):
    """Autocast computes a product of matrices in 16 bits, which the mean of the losses cannot be updated with."""
    costs = torch.tensor([[0.0, 1.0], [3.0, 0.0]])
    kinds = set()

    def cost(logits, targets):
        one_hot = nn.functional.one_hot(targets.long(), 2).float()
        loss = torch.einsum("nc,nc->", one_hot @ costs, logits.softmax(1)) / len(logits)
        kinds.add(loss.dtype)
        return loss

    with no_random(0):
        dls = build_dataloaders(covid_cohort, image_size=32, batch_size=8, num_workers=0, device="cpu", path=tmp_path)
        learn = build_learner(dls, weights=None, path=tmp_path, loss_func=cost, precision=precision)
        fit(learn, frozen_epochs=0, unfrozen_epochs=1)
    assert kinds == {torch.float32} and np.isfinite(float(learn.recorder.losses[-1]))
