"""Read, download and verify weights files; the only module of the package that reads a pickle."""

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

TIMEOUT = 15.0  # seconds without data after which a server counts as not responding
LARGEST_DOWNLOAD = 500 << 20  # bytes; ResNet-50, the largest file here, has 98 MiB
LONGEST_DOWNLOAD = 3600.0  # seconds; 98 MiB in that time are 28 kB/s
CHUNK = 1 << 20  # bytes


def facts_file(path: Path) -> Path:
    """Return the JSON file with the facts about a weights file: `config.json` for a saved model, else `<name>.json`."""
    return path.with_name(CONFIG_FILE) if path.name == WEIGHTS_FILE else path.with_suffix(".json")


def read_facts(path: Path) -> dict[str, Any]:
    """Read arch, mean, std and sha256 from the JSON file of a weights file, as far as it has them; {} without a file.

    Raises:
        ModelFormatError: The JSON is damaged, or mean and std are not valid.
    """
    if not path.exists():
        return {}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        known: dict[str, Any] = {key: str(facts[key]) for key in ("arch", "sha256") if key in facts}
        known |= {key: float(facts[key]) for key in ("mean", "std") if key in facts}
    except (OSError, ValueError, TypeError) as error:
        raise ModelFormatError(f"{path} cannot be read: {error}.", hint="Copy it again from its source.") from error
    if ("mean" in known) != ("std" in known) or not known.get("std", 1.0) > 0:
        raise ModelFormatError(f"{path} needs both mean and std, with std above 0.", hint="Correct the file.")
    return known


def _read_bytes(path: Path) -> tuple[bytes, str]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ResourceError(f"{path} cannot be read: {error.strerror}.", hint="Check its permissions.") from error
    return content, hashlib.sha256(content).hexdigest()


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], str]:
    """Read a `.safetensors` file and return its tensors and its sha256.

    Raises:
        ModelFormatError: The file is not a safetensors file.
        ResourceError: The file cannot be read.
    """
    content, sha256 = _read_bytes(path)
    try:
        return load_safetensors(content), sha256
    except (SafetensorError, ValueError, KeyError) as error:
        raise ModelFormatError(f"{path} is not a safetensors file: {error}.", hint="Copy it again.") from error


def read_torch_file(path: Path) -> tuple[Mapping[str, Any], str]:
    """Read a `.pth` file, the only pickle that this package reads.

    The hash in the file's name (torchvision's `resnet18-f37072fd.pth`) is verified before the content is parsed, and
    `weights_only=True` allows only tensors and plain containers, so no code in the file runs. The file is read once,
    so its content cannot change between the verification and the parsing.

    Returns:
        The state_dict, or the mapping that contains it, and the file's sha256.

    Raises:
        ModelFormatError: The file is damaged, its sha256 is not the one in its name, or it contains more than weights.
        ResourceError: The file cannot be read.
    """
    content, sha256 = _read_bytes(path)
    expected = re.search(r"-([0-9a-f]{8,64})\.pth$", path.name)
    if expected and not sha256.startswith(expected[1]):  # guard: cached_hash
        raise ModelFormatError(
            f"{path} is damaged: its sha256 begins with {sha256[:8]}, its name has {expected[1][:8]}.",
            hint="Download it again.",
        )
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)  # guard: weights_only
    except Exception as error:  # a damaged or hostile file may raise any error
        reason = str(error).split("\n", 1)[0][:200] or type(error).__name__
        raise ModelFormatError(
            f"{path} contains more than weights, or is damaged: {reason}",
            hint="Save a state_dict, or better a .safetensors file.",
        ) from error
    if not isinstance(state, Mapping):
        raise ModelFormatError(
            f"{path} contains a {type(state).__name__}, not a state_dict.", hint="Save model.state_dict()."
        )
    return state, sha256


def download(url: str, path: Path, *, what: str, damage: str = "") -> None:
    """Download a file whose name contains the start of its sha256; it is renamed to its name only if that matches.

    Args:
        url: The address.
        path: The file to write; its name ends in `-<start of the sha256>`.
        what: A description of the file, for messages.
        damage: A sentence about an earlier, damaged copy, for messages.

    Raises:
        OfflineError: The server does not answer, or sends another file; the hint has the file to place by hand.
        ResourceError: The folder cannot be written to.
    """
    prefix = path.stem.rsplit("-", 1)[-1]
    hint = f"Place that file at {path} (its sha256 begins with {prefix}), or use weights=None."
    make_folder(path.parent, hint="Set TORCH_HOME.")
    logger.info("Downloading %s to %s.", url, path)
    digest, size = hashlib.sha256(), 0
    with atomic_write(path, mode="wb") as file:
        try:
            for chunk in _receive(url):
                size += file.write(chunk)
                digest.update(chunk)
        except _NotReceived as error:  # guard: not_received
            raise OfflineError(f"{what}: {url} cannot be downloaded ({error}).{damage}", hint=hint) from error
        sha256 = digest.hexdigest()
        if not sha256.startswith(prefix):  # guard: name_hash
            raise OfflineError(
                f"{what}: {url} sent another file of {size:,} bytes (sha256 {sha256[:8]}).{damage}", hint=hint
            )


class _NotReceived(Exception):
    """A download failed; not an OSError, since writing to a full disk raises that too."""


def _receive(url: str) -> Iterator[bytes]:
    """Yield the content that a server sends; stop if it does not respond, sends too much or is too slow."""
    deadline, size = time.monotonic() + LONGEST_DOWNLOAD, 0
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:  # only https addresses from torchvision
            while chunk := response.read1(CHUNK):
                size += len(chunk)
                if size > LARGEST_DOWNLOAD or time.monotonic() > deadline:  # guard: largest_download
                    raise _NotReceived(f"stopped after {size >> 20} MiB")
                yield chunk
    except (OSError, HTTPException, ValueError) as error:  # URLError and timeouts are OSErrors
        raise _NotReceived(str(getattr(error, "reason", None) or error)) from error
