"""Features of images, kept by what the image and the network contain; loads no torch.

    <cache_dir>/features/<network>/<number>.npz     keys (N, 32), features (N, D), perhaps logits

A part is written whole or not at all, by any number of processes, so that whoever is stopped goes
on where the last part ends. Nothing in it is pickled.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from expansion.common.errors import require
from expansion.common.files import write_atomic
from expansion.images.pixels import Reading
from expansion.images.records import ImageRecord

logger = logging.getLogger(__name__)

DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


class Features(NamedTuple):
    """What a network says of images: features (M, D) and logits (M, N), if it has any; float32."""

    features: np.ndarray
    logits: np.ndarray | None

    def take(self, chosen: np.ndarray) -> Features:
        """Those of some images."""
        logits = None if self.logits is None else self.logits[chosen]
        return Features(self.features[chosen], logits)


def default_cache_dir() -> Path:
    """Where features are kept unless a command is told otherwise."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "dataset-expansion", "measures")


def key_of(record: ImageRecord) -> bytes:
    """SHA-256 of an image's bytes and of how its dataset reads them."""
    require(record.content is not None, f"{record.path} was not hashed")
    if not record.crop_bottom and record.reading == Reading():
        return bytes.fromhex(record.content)
    text = f"{record.content} {record.crop_bottom} {record.reading}"
    return hashlib.sha256(text.encode()).digest()


class FeatureCache:
    """The features of one network.

    Args:
        cache_dir: Of all networks.
        identity: Of the network; see `networks.Network`.
    """

    def __init__(self, cache_dir: Path, identity: str):
        self.folder = cache_dir / "features" / identity
        self.identity = identity

    def add(self, keys: Sequence[bytes], features: np.ndarray, logits: np.ndarray | None) -> None:
        """Keep features of the images of `keys`."""
        arrays: dict[str, Any] = {
            "network": np.array(self.identity),
            "keys": np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), -1),
            "features": features.astype(np.float32),
        }
        if logits is not None:
            arrays["logits"] = logits.astype(np.float32)
        content = io.BytesIO()
        np.savez(content, **arrays)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / f"{uuid.uuid4().hex}.npz", content.getvalue())

    def missing(self, keys: Sequence[bytes]) -> set[bytes]:
        """Those of `keys` that nothing is kept of."""
        absent = set(keys)
        for path in self._parts():
            part = self._read(path, ("keys",))
            absent -= set(_rows(part["keys"])) if part else set()
        return absent

    def fill(self, places: Mapping[bytes, Sequence[int]], found: FeatureTable) -> set[bytes]:
        """Put what is kept into `found`.

        Args:
            places: Key of an image -> its rows in `found`.

        Returns:
            The keys that nothing is kept of.

        Raises:
            InputError: A part is of another network, or holds numbers that are not finite.
        """
        absent = set(places)
        for path in self._parts():
            part = self._read(path, ("keys",))
            if part is None:
                continue
            wanted = [(i, key) for i, key in enumerate(_rows(part["keys"])) if key in absent]
            part = self._read(path, ("features", "logits")) if wanted else None
            if part is None:
                continue
            for i, key in wanted:
                logits = part["logits"][i] if "logits" in part else None
                found.put(places[key], part["features"][i], logits, str(path))
                absent.discard(key)
        return absent

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("*.npz"))

    def _read(self, path: Path, names: Sequence[str]) -> dict[str, np.ndarray] | None:
        """Arrays of a part; None of a damaged one, whose images are embedded again."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                owner = str(stored["network"])
                part = {name: stored[name] for name in names if name in stored}
        except DAMAGED as error:
            logger.warning(f"{path} cannot be read ({type(error).__name__}), so it does not count")
            return None
        require(
            owner == self.identity,
            f"{path} holds features of another network ({owner}) than this folder's; remove it",
        )
        whole = all(np.isfinite(a).all() for n, a in part.items() if n != "keys")
        require(whole, f"{path} holds features that are not finite; remove it")
        return part


class FeatureTable:
    """Rows of features that are filled one after the other; the first decides how long they are."""

    def __init__(self, num_images: int):
        self.num_images = num_images
        self.features: np.ndarray | None = None
        self.logits: np.ndarray | None = None

    def put(
        self, rows: Sequence[int], features: np.ndarray, logits: np.ndarray | None, place: str
    ) -> None:
        """Fill rows, all with the same numbers.

        Args:
            place: Where they come from, for errors.

        Raises:
            InputError: They are of another length than those before.
        """
        if self.features is None:
            self.features = np.empty((self.num_images, len(features)), np.float32)
            if logits is not None:
                self.logits = np.empty((self.num_images, len(logits)), np.float32)
        same = features.shape == self.features.shape[1:]
        require(
            same and (logits is None) == (self.logits is None),
            f"{place} holds features of another network; remove it",
        )
        self.features[list(rows)] = features
        if logits is not None:
            self.logits[list(rows)] = logits

    def whole(self) -> Features:
        """All rows, which must have been filled."""
        assert self.features is not None, "no image was put in"
        return Features(self.features, self.logits)


def _rows(keys: np.ndarray) -> list[bytes]:
    return [row.tobytes() for row in keys]
