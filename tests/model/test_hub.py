"""Models by name, pushed and fetched by huggingface_hub from a local server with the necessary part of its API."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from PIL import Image

from covid_fastai.errors import ModelFormatError, UsageError
from covid_fastai.model.card import CARD_FILE, FINDINGS_FILE
from covid_fastai.model.hub import HUB_FILES, add_license, fetch_model, find_model, push_to_hub
from covid_fastai.model.predictor import Predictor

PICTURE = np.tile(np.arange(64, dtype=np.uint8) * 3, (64, 1))


class Hub(BaseHTTPRequestHandler):
    """A repository with its commits in memory; large files are uploaded by the LFS protocol."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def say(self, value, status=200, **headers):
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def missing(self, code):
        self.say({"error": "not here"}, 404, X_Error_Code=code, X_Error_Message="not here")

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self):
        hub, path, body = self.server, unquote(urlsplit(self.path).path), self.body()
        hub.asked.append(f"POST {path}")
        if path == "/api/repos/create":
            hub.created.append(json.loads(body))
            self.say({"url": f"http://{self.headers['Host']}/user/model"})
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = [
                {"path": one["path"], "uploadMode": "lfs" if one["path"].startswith("model.") else "regular"}
                for one in files
            ]
            self.say({"files": [{**one, "shouldIgnore": False} for one in modes]})
        elif path.endswith("/info/lfs/objects/batch"):
            there = f"http://{self.headers['Host']}/blobs/"
            objects = [
                {**one, "actions": {"upload": {"href": there + one["oid"]}}} for one in json.loads(body)["objects"]
            ]
            self.say({"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")
        elif "/commit/" in path:
            files = dict(hub.commits[-1][1]) if hub.commits else {}
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = hub.blobs[value["oid"]]
            sha = hashlib.sha1(body).hexdigest()
            hub.commits.append((sha, files))
            self.say({"commitUrl": f"http://{self.headers['Host']}/user/model/commit/{sha}", "commitOid": sha})
        elif path == "/api/validate-yaml":
            self.say({"errors": [], "warnings": []})
        else:
            self.missing("RepoNotFound")

    def do_PUT(self):
        self.server.blobs[self.path.rsplit("/", 1)[1]] = self.body()
        self.say({})

    def do_GET(self):
        hub, path = self.server, unquote(urlsplit(self.path).path)
        hub.asked.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if path.startswith("/api/models/user/model"):
            revision = parts[5] if len(parts) > 5 else "main"
            found = self.find(revision)
            if found is None:
                self.missing("RevisionNotFound")
                return
            if "tree" in parts:
                self.say([self.entry(name, content) for name, content in found[1].items()])
                return
            names = [{"rfilename": name} for name in found[1]]
            self.say({"id": "user/model", "sha": found[0], "siblings": names, "tags": [], "private": True})
        elif path.startswith("/user/model/resolve/"):
            found = self.find(parts[3])
            content = found[1].get("/".join(parts[4:])) if found else None
            if content is None:
                self.missing("EntryNotFound")
                return
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            self.say(content, ETag=etag, X_Repo_Commit=found[0], Accept_Ranges="none")
        else:
            self.missing("RepoNotFound")

    do_HEAD = do_GET

    def entry(self, name, content):
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def find(self, revision):
        known = {sha: (sha, files) for sha, files in self.server.commits}
        return self.server.commits[-1] if revision == "main" and self.server.commits else known.get(revision)


@pytest.fixture
def hub():
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.commits, server.blobs, server.created, server.asked = [], {}, [], []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def run(hub, home, code, *arguments, offline=False):
    """Run code in a process whose Hub is this server."""
    port = hub.server_address[1] if hub else 9  # port 9 has no server
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(home), "HF_TOKEN": "t"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    if offline:
        environment["HF_HUB_OFFLINE"] = "1"
    code = "import json, sys\nfrom covid_fastai.model.hub import *\nfrom covid_fastai.errors import *\n" + code
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


PUSH = "print(push_to_hub(sys.argv[1], 'user/model', license='cc-by-4.0'))"
PREDICT = """
import numpy as np
from covid_fastai.model.predictor import Predictor
predictor = Predictor("user/model", revision=sys.argv[1] or None)
table = predictor.predict(np.tile(np.arange(64, dtype=np.uint8) * 3, (64, 1)))
assert not {"torch", "pickle5"} & set(sys.modules)
print(json.dumps([table["p_COVID-19"][0], str(find_model("user/model", revision=sys.argv[1] or None))]))
"""
REFUSED = """
try:
    find_model(sys.argv[1], revision=sys.argv[2] or None)
except CovidFastaiError as error:
    print(json.dumps([type(error).__name__, error.message, error.hint]))
"""


@pytest.mark.slow
def test_push_fetch_and_predict(hub, small_model, tmp_path):
    folder = Path(shutil.copytree(small_model, tmp_path / "mine"))
    (folder / "export.pkl").write_bytes(b"must not be pushed")
    address = run(hub, tmp_path / "a", PUSH, folder)
    (sha, files) = hub.commits[0]
    assert address.endswith(f"/user/model/commit/{sha}") and "private" in json.dumps(hub.created[0])
    assert set(files) == set(HUB_FILES)
    for name in set(HUB_FILES) - {CARD_FILE, FINDINGS_FILE}:
        assert files[name] == (folder / name).read_bytes()
    assert json.loads(files[FINDINGS_FILE])["verdict"] == ""
    card = files[CARD_FILE].decode()
    assert card.startswith("---\nlibrary_name: covid_fastai") and card.count("\nlicense: cc-by-4.0\n") == 1

    files["pytorch_model.bin"] = files["x.pkl"] = b"a pickle that somebody has put there"
    hub.asked.clear()
    p, place = json.loads(run(hub, tmp_path / "b", PREDICT, ""))
    assert p == Predictor(small_model, threads=1).predict(PICTURE)["p_COVID-19"][0]
    assert sorted(os.listdir(place)) == sorted(HUB_FILES)
    assert not [asked for asked in hub.asked if ".pkl" in asked or ".bin" in asked]
    # the cache answers without the Hub, and with one that is down
    assert json.loads(run(None, tmp_path / "b", PREDICT, "", offline=True))[0] == p
    assert json.loads(run(None, tmp_path / "b", PREDICT, sha))[0] == p


@pytest.mark.slow  # a process for each step
def test_a_revision_is_fetched_by_its_name(hub, small_model, tmp_path):
    from tests.small_model import write_small_model

    run(hub, tmp_path / "a", PUSH, small_model)
    other = write_small_model(tmp_path / "other", seed=3)
    run(hub, tmp_path / "a", PUSH, other)
    (first, _), (second, _) = hub.commits
    wanted = {
        first: Predictor(small_model).predict(PICTURE)["p_COVID-19"][0],
        second: Predictor(other).predict(PICTURE)["p_COVID-19"][0],
    }
    assert len(set(wanted.values())) == 2
    for revision in (first, second):
        assert json.loads(run(hub, tmp_path / "b", PREDICT, revision))[0] == wanted[revision]
    assert json.loads(run(hub, tmp_path / "b", PREDICT, ""))[0] == wanted[second]
    kind, message, _ = json.loads(run(hub, tmp_path / "b", REFUSED, "user/model", "f" * 40))
    assert kind == "ModelFormatError" and "revision fff" in message


@pytest.mark.slow  # a process for each step
def test_a_missing_model_or_network_is_a_clear_error(hub, tmp_path):
    kind, message, hint = json.loads(run(hub, tmp_path / "a", REFUSED, "some/body", ""))
    assert kind == "ModelFormatError" and "some/body is no folder here" in message and hint
    hub.commits.append(("a" * 40, {"pytorch_model.bin": b"x"}))
    kind, message, _ = json.loads(run(hub, tmp_path / "b", REFUSED, "user/model", ""))
    assert kind == "ModelFormatError" and "not a model of this package" in message
    for offline in (True, False):
        kind, message, hint = json.loads(run(None, tmp_path / "c", REFUSED, "user/model", "", offline=offline))
        assert kind == "OfflineError" and "does not answer" in message and hint


def test_a_damaged_model_is_not_pushed(small_model, tmp_path):
    folder = Path(shutil.copytree(small_model, tmp_path / "mine"))
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelFormatError, match="damaged or exchanged"):
        push_to_hub(folder, "user/model", license="mit")


