"""The page and the JSON API: predictions, limits, refused requests, and that nothing is stored."""

from __future__ import annotations

import base64
import html
import io
import json
import logging
import os
import re
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

pytest.importorskip("starlette", reason="the extra web is not installed")
from covid_fastai.app.server.app import create_app
from covid_fastai.app.server.examples import EXAMPLES, Example
from covid_fastai.app.server.limits import Limits
from covid_fastai.app.server.worker_process import answer_file
from covid_fastai.data import input_check as input_check_module
from covid_fastai.data.input_check import check_input
from covid_fastai.data.lungs import describe_lungs, find_lungs
from covid_fastai.data.phantom import draw_phantom
from covid_fastai.errors import ModelFormatError, UsageError
from covid_fastai.model.card import FINDINGS_FILE
from covid_fastai.model.predictor import Predictor
from covid_fastai.saliency.overlay import fraction_inside
from tests.app.server.contract import CheckedClient
from tests.app.server.running import wait_for

URL = "http://127.0.0.1:8000"
NO_RATE_LIMIT = Limits(per_minute=0)
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="system: Windows has neither these signals nor these limits")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="system: only Linux enforces a limit of memory")


def radiograph(seed: int, size: int = 256) -> np.ndarray:
    return np.asarray(draw_phantom(np.random.default_rng(seed), image_size=size).image)


