"""A saved model as a Gradio app, for Hugging Face Spaces; `covid-fastai serve` is the page for everything else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from PIL import Image

from covid_fastai.app.overlays import draw_explained
from covid_fastai.app.server.model_facts import read_facts
from covid_fastai.app.server.schemas import ModelFacts
from covid_fastai.data.images import open_image
from covid_fastai.errors import UnavailableError
from covid_fastai.model.hub import find_model
from covid_fastai.model.predictor import Predictor
from covid_fastai.notices import NO_DIAGNOSIS, RESEARCH_USE
from covid_fastai.saliency.overlay import against_rest

__all__ = ["answer_file", "gradio_app"]

NOTICE = f"{RESEARCH_USE} {NO_DIAGNOSIS}"


def answer_file(
    predictor: Predictor, facts: ModelFacts, path: str | os.PathLike
) -> tuple[dict[str, float], Image.Image | None, str]:
    """Answer one image file for the app.

    Args:
        predictor: Of the model.
        facts: Of the model.
        path: The file.

    Returns:
        The probability of each class (none where the file cannot be read), the radiograph with its activation map,
        and what has to be said beside them.
    """
    table, maps = predictor.explain([path], names=["the image"])
    row = table.iloc[0].to_dict()
    if row["status"] != "ok":
        return {}, None, f"No answer: {row['reason']}"
    p = {name: float(row[f"p_{name}"]) for name in predictor.classes}
    wanted = predictor.classes.index(row["prediction"])
    heat = against_rest(maps, [wanted])[0]
    picture = draw_explained(open_image(path), heat, name=row["prediction"], probability=p[row["prediction"]])
    said = [f"The model's rule gives: {row['prediction']} ({facts.rule})."]
    if row.get("remark"):
        said.append(f"Remark on the picture: {row['remark']}")
    return p, picture, "\n\n".join([*said, NOTICE])


def gradio_app(model: str | Path, *, revision: str | None = None) -> Any:
    """Make a Gradio app of a saved model: one image in, probabilities, map, remark, verdict and limits out.

        app = gradio_app("user/model")  # the file app.py of a Space
        app.launch()

    Nothing is sent to Gradio's makers; uploads lie in Gradio's temporary folder until its process ends.

    Args:
        model: A run's folder, a saved model's, or its name on the Hugging Face Hub.
        revision: Of a model on the Hub.

    Returns:
        A `gradio.Blocks`; `launch()` starts it.

    Raises:
        UnavailableError: Gradio is not installed.
        ModelFormatError: The model cannot be used.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when it is imported
    try:
        import gradio
    except ImportError as error:
        raise UnavailableError("gradio is not installed.", hint="pip install 'covid_fastai[gradio]'.") from error
    folder = find_model(model, revision=revision)
    predictor, facts = Predictor(folder), read_facts(folder)
    with gradio.Blocks(title=facts.name, analytics_enabled=False) as app:
        gradio.Markdown(f"# {facts.name}\n\n**{NOTICE}**\n\nVerdict on the model: {facts.verdict}")
        with gradio.Row():
            given = gradio.File(label="A frontal chest radiograph", type="filepath")
            with gradio.Column():
                answer, said = gradio.Label(label="Probability of each class"), gradio.Markdown()
        picture = gradio.Image(label="Where the model looked", interactive=False)
        given.upload(lambda path: answer_file(predictor, facts, path), given, [answer, picture, said])
        gradio.Markdown("Limits:\n\n" + "\n".join(f"- {limit}" for limit in facts.limits))
    return app
