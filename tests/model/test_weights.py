"""Weights: every source, faults of files and servers, and that no code in a file is executed."""

from __future__ import annotations

import hashlib
import http.server
import json
import logging
import pickle
import threading
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from covid_fastai.errors import ModelFormatError, OfflineError, ResourceError, UnavailableError, UsageError
from covid_fastai.model import weight_files
from covid_fastai.model import weights as module
from covid_fastai.model.weights import IMAGENET_GREY, NEUTRAL_GREY, check_arch, empty_body, resolve_weights


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    return torchvision.models.resnet18()


@pytest.fixture(scope="module")
def pth(reference, tmp_path_factory) -> Path:
    """Write a file as published by torchvision: its name ends in the first 8 digits of its sha256."""
    path = tmp_path_factory.mktemp("published") / "weights.pth"
    torch.save(reference.state_dict(), path)
    return path.rename(path.with_name(f"resnet18-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"))


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Return an empty torch cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def no_network(monkeypatch, pth):
    monkeypatch.setattr(module, "_imagenet_url", lambda arch: f"http://127.0.0.1:9/{pth.name}")


@pytest.fixture
def server(monkeypatch, pth):
    """Run a server on the loopback interface that sends `answer` and counts the requests."""
    state = {"status": 200, "content": pth.read_bytes(), "requests": 0, "announced": None}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            state["requests"] += 1
            self.send_response(state["status"])
            self.send_header("Content-Length", str(state["announced"] or len(state["content"])))
            self.end_headers()
            self.wfile.write(state["content"])

        def log_message(self, *args):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(module, "_imagenet_url", lambda arch: f"http://127.0.0.1:{httpd.server_port}/{pth.name}")
    yield state
    httpd.shutdown()
    httpd.server_close()