def png(pixels: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def client(small_model):
    with CheckedClient(create_app(small_model, limits=NO_RATE_LIMIT), base_url=URL) as client:
        yield client


def ask(client, *contents, names=None, path="/api/predict", **options):
    names = names or [f"{number}.png" for number in range(len(contents))]
    files = [("files", (name, content)) for name, content in zip(names, contents, strict=True)]
    return client.post(path, files=files, **options)


# answers


def test_the_answer_is_the_prediction_of_the_predictor(client, small_model):
    contents = [png(radiograph(seed)) for seed in range(6)]
    response = ask(client, *contents).json()
    table = Predictor(small_model, threads=1).predict(contents)
    assert [image["name"] for image in response["images"]] == [f"{n}.png" for n in range(6)]
    for image, row in zip(response["images"], table.to_dict("records"), strict=True):
        assert image["status"] == "ok" and image["prediction"] == row["prediction"]
        assert image["probabilities"] == {name: row[f"p_{name}"] for name in ("Normal", "COVID-19")}
    assert np.ptp(table["p_COVID-19"]) > 1e-2, "the images do not distinguish the predictions"
    assert "medical device" in response["research_use"] and response["model"]["threshold"] == 0.4
    assert set(table["prediction"]) == {"Normal", "COVID-19"}


def test_unreadable_files_do_not_affect_readable_ones(client):
    response = ask(client, png(radiograph(0)), b"<!doctype html>", b"", names=["a.png", "b.png", "c.png"])
    assert response.status_code == 200
    images = response.json()["images"]
    assert [image["status"] for image in images] == ["ok", "unreadable", "unreadable"]
    assert "HTML" in images[1]["reason"] and images[1]["probabilities"] == {} and images[1]["prediction"] == ""
    assert ask(client, b"nonsense").status_code == 422


def test_a_remark_withholds_the_predicted_class(client):
    upright, turned = radiograph(1), np.ascontiguousarray(radiograph(1)[::-1, ::-1])
    assert not check_input(png(upright))
    first, second = ask(client, png(upright), png(turned)).json()["images"]
    assert not first["withheld"] and first["remarks"] == []
    assert second["withheld"] and second["remarks"][0]["kind"] == "turned" and second["probabilities"]
    assert first["prediction"] and second["prediction"] == ""
    page = ask(client, png(turned), path="/answer").text
    assert "class is withheld" in page and "upside down" in page and "Model output" not in page
    row = json.loads(html.unescape(re.search('data-row="([^"]*)"', page)[1]))
    assert row["prediction"] == "" and row["withheld"] is True  # the CSV that the page offers
    drawn = ask(client, png(turned), path="/api/predict?maps=true").json()["images"][0]
    assert drawn["saliency"] is None and drawn["map_class"] == "" and drawn["radiograph"]


def test_an_image_without_two_lungs_has_no_class(small_model, monkeypatch):
    """Such as most lateral radiographs. The worker's own function, since a worker process is not patched."""
    content, predictor = png(radiograph(1)), Predictor(small_model)
    assert not answer_file(predictor, content, maps=False, max_pixels=10**6).withheld
    nothing = describe_lungs(np.zeros((2, 128, 128), dtype=np.float32))
    monkeypatch.setattr(input_check_module, "judge_lungs", lambda grey: (nothing.quality, nothing.remark))
    answer = answer_file(predictor, content, maps=False, max_pixels=10**6)
    assert answer.withheld and [remark.kind for remark in answer.remarks] == ["lungs"]


def test_maps_are_returned_on_request(client, small_model):
    pixels = radiograph(2)
    assert "saliency" not in ask(client, png(pixels)).json()["images"][0]
    image = ask(client, png(pixels), params={"maps": "true"}).json()["images"][0]
    returned = Image.open(io.BytesIO(base64.b64decode(image["radiograph"])))
    overlay = Image.open(io.BytesIO(base64.b64decode(image["saliency"])))
    np.testing.assert_array_equal(np.asarray(returned), pixels)
    assert overlay.mode == "RGBA" and overlay.size == returned.size and image["map_class"] == image["prediction"]
    _, maps = Predictor(small_model).explain(png(pixels))
    predicted = ["Normal", "COVID-19"].index(image["prediction"])
    saliency = maps[0, predicted] - maps[0, 1 - predicted]
    assert image["map_max"] == pytest.approx(max(0, float(saliency.max())), rel=1e-5)
    assert image["map_shape"] == [4, 4]
    alpha = np.asarray(overlay)[..., 3]
    row, column = np.unravel_index(saliency.argmax(), saliency.shape)
    cell = pixels.shape[0] // 4
    assert alpha[row * cell + cell // 2, column * cell + cell // 2] > 240  # the maxima of overlay and map coincide
    lungs = find_lungs(returned)
    if lungs.usable:
        outline = np.asarray(Image.open(io.BytesIO(base64.b64decode(image["lungs"]))))
        assert outline.shape == (*pixels.shape, 4) and 0 < (outline[..., 3] > 0).mean() < 0.1
        # a session with more threads adds in another order
        assert image["lungs_saliency"] == pytest.approx(fraction_inside(saliency, lungs.mask), rel=1e-5)
        assert image["lungs_area"] == lungs.area
    else:
        assert (image["lungs"], image["lungs_saliency"], image["lungs_area"]) == (None, None, None)
        assert lungs.remark in image["lungs_text"]
    response = ask(client, png(pixels), params={"maps": "perhaps"})
    assert response.status_code == 400 and "neither true nor false" in response.json()["error"]


def test_the_lungs_are_outlined_where_they_are_found(client):
    """The text says what the line is, or why there is none."""
    found = Image.fromarray(draw_phantom(np.random.default_rng([9, 0]), image_size=256).image)
    missing = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (200, 1)))
    files = [png(np.asarray(image)) for image in (found, missing)]
    first, second = ask(client, *files, params={"maps": "true"}).json()["images"]
    assert first["lungs"] and "Thin line: the lungs, as segmented" in first["lungs_text"]
    assert f"cover {first['lungs_area']:.0%} of the image" in first["lungs_text"]
    assert second["lungs"] is None and second["lungs_text"].startswith("There is no outline of the lungs: ")
    page = ask(client, files[0], path="/answer").text
    assert 'alt="Outline of the segmented lungs"' in page and "Thin line" in page


# the page


def test_the_page_loads_nothing_from_other_hosts(client):
    page = client.get("/")
    assert page.status_code == 200 and page.text.lower().count("<!doctype html>") == 1
    directives = page.headers["content-security-policy"].split(";")
    policy = dict(directive.strip().split(" ", 1) for directive in directives)
    assert policy["default-src"] == "'self'" and policy["img-src"] == "'self' data:"
    assert "unsafe" not in page.headers["content-security-policy"] and "script-src" not in policy
    links = re.findall(r'(?:src|href|action)="([^"]*)"', page.text)
    assert set(links) == {
        "/",
        "/app.css",
        "/app.js",
        "/icon.svg",
        "#model-title",
        *(f"/{each.file}" for each in EXAMPLES),
    }
    for link in (link for link in links if link.startswith("/")):
        assert client.get(link).status_code == 200
    assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", page.text)
    for name in ("/app.js", "/save.js", "/table.js", "/viewer.js", "/app.css"):
        assert not re.search(r"https?://|//[a-z]|@import|eval\(|innerHTML", client.get(name).text.replace("// ", ""))


