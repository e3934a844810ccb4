"""Features of image files: what the cache has, and the network for the rest."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from expansion.common.errors import require
from expansion.images.records import ImageRecord
from expansion.measures.features.cache import FeatureCache, Features, FeatureTable, key_of
from expansion.measures.features.networks import Network, embed_images

Advance = Callable[[int], object]  # gets a number of images that are done

PART_IMAGES = 4096  # kept at a time
PART_SECONDS = 30.0  # that a kill may cost


class Embedder:
    """A network with its cache.

    Args:
        network: Its identity decides which cache.
        cache_dir: Of all networks.
        batch_size: Images that the network sees at a time.
    """

    def __init__(self, network: Network, cache_dir: Path, batch_size: int):
        self.network = network
        self.cache = FeatureCache(cache_dir, network.identity)
        self.batch_size = batch_size

    def missing(self, records: Sequence[ImageRecord]) -> int:
        """How many different images the network has not seen yet."""
        return len(self.cache.missing([key_of(record) for record in records]))

    def embed(self, records: Sequence[ImageRecord], advance: Advance = lambda _: None) -> Features:
        """Features in the order of `records`, whose `content` must be known; equal images once.

        Args:
            advance: Told of images as they are done, those of the cache first.

        Raises:
            InputError: An image cannot be read, or the network gives numbers that are not finite.
        """
        places: dict[bytes, list[int]] = {}
        for i, record in enumerate(records):
            places.setdefault(key_of(record), []).append(i)
        found = FeatureTable(len(records))
        absent = self.cache.fill(places, found)
        advance(sum(len(rows) for key, rows in places.items() if key not in absent))
        # In the order of the images, so that batches are the same in every run from the start.
        keys = [key for key in places if key in absent]
        kept: list[tuple[bytes, Tensor, Tensor | None]] = []
        since = time.monotonic()
        try:
            for part, features, logits in self._computed(keys, places, records):
                for i, key in enumerate(part):
                    row = None if logits is None else logits[i]
                    name = records[places[key][0]].file_name
                    _require_finite(features[i], row, name, self.network.title)
                    kept.append((key, features[i], row))
                    numbers = None if row is None else row.numpy()
                    found.put(places[key], features[i].numpy(), numbers, self.network.title)
                    advance(len(places[key]))
                if len(kept) >= PART_IMAGES or time.monotonic() - since > PART_SECONDS:
                    self._keep(kept)
                    since = time.monotonic()
        finally:
            self._keep(kept)
        return found.whole()

    def _computed(
        self,
        keys: Sequence[bytes],
        places: dict[bytes, list[int]],
        records: Sequence[ImageRecord],
    ) -> Iterator[tuple[Sequence[bytes], Tensor, Tensor | None]]:
        """Batches of keys with features and logits; the next batch loads meanwhile."""
        parts = [keys[i : i + self.batch_size] for i in range(0, len(keys), self.batch_size)]

        def load(key: bytes) -> Tensor:
            return self.network.prepare(records[places[key][0]].load())

        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            ahead: list[list[Future[Tensor]]] = []
            for i, part in enumerate(parts):
                for following in parts[i + len(ahead) : i + 2]:
                    ahead.append([pool.submit(load, key) for key in following])
                prepared = [future.result() for future in ahead.pop(0)]
                yield part, *embed_images(self.network, prepared)

    def _keep(self, kept: list[tuple[bytes, Tensor, Tensor | None]]) -> None:
        """Write what was computed since the last time, and empty the list."""
        if not kept:
            return
        keys, features, logits = zip(*kept, strict=True)
        stacked = None if logits[0] is None else torch.stack(logits).numpy()
        self.cache.add(keys, torch.stack(features).numpy(), stacked)
        kept.clear()


def _require_finite(features: Tensor, logits: Tensor | None, name: str, title: str) -> None:
    finite = bool(features.isfinite().all()) and (logits is None or bool(logits.isfinite().all()))
    require(
        finite,
        f"{title} gives numbers that are not finite for the image {name}; use another network, or "
        "look at the image",
    )
