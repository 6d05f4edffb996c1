"""Files of weights: read, fetched and verified; the one place of the package that opens a pickle, and how."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import time
import urllib.request
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from covid_fastai.errors import ModelFormatError, OfflineError, ResourceError
from covid_fastai.files import atomic_write, make_folder
from covid_fastai.model.bundle_config import CONFIG_FILE, WEIGHTS_FILE

__all__ = ["TIMEOUT", "download", "facts_file", "read_facts", "read_safetensors", "read_torch_file"]

logger = logging.getLogger("covid_fastai")

TIMEOUT = 15.0  # seconds without a byte before a server counts as silent
LARGEST_DOWNLOAD = 500 << 20  # bytes; ResNet-50, the largest one here, has 98 MiB
LONGEST_DOWNLOAD = 3600.0  # seconds; 98 MiB in that time is 28 kB/s
CHUNK = 1 << 20  # bytes


def facts_file(path: Path) -> Path:
    """Return where a weights file's facts stand: a saved model's in config.json, a lone file's in its own .json."""
    return path.with_name(CONFIG_FILE) if path.name == WEIGHTS_FILE else path.with_suffix(".json")


def read_facts(path: Path) -> dict[str, Any]:
    """Return arch, mean, std and sha256 from the JSON beside a weights file, those that it has; {} without a file.

    Raises:
        ModelFormatError: The JSON is damaged, or its numbers cannot be used.
    """
    if not path.exists():
        return {}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        found: dict[str, Any] = {key: str(facts[key]) for key in ("arch", "sha256") if key in facts}
        found |= {key: float(facts[key]) for key in ("mean", "std") if key in facts}
    except (OSError, ValueError, TypeError) as error:
        raise ModelFormatError(f"{path} cannot be read: {error}.", hint="Copy it again from where it came.") from error
    if ("mean" in found) != ("std" in found) or not found.get("std", 1.0) > 0:
        raise ModelFormatError(f"{path}: mean and std belong together, and std is above 0.", hint="Correct the file.")
    return found


def _read_bytes(path: Path) -> tuple[bytes, str]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ResourceError(f"{path} cannot be read: {error.strerror}.", hint="Check its permissions.") from error
    return content, hashlib.sha256(content).hexdigest()


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], str]:
    """Read a `.safetensors` file and return its tensors and its sha256.

    Raises:
        ModelFormatError: It is not such a file.
        ResourceError: It cannot be read.
    """
    content, sha256 = _read_bytes(path)
    try:
        return load_safetensors(content), sha256
    except (SafetensorError, ValueError, KeyError) as error:
        raise ModelFormatError(f"{path} is not a safetensors file: {error}.", hint="Copy it again.") from error


def read_torch_file(path: Path) -> tuple[Mapping[str, Any], str]:
    """Read a `.pth` file. The one place of the package that opens a pickle, and why it may.

    The hash in the file's name (torchvision's `resnet18-f37072fd.pth`) is compared before a byte is interpreted, and
    `weights_only=True` lets nothing but tensors and plain containers be made, so that no code in it runs.
    The bytes that are hashed are the bytes that are read: the file cannot change in between.

    Returns:
        The state_dict, or the mapping that holds it, and the file's sha256.

    Raises:
        ModelFormatError: It is damaged, not what its name says, or holds more than weights.
        ResourceError: It cannot be read.
    """
    content, sha256 = _read_bytes(path)
    expected = re.search(r"-([0-9a-f]{8,64})\.pth$", path.name)
    if expected and not sha256.startswith(expected[1]):  # guard: cached_hash
        raise ModelFormatError(
            f"{path} is not what its name says: its sha256 begins with {sha256[:8]}.",
            hint="Fetch it again.",
        )
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)  # guard: weights_only
    except Exception as error:  # whatever a damaged or hostile file makes the reader raise, it is refused
        reason = str(error).split("\n", 1)[0][:200] or type(error).__name__
        raise ModelFormatError(
            f"{path} is not a file of weights alone: {reason}", hint="Give a state_dict, or better a .safetensors file."
        ) from error
    if not isinstance(state, Mapping):
        raise ModelFormatError(
            f"{path} holds a {type(state).__name__}, not a state_dict.", hint="Save model.state_dict()."
        )
    return state, sha256


def download(url: str, path: Path, *, what: str, damage: str = "") -> None:
    """Fetch a file whose name holds the beginning of its sha256; it appears under its name only when that agrees.

    Raises:
        OfflineError: The server does not answer, or sends something else; names the file to place by hand.
        ResourceError: The folder cannot be written.
    """
    prefix = path.stem.rsplit("-", 1)[-1]
    hint = f"Place that file at {path} (its sha256 begins with {prefix}), or use weights=None."
    make_folder(path.parent, hint="Set TORCH_HOME.")
    logger.info("Fetching %s to %s.", url, path)
    digest, size = hashlib.sha256(), 0
    with atomic_write(path, mode="wb") as file:
        try:
            for chunk in _receive(url):
                size += file.write(chunk)
                digest.update(chunk)
        except _NotReceived as error:  # guard: not_received
            raise OfflineError(f"{what}: {url} cannot be fetched ({error}).{damage}", hint=hint) from error
        sha256 = digest.hexdigest()
        if not sha256.startswith(prefix):  # guard: name_hash
            raise OfflineError(
                f"{what}: {url} sent {size:,} bytes of something else (sha256 {sha256[:8]}).{damage}", hint=hint
            )


class _NotReceived(Exception):
    """A download failed; its own kind, since a full disk is an OSError too."""


def _receive(url: str) -> Iterator[bytes]:
    """Yield what a server sends, and give up on one that is silent, endless, or sends a byte now and then."""
    deadline, size = time.monotonic() + LONGEST_DOWNLOAD, 0
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:  # torchvision's own https addresses only
            while chunk := response.read1(CHUNK):
                size += len(chunk)
                if size > LARGEST_DOWNLOAD or time.monotonic() > deadline:  # guard: largest_download
                    raise _NotReceived(f"given up after {size >> 20} MiB")
                yield chunk
    except (OSError, HTTPException, ValueError) as error:  # URLError and time-outs are OSErrors
        raise _NotReceived(str(getattr(error, "reason", None) or error)) from error