def draw_example(example: Example) -> Image.Image:
    pixels = draw_phantom(np.random.default_rng(example.seed), image_size=320, **example.options).image
    return Image.fromarray(pixels[::-1, ::-1] if example.turned else pixels)


def test_the_examples_are_drawings(client, small_model):
    """They are drawn anew, and the input check withholds the class of the one that is upside down."""
    predictor = Predictor(small_model)
    for example in EXAMPLES:
        content = client.get(f"/{example.file}").content
        shown, drawn = (np.asarray(image, float) for image in (Image.open(io.BytesIO(content)), draw_example(example)))
        assert np.abs(shown - drawn).mean() < 3 and example.file.startswith("drawing-") and len(content) < 40_000
        answer = answer_file(predictor, content, maps=False, max_pixels=10**6)
        assert answer.status == "ok" and answer.withheld == example.turned, example


def test_every_response_has_the_security_headers(client):
    for response in (client.get("/"), client.get("/nothing"), client.post("/answer"), client.get("/app.js")):
        assert response.headers["x-content-type-options"] == "nosniff" and response.headers["x-frame-options"] == "DENY"
        assert "default-src 'self'" in response.headers["content-security-policy"]
    assert client.get("/").headers["cache-control"] == "no-store"
    assert "set-cookie" not in client.get("/").headers


def test_a_form_without_scripts_is_answered_with_the_whole_page(client):
    response = ask(client, png(radiograph(3)), names=["mine.png"], path="/")
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/html")
    for text in ("mine.png", "Model output", "Class activation map", "Verdict on this model: not stated."):
        assert text in response.text
    outlined = find_lungs(Image.fromarray(radiograph(3))).usable
    assert response.text.count("data:image/png;base64,") == 3 + outlined  # radiograph, map, its colours, lungs
    empty = client.post("/", files={"files": ("", b"")})
    assert empty.status_code == 400 and "Choose a file first" in empty.text and "<form" in empty.text


def test_the_page_uses_no_words_of_a_diagnosis(client):
    text = (client.get("/").text + ask(client, png(radiograph(3)), path="/answer").text).lower()
    assert "research use only; not a medical device" in text
    assert "model output" in text and "not a statement about a person" in text
    assert not re.search(r"diagnos|positive for|negative for|you have|patient has|infected|healthy", text)


@pytest.mark.parametrize("name", ['<img src=x onerror="alert(1)">.png', "\"><script>alert('1')</script>", "a\r\nb"])
def test_a_malicious_file_name_is_only_text(client, name):
    for path in ("/", "/answer"):
        boundary = "x"
        quoted = name.replace('"', "%22").replace("\r\n", "%0D%0A")
        for sent in (quoted, name.replace('"', '\\"').replace("\r\n", " ")):
            body = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{sent}"\r\n\r\n'.encode()
            body += png(radiograph(3)) + b"\r\n--x--\r\n"
            headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
            page = client.post(path, content=body, headers=headers)
            assert page.status_code == 200
            assert "<img src=x" not in page.text and "<script>alert" not in page.text
            assert not re.search(r"<[^>]*\sonerror=", re.sub(r'"[^"]*"', '""', page.text))
            row = json.loads(
                html.unescape(re.search(r"data-row='([^']*)'|data-row=\"([^\"]*)\"", page.text).group(0))[10:-1]
            )
            assert row["status"] == "ok"


def test_paths_are_removed_from_file_names(client):
    names = ["../../etc/passwd", "C:\\Users\\doe\\x.png", "a\0b.png", "é 雪.png", "x" * 900]
    images = ask(client, *[png(radiograph(0))] * 5, names=names).json()["images"]
    assert [image["name"] for image in images[:2]] == ["passwd", "x.png"]
    assert "\0" not in images[2]["name"] and images[3]["name"] == "é 雪.png" and len(images[4]["name"]) <= 200


