"""Whether the Hugging Face hub, or another server, can be reached, asked once for a few seconds.

huggingface_hub repeats every request five times, with two lines each, before it believes that there
is no network. Here one question decides, and without a network only cached files are used.
"""

from __future__ import annotations

import functools
import socket
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError

from huggingface_hub import constants

from expansion.common.errors import InputError, require

SECONDS = 6.0  # that a server may take to answer, the look-up of its name included
SILENCE = 10.0  # seconds, in the middle of a download


def check_revision(name_or_path: str, revision: str | None, option: str) -> None:
    """Raise InputError for a revision of files on this disk, which have none.

    Args:
        name_or_path: Hub id or local path.
        revision: Branch, tag or commit; None: none is asked for.
        option: What gives it, for the error.
    """
    require(
        revision is None or not Path(name_or_path).exists(),
        f"{option} {revision}: {name_or_path} lies on this disk and has no revisions; leave "
        f"{option} out, or give a hub id",
    )


def unreachable() -> str | None:
    """Why the hub cannot be used, in a few words; None if it can."""
    return "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else no_answer(constants.ENDPOINT)


@functools.cache
def no_answer(address: str) -> str | None:
    """Why a server does not answer, in a few words; None if it does, whatever it says."""
    found = ["no answer"]
    # The look-up of a name takes no timeout, so it may go on in a thread that nobody waits for.
    asking = threading.Thread(target=lambda: found.append(_ask(address)), daemon=True)
    asking.start()
    asking.join(SECONDS)
    return f"{address} cannot be reached ({found[-1]})" if found[-1] else None


def _ask(address: str) -> str:
    """The error of one request, or nothing."""
    request = urllib.request.Request(address, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=SECONDS).close()
    except HTTPError as error:
        return str(error) if error.code >= 500 else ""
    except URLError as error:
        # Of certificates and proxies the library that downloads may know more than urllib.
        is_network = isinstance(error.reason, OSError) and not isinstance(
            error.reason, ssl.SSLError
        )
        return str(error.reason) if is_network else ""
    except OSError as error:
        return str(error) or type(error).__name__
    except (ValueError, HTTPException):  # no address, or no HTTP: the libraries say it better
        return ""
    return ""


@contextmanager
def timeout_of_sockets() -> Iterator[None]:
    """Inside, a connection that stays silent for `SILENCE` seconds fails."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def no_vain_requests() -> Iterator[None]:
    """Without a network, huggingface_hub asks for nothing inside, whatever options it gets.

    For what takes no `local_files_only`, or takes it and asks nevertheless (`from_single_file`).
    """
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or unreachable() is not None
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def only_cached(name_or_path: str) -> bool:
    """Whether a hub id must do with files downloaded before; False for a folder."""
    return not Path(name_or_path).is_dir() and unreachable() is not None


def hub_failure(what: str, name: str, error: Exception, remedy: str) -> InputError:
    """The error for something that cannot be loaded, with the remedy where there is no network.

    Args:
        what: "model", "CLIP model" and so on.
        name: Hub id or folder.
        error: What the library raised.
        remedy: What to do without a network; `{name}` stands for the name.
    """
    advice = f"; {remedy.format(name=name)}" if only_cached(name) else ""
    return InputError(f"cannot load the {what} {name}: {why_not_loaded(name, error)}{advice}")


def why_not_loaded(name: str, error: Exception) -> str:
    """In a few words: the first line of what a library raised, or that there is no network."""
    if only_cached(name):
        return f"it was not downloaded before, and {unreachable()}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
