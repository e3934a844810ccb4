"""Files of classifiers, this project's and other programs': weights by name, and what lies beside.

What other programs wrap around the names of a network is taken off; which network the names belong
to is `weight_names`' business. Reading never runs code from a file.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from expansion.common.errors import InputError, brief, shown

logger = logging.getLogger(__name__)

# Where programs keep a network's weights, the first that is there counts; "ema" are averages.
PLACES = (
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "classifier",
    "weights", "params", "module",
    "ema", "ema_state_dict", "state_dict_ema", "ema_model", "model_ema",
)  # fmt: skip
# DataParallel and torch.compile put theirs anywhere, the others stand in front.
ANYWHERE = re.compile(r"(?:(?<=\.)|^)(?:module|_orig_mod)\.")
IN_FRONT = re.compile(r"^(?:(?:model|backbone|net|network)\.)+")
# Counters that averaging, profilers and old modules leave among the weights.
NO_WEIGHTS = re.compile(r"(?:^|\.)(?:n_averaged|total_ops|total_params|_extra_state)$")
DEPTH = 3  # dicts within dicts
# What a NumPy scalar consists of; not object and void, which can hold anything.
NUMPY_KINDS = "?bhilqBHILQefdgFDGSUMm"
NUMPY_SCALARS = [
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),  # of NumPy 1
    np.dtype,
    *{type(np.dtype(kind)) for kind in NUMPY_KINDS},
]


@dataclass(frozen=True)
class StoredNetwork:
    """A file's weights by bare names, and the other values that lie beside them."""

    path: Path
    state: dict[str, Tensor]
    facts: Mapping[str, Any]


def read_network(path: str | Path, remedy: str) -> StoredNetwork:
    """The network of a file of `torch.save` or of safetensors.

    Args:
        remedy: What to give instead, for messages.

    Raises:
        InputError: Not readable without running code, or it holds no weights or several networks.
    """
    path = Path(path)
    content = _load(path, remedy)
    place, facts = _place_of_weights(content)
    if place is None:
        raise InputError(f"{path} holds no 'state_dict'; {remedy}")
    state: dict[str, Tensor] = {}
    for key, value in place.items():
        name = IN_FRONT.sub("", ANYWHERE.sub("", str(key)))
        if NO_WEIGHTS.search(name):
            continue
        if not _is_weight(value):
            raise InputError(
                f"{path}: {key} does not fit, it is no tensor of numbers but {brief(value)}; "
                + remedy
            )
        if name in state:
            raise InputError(
                f"{path} holds two networks, as {name} is there twice; save one of them alone"
            )
        state[name] = value
    return StoredNetwork(path, state, facts)