def test_the_page_shows_the_findings_of_the_model_with_a_prediction(small_model, tmp_path):
    import shutil

    folder = Path(shutil.copytree(small_model, tmp_path / "m"))
    fingerprint = json.loads((folder / "config.json").read_text())["fingerprint"]
    findings = {"verdict": "Not shown to <b>see</b> disease.", "limits": ["Adults only.", "Frontal."]}
    (folder / FINDINGS_FILE).write_text(json.dumps({"fingerprint": fingerprint, **findings}))
    with CheckedClient(create_app(folder, name="me/mine"), base_url=URL) as client:
        page = client.get("/").text
        assert "Not shown to &lt;b&gt;see&lt;/b&gt; disease." in page
        assert "<li>Adults only.</li>\n<li>Frontal.</li>" in page
        assert client.get("/api/model").json()["limits"] == ["Adults only.", "Frontal."]
        assert "Model: me/mine" in client.get("/").text
    (folder / FINDINGS_FILE).write_text(json.dumps({"fingerprint": "0" * 64, **findings}))
    with pytest.raises(ModelFormatError, match="about the model 0000"):
        create_app(folder)


# the server


def test_health_and_readiness(small_model):
    with CheckedClient(create_app(small_model), base_url=URL) as client:
        assert client.get("/healthz").json() == {"status": "alive"}
        assert client.get("/readyz").status_code == 200
        site = client.app.routes[0].endpoint.__self__
        site.workers.close()
        assert client.get("/readyz").status_code == 503 and client.get("/healthz").status_code == 200


def test_an_unusable_model_is_an_error_at_the_start(small_model, tmp_path):
    import shutil

    folder = Path(shutil.copytree(small_model, tmp_path / "m"))
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.onnx").write_bytes(bytes(content))
    with pytest.raises(ModelFormatError, match="damaged or exchanged"):
        create_app(folder)
    with pytest.raises(ModelFormatError, match="no such file"):
        create_app(tmp_path / "gone")


# refused requests


def test_other_host_names_are_refused(small_model, client, no_processes):
    for host in ("evil.example", "127.0.0.1.evil.example", "", "localhost@evil.example:1", "[::1", "a, localhost"):
        assert client.get("/healthz", headers={"host": host}).status_code == 400, host
    for host in ("localhost", "LOCALHOST:9999", "127.0.0.1", "[::1]:8000"):
        assert client.get("/healthz", headers={"host": host}).status_code == 200, host
    names = ["Ward.example", "2001:0db8::1"]
    with CheckedClient(create_app(small_model, allow_host=names), base_url="http://ward.example") as other:
        for host in ("ward.example", "ward.example.:80", "[2001:db8::1]:8000"):
            assert other.get("/healthz", headers={"host": host}).status_code == 200, host
    with pytest.raises(UsageError, match="'\\*' is not a host name"):
        create_app(small_model, allow_host=["*"])


def test_pages_of_other_sites_are_refused(client):
    for path in ("/", "/answer", "/api/predict"):
        for headers in (
            {"origin": "http://evil.example"},
            {"origin": "null"},
            {"origin": "http://127.0.0.1:9999"},
            {"sec-fetch-site": "cross-site"},
            {"sec-fetch-site": "same-site"},
            {"origin": URL, "sec-fetch-site": "cross-site"},
        ):
            assert ask(client, png(radiograph(0)), path=path, headers=headers).status_code == 403
    same_origin = {"origin": URL, "sec-fetch-site": "same-origin"}
    response = ask(client, png(radiograph(0)), headers=same_origin)
    assert response.status_code == 200 and not [n for n in response.headers if n.startswith("access-control")]
    preflight = client.options("/api/predict", headers={"origin": "http://evil.example"})
    assert preflight.status_code == 405 and not [n for n in preflight.headers if n.startswith("access-control")]


def test_errors_of_http_are_named(client):
    assert client.get("/nothing").json() == {"error": "Not found."}
    assert client.get("/api/predict").json() == {"error": "Method not allowed."}


