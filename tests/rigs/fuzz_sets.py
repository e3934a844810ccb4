"""Hostile label files and archives of data sets, through the readers of `configs/datasets/`."""

from __future__ import annotations

import csv
import gzip
import io
import json
import pickle
import random
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

from expansion.data import __main__ as check_command
from expansion.data.datasets import load_dataset
from expansion.data.splits import SplitOptions
from expansion.data.stored_splits import stored_split
from tests.helpers import stand_ins
from tests.rigs.fuzz_inputs import as_json, damaged, file_name, hostile_json, odd_name, odd_value
from tests.rigs.fuzz_manifests import write_image
from tests.rigs.fuzz_rig import Attempt, Sandbox, payload

SETS = (
    *("stanford_cars", "oxford_pets", "oxford_flowers", "oxford_flowers_official", "fgvc_aircraft"),
    *("cub-200-2011", "cifar10", "cifar100", "mnist", "stl10", "breastmnist", "bloodmnist"),
    "imagenette",
)


def dataset_file(draw: random.Random, sandbox: Sandbox) -> Attempt:
    """A stand-in of a known data set in which one file that is no image is hostile."""
    name = draw.choice(SETS)
    root = stand_ins.stand_in(name, sandbox.place / "data")
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.suffix not in (".jpg", ".JPEG"))
    if files:
        path = draw.choice(files)
        path.write_bytes(hostile_file(draw, path, sandbox))
    return lambda: check_command.main(["check", name, "--data_dir", str(sandbox.place / "data")])


def hostile_file(draw: random.Random, path: Path, sandbox: Sandbox) -> bytes:
    """Damage, or an attack on the format, of a file of a data set."""
    content = path.read_bytes()
    if draw.random() < 0.4:
        return damaged(draw, content)
    if path.suffix == ".json":
        return hostile_json(draw, json.loads(content))
    if path.suffix == ".mat":
        return _hostile_mat(draw)
    if path.suffix == ".npz":
        return _hostile_npz(draw, content, sandbox)
    if path.suffix == ".gz":
        return _hostile_gzip(draw, content)
    if "cifar" in str(path):
        return _hostile_pickle(draw, content, sandbox)
    return _hostile_lines(draw, content)


def metadata(draw: random.Random, sandbox: Sandbox) -> Attempt:
    """A folder with a hostile metadata.jsonl or metadata.csv."""
    root = sandbox.place / "photos"
    rows = [
        {"file_name": f"{i}.png", "label": "ant" if i % 2 else "bee", "split": split}
        for i, split in enumerate(("train", "train", "test", "test"))
    ]
    for row in rows:
        stand_ins.draw(root / row["file_name"])
    odd = draw.randrange(len(rows))
    rows[odd] = {
        **rows[odd],
        draw.choice(("file_name", "label", "split")): _odd_cell(draw, sandbox),
    }
    if draw.random() < 0.5:
        lines = [as_json(row, draw).encode() for row in rows]
        if draw.random() < 0.5:
            lines[odd] = hostile_json(draw, rows[odd]).replace(b"\n", b" ")
        (root / "metadata.jsonl").write_bytes(b"\n".join(lines))
    else:
        (root / "metadata.csv").write_bytes(_csv(draw, rows))
    more = draw.choice(([], ["--test_fraction", "0.5"]))
    return lambda: check_command.main(["check", str(root), *more])


def _odd_cell(draw: random.Random, sandbox: Sandbox) -> Any:
    places = (
        str(sandbox.outside / "images/cat.png"),
        "../../../outside/secret.txt",
        "metadata.csv",
    )
    return draw.choice((*places, odd_name(draw), odd_value(draw), "x" * 300, "9" * 5000, "0.png"))


def _csv(draw: random.Random, rows: list[dict]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _cell(value) for key, value in row.items()})
    content = text.getvalue().encode("utf-8", "surrogatepass")
    action = draw.random()
    if action < 0.2:
        return content + b"a" * 200_000
    if action < 0.4:
        return content + draw.choice(
            (b'"open', b"\x00,\x00\n", b"a,b,c,d,e,f\n", b"\n\n,,,\n", b'""""')
        )
    return damaged(draw, content) if action < 0.7 else content


def _cell(value: Any) -> str:
    try:
        return str(value)
    except ValueError:  # an integer of thousands of digits, perhaps within a list
        return "9" * 5000


