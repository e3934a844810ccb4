"""Which unit a process computes next, when others work in the same folder.

    <output>/.claim.<unit>-of-<units>   empty: a process has begun this unit

Nobody coordinates and no clock is read. A claim only says that a unit is better left for later:
one that a dead process left behind costs nothing but the order. Two processes that do compute the
same unit write the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from expansion.store.expanded_set import Item, Pair, StoredSet

CLAIM = ".claim."
MAX_HELD = 64  # claims of units that are computed but not yet whole on disk, or that failed

NumberedUnit = tuple[int, Sequence[Item]]


class Claims:
    """The units that this process has begun; as a context manager, it takes its claims back.

    Args:
        output_dir: Folder of the expanded set, which must exist.
        num_units: Units of all shards.
    """

    def __init__(self, output_dir: Path, num_units: int):
        self.output_dir = output_dir
        self.num_units = num_units
        self.held: list[NumberedUnit] = []

    def __enter__(self) -> Claims:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, _ in self.held:
            self._path(number).unlink(missing_ok=True)
        self.held.clear()

    def take(self, unit: NumberedUnit) -> bool:
        """Claim a unit; False if it is claimed already."""
        try:
            self._path(unit[0]).touch(exist_ok=False)
        except FileExistsError:
            return False
        self.held.append(unit)
        return True

    def release_done(self, stored: StoredSet) -> None:
        """Take back the claims of units whose images are all on disk."""
        keep = [unit for unit in self.held if stored.missing(unit[1])][-MAX_HELD:]
        kept = {number for number, _ in keep}
        for number, _ in self.held:
            if number not in kept:
                self._path(number).unlink(missing_ok=True)
        self.held = keep

    def _path(self, number: int) -> Path:
        # A file, not a folder of its own: loaders of folders take each folder for a class.
        return self.output_dir / f"{CLAIM}{number}-of-{self.num_units}"


def remove_claims(output_dir: Path) -> None:
    """Clear away the claims of dead processes, once the set is complete."""
    for path in output_dir.glob(f"{CLAIM}*"):
        path.unlink(missing_ok=True)


def pending_work(
    units: Sequence[NumberedUnit],
    stored: StoredSet,
    claims: Claims,
    begun: Callable[[Sequence[Item]], None] = lambda unit: None,
) -> Iterator[tuple[Sequence[Item], set[Pair]]]:
    """Units that lack images when their turn comes, with what they lack; each at most once.

    What others have claimed comes last: first what was given back since, then the rest, the claims
    that have stood longest first.

    Args:
        begun: Called with every unit that is given out; `stored` is fresh then.
    """
    put_off: list[NumberedUnit] = []
    for unit in units:
        _look_again(stored, claims)
        missing = stored.missing(unit[1])
        if missing and claims.take(unit):
            begun(unit[1])
            yield unit[1], missing
        elif missing:
            put_off.append(unit)
    while put_off:
        _look_again(stored, claims)
        put_off = [unit for unit in put_off if stored.missing(unit[1])]
        place = next((i for i, unit in enumerate(put_off) if claims.take(unit)), 0)
        if put_off:
            _, items = put_off.pop(place)
            begun(items)
            yield items, stored.missing(items)


def _look_again(stored: StoredSet, claims: Claims) -> None:
    stored.refresh(growing_only=True)
    claims.release_done(stored)