def test_sizes_are_limited(small_model, no_processes):
    limits = Limits(file_bytes=100_000, request_bytes=300_000, files=3, per_minute=0)
    with CheckedClient(create_app(small_model, limits=limits), base_url=URL) as client:
        image = png(radiograph(0, 128))
        assert ask(client, image, b"x" * 99_000).status_code == 422
        assert ask(client, b"x" * 100_001).status_code == 413
        assert ask(client, *[b"x" * 90_000] * 3, image, names=list("abcd")).status_code == 413  # too many files
        assert ask(client, b"x" * 400_000).status_code == 413

        def chunks():  # no Content-Length
            yield b'--x\r\nContent-Disposition: form-data; name="other"; filename="a"\r\n\r\n'
            for _ in range(100):
                yield b"y" * 10_000

        form = {"content-type": "multipart/form-data; boundary=x"}
        response = client.post("/api/predict", content=chunks(), headers=form)
        assert response.status_code == 413 and "error" in response.json()

        def trailing():  # a complete form with a small file, and then more bytes, which count too
            yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\ny\r\n--x--\r\n'
            for _ in range(40):
                yield b"y" * 10_000

        assert client.post("/api/predict", content=trailing(), headers=form).status_code == 413
        fields = {f"f{number}": "x" for number in range(50)}
        assert client.post("/api/predict", data=fields, files={"files": image}).status_code == 413


@pytest.mark.parametrize(
    ("content_type", "body", "status", "message"),
    [
        ("application/json", b"{}", 415, "not multipart/form-data"),
        ("application/x-www-form-urlencoded", b"files=x", 415, "not multipart/form-data"),
        ("multipart/form-data", b"x", 400, "Malformed request body"),
        ("multipart/form-data; boundary=x", b"nonsense", 400, "Malformed request body"),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\nContent-Disposition: form-data\r\n\r\n\r\n--x--\r\n",
            400,
            "Malformed request body",
        ),
        ("multipart/form-data; boundary=x", b"--x--\r\n", 400, "no file"),
    ],
)
def test_a_malformed_form_is_refused(client, content_type, body, status, message):
    response = client.post("/api/predict", content=body, headers={"content-type": content_type})
    assert response.status_code == status and message in response.json()["error"]


