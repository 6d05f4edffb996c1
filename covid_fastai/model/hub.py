"""Push saved models to the Hugging Face Hub and fetch them by name and revision; no pickle."""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from covid_fastai.errors import ModelFormatError, OfflineError, UnavailableError, UsageError
from covid_fastai.files import restore_folder, similar_path
from covid_fastai.model.bundle_config import (
    CONFIG_FILE,
    LARGEST_CONFIG,
    LARGEST_WEIGHTS,
    ONNX_FILE,
    WEIGHTS_FILE,
    parse_config,
    read_bytes,
    read_verified,
    require_weights,
)
from covid_fastai.model.card import CARD_FILE, FINDINGS_FILE, LIBRARY, build_card, read_card, read_findings, split_card
from covid_fastai.model.package_models import package_models, suggest_package_model
from covid_fastai.run_folder import RunFolder

__all__ = ["HUB_FILES", "add_license", "fetch_model", "find_model", "push_to_hub"]

HUB_FILES = (CONFIG_FILE, WEIGHTS_FILE, ONNX_FILE, CARD_FILE, FINDINGS_FILE)  # no other file is fetched or pushed
DEEPEST_METADATA = 20  # levels of a card's metadata; the Hub's own have four
TIMEOUT = 10.0  # seconds to wait for the Hub's first response
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*", re.ASCII)


def push_to_hub(
    folder: str | Path,
    repo: str,
    *,
    license: str,
    private: bool = True,
    revision: str | None = None,
    message: str = "A model saved by covid_fastai",
    token: str | None = None,
) -> str:
    """Push a saved model to the Hugging Face Hub in one commit.

    Only the files of the model are pushed, after their sha256 was compared with `config.json`. A model card is pushed
    with them: the one in the folder, or one made from the config.

    Args:
        folder: A saved model, or a run.
        repo: `"user/model"`; created if it does not exist.
        license: The Hub's identifier of the weights' licence, such as `"cc-by-4.0"`, for the card's metadata. There is
            no default, since the terms of the training data may restrict it.
        private: Whether a new repository is private.
        revision: The branch; None for main.
        message: The commit message.
        token: A token of the Hub; None for the one that `hf auth login` has stored.

    Returns:
        The URL of the commit.

    Raises:
        UsageError: `repo` is not a valid name on the Hub.
        ModelFormatError: A file of the model is missing or damaged, or its card's metadata cannot be read.
        UnavailableError: huggingface_hub is not installed, or the Hub refuses access.
        OfflineError: The Hub does not answer.
    """
    from covid_fastai.model.session import read_onnx  # imports ONNX Runtime, which finding a model does not need

    _check_name(repo)
    folder = find_model(Path(folder))
    content = {CONFIG_FILE: read_bytes(folder / CONFIG_FILE, LARGEST_CONFIG)}  # read once: it names each file's hash
    config = parse_config(content[CONFIG_FILE], folder / CONFIG_FILE)
    require_weights(folder)
    content[WEIGHTS_FILE] = read_verified(folder / WEIGHTS_FILE, config.sha256)
    if config.onnx is not None:
        content[ONNX_FILE], _ = read_onnx(folder / ONNX_FILE, config)
    findings, card_path = read_findings(folder, config), folder / CARD_FILE
    if card_path.is_file():
        card = read_card(card_path)
    else:
        said = findings.model_dump(exclude={"fingerprint", "level", "population"})
        card = build_card(config, title=repo.split("/")[1], **said)
    content[CARD_FILE] = add_license(card, license).encode()
    content[FINDINGS_FILE] = json.dumps(findings.model_dump(), indent=2).encode()
    with _hub(repo) as hub:
        api = hub.HfApi(token=token)
        api.create_repo(repo, private=private, exist_ok=True)
        add = [hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in content.items()]
        commit = api.create_commit(repo, operations=add, commit_message=message, revision=revision)
    return str(commit.commit_url)