def _load(path: Path, remedy: str) -> Any:
    try:
        if _is_safetensors(path):
            return load_file(path)
        with torch.serialization.safe_globals(NUMPY_SCALARS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise InputError(f"{path} is a damaged safetensors file ({error}); {remedy}") from error
    except Exception as error:  # a damaged file makes the unpickler fail in any way
        found = re.search(r"Unsupported global: GLOBAL ([\w.]+)", str(error))
        if found:
            raise InputError(
                f"{path} also holds a {found[1]}, which is not read as that can run code; save the "
                "weights alone where it was made: torch.save(model.state_dict(), 'weights.pth')"
            ) from error
        raise InputError(
            f"{path} is no readable classifier checkpoint ({type(error).__name__}); {remedy}"
        ) from error


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: the length of a JSON object, and the object."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and not start.startswith(b"PK")


def _place_of_weights(content: Any, depth: int = DEPTH) -> tuple[Mapping | None, dict[str, Any]]:
    """The mapping that holds a network's weights, and what lies beside it and around it."""
    if not isinstance(content, Mapping):
        return None, {}
    tensors = [key for key, value in content.items() if torch.is_tensor(value)]
    if any(str(key).endswith("weight") for key in tensors):
        return content, {}
    places = [key for key in PLACES if isinstance(content.get(key), Mapping) and content[key]]
    if not places or depth == 0:
        return None, {}
    place, facts = _place_of_weights(content[places[0]], depth - 1)
    if place is None:
        return None, {}
    averages = [key for key in places[1:] if "ema" in key]
    if averages:
        logger.warning(
            "%s is read; %s, which lies beside it, is not", places[0], shown(averages, 2)
        )
    outer = {key: value for key, value in content.items() if key not in places}
    return place, {**outer, **facts}


def _is_weight(value: Any) -> bool:
    """Whether it is a tensor with plain numbers in it."""
    return torch.is_tensor(value) and value.layout == torch.strided and not value.is_meta


def stored_class_names(stored: StoredNetwork) -> tuple[str, ...] | None:
    """The classes that the network tells apart, by number, if the file says.

    As `class_names` or `classes` in this order, or as torchvision's `class_to_idx`.

    Raises:
        InputError: They are no names, or one is there twice.
    """
    facts = stored.facts
    names = facts.get("class_names", facts.get("classes"))
    numbers = facts.get("class_to_idx")
    if names is None and isinstance(numbers, Mapping):
        try:
            names = sorted(numbers, key=numbers.__getitem__)
        except TypeError:
            names = numbers
    if names is None:
        return None
    is_list = isinstance(names, Sequence) and not isinstance(names, str)
    if not is_list or not all(isinstance(name, str) for name in names):
        raise InputError(f"{stored.path}: expected a list of class names, got {brief(names)}")
    names = tuple(map(str, names))
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise InputError(f"{stored.path} names the class {twice[0]!r} twice")
    return names


def order_of_classes(
    stored: StoredNetwork, num_classes: int, wanted: Sequence[str]
) -> list[int] | None:
    """Which of the file's classes each of the wanted ones is; None if the order is the same.

    A file that does not name its classes is taken at its word, with a remark.

    Raises:
        InputError: It was trained on other classes.
    """
    path, names = stored.path, stored_class_names(stored)
    if names is None:
        logger.warning(
            "%s does not name the classes it was trained on; they are taken to be the dataset's, "
            "in its order",
            path,
        )
        return None
    if len(names) != num_classes:
        raise InputError(f"{path} names {len(names)} classes but tells {num_classes} apart")
    if names == tuple(wanted):
        return None
    foreign = [name for name in names if name not in wanted]
    if foreign:
        absent = [name for name in wanted if name not in names]
        raise InputError(
            f"{path} was trained on other classes: {shown(map(repr, foreign), 2)} instead of "
            f"{shown(map(repr, absent), 2)}; train a guide on this dataset with train_original.py"
        )
    logger.warning("%s has the dataset's classes in another order; they are put in its order", path)
    return [names.index(name) for name in wanted]


def fill(network: nn.Module, state: Mapping[str, Tensor], path: str | Path, arch: str) -> None:
    """Load weights that must be exactly the network's.

    Raises:
        InputError: Names are missing or left over, shapes differ or values are not finite.
    """
    own = network.state_dict()
    # Old PyTorch had no such counters; relative positions follow from the shape of the network.
    derived = ("num_batches_tracked", "relative_position_index", "relative_coords_table")
    state = {
        **{key: value for key, value in own.items() if key.endswith(derived)},
        **{key: value for key, value in state.items() if not key.endswith("attn_mask")},
    }
    missing, surplus = [k for k in own if k not in state], [k for k in state if k not in own]
    shapes = [k for k in own if k in state and state[k].shape != own[k].shape]
    for title, names in (("lacks", missing), ("has further", surplus)):
        if names:
            raise _misfit(path, arch, f"{title} {shown(names, 3)}")
    if shapes:
        was, needed = (tuple(values[shapes[0]].shape) for values in (state, own))
        raise _misfit(path, arch, f"has {shapes[0]} of shape {was}, which is {needed} there")
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:  # odd tensors
        raise _misfit(path, arch, str(error).splitlines()[-1].strip()[:160]) from error
    for key, value in network.state_dict().items():
        if not value.isfinite().all():
            raise InputError(f"{path}: {key} has values that are not finite; give another file")


def _misfit(path: str | Path, arch: str, reason: str) -> InputError:
    return InputError(
        f"{path} does not fit a {arch}: it {reason}; name the network that it holds, with the "
        "names of torchvision or timm, or give another file"
    )


def lone_linear(names: Iterable[str], state: Mapping[str, Tensor]) -> str | None:
    """The name of the linear layer that `names` of `state` consist of, if they are one's."""
    names = set(names)
    stems = {name.rpartition(".")[0] for name in names}
    stem = stems.pop() if len(stems) == 1 else ""
    if not stem or names != {f"{stem}.weight", f"{stem}.bias"}:
        return None
    dims = state[f"{stem}.weight"].ndim, state[f"{stem}.bias"].ndim
    return stem if dims == (2, 1) else None