def split_files(draw: random.Random, sandbox: Sandbox) -> Attempt:
    """A stored split, an unpacked.json or a subset file that is not what this tool wrote."""
    root = sandbox.place / "data" / "photos"
    names = {f"train/{c}/{i}.png": c for c in ("ant", "bee") for i in range(3)}
    for name in names:
        stand_ins.draw(root / name)
    if draw.random() < 0.5:
        options = SplitOptions(test_fraction=0.4)
        records = load_dataset(str(root), test_fraction=0.4).reader._records_below(root / "train")
        stored_split(records, options, root, "photos")
        path = next(root.glob("split-*.json"))
        path.write_bytes(hostile_json(draw, json.loads(path.read_text())))
        return lambda: check_command.main(["check", str(root), "--test_fraction", "0.4"])
    place = stand_ins.stand_in("breastmnist", sandbox.place / "data")
    load_dataset("breastmnist", sandbox.place / "data")
    path = place / "unpacked.json"
    path.write_bytes(hostile_json(draw, json.loads(path.read_text())))
    return lambda: check_command.main(
        ["check", "breastmnist", "--data_dir", str(sandbox.place / "data")]
    )


def class_names_in_files(draw: random.Random, sandbox: Sandbox) -> Attempt:
    """CIFAR-10 whose classes bear odd names, which become folders when it is unpacked."""
    names = [odd_name(draw) for _ in range(3)]
    if draw.random() < 0.9:
        names = sorted({name or "x" for name in [*names, "ant", "Ant"]})
    root = sandbox.place / "data" / "cifar10"
    stand_ins.cifar10(root, names)
    return lambda: check_command.main(
        ["check", "cifar10", "--data_dir", str(sandbox.place / "data")]
    )


def archive_folder(draw: random.Random, sandbox: Sandbox) -> Attempt:
    """Class folders that hold links and odd names beside a good test folder."""
    root, other = sandbox.place / "photos", file_name(draw)
    for split in ("train", "test"):
        for name in ("ant", other):
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            write_image(folder / f"{draw.randrange(9)}.png", draw.randrange(256))
    targets = (sandbox.outside, "..", ".", "/dev", root, "nowhere")
    for folder in ("train/linked", "train/ant/linked", "test/linked", "val", "metadata.jsonl"):
        if draw.random() < 0.4:
            (root / folder).symlink_to(draw.choice(targets))
    more = draw.choice(([], ["--test_fraction", "0.5"]))
    return lambda: check_command.main(["check", str(root), *more])


def _hostile_pickle(draw: random.Random, content: bytes, sandbox: Sandbox) -> bytes:
    good = pickle.loads(content)
    action = draw.randrange(8)
    if action == 0:
        return pickle.dumps(payload(sandbox.mark), protocol=draw.choice((0, 2, 5)))
    if action == 1:
        return pickle.dumps({**good, "data": payload(sandbox.mark)}, protocol=2)
    if action == 2:
        return draw.choice(OPCODES).replace(b"MARK", str(sandbox.mark).encode())
    if action == 3:
        bomb: Any = ["lol"]
        for _ in range(draw.choice((3, 40))):
            bomb = [bomb, bomb]
        return pickle.dumps({**good, draw.choice(sorted(good)): bomb}, protocol=2)
    if action == 4:
        deep: Any = []
        for _ in range(300):
            deep = [deep]
        return pickle.dumps({**good, draw.choice(sorted(good)): deep}, protocol=2)
    if action == 5:
        odd = draw.choice(
            (np.array([{}]), np.zeros((2, 0)), np.zeros((1, 3072)), np.array("x"), None)
        )
        return pickle.dumps({**good, draw.choice(sorted(good)): odd}, protocol=2)
    return pickle.dumps({**good, draw.choice(sorted(good)): odd_value(draw)}, protocol=2)


