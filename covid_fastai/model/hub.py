"""Saved models on the Hugging Face Hub: pushed after a check, fetched by name and revision, never a pickle."""

from __future__ import annotations

import importlib
import json
import re
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from covid_fastai.errors import ModelFormatError, OfflineError, UnavailableError, UsageError
from covid_fastai.files import restore_folder
from covid_fastai.model.bundle_config import CONFIG_FILE, ONNX_FILE, WEIGHTS_FILE, read_config, read_verified
from covid_fastai.model.card import CARD_FILE, FINDINGS_FILE, LIBRARY, build_card, read_findings
from covid_fastai.run_folder import RunFolder

__all__ = ["HUB_FILES", "fetch_model", "find_model", "push_to_hub"]

HUB_FILES = (CONFIG_FILE, WEIGHTS_FILE, ONNX_FILE, CARD_FILE, FINDINGS_FILE)  # nothing else is ever fetched or pushed
PATIENCE = 10.0  # seconds that the Hub may take for its first word
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
    """Put a saved model on the Hugging Face Hub in one commit.

    Only the model's own files go there, after their sha256 was compared with `config.json`; and a model card, the
    folder's own or one made from the config, without which nobody can know what the model is worth.

    Args:
        folder: A saved model, or a run.
        repo: `"user/model"`; made where it does not exist.
        license: The Hub's word for the licence of the weights, such as `"cc-by-4.0"`, for the card's metadata. The
            terms of the training data may bind it: there is no default.
        private: Whether a repository that is made is seen by its owner only.
        revision: The branch; None for main.
        message: Of the commit.
        token: Of the Hub; None for the one that `hf auth login` has stored.

    Returns:
        The commit's address.

    Raises:
        UsageError: `repo` is no name on the Hub.
        ModelFormatError: A file of the model is missing or damaged, or its card's metadata are.
        UnavailableError: huggingface_hub is not installed, or the Hub refuses.
        OfflineError: The Hub does not answer.
    """
    _check_name(repo)
    folder = find_model(Path(folder))
    config = read_config(folder / CONFIG_FILE)
    content = {CONFIG_FILE: (folder / CONFIG_FILE).read_bytes()}
    content[WEIGHTS_FILE] = read_verified(folder / WEIGHTS_FILE, config.sha256)
    if config.onnx is not None:
        content[ONNX_FILE] = read_verified(folder / ONNX_FILE, config.onnx.sha256)
    findings, own = read_findings(folder, config), folder / CARD_FILE
    if own.is_file():
        card = own.read_text("utf-8")
    else:
        card = build_card(config, title=repo.split("/")[1], verdict=findings.verdict, limits=findings.limits)
    content[CARD_FILE] = _with_license(card, license).encode()
    content[FINDINGS_FILE] = json.dumps(findings.model_dump(), indent=2).encode()
    with _hub(repo) as hub:
        api = hub.HfApi(token=token)
        api.create_repo(repo, private=private, exist_ok=True)
        add = [hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in content.items()]
        done = api.create_commit(repo, operations=add, commit_message=message, revision=revision)
    return str(done.commit_url)


