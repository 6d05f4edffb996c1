"""The JSON API of the server as pydantic models, and the OpenAPI document that is generated from them.

The server builds every JSON response from these models, so that the document always matches the responses.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict
from pydantic.json_schema import models_json_schema

from covid_fastai.app.server.limits import MAX_FIELD_BYTES, MAX_OTHER_FIELDS, Limits
from covid_fastai.data.input_check import RemarkKind
from covid_fastai.evaluation.prediction_table import PredictionStatus
from covid_fastai.notices import RESEARCH_USE

__all__ = [
    "ErrorResponse",
    "HealthResponse",
    "ImageAnswer",
    "ImageAnswerWithMaps",
    "ModelFacts",
    "PredictResponse",
    "ReadinessResponse",
    "Remark",
    "UNREADABLE",
    "describe_api",
]

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
PNG: JsonDict = {"contentEncoding": "base64", "contentMediaType": "image/png"}
EncodedPng = Annotated[str, Field(min_length=1, json_schema_extra=PNG)]


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Remark(_Schema):
    """A property that makes an image unsuitable for a classifier of frontal chest radiographs."""

    kind: RemarkKind
    text: str = Field(description="A description, one sentence.")


class ImageAnswer(_Schema):
    """The answer to one uploaded file."""

    name: str = Field(description="The last component of the file name.")
    status: PredictionStatus = Field(description="ok, or the reason in one word why there is no prediction.")
    reason: str = Field(description="Why there is no prediction; empty if the status is ok.")
    probabilities: dict[str, Probability] = Field(
        description="Probability of each class; empty if there is no prediction."
    )
    prediction: str = Field(
        description="The predicted class, which is not a diagnosis; empty if there is none or it is withheld."
    )
    remarks: tuple[Remark, ...] = Field(description="The remarks of the input check.")
    withheld: bool = Field(description="Whether a remark makes the predicted class unreliable.")
    width: int | None = Field(ge=1, description="Width of the image in the file, pixels.")
    height: int | None = Field(ge=1, description="Height of the image in the file, pixels.")

    crop: tuple[Probability, Probability, Probability, Probability] | None = Field(
        description="Left, top, right and bottom of the part that the model saw, as fractions of width and height; "
        "null if there is no prediction.",
    )

    @model_validator(mode="after")
    def _check_status(self) -> ImageAnswer:
        is_ok = self.status == "ok"
        present = (bool(self.probabilities), self.width is not None, self.height is not None)
        has_class = is_ok and not self.withheld
        if set(present) != {is_ok} or bool(self.reason) == is_ok or bool(self.prediction) != has_class:
            raise ValueError(
                f"The status {self.status!r} and the other fields disagree: with the status 'ok', an answer has "
                "probabilities, a width, a height, a prediction unless it is withheld, and no reason, otherwise only a "
                "reason."
            )
        return self


class ImageAnswerWithMaps(ImageAnswer):
    """The answer to one uploaded file, with the radiograph and its class activation map."""

    radiograph: EncodedPng = Field(description="The image as read from the file, reduced in size.")
    saliency: EncodedPng | None = Field(
        description="The class activation map as a transparent overlay of the same size; null if the class is withheld."
    )
    map_class: str = Field(
        description="The class of the map, which shows its logit relative to the other classes; empty if withheld."
    )
    map_max: float = Field(ge=0, allow_inf_nan=False, description="The largest value of the map, in logits.")
    map_shape: tuple[int, int] = Field(description="Rows and columns of the map.")
    lungs: EncodedPng | None = Field(
        description="The outline of the segmented lungs as a transparent overlay of the same size; null if they were "
        "not found."
    )
    lungs_saliency: Probability | None = Field(
        description="The fraction of the map's positive values that lies in the lungs; null without lungs or values."
    )
    lungs_area: Probability | None = Field(
        description="The fraction of what the model saw that the lungs cover, which a uniform map would have in them."
    )
    lungs_text: str = Field(description="What the outline is, or why there is none.")


class ModelFacts(_Schema):
    """The facts of a saved model that are shown with its predictions."""

    name: str = Field(description="The name of the model.")
    purpose: str = Field(
        description="The population and the question that the model was made for; empty if not stated."
    )
    task: str = Field(description="The task that the model was trained for.")
    classes: tuple[str, ...] = Field(description="The classes, in the order of the outputs.")
    positive: str | None = Field(description="The positive class; null if there is none.")
    threshold: float | None = Field(
        description="The positive class is predicted if its probability is at least this; null to predict the most "
        "probable class."
    )
    arch: str = Field(description="The architecture.")
    image_size: int = Field(description="Side of the square input, pixels.")
    region: str = Field(description="What the model sees of an image: the whole frame, or a crop to the lungs.")
    temperature: float = Field(description="The temperature of the calibration; 1 for none.")
    weights: str = Field(description="The weights that training started from.")
    saved_by: str = Field(description="The version of covid_fastai that saved the model.")
    fingerprint: str = Field(description="The sha256 of the configuration.")
    headline: str = Field(description="What the evaluation of the model shows, in one plain sentence; may be empty.")
    synthetic: bool = Field(
        description="Whether the model was trained on drawings only: its answers say nothing about a radiograph."
    )
    short_verdict: str = Field(description="The verdict in a few words, as in the column model_verdict of a table.")
    verdict: str = Field(description='The verdict of the evaluation, or "not stated".')
    limits: tuple[str, ...] = Field(description='The limits of the model; one "not stated" if there are none.')
    rule: str = Field(description="How the class is predicted from the probabilities, as the end of a sentence.")


class PredictResponse(_Schema):
    """The answers to the files of one request, in the order of the files."""

    research_use: str
    model: ModelFacts
    images: list[ImageAnswerWithMaps | ImageAnswer] = Field(min_length=1)


class HealthResponse(_Schema):
    """The server is running."""

    status: Literal["alive"]


class ReadinessResponse(_Schema):
    """Whether a process that has loaded the model is running."""

    status: Literal["ready", "not ready"]


class ErrorResponse(_Schema):
    """The reason why a request failed."""

    error: str = Field(min_length=1, description="A message for users, one sentence.")


RESPONSES: tuple[type[BaseModel], ...] = (
    PredictResponse,
    ModelFacts,
    HealthResponse,
    ReadinessResponse,
    ErrorResponse,
)


def describe_api(facts: ModelFacts, limits: Limits) -> dict[str, Any]:
    """Describe the JSON API as OpenAPI 3.1, with examples for the served model.

    Args:
        facts: The facts of the served model.
        limits: The limits of the server.

    Returns:
        The OpenAPI document.
    """
    _, schemas = models_json_schema(
        [(model, "serialization") for model in RESPONSES], ref_template="#/components/schemas/{model}"
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"covid_fastai: {facts.name}",
            "version": _version(),
            "summary": RESEARCH_USE,
            "description": "Example: `curl -F files=@a.png http://127.0.0.1:8000/api/predict`",
        },
        "paths": {
            "/api/predict": {"post": _predict(facts, limits)},
            "/api/model": {"get": _get("model", "The facts of the served model.", ModelFacts)},
            "/healthz": {"get": _get("health", "Whether the server is running.", HealthResponse)},
            "/readyz": {"get": _get("readiness", "Whether the model is loaded.", ReadinessResponse, 200, 503)},
        },
        "components": {"schemas": schemas["$defs"]},
    }


def _predict(facts: ModelFacts, limits: Limits) -> dict[str, Any]:
    errors = {
        400: "The request body is malformed or has no file, maps is neither true nor false, or the host name of the "
        "request is not allowed.",
        403: "The request came from a page of another site.",
        408: f"The request did not arrive within {limits.receive_seconds:g} seconds, or too slowly.",
        413: f"The request has more than {limits.files} files, a file of more than {limits.file_bytes >> 20} MiB, or "
        f"more than {limits.request_bytes >> 20} MiB in total.",
        415: "The request body is not multipart/form-data, or has another charset than UTF-8.",
        429: "There were too many requests from this address. Retry after the time in the header Retry-After.",
        500: "Internal server error.",
        503: "The queue is full, or no worker was free in time. Retry after the time in the header Retry-After.",
    }
    responses = {
        200: _response("At least one file has a prediction.", PredictResponse, _example(facts, _predicted(facts))),
        422: _response("No file has a prediction.", PredictResponse, _example(facts, UNREADABLE)),
    }
    responses |= {status: _response(text, ErrorResponse, ErrorResponse(error=text)) for status, text in errors.items()}
    for status in (429, 503):
        responses[status]["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    files = {"type": "array", "minItems": 1, "maxItems": limits.files, "items": {"type": "string", "format": "binary"}}
    form = {"type": "object", "required": ["files"], "properties": {"files": files}}
    form |= {
        "maxProperties": 1 + MAX_OTHER_FIELDS,
        "additionalProperties": {"type": "string", "maxLength": MAX_FIELD_BYTES},
    }
    return {
        "operationId": "predict",
        "summary": "Predict one or more images.",
        "description": f"{RESEARCH_USE} The files are read in memory and not stored.",
        "parameters": [
            {
                "name": "maps",
                "in": "query",
                "description": "Whether to return each radiograph with its class activation map.",
                "schema": {"type": "boolean", "default": False},
            }
        ],
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}},
        "responses": _by_status(responses),
    }


def _get(name: str, summary: str, model: type[BaseModel], *statuses: int) -> dict[str, Any]:
    responses = {status: _response(summary, model) for status in statuses or (200,)}
    responses[400] = _response("The host name of the request is not allowed.", ErrorResponse)
    responses[500] = _response("Internal server error.", ErrorResponse)
    return {"operationId": name, "summary": summary, "responses": _by_status(responses)}


def _response(text: str, model: type[BaseModel], example: BaseModel | None = None) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}
    if example is not None:
        content["example"] = example.model_dump(mode="json")
    return {"description": text, "content": {"application/json": content}}


def _by_status(responses: dict[int, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {str(status): responses[status] for status in sorted(responses)}


UNREADABLE = ImageAnswer(
    name="page.png",
    status="unreadable",
    reason="the image is an HTML page, not an image.",
    probabilities={},
    prediction="",
    remarks=(),
    withheld=False,
    width=None,
    height=None,
    crop=None,
)


def _predicted(facts: ModelFacts) -> ImageAnswer:
    """Return an example answer, in which each class is twice as probable as the class before it."""
    weights = [2.0**index for index in range(len(facts.classes))]
    probabilities = {name: round(w / sum(weights), 4) for name, w in zip(facts.classes, weights, strict=True)}
    return ImageAnswer(
        name="a.png",
        status="ok",
        reason="",
        probabilities=probabilities,
        prediction=facts.classes[-1],
        remarks=(),
        withheld=False,
        width=1024,
        height=1024,
        crop=(0.0, 0.0, 1.0, 1.0),
    )


def _example(facts: ModelFacts, answer: ImageAnswer) -> PredictResponse:
    return PredictResponse(research_use=RESEARCH_USE, model=facts, images=[answer])


def _version() -> str:
    try:
        return version("covid_fastai")
    except PackageNotFoundError:
        return "not installed"
