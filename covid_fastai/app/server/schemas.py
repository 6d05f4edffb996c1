"""The description of the web application's JSON interface, as OpenAPI 3.1 with examples of the served model."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from covid_fastai.app.cli.output import RESEARCH_USE
from covid_fastai.app.server.model_facts import ModelFacts
from covid_fastai.app.server.uploads import Limits

__all__ = ["describe_api"]

REMARK = {
    "type": "object",
    "required": ["kind", "text"],
    "properties": {
        "kind": {"type": "string", "enum": ["colour", "small", "frame", "turned", "inverted", "unlike"]},
        "text": {"type": "string"},
    },
}
PNG = {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/png"}


def describe_api(facts: ModelFacts, limits: Limits) -> dict[str, Any]:
    """Describe the interface.

    Args:
        facts: Of the served model.
        limits: Of the server.

    Returns:
        An OpenAPI 3.1 document.
    """
    refused = {
        "400": "No multipart form, no file in it, or a Host header that this server does not answer to.",
        "403": "Asked by a page of another site.",
        "408": f"The request did not arrive within {limits.receive_seconds:g} seconds.",
        "413": f"More than {limits.files} files, {limits.file_bytes >> 20} MiB a file, or "
        f"{limits.request_bytes >> 20} MiB in all.",
        "415": "No multipart form.",
        "429": "Too many requests of this address; Retry-After says when to ask again.",
        "503": "All places are taken; Retry-After says when to ask again.",
    }
    answers = {
        "200": _answer("At least one file was answered.", _example(facts)),
        "422": _answer("No file could be answered; each has its reason.", _bad_example(facts)),
    }
    answers |= {status: _refusal(text) for status, text in refused.items()}
    predict = {
        "operationId": "predict",
        "summary": "Ask the model about one image or several.",
        "description": f"{RESEARCH_USE} The files are read in memory, answered and forgotten.",
        "parameters": [
            {
                "name": "maps",
                "in": "query",
                "description": "true to get the radiograph as it was read, and the class activation map over it.",
                "schema": {"type": "boolean", "default": False},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["files"],
                        "properties": {
                            "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        },
                    }
                }
            },
        },
        "responses": answers,
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"covid_fastai: {facts.name}",
            "version": _version(),
            "summary": RESEARCH_USE,
            "description": "Example: `curl -F files=@a.png http://127.0.0.1:8000/api/predict`",
        },
        "paths": {
            "/api/predict": {"post": predict},
            "/api/model": {"get": _get("model", "What the model is, what it is worth, where it ends.", "Model")},
            "/healthz": {"get": _get("health", "Whether the server lives.", "Status")},
            "/readyz": {"get": _get("readiness", "Whether the model is loaded; 503 where not.", "Status")},
        },
        "components": {"schemas": _schemas()},
    }


def _schemas() -> dict[str, Any]:
    text, number = {"type": "string"}, {"type": "number"}
    image = {
        "name": {"type": "string", "description": "The last part of the file's name."},
        "status": {"type": "string", "enum": ["ok", "unreadable", "failed"]},
        "reason": {"type": "string", "description": "Why there is no answer; empty where there is one."},
        "probabilities": {
            "type": "object",
            "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1},
            "description": "By class; empty where there is no answer.",
        },
        "prediction": {"type": "string", "description": "The class that the model names; no diagnosis."},
        "remarks": {"type": "array", "items": REMARK, "description": "What the input guard noticed."},
        "withheld": {"type": "boolean", "description": "A remark makes the class not worth naming."},
        "width": {"type": ["integer", "null"]},
        "height": {"type": ["integer", "null"]},
    }
    maps = {
        "radiograph": PNG,
        "heat": PNG,
        "heat_of": {"type": "string", "description": "The class that the heat speaks for."},
        "heat_top": {"type": "number", "description": "Logits where it is brightest."},
        "heat_cells": {"type": "array", "items": {"type": "integer"}, "description": "Rows and columns of the map."},
    }
    model = dict.fromkeys(("name", "task", "arch", "weights", "saved_by", "fingerprint", "verdict", "rule"), text)
    model |= dict.fromkeys(("image_size", "temperature"), number)
    model |= {"classes": {"type": "array", "items": text}, "limits": {"type": "array", "items": text}}
    model |= {"positive": {"type": ["string", "null"]}, "threshold": {"type": ["number", "null"]}}
    return {
        "Model": {"type": "object", "required": list(model), "properties": model},
        "Image": {"type": "object", "required": list(image), "properties": image | maps},
        "Answer": {
            "type": "object",
            "required": ["research_use", "model", "images"],
            "properties": {
                "research_use": text,
                "model": {"$ref": "#/components/schemas/Model"},
                "images": {"type": "array", "items": {"$ref": "#/components/schemas/Image"}},
            },
        },
        "Error": {"type": "object", "required": ["error"], "properties": {"error": text}},
        "Status": {"type": "object", "required": ["status"], "properties": {"status": text}},
    }


def _example(facts: ModelFacts) -> dict[str, Any]:
    """Return an answer with made-up probabilities, which fall by half from the last class to the first."""
    parts = [2.0**place for place in range(len(facts.classes))]
    p = {name: round(part / sum(parts), 4) for name, part in zip(facts.classes, parts, strict=True)}
    image = {"name": "a.png", "status": "ok", "reason": "", "probabilities": p, "prediction": facts.classes[-1]}
    image |= {"remarks": [], "withheld": False, "width": 1024, "height": 1024}
    return {"research_use": RESEARCH_USE, "model": facts.to_dict(), "images": [image]}


def _bad_example(facts: ModelFacts) -> dict[str, Any]:
    image = {"name": "page.png", "status": "unreadable", "reason": "the image is an HTML page, not an image."}
    image |= {"probabilities": {}, "prediction": "", "remarks": [], "withheld": False, "width": None, "height": None}
    return {"research_use": RESEARCH_USE, "model": facts.to_dict(), "images": [image]}


def _answer(text: str, example: dict[str, Any]) -> dict[str, Any]:
    content = {"schema": {"$ref": "#/components/schemas/Answer"}, "example": example}
    return {"description": text, "content": {"application/json": content}}


def _refusal(text: str) -> dict[str, Any]:
    content = {"schema": {"$ref": "#/components/schemas/Error"}, "example": {"error": text}}
    return {"description": text, "content": {"application/json": content}}


def _get(name: str, summary: str, schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"operationId": name, "summary": summary, "responses": {"200": {"description": summary, "content": content}}}


def _version() -> str:
    try:
        return version("covid_fastai")
    except PackageNotFoundError:
        return "not installed"
