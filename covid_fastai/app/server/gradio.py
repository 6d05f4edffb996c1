"""A Gradio app of a saved model, for Hugging Face Spaces. For other uses, `covid-fastai serve` has its own page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from PIL import Image

from covid_fastai.app.overlays import MAX_SIDE, draw_explained
from covid_fastai.app.server.model_facts import read_facts
from covid_fastai.app.server.schemas import ModelFacts
from covid_fastai.data.images import open_image
from covid_fastai.data.regions import crop_of_row
from covid_fastai.errors import UnavailableError
from covid_fastai.model.hub import find_model
from covid_fastai.model.predictor import Predictor
from covid_fastai.notices import NO_DIAGNOSIS, OF_DRAWINGS, RESEARCH_USE
from covid_fastai.saliency.overlay import against_rest, shrink_to_fit

__all__ = ["answer_file", "gradio_app"]

NOTICE = f"{RESEARCH_USE} {NO_DIAGNOSIS}"


def answer_file(
    predictor: Predictor, facts: ModelFacts, path: str | os.PathLike
) -> tuple[dict[str, float], Image.Image | None, str]:
    """Predict one image file for the app.

    Args:
        predictor: The predictor of the model.
        facts: The facts of the model.
        path: The image file.

    Returns:
        The probability of each class (empty if the file cannot be read or the class is withheld), the radiograph with
        its class activation map (without it if the class is withheld), and the text to show with them.
    """
    table, maps = predictor.explain([path], names=["the image"])
    row = table.iloc[0].to_dict()
    purpose = [f"This model is for: {facts.purpose}"] if facts.purpose else []
    if row["status"] != "ok":
        return {}, None, "\n\n".join([f"No prediction: {row['reason']}", *purpose])
    probabilities = {name: float(row[f"p_{name}"]) for name in predictor.classes}
    verdict = " ".join([OF_DRAWINGS] * facts.synthetic + [facts.headline or f"Verdict: {facts.verdict}"])
    if row["withheld"]:
        text = f"The predicted class is withheld. {row['remark']}"
        return {}, shrink_to_fit(open_image(path), MAX_SIDE), "\n\n".join([*purpose, text, verdict, NOTICE])
    prediction = row["prediction"]
    saliency = against_rest(maps, [predictor.classes.index(prediction)])[0]
    options = {"name": prediction, "probability": probabilities[prediction], "crop": crop_of_row(row)}
    options |= {"purpose": facts.purpose}
    overlay = draw_explained(open_image(path), saliency, **options)
    paragraphs = [*purpose, f"Predicted class: {prediction} (rule: {facts.rule})."]
    if row.get("remark"):
        paragraphs.append(f"Remark on the image: {row['remark']}")
    return probabilities, overlay, "\n\n".join([*paragraphs, verdict, NOTICE])


def gradio_app(model: str | Path, *, revision: str | None = None) -> Any:
    """Create a Gradio app that shows the prediction, class activation map and remarks for one image.

        app = gradio_app("user/model")  # the file app.py of a Space
        app.launch()

    The analytics of Gradio are disabled. Gradio keeps uploads in a temporary folder until its process ends.

    Args:
        model: The folder of a run or of a saved model, or `"user/model"` on the Hugging Face Hub.
        revision: The commit, tag or branch of a model on the Hub.

    Returns:
        A `gradio.Blocks`, whose method `launch` starts the app.

    Raises:
        UnavailableError: Gradio is not installed.
        ModelFormatError: The model is missing, damaged or not allowed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # Gradio reads it on import
    try:
        import gradio
    except ImportError as error:
        raise UnavailableError(
            "The app needs the package gradio, which is not installed.", hint="pip install 'covid_fastai[gradio]'"
        ) from error
    folder = find_model(model, revision=revision)
    facts = read_facts(folder)
    predictor = Predictor(folder, fingerprint=facts.fingerprint)
    with gradio.Blocks(title=facts.name, analytics_enabled=False) as app:
        gradio.Markdown(f"# {facts.name}\n\n**{NOTICE}**\n\nVerdict of the evaluation: {facts.verdict}")
        with gradio.Row():
            file = gradio.File(label="Frontal chest radiograph", type="filepath")
            with gradio.Column():
                probabilities, text = gradio.Label(label="Probability of each class"), gradio.Markdown()
        overlay = gradio.Image(label="Class activation map", interactive=False)
        file.upload(lambda path: answer_file(predictor, facts, path), file, [probabilities, overlay, text])
        gradio.Markdown("Limits:\n\n" + "\n".join(f"- {limit}" for limit in facts.limits))
    return app