OPCODES = (
    b"cos\nmkdir\n(VMARK\ntR.",
    b"cnumpy\nndarray\n(I1000000000000\ntR.",
    b"cnumpy\nndarray\n((I30000000000\ntR.",
    b"cnumpy\ndtype\n(VO\ntR.",
    b"c_codecs\nencode\n(VMARK\nVidna\ntR.",
    b"cnumpy\nndarray.__class__\n.",
    b"cexpansion.array_files\nload_pickle\n(VMARK\ntR.",
    b"cbuiltins\neval\n(V__import__('os').mkdir('MARK')\ntR.",
    b"\x80\x04\x8c\x05numpy\x8c\x14ndarray.sort.__call__\x93.",
    b"\x80\x02c_codecs\nencode\n}(V__defaults__\nI1\nub.",
    b"\x80\x02]q\x00(h\x00h\x00e.",
    b"\x80\x04\x8a\xff" + b"\x7f" * 255 + b".",
    b"\x80\x02\x8b\xff\xff\xff\x7f",
    b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fx.",
    b"(" * 100_000 + b"t" * 100_000 + b".",
)


def _hostile_npz(draw: random.Random, content: bytes, sandbox: Sandbox) -> bytes:
    with np.load(io.BytesIO(content)) as found:
        arrays = {name: found[name] for name in found}
    name, buffer = draw.choice(sorted(arrays)), io.BytesIO()
    action = draw.randrange(7)
    if action == 0:
        arrays[name] = np.array([payload(sandbox.mark)], dtype=object)
    elif action == 1:
        odd = (np.zeros(0), np.zeros((3, 3, 3, 3)), np.array("x"), np.arange(2.5), np.array([1j]))
        arrays[name] = draw.choice((*odd, np.array([np.nan, -1]), np.zeros((2, 0, 0), np.uint8)))
    elif action == 2:
        del arrays[name]
    elif action == 3:
        return _zip(draw, {f"{name}.npy": _npy_header("(2, 1000000000, 1000)", b"")})
    elif action == 4:
        return _zip(
            draw, {f"{n}.npy": _npy_header("(3000000000,)", bytes(1 << 24)) for n in arrays}
        )
    elif action == 5:
        evil = {"../../up.npy": b"x", "/abs.npy": b"x", f"{name}.npy": b"\x93NUMPY\x01\x00v\x00{"}
        return _zip(draw, evil)
    else:
        return pickle.dumps(payload(sandbox.mark))
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _npy_header(shape: str, body: bytes) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


def _zip(draw: random.Random, members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(
        buffer, "w", draw.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED))
    ) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def _hostile_gzip(draw: random.Random, content: bytes) -> bytes:
    plain = gzip.decompress(content)
    if draw.random() < 0.3:
        sizes = b"".join(size.to_bytes(4, "big") for size in (2**31, 2**31, 4))
        return gzip.compress(plain[:4] + sizes + plain[16:])
    if draw.random() < 0.3:  # some 400 MB from 400 KB
        return gzip.compress(plain[:4] + b"\x7f\xff\xff\xff" + plain[8:]) + gzip.compress(
            bytes(1 << 28)
        )
    return gzip.compress(damaged(draw, plain))


def _hostile_mat(draw: random.Random) -> bytes:
    values: tuple[Callable[[], Any], ...] = (
        lambda: odd_name(draw).encode("utf-8", "replace").decode(),
        lambda: np.zeros((draw.randrange(3), 2)),
        lambda: np.array([[{"fname": "a.jpg", "class": 99}]], dtype=object),
        lambda: np.array([np.nan, 1e300]),
        lambda: np.array(["a", 1, None, [1]], dtype=object)[:2],
        lambda: {"fname": "../x", "class": [1, 2]},
        lambda: {"fname": np.arange(3), "class": "x"},
        lambda: np.array([1 + 2j]),
    )
    names = ("annotations", "class_names", "labels", "trnid", "valid", "tstid", "other")
    buffer = io.BytesIO()
    content = {name: draw.choice(values)() for name in names if draw.random() < 0.9}
    savemat(
        buffer, content, do_compression=draw.random() < 0.5, format=draw.choice(("5", "5", "5"))
    )
    return damaged(draw, buffer.getvalue()) if draw.random() < 0.3 else buffer.getvalue()


def _hostile_lines(draw: random.Random, content: bytes) -> bytes:
    lines = content.splitlines() or [b""]
    place = draw.randrange(len(lines))
    odd = (
        b"",
        b"../../x 1 1 1",
        b"\xff\xfe",
        b"x" * 100_000,
        b"9" * 5000,
        b"1 " + b"9" * 5000,
        b"\x00",
    )
    lines[place] = draw.choice(
        (*odd, odd_name(draw).encode("utf-8", "surrogatepass"), b"/abs 1 1 1")
    )
    return b"\n".join(lines)
