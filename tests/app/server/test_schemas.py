"""The JSON API: responses and their models, the generated OpenAPI document, and requests generated from it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections import Counter
from typing import get_args

import anyio
import numpy as np
import pytest

pytest.importorskip("starlette", reason="the extra web is not installed")
import jsonschema_rs
import schemathesis
from hypothesis import strategies as st
from pydantic import ValidationError
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import from_schema
from schemathesis.engine.events import FatalError, NonFatalError, ScenarioFinished

from covid_fastai.app.server import workers as workers_module
from covid_fastai.app.server.app import create_app
from covid_fastai.app.server.limits import Limits
from covid_fastai.app.server.schemas import ImageAnswer, PredictResponse
from covid_fastai.data.input_check import RemarkKind
from tests.app.server.contract import CheckedClient, check_value
from tests.app.server.test_app import NO_RATE_LIMIT, URL, ask, dicom_of_phantom, png, radiograph


@pytest.fixture(scope="module")
def client(small_model):
    with CheckedClient(create_app(small_model, limits=NO_RATE_LIMIT), base_url=URL) as client:
        yield client


# the document


def test_every_operation_is_served_and_every_example_is_valid(client):
    document = client.document
    assert document["openapi"] == "3.1.0" and document["info"]["version"]
    examples = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert client.request(method.upper(), path).status_code not in (404, 405)
            for response in operation["responses"].values():
                for content in response["content"].values():
                    name = content["schema"]["$ref"].rsplit("/", 1)[-1]
                    if "example" in content:
                        check_value(content["example"], name, document)
                        examples.append(name)
    assert Counter(examples) == {"PredictResponse": 2, "ErrorResponse": 8}


def test_the_kinds_of_remarks_are_those_of_the_input_check(client):
    kinds = client.document["components"]["schemas"]["Remark"]["properties"]["kind"]["enum"]
    assert tuple(kinds) == get_args(RemarkKind) and "header" in kinds


def test_a_remark_on_a_header_is_valid(client):
    pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    dataset = pydicom.dcmread(io.BytesIO(dicom_of_phantom()[0]))
    dataset.ViewPosition = "LL"
    file = io.BytesIO()
    dataset.save_as(file)
    (image,) = ask(client, file.getvalue()).json()["images"]
    assert "header" in [remark["kind"] for remark in image["remarks"]]


def test_the_models_need_no_torch():
    code = (
        "import sys, covid_fastai.app.server.schemas; print(*sorted({'torch', 'fastai', 'starlette'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# responses


def with_fields(response: dict, **fields) -> dict:
    """Return a response with some fields of its first image replaced."""
    return {**response, "images": [{**response["images"][0], **fields}]}


@pytest.mark.parametrize("maps", [False, True])
def test_invalid_responses_are_rejected(client, maps):
    """Both the schema and the model reject unknown fields, missing fields and invalid values."""
    turned = png(np.ascontiguousarray(radiograph(1)[::-1, ::-1]))
    response = ask(client, turned, params={"maps": maps}).json()
    image = response["images"][0]
    assert image["remarks"][0]["kind"] == "turned" and ("saliency" in image) == maps
    check_value(response, "PredictResponse", client.document)
    invalid = [
        {**response, "extra": 1},
        {**response, "images": []},
        with_fields(response, extra=1),
        with_fields(response, status="fine"),
        with_fields(response, remarks=[{"kind": "tilted", "text": "?"}]),
        with_fields(response, probabilities={"Normal": 2}),
        with_fields(response, width="wide"),
        with_fields(response, map_max=-1.0),
    ]
    invalid += [{**response, "images": [{k: v for k, v in image.items() if k != name}]} for name in image]
    for value in invalid:
        with pytest.raises(jsonschema_rs.ValidationError):
            check_value(value, "PredictResponse", client.document)
        with pytest.raises(ValidationError):
            PredictResponse.model_validate(value)


@pytest.mark.parametrize(
    "fields",
    [
        {"reason": "none"},
        {"probabilities": {}},
        {"prediction": ""},
        {"withheld": True},
        {"width": None},
        {"status": "failed", "reason": "x"},
    ],
)
def test_the_other_fields_must_agree_with_the_status(fields):
    answer = {"status": "ok", "reason": "", "probabilities": {"a": 0.5, "b": 0.5}, "prediction": "a", "remarks": []}
    answer |= {"name": "", "withheld": False, "width": 9, "height": 9, "crop": (0, 0, 1, 1)}
    assert ImageAnswer(**answer).status == "ok"
    with pytest.raises(ValidationError, match="The status 'ok'|The status 'failed'"):
        ImageAnswer(**(answer | fields))


def test_a_slow_request_gets_the_status_408(small_model, no_processes):
    app = create_app(small_model, limits=Limits(receive_seconds=0.05))
    sent = []

    async def receive():
        await anyio.sleep(60)

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"multipart/form-data; boundary=x")]
    scope = {"type": "http", "method": "POST", "path": "/api/predict", "query_string": b"", "headers": headers}
    scope |= {"client": ("127.0.0.1", 1), "http_version": "1.1", "scheme": "http", "server": ("127.0.0.1", 80)}
    with CheckedClient(app, base_url=URL) as client:
        anyio.run(app, scope, receive, send)
        assert sent[0]["status"] == 408 and "408" in client.document["paths"]["/api/predict"]["post"]["responses"]
        check_value(json.loads(sent[1]["body"]), "ErrorResponse", client.document)


def _run_compromised_worker(connection, folder, **options):
    """Send invalid answers, as a worker that a malicious file has taken over could do."""
    connection.send_bytes(b'{"ready": 1}')
    answer = {
        "name": "",
        "status": "ok",
        "reason": "",
        "probabilities": {"Normal": 7},
        "prediction": "<b>",
        "remarks": [],
    }
    answer |= {"withheld": False, "width": 1, "height": 1, "more": "x", "crop": None}
    while True:
        connection.recv_bytes(), connection.recv_bytes()
        connection.send_bytes(json.dumps(answer).encode())


@pytest.mark.slow
def test_an_invalid_answer_of_a_worker_is_rejected(small_model, monkeypatch):
    monkeypatch.setattr(workers_module, "run_worker", _run_compromised_worker)
    with CheckedClient(create_app(small_model, limits=NO_RATE_LIMIT), base_url=URL) as client:
        response = ask(client, png(radiograph(0)))
    (image,) = response.json()["images"]
    assert response.status_code == 422 and image["status"] == "failed" and "invalid answer" in image["reason"]


# generated requests


@pytest.mark.slow
def test_requests_generated_from_the_document(small_model):
    """Valid and invalid requests; every response matches the document, and none is a server error.

    This uses the engine of schemathesis, since its pytest plugin (4.32) fails with fixtures under pytest 9.
    """
    schemathesis.openapi.format("binary", st.binary(max_size=64) | st.just(png(radiograph(0, 64))))
    config = {
        "generation": {"max-examples": 60, "deterministic": True},
        "checks": {
            "positive_data_acceptance": {"expected-statuses": ["2xx", 422]},  # 422: no file is an image
            "negative_data_rejection": {"expected-statuses": [400, 405, 413, 415]},
        },
    }
    app = create_app(
        small_model, allow_host=["testserver"], limits=NO_RATE_LIMIT
    )  # the host name that schemathesis uses
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, config=SchemathesisConfig.from_dict(config))
    schema.validate()  # against the meta-schema of OpenAPI 3.1
    failures, statuses = [], Counter()
    try:
        for event in from_schema(schema).execute():
            assert not isinstance(event, NonFatalError | FatalError), event
            if isinstance(event, ScenarioFinished):
                checks = [check for checks in event.recorder.checks.values() for check in checks]
                failures += [
                    (event.label, check.name, str(check.failure_info.failure), check.failure_info.code_sample)
                    for check in checks
                    if check.failure_info
                ]
                responses = [interaction.response for interaction in event.recorder.interactions.values()]
                statuses.update(response.status_code for response in responses if response is not None)
    finally:
        app.routes[0].endpoint.__self__.workers.close()
    assert failures == []
    assert {200, 400, 405, 413, 415, 422} <= statuses.keys(), statuses  # the requests covered these cases
    assert statuses.total() > 100