@pytest.mark.parametrize(("name", "size"), [("model.onnx", 3 << 30), ("config.json", 2 << 20), ("README.md", 1 << 40)])
def test_a_file_that_is_too_large_is_not_downloaded(monkeypatch, name, size):
    import huggingface_hub

    files = [SimpleNamespace(rfilename="config.json", size=None), SimpleNamespace(rfilename="others.bin", size=1 << 50)]
    info = SimpleNamespace(siblings=[*files, SimpleNamespace(rfilename=name, size=size)])
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("it was downloaded"))
    with pytest.raises(ModelFormatError, match=f"{name} of user/model on the Hub has {size:,} bytes"):
        fetch_model("user/model")


def test_existing_folders_have_priority_over_the_hub(small_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_model, tmp_path / "runs" / "first" / "model")
    (tmp_path / "runs" / "first" / "config.json").write_text("{}")  # a run has a config of its own
    assert find_model("runs/first") == Path("runs/first/model")
    assert find_model(small_model) == small_model
    with pytest.raises(ModelFormatError, match="There is no folder user.model"):
        find_model(Path("user/model"))  # a Path is a folder, there or not
    assert Predictor("runs/first").classes == ["Normal", "COVID-19"]
    for typo in ("runs/frist", "runs/fir"):  # is not asked for at the Hub
        with pytest.raises(ModelFormatError, match=f"There is no folder {typo}") as caught:
            find_model(typo)
        assert caught.value.hint.startswith("Did you mean runs/first? ") and 'revision="main"' in caught.value.hint
    with pytest.raises(ModelFormatError, match="There is no folder rnus") as caught:
        find_model("rnus")
    assert caught.value.hint.startswith("Did you mean runs? ")
    with pytest.raises(UsageError, match="is a folder"):
        find_model("runs/first", revision="main")
    for name in ("model", "a/b/c", "../x/y", "https://x/y", "a/b@c", "-a/b", "a /b"):
        with pytest.raises(UsageError, match="not a valid name on the Hub"):
            fetch_model(name)


