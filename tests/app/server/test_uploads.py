"""Bodies that come slowly, forms with tricks in their headers, and requests whose client has gone."""

from __future__ import annotations

import asyncio
import time

import pytest

pytest.importorskip("starlette", reason="the extra web is not installed")

from starlette.requests import Request

from covid_fastai.app.server.app import create_app
from covid_fastai.app.server.limits import Limits
from covid_fastai.app.server.uploads import RequestRejected, read_uploads
from covid_fastai.app.server.worker_process import answer_without_prediction
from tests.app.server.running import Connection, running, wait_for

LIMITS = Limits(start_seconds=0.3, receive_rate=1000, receive_seconds=0.8, per_minute=0)
FORM = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nabc\r\n--x--\r\n'


def upload(
    body: bytes = FORM, *, content_type: str = "multipart/form-data; boundary=x", step: int = 0, wait: float = 0
):
    """Read a form that comes in steps of some bytes, each after a wait."""
    chunks = [body[start : start + step] for start in range(0, len(body), step)] if step else [body]

    async def receive() -> dict:
        await asyncio.sleep(wait)
        chunk = chunks.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(chunks)}

    headers = [(b"content-type", content_type.encode("latin-1"))]
    return asyncio.run(read_uploads(Request({"type": "http", "headers": headers, "method": "POST"}, receive), LIMITS))


def rejected(**options) -> RequestRejected:
    with pytest.raises(RequestRejected) as caught:
        upload(**options)
    return caught.value


# slow bodies


@pytest.mark.parametrize(
    ("body", "step", "wait", "least"),
    [
        (FORM, 1, 0.2, 0.2),  # 5 bytes per second, refused after the start; all of it would take 18 seconds
        (FORM * 20_000, 1000, 0.01, 0.7),  # fast enough, and too long: refused at the end; it would take 17 seconds
        (FORM, 0, 60, 0.2),  # nothing at all
    ],
)
def test_a_slow_body_is_refused_in_time(body, step, wait, least):
    begun = time.monotonic()
    assert rejected(body=body, step=step, wait=wait).status == 408
    assert least < time.monotonic() - begun < 10


def test_a_body_that_keeps_the_rate_is_read():
    assert upload(step=40, wait=0.02)[0].content == b"abc"


# tricks in headers


@pytest.mark.parametrize(
    "charset",
    ["idna", "punycode", "undefined", "hex", "base64", "zlib", "rot13", "utf-16", "unicode_escape", "mbcs", "latin-1"]
    + ["", '"utf-8\\"', "x" * 5000, "\xff", "utf-8''", "../../x", "utf-8, idna"],
)
def test_another_charset_than_utf_8_is_refused(charset):
    rejection = rejected(content_type=f"multipart/form-data; boundary=x; charset={charset}")
    assert rejection.status == 415 and "charset" in rejection.reason


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", '"utf8"', "US-ASCII"])
def test_utf_8_may_be_named(charset):
    assert upload(content_type=f"multipart/form-data; charset={charset}; boundary=x")[0].name == "a.png"


@pytest.mark.parametrize(
    "content_type",
    ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary*=idna''x"]
    + ["multipart/form-data; boundary=" + "x" * 71, 'multipart/form-data; boundary="\xe9"']
    + ["multipart/form-data; boundary*0=x; boundary*1=y", 'multipart/form-data; boundary="a\\"b"'],
)
def test_a_boundary_must_be_one(content_type):
    assert rejected(content_type=content_type).status == 400


@pytest.mark.parametrize(
    "header",
    [
        "form-data; name=\"files\"; filename*=idna''xn--%ff",
        "form-data; name*=undefined''files; filename=a",
        "form-data; name*=hex''zz; filename=a",
        "form-data; name=files; filename*0*=utf-16''%ff; filename*1=b",
        "form-data; name=files; filename*99999999999999999999=a",
        "form-data; name=files; filename*=",
        "form-data; name=files; filename*=''",
        'form-data; name="files; filename="',
        "form-data; " + "a=b; " * 500 + "name=files; filename=a",
        "form-data; name=files; filename=\xff\xfe",
        ";;;=;=",
        "",
    ],
)
def test_the_header_of_a_part_cannot_cause_an_internal_error(header):
    body = b"--x\r\nContent-Disposition: " + header.encode("latin-1") + b"\r\n\r\nabc\r\n--x--\r\n"
    try:
        assert len(upload(body)) <= 1
    except RequestRejected as rejection:
        assert rejection.status in (400, 413)


# clients that have gone


def test_the_queued_files_of_a_client_that_hung_up_are_not_predicted(small_model, no_processes):
    predicted: list[bytes] = []

    def predict(self, content: bytes, *, maps: bool):
        predicted.append(content)
        time.sleep(0.1)
        return answer_without_prediction("unreadable", "A reason.")

    no_processes.predict = predict
    parts = [FORM.removesuffix(b"--x--\r\n").replace(b"abc", b"%d" % number) for number in range(6)]
    body = b"".join(parts) + b"--x--\r\n"
    head = "POST /api/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    message = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    with running(create_app(small_model, limits=Limits(per_minute=0)), Limits()) as port:
        with Connection(port) as gone:
            gone.sendall(message)
            wait_for(lambda: len(predicted) > 0)
        with Connection(port) as patient:
            begun = time.monotonic()
            patient.sendall(message.replace(b"\r\n0\r\n", b"\r\nZ\r\n"))
            assert patient.recv(100).startswith(b"HTTP/1.1 422") and time.monotonic() - begun < 5
    assert len(predicted) <= 2 + 6 and predicted.count(b"5") == 1
