"""Run folders: atomic files, what a folder was made with, and when a run is done."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import subprocess
import uuid
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from expansion.config import PROJECT_ROOT, load_yaml, require
from expansion.errors import InputError, brief

LIBRARIES = ("torch", "torchvision", "diffusers", "transformers", "accelerate", "numpy", "pillow")


def partial_path(path: Path) -> Path:
    """A temporary name beside `path` that no other process or thread uses."""
    return path.with_name(f".{path.name[:80]}.{uuid.uuid4().hex}.partial")


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file under a temporary name in the same folder, then rename it."""
    partial = partial_path(path)
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def to_yaml(values: Mapping[str, Any]) -> str:
    """YAML text in the order of the keys; tuples become lists."""
    return yaml.safe_dump(json.loads(json.dumps(values, default=str)), sort_keys=False, width=100)


def provenance() -> dict[str, Any]:
    """Versions and commit, for the record; nothing depends on them."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            versions[library] = version(library)
    return {"commit": _commit(), "versions": versions}


def _commit() -> str | None:
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        done = subprocess.run(
            ["git", "-C", str(PROJECT_ROOT), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()
    return None


def check_claim(folder: Path, file_name: str, identity: Mapping[str, Any], remedy: str) -> None:
    """Raise InputError, showing each difference, if `folder` was begun with another identity."""
    path = folder / file_name
    if not path.exists():
        return
    require(path.is_file(), f"{path} is no file; remove it")
    wanted = yaml.safe_load(to_yaml(identity))
    found = dict(load_yaml(path).values)
    found.pop("made_with", None)
    if found != wanted:
        raise InputError(
            f"{folder} was begun with other settings ({_difference(found, wanted)}); {remedy}"
        )


def claim_folder(folder: Path, file_name: str, identity: Mapping[str, Any], remedy: str) -> None:
    """Make `folder` belong to `identity`: all that decides its content.

    The first process writes `<folder>/<file_name>`; every later one must bring the same identity.

    Raises:
        InputError: See `check_claim`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name
    partial = partial_path(path)
    try:
        partial.write_text(to_yaml({**identity, "made_with": provenance()}))
        os.link(partial, path)  # fails if another process was first
    except FileExistsError:
        check_claim(folder, file_name, identity, remedy)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP):
            raise
        check_claim(folder, file_name, identity, remedy)  # a file system without hard links
        if not path.exists():
            partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def is_done(run_dir: Path) -> bool:
    """A run is done when its results exist, not when its folder does."""
    return (run_dir / "results.yaml").is_file()


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    keys = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    shown = []
    for key in keys:
        old, new = found.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            shown.append(_difference(old, new))
        else:
            title = key if isinstance(key, str) else brief(key)
            shown.append(f"{title}: {brief(old)} there, {brief(new)} now")
    return "; ".join(shown)