class Canary:
    """A pickle that writes a file when it is loaded without `weights_only`."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def spoil(pth: Path, kind: str, canary: Path) -> bytes:
    content = pth.read_bytes()
    if kind == "hostile":
        return pickle.dumps(Canary(canary))
    flipped = bytearray(content)
    flipped[len(flipped) // 2] ^= 1
    return {
        "truncated": content[: len(content) // 2],
        "html": b"<html><body>Sign in to the network</body></html>",
        "empty": b"",
        "flipped": bytes(flipped),
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 46830571\n",
    }[kind]


KINDS = ["truncated", "html", "empty", "flipped", "lfs", "hostile"]


def same_as_torchvision(found, reference) -> bool:
    state = reference.state_dict()
    return torch.equal(found.state["0.weight"], state["conv1.weight"].sum(1, keepdim=True)) and torch.equal(
        found.state["7.1.bn2.running_var"], state["layer4.1.bn2.running_var"]
    )


def test_imagenet_from_the_cache(cache, pth, reference, no_network):
    cache.mkdir(parents=True)
    (cache / pth.name).write_bytes(pth.read_bytes())
    found = resolve_weights("imagenet", arch="resnet18")
    assert same_as_torchvision(found, reference)
    assert (found.name, found.mean, found.std) == ("imagenet", *IMAGENET_GREY) and found.pretrained
    assert found.sha256 == hashlib.sha256(pth.read_bytes()).hexdigest()
    assert "state" not in found.to_dict() and "tensor" not in repr(found)


def test_the_body_computes_what_torchvision_computes(pth, reference):
    from fastai.vision.learner import create_body

    found = resolve_weights(pth, arch="resnet18")
    body = create_body(torchvision.models.resnet18(), n_in=1, pretrained=False, cut=-2).eval()
    body.load_state_dict(found.state)
    grey = torch.rand(2, 1, 64, 64)
    features = torch.nn.Sequential(*list(reference.children())[:-2]).eval()
    with torch.no_grad():
        assert torch.allclose(body(grey), features(grey.expand(-1, 3, -1, -1)), atol=1e-4)


def test_offline_the_error_names_the_file_to_place(cache, pth, no_network):
    with pytest.raises(OfflineError) as caught:
        resolve_weights("imagenet", arch="resnet18")
    text = str(caught.value)
    assert str(cache / pth.name) in text and f"http://127.0.0.1:9/{pth.name}" in text and "weights=None" in text
    assert pth.stem.rsplit("-", 1)[-1] in text and not list(cache.glob("*"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_cached_file_is_never_used(kind, cache, pth, no_network, tmp_path):
    cache.mkdir(parents=True)
    (cache / pth.name).write_bytes(spoil(pth, kind, tmp_path / "canary"))
    with pytest.raises(OfflineError, match="in the cache cannot be used"):
        resolve_weights("imagenet", arch="resnet18")
    assert not (tmp_path / "canary").exists()


def test_a_damaged_cached_file_is_downloaded_again(cache, pth, server, reference, caplog):
    cache.mkdir(parents=True)
    (cache / pth.name).write_bytes(b"\0" * 1000)
    with caplog.at_level(logging.WARNING, logger="covid_fastai"):
        assert same_as_torchvision(resolve_weights("imagenet", arch="resnet18"), reference)
    assert pth.name in caplog.text and "downloaded again" in caplog.text
    assert resolve_weights("imagenet", arch="resnet18").pretrained and server["requests"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_download_leaves_no_file(kind, cache, pth, server, tmp_path):
    server["content"] = spoil(pth, kind, tmp_path / "canary")
    with pytest.raises(OfflineError, match="sent another file"):
        resolve_weights("imagenet", arch="resnet18")
    assert not (tmp_path / "canary").exists() and not list(cache.glob("*"))


def test_an_interrupted_download_leaves_no_file(cache, pth, server):
    server["announced"], server["content"] = len(server["content"]), server["content"][:1000]
    with pytest.raises(OfflineError):
        resolve_weights("imagenet", arch="resnet18")
    assert not list(cache.glob("*")) and not list(cache.glob(".*"))


def test_a_server_error_is_an_offline_error(cache, server):
    server["status"] = 503
    with pytest.raises(OfflineError, match="Service Unavailable"):
        resolve_weights("imagenet", arch="resnet18")


def test_a_silent_server_times_out(cache, monkeypatch, pth):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(weight_files, "TIMEOUT", 0.2)
        monkeypatch.setattr(
            module, "_imagenet_url", lambda arch: f"http://127.0.0.1:{silent.getsockname()[1]}/{pth.name}"
        )
        with pytest.raises(OfflineError, match="timed out"):
            resolve_weights("imagenet", arch="resnet18")


@pytest.mark.parametrize("limit", ["LARGEST_DOWNLOAD", "LONGEST_DOWNLOAD"])
def test_an_endless_download_is_stopped(limit, cache, server, monkeypatch):
    monkeypatch.setattr(weight_files, limit, 0)
    with pytest.raises(OfflineError, match="stopped after"):
        resolve_weights("imagenet", arch="resnet18")
    assert not list(cache.glob("*")) and not list(cache.glob(".*"))


def test_a_full_disk_is_not_a_network_error(cache, server, monkeypatch):
    def receive(url):
        yield b"some"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weight_files, "_receive", receive)
    with pytest.raises(ResourceError, match="No space left"):
        resolve_weights("imagenet", arch="resnet18")


def test_torchvision_has_the_expected_urls():
    for arch in module.ARCHITECTURES:
        url = module._imagenet_url(arch)
        assert url.startswith("https://download.pytorch.org/models/") and arch in url


def test_hostile_file_without_a_hash_in_its_name(tmp_path):
    path = tmp_path / "mine.pth"
    path.write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    with pytest.raises(ModelFormatError, match="contains more than weights"):
        resolve_weights(path, arch="resnet18")
    assert not (tmp_path / "canary").exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / "canary").exists(), "the canary itself does not sing"


def test_random_weights_have_a_neutral_normalisation():
    found = resolve_weights(None, arch="resnet18")
    assert (found.name, found.state, found.mean, found.std) == ("random", None, *NEUTRAL_GREY) and not found.pretrained
    assert resolve_weights(found, arch="resnet18") is found
    with pytest.raises(UsageError, match="belong to resnet18"):
        resolve_weights(found, arch="resnet34")


def test_package_weights(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "PACKAGE_FOLDER", tmp_path)
    for name in ("auto", "cxr"):
        with pytest.raises(ModelFormatError, match="incomplete"):
            resolve_weights(name, arch="resnet18")
    with pytest.raises(UsageError, match="for resnet18, not resnet50"):
        resolve_weights("cxr", arch="resnet50")
    body = torch.nn.Sequential(*list(torchvision.models.resnet18().children())[:-2])
    body[0] = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    path = tmp_path / "cxr-resnet18.safetensors"
    save_file({f"0.{key}": value for key, value in body.state_dict().items()}, path)
    facts = {"mean": 0.51, "std": 0.24, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(facts))
    found = resolve_weights("auto", arch="resnet18")
    assert (found.name, found.mean, found.std) == ("cxr", 0.51, 0.24)
    assert torch.equal(found.state["0.weight"], body[0].weight)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelFormatError, match="damaged"):
        resolve_weights("auto", arch="resnet18")


def test_the_weights_in_the_package_are_valid():
    found = resolve_weights("auto", arch="resnet18")
    assert found.name == "cxr" and found.pretrained and not found.assumed
    assert resolve_weights("cxr", arch="resnet18").sha256 == found.sha256
    assert found.state["0.weight"].shape == (64, 1, 7, 7)
    path = module.PACKAGE_FOLDER / "cxr-resnet18.safetensors"
    facts = json.loads(path.with_suffix(".json").read_text())
    assert facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.stat().st_size < 24e6 and facts["image_size"] == 128 and facts["metrics"] and facts["sources"]


def test_a_saved_model_folder(tmp_path, reference):
    state = {f"0.{key}": value for key, value in empty_body("resnet18").state_dict().items()}
    state = {key: torch.rand(value.shape).to(value.dtype) for key, value in state.items()}
    save_file(
        {**state, "1.2.weight": torch.rand(512), "1.4.weight": torch.rand(2, 512)}, tmp_path / "model.safetensors"
    )
    (tmp_path / "config.json").write_text('{"arch": "resnet18", "mean": 0.4, "std": 0.3, "classes": ["a", "b"]}')
    found = resolve_weights(tmp_path, arch="resnet18")
    assert (found.name, found.mean, found.std) == ("file", 0.4, 0.3) and set(found.state) == {k[2:] for k in state}
    with pytest.raises(UsageError, match="contains a resnet18"):
        resolve_weights(tmp_path, arch="resnet34")


def test_faulty_files(tmp_path, reference, pth):
    state = reference.state_dict()
    good = tmp_path / "good.safetensors"
    save_file(state, good)
    found = resolve_weights(good, arch="resnet18")
    assert found.mean == IMAGENET_GREY[0] and found.assumed and "assumed" not in found.to_dict()
    with pytest.raises(ModelFormatError, match="not a resnet34"):
        resolve_weights(good, arch="resnet34")
    for name, change in {
        "nan": {"bn1.weight": torch.full((64,), float("nan"))},
        "zero": {"conv1.weight": torch.zeros(64, 3, 7, 7)},
    }.items():
        save_file({**state, **change}, tmp_path / f"{name}.safetensors")
        with pytest.raises(ModelFormatError, match="NaN, infinite or all zero"):
            resolve_weights(tmp_path / f"{name}.safetensors", arch="resnet18")
    (tmp_path / "text.safetensors").write_text("not it")
    with pytest.raises(ModelFormatError, match="not a safetensors file"):
        resolve_weights(tmp_path / "text.safetensors", arch="resnet18")
    (tmp_path / "export.pkl").write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    with pytest.raises(UsageError, match="not a weights file"):
        resolve_weights(tmp_path / "export.pkl", arch="resnet18")
    assert not (tmp_path / "canary").exists()
    renamed = tmp_path / "resnet18-00000000.pth"
    renamed.write_bytes(pth.read_bytes())
    with pytest.raises(ModelFormatError, match="is damaged: its sha256 begins with"):
        resolve_weights(renamed, arch="resnet18")


def test_misspelt_names_get_a_suggestion():
    with pytest.raises(UsageError, match="Did you mean 'imagenet'"):
        resolve_weights("imagnet", arch="resnet18")
    with pytest.raises(UsageError, match="Did you mean 'resnet18'"):
        check_arch("resnet-18")
    with pytest.raises(UsageError, match="arch='vgg' is not one of 'resnet18'"):
        check_arch("vgg")


def test_a_missing_timm_is_a_clear_error(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UnavailableError, match=r"covid_fastai\[timm\]"):
        resolve_weights(None, arch="timm/convnext_atto")


@pytest.mark.slow  # needs an extra that [dev] does not have
def test_timm(monkeypatch, tmp_path):
    timm = pytest.importorskip("timm")
    with pytest.raises(UsageError, match="convnext_atto"):
        check_arch("timm/convnext_ato")
    model = timm.create_model("convnext_atto", pretrained=False)
    save_file(model.state_dict(), tmp_path / "atto.safetensors")
    found = resolve_weights(tmp_path / "atto.safetensors", arch="timm/convnext_atto")
    assert found.mean == pytest.approx(0.449, abs=1e-3) and found.state["model.stem.0.weight"].shape[1] == 1
    total = model.state_dict()["stem.0.weight"].sum(1, keepdim=True)
    assert torch.allclose(found.state["model.stem.0.weight"], total, atol=1e-6)
