"""Run folders: atomic files, what a folder was made with, and when a run is done."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import logging
import os
import platform
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from expansion.common.config import PROJECT_ROOT, load_yaml
from expansion.common.errors import InputError, brief, require

logger = logging.getLogger(__name__)

# Of the files that say what a folder was begun with. 1 had no such number, 2 did not say how a
# run's images are read.
IDENTITY_FORMAT = 3
LIBRARIES = ("torch", "torchvision", "diffusers", "transformers", "accelerate", "numpy", "pillow")


def partial_path(path: Path) -> Path:
    """A temporary name beside `path` that no other process or thread uses."""
    return path.with_name(f".{path.name[:80]}.{uuid.uuid4().hex}.partial")


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file under a temporary name in the same folder, then rename it."""
    content = content.encode() if isinstance(content, str) else content
    try:
        _write_and_rename(path, content)
    except FileNotFoundError:
        _write_and_rename(path, content)  # see remove_partial_files
    except OSError as error:
        error.filename = str(path)  # a full disk is reported without one
        raise


def _write_and_rename(path: Path, content: bytes) -> None:
    partial = partial_path(path)
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def write_if_absent(path: Path, content: str) -> bool:
    """Write a file whole unless it is there; of several processes one is the first: True."""
    if path.exists():
        return False
    partial = partial_path(path)
    try:
        partial.write_text(content)
        os.link(partial, path)
        return True
    except FileExistsError:
        return False
    except OSError:
        # A file system without hard links (mounted cloud drives, FAT) says so in many ways: EPERM,
        # ENOSYS, EOPNOTSUPP, EMLINK, EXDEV... A real fault makes `replace` fail as well.
        if path.exists():
            return False
        partial.replace(path)
        return True
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def remove_partial_files(folder: Path) -> int:
    """Remove what killed processes left half-written in a finished folder; returns how many files.

    Whether a process on another machine still lives cannot be known: one that does and loses its
    file here writes it again.
    """
    removed = 0
    for parent, _, names in os.walk(folder):  # not rglob, which fails at folders that vanish
        for name in fnmatch.filter(names, ".*.partial"):
            with contextlib.suppress(FileNotFoundError):
                Path(parent, name).unlink()
                removed += 1
    return removed


def check_writable(folder: Path) -> None:
    """Raise InputError unless files can be made in `folder`, which need not exist yet."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if place.is_dir() and not os.access(place, os.W_OK | os.X_OK):
        raise InputError(
            f"{place} cannot be written; change its permissions or choose another folder"
        )


@contextlib.contextmanager
def noticing_removal(folder: Path) -> Iterator[None]:
    """A FileNotFoundError inside that comes from the loss of `folder` becomes an InputError."""
    try:
        yield
    except FileNotFoundError as error:
        if folder.is_dir():
            raise
        raise InputError(
            f"{folder} vanished during the run; see to the disk, then run the same command again"
        ) from error


def to_yaml(values: Mapping[str, Any]) -> str:
    """YAML text in the order of the keys; tuples become lists."""
    return yaml.safe_dump(json.loads(json.dumps(values, default=str)), sort_keys=False, width=100)


def provenance() -> dict[str, Any]:
    """Command, versions and commit, for the record; nothing depends on them."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            versions[library] = version(library)
    command = shlex.join(["python", *sys.orig_argv[1:]])
    return {"command": command, "commit": _commit(), "versions": versions}


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
    if found.pop("format", None) != IDENTITY_FORMAT:
        unknown = [key for key in wanted if key not in found]
        found, wanted = _common(found, wanted)
        logger.info(
            f"{folder} was begun by an older version, which did not keep "
            f"{', '.join(unknown) or 'all that decides'}; these are taken to be the same"
        )
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
    facts = {"format": IDENTITY_FORMAT, **identity, "made_with": provenance()}
    if not write_if_absent(folder / file_name, to_yaml(facts)):
        check_claim(folder, file_name, identity, remedy)


def check_outside(output_dir: Path, inputs: Mapping[str, str | Path | None]) -> None:
    """Raise InputError if `output_dir` is one of the folders that are read, or lies in one.

    What is written there would count as real images, or as part of a model, at the next run.

    Args:
        inputs: What a folder is, for the message -> its path; None or no folder: nothing to check.
    """
    place = output_dir.resolve()
    for title, path in inputs.items():
        if path is None or not os.path.isdir(path):
            continue
        inner = Path(path).resolve()
        require(
            place != inner and inner not in place.parents,
            f"the output folder {output_dir} lies in {title} {path}, where it would be read as "
            "input; give a folder outside it",
        )


def is_done(run_dir: Path) -> bool:
    """A run is done when its results exist, not when its folder does."""
    return (run_dir / "results.yaml").is_file()


def _common(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[dict, dict]:
    """Both, reduced to the keys that both have, in depth."""
    pairs = {}
    for key in found.keys() & wanted.keys():
        old, new = found[key], wanted[key]
        both = isinstance(old, dict) and isinstance(new, dict)
        pairs[key] = _common(old, new) if both else (old, new)
    return {k: old for k, (old, _) in pairs.items()}, {k: new for k, (_, new) in pairs.items()}


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    keys = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    shown = []
    for key in keys:
        old, new = found.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            shown.append(_difference(old, new))
        else:
            title = key if isinstance(key, str) else brief(key)
            there, now = (
                brief(values[key]) if key in values else "not given" for values in (found, wanted)
            )
            shown.append(f"{title}: {there} there, {now} now")
    return "; ".join(shown)


def file_fingerprint(path: str | Path) -> str:
    """SHA-256 of a file's content, shortened."""
    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"
