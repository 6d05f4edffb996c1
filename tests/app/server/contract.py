"""A test client that validates every JSON response by the models of the API and the served OpenAPI document."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import jsonschema_rs  # a requirement of schemathesis
from starlette.testclient import TestClient

from covid_fastai.app.server import schemas

__all__ = ["CheckedClient", "check_value"]

PAGES = {"/", "/answer"}  # paths whose response is HTML


def check_value(value: Any, model: str, document: dict[str, Any]) -> None:
    """Validate a JSON value by a model and by the schema of the same name in an OpenAPI document.

    Raises:
        jsonschema_rs.ValidationError: The value does not match the schema.
        pydantic.ValidationError: The value does not match the model.
    """
    jsonschema_rs.validate({**document, "$ref": f"#/components/schemas/{model}"}, value)
    assert getattr(schemas, model).model_validate(value).model_dump(mode="json") == value


class CheckedClient(TestClient):
    """The test client of Starlette. A response that does not match the OpenAPI document fails the test."""

    @cached_property
    def document(self) -> dict[str, Any]:
        return super().request("GET", "/openapi.json").json()

    def request(self, method, url, **options):
        response = super().request(method, url, **options)
        path = response.request.url.path
        operation = self.document["paths"].get(path, {}).get(method.lower())
        kind = response.headers.get("content-type", "")
        if path == "/openapi.json" and response.status_code == 200:
            return response
        if operation is not None:
            assert str(response.status_code) in operation["responses"], f"{method} {path}: {response.status_code}"
            content = operation["responses"][str(response.status_code)]["content"]
            assert list(content) == [kind]
            check_value(response.json(), content[kind]["schema"]["$ref"].rsplit("/", 1)[-1], self.document)
        elif kind == "application/json":
            assert response.status_code >= 400
            check_value(response.json(), "ErrorResponse", self.document)
        else:
            assert kind.startswith("text/html") == (path in PAGES), f"{method} {path}: {kind}"
        return response