@pytest.mark.parametrize(
    ("card", "unchanged"),
    [
        ("# Mine\n", "# Mine\n"),
        ("---\nlicense: unknown\ntags: [a]\n---\n# Mine\n", "tags:\n- a\n"),
        ("---\ntags:\n- b\n---\n\n---\nlicense: in the text\n---\n", "license: in the text"),
    ],
)
def test_the_licence_is_in_the_metadata(card, unchanged):
    import yaml

    text = add_license(card, "cc-by-nc-4.0")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "cc-by-nc-4.0" and unchanged in text
    with pytest.raises(UsageError, match="license"):
        add_license(card, "x\nprivate: no")


LAUGHS = "a: &a {k: v}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join(9 * [f'*{before}'])}]}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("front", ["tags: [", "- a list", "a: *nowhere", LAUGHS])
def test_unreadable_metadata_are_an_error(front):
    with pytest.raises(ModelFormatError, match="metadata of the model's README.md"):
        add_license(f"---\n{front}\n---\n# Mine\n", "mit")


@pytest.mark.parametrize(
    ("front", "words"), [("a: &a [b]\nc: *a", "refer to parts"), ("a: " + 5000 * "[", "nested more")]
)
def test_metadata_that_take_more_than_their_length_are_refused(front, words):
    with pytest.raises(ModelFormatError, match=words):
        add_license(f"---\n{front}\n---\n# Mine\n", "mit")


def test_the_work_for_a_card_grows_with_its_length(monkeypatch):
    """What huggingface_hub's regular expressions search stays short: those of some versions take the square of it."""
    from huggingface_hub import repocard

    pattern, searched = repocard.REGEX_YAML_BLOCK, []

    class Counting:
        def search(self, text):
            searched.append(len(text))
            return pattern.search(text)

    monkeypatch.setattr(repocard, "REGEX_YAML_BLOCK", Counting())
    for n in (1_000, 300_000):
        for card in (f"---\ntags: [a]\n{n * chr(10)}---\n# Mine\n", f"---\ntags: [a]\n---\n{n * '---x'}", n * "\n---x"):
            assert "license: mit" in add_license(card, "mit")
    assert len(searched) == 6 and max(searched) < 100
    with pytest.raises(ModelFormatError, match=r"README.md .*metadata have 300,0.. characters, and 16,384 are allowed"):
        add_license(f"---\ntags: [{300_000 * 'a'}]\n---\n", "mit")
    with pytest.raises(ModelFormatError, match=r"README.md .*have no end"):
        add_license("---\ntags: [a]\n", "mit")


def test_a_card_that_is_too_long_or_not_text_is_not_pushed(small_model, tmp_path):
    folder = Path(shutil.copytree(small_model, tmp_path / "mine"))
    for content, words in ((b"a" * (1 << 20) + b"b", "larger than 1 MiB"), (b"\xff\xfe", "not UTF-8")):
        (folder / CARD_FILE).write_bytes(content)
        with pytest.raises(ModelFormatError, match=words):
            push_to_hub(folder, "user/model", license="mit")


LOAD = """
from covid_fastai.evaluation.predict import predict
from covid_fastai.model.bundle import load_model
learn = load_model("user/model", revision=sys.argv[1])
print(json.dumps([predict(learn, [sys.argv[2]])["p_COVID-19"][0], type(learn).__name__]))
"""


@pytest.mark.slow
def test_a_pushed_model_is_loaded_as_a_learner(hub, tmp_path):
    from covid_fastai.data.dataloaders import empty_dataloaders
    from covid_fastai.model.bundle import save_model
    from covid_fastai.model.learner import build_learner

    dls = empty_dataloaders(classes=["Normal", "COVID-19"], image_size=64, positive="COVID-19", device="cpu")
    folder = save_model(build_learner(dls, weights="cxr"), tmp_path / "real")
    (folder / CARD_FILE).write_text("---\nlibrary_name: covid_fastai\nlicense: unknown\n---\n# Real\n")
    run(hub, tmp_path / "a", PUSH, folder)
    image = tmp_path / "a.png"
    Image.fromarray(PICTURE).save(image)
    p, kind = json.loads(run(hub, tmp_path / "b", LOAD, hub.commits[0][0], image))
    assert kind == "Learner" and abs(p - Predictor(folder).predict(str(image))["p_COVID-19"][0]) < 1e-4
