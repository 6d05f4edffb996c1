"""The JSON interface of the server as pydantic models, and the OpenAPI document that is generated from them.

The server builds every JSON answer from these models, so that the document cannot differ from the answers.
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
    "describe_api",
]

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
PNG: JsonDict = {"contentEncoding": "base64", "contentMediaType": "image/png"}
EncodedPng = Annotated[str, Field(min_length=1, json_schema_extra=PNG)]


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Remark(_Schema):
    """A property of an image that a classifier of frontal chest radiographs was not made for."""

    kind: RemarkKind
    text: str = Field(description="What the input check noticed, one sentence.")


class ImageAnswer(_Schema):
    """The answer to one uploaded file."""

    name: str = Field(description="The last part of the name of the file.")
    status: PredictionStatus = Field(description="ok, or why the model gave no answer.")
    reason: str = Field(description="Why there is no answer; empty where the status is ok.")
    probabilities: dict[str, Probability] = Field(description="By class; empty where there is no answer.")
    prediction: str = Field(description="The class that the model names, which is not a diagnosis.")
    remarks: tuple[Remark, ...] = Field(description="What the input check noticed.")
    withheld: bool = Field(description="Whether a remark makes the predicted class unreliable.")
    width: int | None = Field(ge=1, description="Pixels, as the file has them.")
    height: int | None = Field(ge=1, description="Pixels, as the file has them.")

    @model_validator(mode="after")
    def _check_status(self) -> ImageAnswer:
        answered = self.status == "ok"
        present = (bool(self.probabilities), bool(self.prediction), self.width is not None, self.height is not None)
        if set(present) != {answered} or bool(self.reason) == answered:
            raise ValueError("An answer has numbers and no reason where its status is ok, else a reason and no numbers")
        return self


class ImageAnswerWithMaps(ImageAnswer):
    """The answer to one uploaded file, with the radiograph and its class activation map."""

    radiograph: EncodedPng = Field(description="The image as the model's opener reads it.")
    heat: EncodedPng = Field(description="A transparent overlay of the same size.")
    heat_of: str = Field(description="The class that the map speaks for.")
    heat_top: float = Field(ge=0, allow_inf_nan=False, description="The largest value of the map, in logits.")
    heat_cells: tuple[int, int] = Field(description="Rows and columns of the map.")


class ModelFacts(_Schema):
    """The facts of a saved model that are shown beside each of its answers."""

    name: str = Field(description="What the model is called.")
    task: str = Field(description="The task that it was trained for.")
    classes: tuple[str, ...] = Field(description="In the order of the outputs.")
    positive: str | None = Field(description="The class that the threshold is about.")
    threshold: float | None = Field(
        description="The positive class is predicted from this probability on; null for the most probable class."
    )
    arch: str = Field(description="The architecture.")
    image_size: int = Field(description="Side of the square input, pixels.")
    temperature: float = Field(description="Of the calibration; 1 for none.")
    weights: str = Field(description="Where its first weights came from.")
    saved_by: str = Field(description="The version of covid_fastai.")
    fingerprint: str = Field(description="The sha256 of its configuration.")
    verdict: str = Field(description='What the evaluation showed, or "not stated".')
    limits: tuple[str, ...] = Field(description='What it cannot do; one "not stated" where its findings name none.')
    rule: str = Field(description="How a class is predicted from the probabilities, as the end of a sentence.")


class PredictResponse(_Schema):
    """The answers to the files of one request, in their order."""

    research_use: str
    model: ModelFacts
    images: list[ImageAnswerWithMaps | ImageAnswer] = Field(min_length=1)


class HealthResponse(_Schema):
    """The server runs."""

    status: Literal["alive"]


class ReadinessResponse(_Schema):
    """Whether a process with the loaded model is running."""

    status: Literal["ready", "not ready"]


class ErrorResponse(_Schema):
    """Why a request got no answer."""

    error: str = Field(min_length=1, description="A sentence for people.")


RESPONSES: tuple[type[BaseModel], ...] = (
    PredictResponse,
    ModelFacts,
    HealthResponse,
    ReadinessResponse,
    ErrorResponse,
)


def describe_api(facts: ModelFacts, limits: Limits) -> dict[str, Any]:
    """Describe the JSON interface as OpenAPI 3.1, with examples of the served model.

    Args:
        facts: Of the served model.
        limits: Of the server.

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
            "/healthz": {"get": _get("health", "Whether the server runs.", HealthResponse)},
            "/readyz": {"get": _get("readiness", "Whether the model is loaded.", ReadinessResponse, 200, 503)},
        },
        "components": {"schemas": schemas["$defs"]},
    }


def _predict(facts: ModelFacts, limits: Limits) -> dict[str, Any]:
    errors = {
        400: "The request body is malformed, it has no file, maps is neither true nor false, or the Host header names "
        "another server.",
        403: "A page of another site sent the request.",
        408: f"The request did not arrive within {limits.receive_seconds:g} seconds.",
        413: f"More than {limits.files} files, {limits.file_bytes >> 20} MiB in one file, or "
        f"{limits.request_bytes >> 20} MiB in all.",
        415: "The request body is not multipart/form-data.",
        429: "Too many requests from this address; Retry-After says when to try again.",
        500: "An error of the server.",
        503: "The queue is full; Retry-After says when to try again.",
    }
    responses = {
        200: _response("The model answered at least one file.", PredictResponse, _example(facts, _answered(facts))),
        422: _response("The model could answer no file.", PredictResponse, _example(facts, UNREADABLE)),
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
        "summary": "Ask the model about one image or several.",
        "description": f"{RESEARCH_USE} The files are read in memory, answered and forgotten.",
        "parameters": [
            {
                "name": "maps",
                "in": "query",
                "description": "Whether to return the radiograph as it was read and its class activation map.",
                "schema": {"type": "boolean", "default": False},
            }
        ],
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}},
        "responses": _by_status(responses),
    }


def _get(name: str, summary: str, model: type[BaseModel], *statuses: int) -> dict[str, Any]:
    responses = {status: _response(summary, model) for status in statuses or (200,)}
    responses[400] = _response("The Host header names another server.", ErrorResponse)
    responses[500] = _response("An error of the server.", ErrorResponse)
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
)


def _answered(facts: ModelFacts) -> ImageAnswer:
    """Return an answer with made-up probabilities, which halve from the last class to the first."""
    weights = [2.0**place for place in range(len(facts.classes))]
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
    )


def _example(facts: ModelFacts, answer: ImageAnswer) -> PredictResponse:
    return PredictResponse(research_use=RESEARCH_USE, model=facts, images=[answer])


def _version() -> str:
    try:
        return version("covid_fastai")
    except PackageNotFoundError:
        return "not installed"