def pixel_bomb(side: int) -> bytes:
    """Return a small PNG file of a black square with very many pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    compressor = zlib.compressobj(9)
    row = bytes(1 + side)
    data = b"".join(compressor.compress(row * 1000) for _ in range(side // 1000)) + compressor.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_a_pixel_bomb_is_refused_by_its_header(client):
    content = pixel_bomb(13_000)
    assert len(content) < 1 << 20
    for sent in (content, content[:100]):  # also without pixels: they are not decoded, which would take 169 MB
        response = ask(client, sent)
        assert response.status_code == 422 and "13000 x 13000 pixels" in response.json()["images"][0]["reason"]
    reason = ask(client, pixel_bomb(6000)).json()["images"][0]["reason"]  # `open_image` would accept this size
    assert "6000 x 6000 pixels, more than the allowed 25,000,000" in reason


@LINUX
@pytest.mark.slow
def test_an_image_that_needs_too_much_memory_fails(small_model):
    large = png(np.random.default_rng(0).integers(0, 60_000, (2500, 2500)).astype(np.uint16), compress_level=0)
    with CheckedClient(create_app(small_model, limits=Limits(memory=96 << 20)), base_url=URL) as client:
        response = ask(client, large)
        reason = response.json()["images"][0]["reason"]
        assert response.status_code == 422 and ("memory" in reason or "ended" in reason)
        assert ask(client, png(radiograph(0))).json()["images"][0]["status"] == "ok"
    with CheckedClient(create_app(small_model), base_url=URL) as client:
        assert ask(client, large).json()["images"][0]["status"] == "ok"


@POSIX
@pytest.mark.slow
def test_a_killed_or_slow_worker_is_replaced(small_model):
    with CheckedClient(create_app(small_model, limits=Limits(seconds=3, per_minute=0)), base_url=URL) as client:
        site = client.app.routes[0].endpoint.__self__

        def pid():
            (worker,) = (worker for worker in site.workers._all if worker.process.is_alive())
            return worker.process.pid

        expected = ask(client, png(radiograph(0))).json()["images"]
        os.kill(pid(), 19)  # SIGSTOP: it never answers
        start = time.monotonic()
        response = ask(client, png(radiograph(0)))
        assert response.status_code == 422 and "longer than 3 seconds" in response.json()["images"][0]["reason"]
        assert time.monotonic() - start < 15
        assert list(site.turns._blamed) == ["testclient"]  # its next file comes after those of others
        assert ask(client, png(radiograph(0))).json()["images"] == expected
        os.kill(pid(), 9)
        assert ask(client, png(radiograph(0))).json()["images"] == expected  # a dead process gets no request
        assert client.get("/readyz").status_code == 200
        os.kill(pid(), 9)
        while client.get("/readyz").status_code == 200:
            time.sleep(0.01)
        start = time.monotonic()
        while client.get("/readyz").status_code != 200:  # a request is not needed: none comes while this fails
            assert time.monotonic() - start < 60, "the process was not replaced"
            time.sleep(0.05)


@POSIX
def test_a_worker_cannot_write_files(small_model, tmp_path):
    """A separate process confines itself and then tries to write a file."""
    from multiprocessing import get_context

    connection, process_end = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=_try_to_write, args=(process_end, str(tmp_path / "file")))
    process.start()
    assert connection.recv_bytes() == b"refused"
    process.join()


def _try_to_write(connection, path):
    from covid_fastai.app.server.worker_process import _confine

    _confine(1 << 30)
    try:
        with open(path, "wb") as file:
            file.write(b"x")
        connection.send_bytes(b"written")
    except OSError:
        connection.send_bytes(b"refused")


def test_too_many_requests_get_the_status_429_and_the_time_to_retry(small_model, no_processes):
    with CheckedClient(create_app(small_model, limits=Limits(per_minute=10)), base_url=URL) as client:
        statuses = [client.post("/answer").status_code for _ in range(6)]
        assert statuses[:2] == [415, 415] and statuses[-1] == 429
        response = client.post("/api/predict")
        assert response.status_code == 429 and 1 <= int(response.headers["retry-after"]) <= 7
        assert "Too many requests" in response.json()["error"]
        assert client.get("/healthz").status_code == 200  # the limit is only for predictions


def test_a_full_queue_gets_the_status_503_while_the_server_runs(small_model, no_processes):
    """With one slow worker and a queue of one, further requests are rejected at once."""
    released = threading.Event()
    predict = no_processes.predict

    def slow(self, content, *, maps):
        released.wait(30)
        return predict(self, content, maps=maps)

    no_processes.predict = slow
    with CheckedClient(create_app(small_model, limits=Limits(queue=1, per_minute=0)), base_url=URL) as client:
        with ThreadPoolExecutor(6) as pool:
            jobs = [pool.submit(ask, client, png(radiograph(0))) for _ in range(6)]
            wait_for(lambda: sum(job.done() for job in jobs) >= 4)
            assert client.get("/healthz").status_code == 200
            rejected = [job.result() for job in jobs if job.done()]
            released.set()
            assert sorted(job.result().status_code for job in jobs) == [422, 422, 503, 503, 503, 503]
        assert all(response.headers["retry-after"] == "2" for response in rejected)


# privacy


def test_nothing_is_stored_or_logged(small_model, tmp_path, monkeypatch, caplog, capfd):
    """A sentinel in the name, text chunks and EXIF of a file returns only in the name, and reaches no disk or log."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    text = PngImagePlugin.PngInfo()
    text.add_text("PatientName", "DOE^JOHN")
    exif = Image.Exif()
    exif[0x010E] = "DOE^JOHN"
    pixels = (
        np.random.default_rng(0).integers(0, 255, (1500, 1500)).astype(np.uint8)
    )  # by default, Starlette spools 2 MB
    content = png(pixels, pnginfo=text, exif=exif)
    assert content.count(b"DOE^JOHN") == 2 and len(content) > 2 << 20
    caplog.set_level(logging.DEBUG)
    spooled = []  # a spooled file has no name, and no folder lists it
    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", lambda self: spooled.append(self))
    with CheckedClient(create_app(small_model), base_url=URL) as client:
        (image,) = ask(client, content, names=["DOE^JOHN.png"], params={"maps": "true"}).json()["images"]
        page = ask(client, content, names=["x.png"], path="/answer").text
        (damaged,) = ask(client, content[:5000], names=["DOE^JOHN.png"]).json()["images"]
    logged = caplog.text  # before this test itself opens images
    assert image.pop("name") == "DOE^JOHN.png" and damaged.pop("name") and "DOE^" not in json.dumps([image, damaged])
    assert "DOE^" not in page
    for field in (name for name in ("radiograph", "saliency") if image[name]):  # no map of a withheld class
        assert b"DOE^" not in base64.b64decode(image[field])
    out, err = capfd.readouterr()
    assert "DOE^" not in logged + out + err
    assert list(tmp_path.iterdir()) == [] and spooled == []