def fetch_model(repo: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """Fetch a saved model from the Hugging Face Hub, or take it from the Hub's cache on this machine.

    Without a network the cache answers, where it has the model. What was fetched is not trusted for it: `load_model`
    and `Predictor` check it as they do any other folder.

    Args:
        repo: `"user/model"`.
        revision: A commit, a tag or a branch; None for main. Name a commit, and nobody can exchange the model.
        token: Of the Hub; None for the one that `hf auth login` has stored.

    Returns:
        The folder in the cache; nothing but `HUB_FILES` is in it.

    Raises:
        UsageError: `repo` is no name on the Hub.
        ModelFormatError: There is no such model or revision, or none of this package.
        UnavailableError: huggingface_hub is not installed, or the Hub refuses.
        OfflineError: The Hub does not answer, and the cache does not have it.
    """
    _check_name(repo)
    with _hub(repo, revision) as hub:
        options = {"revision": revision, "token": token, "allow_patterns": list(HUB_FILES)}  # guard: hub_files
        try:  # asked once: the download itself would try for minutes where nobody answers
            hub.HfApi(token=token).model_info(repo, revision=revision, timeout=PATIENCE)
        except _unreachable():  # guard: hub_cache
            folder = hub.snapshot_download(repo, local_files_only=True, **options)
        else:
            folder = hub.snapshot_download(repo, **options)
    if not (Path(folder) / CONFIG_FILE).is_file():
        raise ModelFormatError(
            f"{repo} on the Hub has no {CONFIG_FILE}, so it is no model of this package.", hint="Check the name."
        )
    return Path(folder)


def find_model(model: str | Path, *, revision: str | None = None) -> Path:
    """Find the folder of a saved model.

    Args:
        model: The folder itself; that of a run, whose model is meant; or, where there is no such folder, `"user/model"`
            on the Hugging Face Hub. A `Path` is never taken for the latter.
        revision: Of a model on the Hub.

    Returns:
        The folder.

    Raises:
        UsageError: A `revision` of a folder.
        CovidFastaiError: As in `fetch_model`.
    """
    folder = Path(model)
    if isinstance(model, str) and HUB_NAME.fullmatch(model) and not folder.exists():
        return fetch_model(model, revision=revision)
    if revision is not None:
        raise UsageError(f"revision={revision!r}, but {model} is a folder.", hint="Name user/model on the Hub.")
    of_run = RunFolder(folder).model
    for place in (folder, of_run):
        restore_folder(place)
    return of_run if (of_run / CONFIG_FILE).is_file() else folder


def _check_name(repo: str) -> None:
    if not HUB_NAME.fullmatch(repo):
        raise UsageError(f"{repo!r} is no name on the Hub.", hint='Write "user/model".')


def _with_license(text: str, license: str) -> str:
    """Put the licence into the metadata of a card."""
    from huggingface_hub import ModelCard, ModelCardData
    from yaml import YAMLError  # of PyYAML, with which huggingface_hub reads the metadata

    if not re.fullmatch(r"[A-Za-z0-9.\-]+", license):
        raise UsageError(f"license={license!r}.", hint='Take the Hub\'s word for it, such as "cc-by-4.0" or "other".')
    try:
        card = ModelCard(text)
    except (ValueError, YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ModelFormatError(
            f"The metadata of the model's {CARD_FILE} cannot be read: {reason}.",
            hint="Correct the YAML between its two lines of three hyphens, or remove the file.",
        ) from error
    data = cast(ModelCardData, card.data)
    data.license, data.library_name = license, LIBRARY
    return str(card)


@contextmanager
def _hub(repo: str, revision: str | None = None):
    """Give huggingface_hub, and its errors in the words of this package."""
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
        raise UnavailableError(f"The Hub shows {repo} to some only.", hint="Ask its owner, then log in.") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise _offline(at) from error
        raise ModelFormatError(
            f"{at} is no folder here, and the Hub has none of that name.",
            hint="Correct it, or log in (hf auth login) where it is private.",
        ) from error
    except errors.HfHubHTTPError as error:
        reason = getattr(error, "server_message", None) or str(error).splitlines()[0]
        raise UnavailableError(
            f"The Hub refuses {at}: {reason}", hint="Log in with hf auth login and a token that may do this."
        ) from error
    except _unreachable() as error:
        raise _offline(at) from error


def _unreachable() -> tuple[type[Exception], ...]:
    """Return what is raised where nobody answers, by the client that this version of huggingface_hub uses."""
    from huggingface_hub.errors import HfHubHTTPError

    base = HfHubHTTPError.__bases__[0]  # HTTPError of httpx or httpx2, above TransportError
    module = importlib.import_module(base.__module__.split(".")[0])
    return module.TransportError, ConnectionError


def _offline(at: str) -> OfflineError:
    return OfflineError(
        f"{at} is no folder here, the Hub does not answer, and its cache on this machine does not have it.",
        hint="Correct the folder, try again with a network, or fetch it elsewhere and copy the folder.",
    )
