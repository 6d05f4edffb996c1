"""Plain fastai for the comparisons: its loaders, its learner and the article's experiment."""

from __future__ import annotations

import sys
from pathlib import Path

SIZE = 256


def stock_loaders(cohort, *, size: int = SIZE, batch_size: int = 8, article: bool = False, num_workers: int = 2):
    """Build fastai's loaders from a cohort's rows, with the same augmentation as ours."""
    from fastai.vision.all import CategoryBlock, ColReader, DataBlock, ImageBlock, IndexSplitter, Resize, aug_transforms

    rows = cohort[cohort["split"].isin(["train", "valid"])].reset_index(drop=True)
    options = {"max_warp": 0.0, "pad_mode": "zeros"}
    if article:
        options |= {"do_flip": True, "max_rotate": 10.0, "max_zoom": 1.0, "p_affine": 1.0, "max_lighting": 0.0}
    else:
        options |= {"do_flip": False, "max_rotate": 7.0, "min_zoom": 0.95, "max_zoom": 1.1, "max_lighting": 0.2}
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_x=ColReader("path"),
        get_y=ColReader("label"),
        splitter=IndexSplitter(rows.index[rows["split"] == "valid"]),
        item_tfms=Resize(size, method="squash"),
        batch_tfms=aug_transforms(**options),
    )
    return block.dataloaders(rows, bs=batch_size, num_workers=num_workers)


def stock_learner(dls, arch: str, path: Path):
    """Build fastai's learner with random weights, which need no download."""
    import torchvision
    from fastai.vision.all import GradientClip, accuracy, vision_learner

    model = getattr(torchvision.models, arch)
    learn = vision_learner(dls, model, pretrained=False, metrics=accuracy, path=path, wd=1e-4, cbs=GradientClip(0.1))
    learn.recorder.train_metrics = False
    return learn


def run_article(cohort_csv: str, arch: str, epochs: str, out: str) -> None:
    """Run the article's experiment, from the CSV to the figures of its evaluation and an exported model.

    Args:
        cohort_csv: The cohort's file.
        arch: `"resnet18"` or another of torchvision.
        epochs: Epochs of each of the two phases.
        out: The folder of the results.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import pandas as pd
    from fastai.vision.all import ClassificationInterpretation

    dls = stock_loaders(pd.read_csv(cohort_csv), article=True)
    learn = stock_learner(dls, arch, Path(out))
    with learn.no_bar():
        learn.freeze()
        learn.fit_one_cycle(int(epochs), 1e-2)
        learn.unfreeze()
        learn.fit_one_cycle(int(epochs), 1e-3)
        interpretation = ClassificationInterpretation.from_learner(learn)
        interpretation.plot_confusion_matrix()
        plt.savefig(Path(out) / "confusion.png")
        interpretation.plot_top_losses(9)
        plt.savefig(Path(out) / "top_losses.png")
        score = float(learn.validate()[1])
    learn.export()
    print(f"accuracy {score:.4f} of {len(dls.valid_ds)}")


if __name__ == "__main__":
    run_article(*sys.argv[1:])