def test_an_internal_error_shows_only_a_number(small_model, no_processes, caplog):
    def failing(self, content, *, maps):
        raise RuntimeError("secret DOE^JOHN")

    no_processes.predict = failing
    with CheckedClient(create_app(small_model), base_url=URL) as client:
        response = ask(client, png(radiograph(0)))
        number = re.search(r"number ([0-9a-f]{8}) ", response.json()["error"]).group(1)
        assert response.status_code == 500 and "secret" not in response.text and "Traceback" not in response.text
        assert response.headers["x-content-type-options"] == "nosniff"
    assert f"Error {number}: RuntimeError at" in caplog.text and "secret" not in caplog.text


def test_no_directory_is_listed(client):
    for path in (
        "/static/",
        "/app/",
        "/%2e%2e/web.py",
        "/app.js%2f..%2fweb.py",
        "/static/app.js",
        "/web.py",
    ):
        assert client.get(path).status_code == 404, path


# concurrency and DICOM


@pytest.mark.slow
def test_concurrent_requests_get_the_same_answers_as_single_ones(small_model):
    """200 requests from 8 threads."""
    contents = [png(radiograph(seed, 128)) for seed in range(10)]
    with CheckedClient(create_app(small_model, workers=2, limits=NO_RATE_LIMIT), base_url=URL) as client:
        expected = [ask(client, content).json()["images"][0]["probabilities"] for content in contents]
        with ThreadPoolExecutor(8) as pool:
            responses = list(pool.map(lambda number: ask(client, contents[number % 10]), range(200)))
    assert {response.status_code for response in responses} == {200}
    assert [response.json()["images"][0]["probabilities"] for response in responses] == expected * 20
    assert len({json.dumps(probabilities) for probabilities in expected}) == 10


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm"])
def test_the_answer_to_a_dicom_file_is_the_prediction_of_the_predictor(client, small_model, name):
    """The files are samples of pydicom with other modalities than radiography."""
    data = pytest.importorskip("pydicom.data", reason="the extra dicom is not installed")
    content = Path(data.get_testdata_file(name)).read_bytes()
    (answer,) = client.post("/api/predict", files=[("files", (name, content))]).json()["images"]
    row = Predictor(small_model).predict(content).iloc[0]
    assert (answer["status"], answer["reason"] == "") == (row["status"], row["status"] == "ok")
    assert row["status"] != "ok" or answer["probabilities"]["COVID-19"] == pytest.approx(row["p_COVID-19"], abs=1e-6)


def test_a_dicom_file_and_its_image_have_the_same_prediction(client, small_model):
    pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    content, grey = dicom_of_phantom()
    (answer,) = client.post("/api/predict", files=[("files", ("IM0001", content))]).json()["images"]
    expected = Predictor(small_model).predict(grey).iloc[0]
    assert answer["status"] == "ok" and answer["width"] == grey.shape[1]
    # the 12 bits of the file are rescaled to 8 bits
    assert answer["probabilities"]["COVID-19"] == pytest.approx(expected["p_COVID-19"], abs=0.02)
    assert "DOE" not in json.dumps(answer)


def dicom_of_phantom() -> tuple[bytes, np.ndarray]:
    """Return a 12-bit MONOCHROME1 DICOM file with the name of a patient, and its 8-bit pixels."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    grey = np.asarray(draw_phantom(np.random.default_rng(5), image_size=128).image)
    low, high = np.percentile(grey, (0.5, 99.5))
    grey = ((grey.clip(low, high) - low) * 255 / (high - low)).astype(np.uint8)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = (
        DigitalXRayImageStorageForPresentation,
        ExplicitVRLittleEndian,
    )
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = Dataset()
    data.file_meta, data.PatientName, data.Modality, data.ViewPosition = meta, "DOE^JOHN", "DX", "PA"
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Rows, data.Columns = grey.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME1", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.PixelData = (4095 - grey.astype(np.uint16) * 16).astype("<u2").tobytes()
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue(), grey


@pytest.mark.slow
def test_a_script_without_the_main_guard_gets_an_error_that_names_it(small_model, tmp_path):
    script = tmp_path / "site.py"
    script.write_text(f"from covid_fastai.app.server.app import create_app\napp = create_app({str(small_model)!r})\n")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "ended before it had loaded the model" in last and "__main__" in last
    assert "create_app was called while a new process imports the script" in done.stderr
