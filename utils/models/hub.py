"""Models on the hub: whether it can be reached, and one line for why something cannot be loaded."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from utils.errors import UserError

SECONDS_TO_CONNECT = 3
_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


def offline(source: str) -> bool:
    """Whether `source` is a hub id while the hub cannot be reached: then only what was downloaded can be loaded.

    Asked first, since the hub's own client tries again for about twenty seconds and prints a line for each trial.
    """
    return not Path(source).is_dir() and not _hub_answers()


@cache
def _hub_answers() -> bool:
    """Whether the hub takes a connection. Behind a proxy only a real request can tell, so that counts as yes."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in _PROXIES):
        return True
    url = urlsplit(constants.ENDPOINT)
    try:
        with socket.create_connection((url.hostname, url.port or 443), timeout=SECONDS_TO_CONNECT):
            return True
    except OSError:
        return False


def cannot_load(what: str, source: str, error: BaseException) -> UserError:
    """The UserError for an exception of `from_pretrained`: what to do for gated, unknown and unreachable models."""
    from huggingface_hub import errors, get_token

    causes = tuple(type(cause) for cause in _causes(error))
    page = f"https://huggingface.co/{source}"
    if any(issubclass(cause, errors.GatedRepoError) for cause in causes):
        if get_token() is None:
            reason = f"it is gated and no token is set: accept the licence at {page}, then put HF_TOKEN into .env"
        else:
            reason = f"it is gated and this account has no access: accept the licence at {page}, then try again"
    elif any(issubclass(cause, errors.RepositoryNotFoundError) for cause in causes):
        reason = "the hub does not know it (or it is private, and HF_TOKEN is missing); correct model.name"
    elif offline(source) or any(issubclass(cause, errors.LocalEntryNotFoundError) for cause in causes):
        reason = (
            "it is not downloaded and the hub cannot be reached: where there is a network run "
            f"`bash download.sh --model {source}`, or give a local folder"
        )
    else:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        reason = f"{first_line[:200]} (expected a folder or hub id with config.json, weights and tokenizer)"
    return UserError(f"{what} {source!r} cannot be loaded: {reason}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