def fetch_model(repo: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """Fetch a saved model from the Hugging Face Hub, or from the Hub's cache on this machine.

    Without a network, the model is taken from the cache if it is there. `load_model` and `Predictor` check a fetched
    model like any other folder.

    Args:
        repo: `"user/model"`.
        revision: A commit, a tag or a branch; None for main. A commit identifies the model's content; a tag or a branch
            can be moved.
        token: A token of the Hub; None for the one that `hf auth login` has stored.

    Returns:
        The folder in the cache, which contains only `HUB_FILES`.

    Raises:
        UsageError: `repo` is not a valid name on the Hub.
        ModelFormatError: The model or revision does not exist, or is not a model of this package.
        UnavailableError: huggingface_hub is not installed, or the Hub refuses access.
        OfflineError: The Hub does not answer, and the model is not in the cache.
    """
    _check_name(repo)
    with _hub(repo, revision) as hub:
        options = {"revision": revision, "token": token, "allow_patterns": list(HUB_FILES)}  # guard: hub_files
        try:  # one request first, since the download would retry for minutes without a network
            info = hub.HfApi(token=token).model_info(repo, revision=revision, timeout=TIMEOUT, files_metadata=True)
        except _unreachable():  # guard: hub_cache
            folder = hub.snapshot_download(repo, local_files_only=True, **options)
        else:
            _check_sizes(repo, {file.rfilename: file.size or 0 for file in info.siblings or ()})
            folder = hub.snapshot_download(repo, **options)
    if not (Path(folder) / CONFIG_FILE).is_file():
        raise ModelFormatError(
            f"{repo} on the Hub has no {CONFIG_FILE}: it is not a model of this package.", hint="Check the name."
        )
    return Path(folder)


def find_model(model: str | Path, *, revision: str | None = None) -> Path:
    """Return the folder of a saved model. All functions and commands that take a model find it here.

    Args:
        model: The folder itself; the folder of a run; the name of a model of the package (`package_models`); or, if
            there is no such folder, `"user/model"` on the Hugging Face Hub. A `Path` is always a folder, and so is a
            text with a separator that exists, or whose first part is a folder here unless `revision` is given.
        revision: The commit, tag or branch of a model on the Hub.

    Returns:
        The folder.

    Raises:
        UsageError: `revision` is given for a folder, or a folder here has the name of a model of the package.
        ModelFormatError: There is no such folder.
        CovidFastaiError: As in `fetch_model`.
    """
    folder, kind = Path(model), "a folder"
    if isinstance(model, str) and (packaged := package_models().get(model)) is not None:
        if folder.exists():  # guard: two_models
            raise UsageError(
                f"{model!r} is a model of the package, and {folder.resolve()} has the same name.",
                hint=f"Write {os.path.join(os.curdir, model)} for the folder here, or work in another folder.",
            )
        folder, kind = packaged, "a model of the package"
    elif isinstance(model, str) and HUB_NAME.fullmatch(model) and not folder.exists():
        if revision is None and folder.parent.is_dir():
            meant = f"Did you mean {near}? " if (near := similar_path(folder)) else ""
            raise ModelFormatError(
                f"There is no folder {model}.",
                hint=f'{meant}For a model of that name on the Hub, give revision="main".',
            )
        return fetch_model(model, revision=revision)
    elif isinstance(model, str) and not folder.exists() and (hint := suggest_package_model(model)):
        raise ModelFormatError(f"There is no folder {model}.", hint=hint)
    if revision is not None:
        raise UsageError(
            f"revision={revision!r} is for models on the Hub, and {model} is {kind}.", hint="Leave out revision."
        )
    run_model = RunFolder(folder).model
    for candidate in (folder, run_model):
        restore_folder(candidate)
    if not folder.exists():
        meant = f"Did you mean {near}? " if (near := similar_path(folder)) else ""
        raise ModelFormatError(
            f"There is no folder {model}.",
            hint=f"{meant}Give the folder of a run or of a saved model, the name of a model of the package "
            f"({', '.join(package_models())}), or user/model on the Hub.",
        )
    return run_model if (run_model / CONFIG_FILE).is_file() else folder


def _check_sizes(repo: str, sizes: Mapping[str, int]) -> None:
    """Raise before a file is downloaded that no reader of this package would accept."""
    for name in sorted(sizes.keys() & set(HUB_FILES)):
        largest = LARGEST_WEIGHTS if name in (WEIGHTS_FILE, ONNX_FILE) else LARGEST_CONFIG
        if sizes[name] > largest:  # guard: hub_size
            raise ModelFormatError(
                f"{name} of {repo} on the Hub has {sizes[name]:,} bytes, and {largest:,} are allowed: it is not a "
                "model of this package.",
                hint="Check the name.",
            )


def _check_name(repo: str) -> None:
    if not HUB_NAME.fullmatch(repo):
        raise UsageError(f"{repo!r} is not a valid name on the Hub.", hint='Write "user/model".')


def add_license(text: str, license: str) -> str:
    """Return the text of a model card with the licence in its metadata.

    Args:
        text: The card.
        license: The Hub's identifier of the licence.

    Raises:
        UsageError: The licence is not an identifier.
        ModelFormatError: The metadata of the card cannot be read, are too long, or refer to parts of themselves.
    """
    import yaml  # PyYAML, with which huggingface_hub reads the metadata
    from huggingface_hub import ModelCard, ModelCardData

    if not re.fullmatch(r"[A-Za-z0-9.\-]+", license):
        raise UsageError(
            f"license={license!r} is not a licence identifier.",
            hint='Use an identifier of the Hub, such as "cc-by-4.0" or "other".',
        )
    metadata, rest = split_card(text)
    try:
        _check_yaml(metadata)
        card = ModelCard(metadata)  # without the rest, which its regular expressions would search
        data = cast(ModelCardData, card.data)
        data.license, data.library_name = license, LIBRARY
        metadata = str(card)
    except (ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ModelFormatError(
            f"The metadata of the model's {CARD_FILE} cannot be read: {reason}.",
            hint="Correct the YAML between the two lines with three hyphens, or remove the file.",
        ) from error
    return metadata + rest


def _check_yaml(text: str) -> None:
    """Raise a ValueError for YAML that takes more time or memory than its length: references, and deep nesting."""
    import yaml

    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):  # guard: card_aliases
            raise ValueError("they refer to parts of themselves, which can grow without end")
        if depth > DEEPEST_METADATA:  # guard: card_depth
            raise ValueError(f"they are nested more than {DEEPEST_METADATA} times")


@contextmanager
def _hub(repo: str, revision: str | None = None):
    """Yield huggingface_hub, and convert its errors to errors of this package."""
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
    except ImportError as error:
        raise UnavailableError(
            f"{repo} is no folder here, and the Hugging Face Hub needs huggingface_hub, which is not installed.",
            hint="Correct the folder, or pip install huggingface_hub",
        ) from error
    at = f"{repo}, revision {revision}," if revision else repo
    try:
        yield hub
    except errors.GatedRepoError as error:
        raise UnavailableError(
            f"Access to {repo} on the Hub is restricted.", hint="Request access from its owner, then log in."
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise _offline(at) from error
        raise ModelFormatError(
            f"{at} is no folder here, and the Hub has no model of that name.",
            hint="Correct the name, or log in (hf auth login) if the model is private.",
        ) from error
    except errors.HfHubHTTPError as error:
        reason = getattr(error, "server_message", None) or str(error).splitlines()[0]
        raise UnavailableError(
            f"The Hub refuses access to {at}: {reason}", hint="Log in with hf auth login and a token that allows this."
        ) from error
    except _unreachable() as error:
        raise _offline(at) from error


def _unreachable() -> tuple[type[Exception], ...]:
    """Return the exceptions of an unreachable server, of the HTTP client that huggingface_hub uses."""
    from huggingface_hub.errors import HfHubHTTPError

    base = HfHubHTTPError.__bases__[0]  # HTTPError of httpx or httpx2, above TransportError
    module = importlib.import_module(base.__module__.split(".")[0])
    return module.TransportError, ConnectionError


def _offline(at: str) -> OfflineError:
    return OfflineError(
        f"{at} is no folder here, the Hub does not answer, and the model is not in the Hub's cache on this machine.",
        hint="Correct the folder, connect to a network, or fetch the model on another machine and copy the folder.",
    )
