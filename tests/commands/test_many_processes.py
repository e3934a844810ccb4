"""Any processes, started at any time and killed at any time, make the same set in both formats."""

from __future__ import annotations

import io
import json
import os
import signal
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

import train_expand
from expansion.common.config import load_yaml
from expansion.data.datasets import load_dataset
from expansion.images.records import ImageRecord
from expansion.store.expanded_set import read_expansion
from expansion.store.manifest import ProcessManifest, read_manifest
from tests.rigs.warm_processes import NUM_DIGITS, Expansion

pytestmark = pytest.mark.slow  # real processes, killed

FORMATS = ("images", "webdataset")
TARS = ("--output_format", "webdataset", "--images_per_tar", 7)  # no multiple of the batch of 4
NUM_TARS = 3
ALL_LABELS = [str(label) for label in range(10)]


def options_of(output_format: str) -> tuple[object, ...]:
    return TARS if output_format == "webdataset" else ()


def content(folder: Path) -> dict[str, bytes]:
    """Everything that must not depend on who made what."""
    names = [p.relative_to(folder).as_posix() for p in folder.glob("*/*.png")]
    names += [p.name for p in folder.glob("*.tar")]
    names += [p.name for p in folder.glob("manifest.img2img_2x*")]
    fixed = ("metadata.jsonl", "classes.json", "contact_sheet.png")
    return {name: (folder / name).read_bytes() for name in (*names, *fixed)}


@pytest.fixture(scope="module")
def whole_sets(warm_processes, digits_dir, tmp_path_factory) -> dict[str, Path]:
    """What one process makes in one go, by format; read only."""
    sets = {}
    for output_format in FORMATS:
        folder = tmp_path_factory.mktemp(output_format)
        whole = Expansion(warm_processes, digits_dir, folder / "out", folder / "log.txt")
        status, lines = whole.run(*options_of(output_format))
        assert status == 0, lines
        sets[output_format] = folder / "out"
    return sets


def assert_complete(output: Path, whole: Path) -> None:
    assert content(output) == content(whole)
    assert not list(output.rglob(".*"))  # nothing hidden, such as unfinished files


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("total", [2, 3, 7])
def test_shards_make_the_same_bytes_one_after_another(expansion, whole_sets, output_format, total):
    for split in reversed(range(total)):
        options = (*options_of(output_format), "--split", split, "--total_split", total)
        assert expansion.run(*options)[0] == 0
    assert_complete(expansion.output, whole_sets[output_format])


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize(
    "crowd",
    [
        ["--split 0 --total_split 2", "--split 1 --total_split 2"],
        ["", ""],  # the same shard twice
        ["--split 0 --total_split 2", "--split 2 --total_split 3", ""],  # shares that overlap
    ],
    ids=["shards", "same-shard", "overlapping"],
)
def test_processes_side_by_side_make_the_same_bytes(expansion, whole_sets, output_format, crowd):
    options = options_of(output_format)
    processes = [
        expansion.start(*options, *text.split(), log=f"{i}.txt") for i, text in enumerate(crowd)
    ]
    statuses = [process.wait() for process in processes]
    assert statuses == [0] * len(crowd), [process.log.read_text() for process in processes]
    assert_complete(expansion.output, whole_sets[output_format])


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_begun_set_goes_on_with_another_number_of_shards(expansion, whole_sets, output_format):
    options = options_of(output_format)
    for shard in ("--split 1 --total_split 3", "--split 0 --total_split 2", ""):
        status, lines = expansion.run(*options, *shard.split())
        assert status == 0, lines
    assert "already there" in lines[-2] and "0 already there" not in lines[-2]
    assert_complete(expansion.output, whole_sets[output_format])


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("change", range(4, 64, 6))  # steps of writing, from the first to the last
def test_killed_processes_lose_nothing_and_leave_no_trace(
    expansion, whole_sets, output_format, change
):
    line = f"-d digits --data_dir {expansion.data_dir} --method img2img --shots 1 --batch_size 4"
    line += " --num_images_per_prompt 2 --num_inference_steps 4 --device cpu"
    arguments = [*line.split(), "--output_dir", expansion.output, *options_of(output_format)]
    die = (expansion.output, change, 0.0)
    killed = [
        expansion.server.start([*arguments, *more], expansion.log.with_name(f"{i}.txt"), die=die)
        for i, more in enumerate(([], ["--split", 1, "--total_split", 2]))
    ]
    statuses = {process.wait() for process in killed}
    assert statuses <= {0, -signal.SIGKILL}, [process.log.read_text() for process in killed]
    status, lines = expansion.run(*options_of(output_format))
    assert status == 0, lines
    assert_complete(expansion.output, whole_sets[output_format])


def sources(digits_dir: Path) -> dict[str, ImageRecord]:
    records = load_dataset("digits", digits_dir).records("train")
    return {record.file_name: record for record in records}


def test_both_formats_hold_the_same_images_and_rows(whole_sets, digits_dir):
    images, tars = whole_sets["images"], whole_sets["webdataset"]
    rows, packed = (read_manifest(folder) for folder in (images, tars))
    for row, with_tar in zip(rows, packed, strict=True):
        place = {key: with_tar.pop(key) for key in ("tar", "offset", "size")}
        assert row == with_tar
        content = (tars / place["tar"]).read_bytes()
        assert (
            content[place["offset"] :][: place["size"]] == (images / row["file_name"]).read_bytes()
        )
    assert not list(tars.glob("*/*.png"))
    loaded = [read_expansion(folder, sources(digits_dir)) for folder in (images, tars)]
    for one, other in zip(*loaded, strict=True):
        assert (one.file_name, one.label, one.source) == (
            other.file_name,
            other.label,
            other.source,
        )
        assert one.load().tobytes() == other.load().tobytes()


def test_tars_hold_whole_samples_in_order_without_times_or_owners(whole_sets):
    paths = sorted(whole_sets["webdataset"].glob("*.tar"))
    assert [path.name for path in paths] == [f"img2img_2x-0000{i}.tar" for i in range(NUM_TARS)]
    keys = []
    for path in paths:
        with tarfile.open(path) as archive:
            members = archive.getmembers()
            contents = [archive.extractfile(member).read() for member in members]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}
        for i in range(0, len(members), 3):
            key, *suffixes = {m.name.split(".")[0] for m in members[i : i + 3]}
            assert not suffixes
            assert [m.name for m in members[i : i + 3]] == [
                f"{key}.{s}" for s in ("png", "cls", "json")
            ]
            row = json.loads(contents[i + 2])
            assert int(contents[i + 1]) == row["label"]
            assert Image.open(io.BytesIO(contents[i])).text["seed"] == str(row["seed"])
            keys.append(key)
    assert keys == [f"{i:08d}" for i in range(NUM_DIGITS)]


def test_the_webdataset_library_reads_the_tars(whole_sets):
    webdataset = pytest.importorskip("webdataset")
    folder = whole_sets["webdataset"]
    pattern = load_yaml(folder / "expansion.yaml").values["tars"]
    assert pattern == "img2img_2x-{00000..00002}.tar"
    samples = webdataset.WebDataset(str(folder / pattern), shardshuffle=False).decode("pil")
    read = list(samples.to_tuple("png", "cls", "json"))
    assert len(read) == NUM_DIGITS
    for image, label, row in read:
        assert image.size == (32, 32) and label == row["label"] == int(row["class"])


def test_a_classifier_learns_the_same_from_tars_as_from_images(tmp_path, digits_dir, whole_sets):
    results = []
    for output_format in FORMATS:
        line = f"-d digits --data_dir {digits_dir} --shots 1 --seeds 1 --batch_size 8 --workers 0"
        line += f" --expanded_dir {whole_sets[output_format]} --exp same"
        line += f" --checkpoint_dir {tmp_path / output_format} --budget steps --max_train_steps 3"
        train_expand.main(line.split())
        (path,) = (tmp_path / output_format).rglob("results.yaml")
        values = load_yaml(path).values
        values.pop("expanded_set")  # says where it lies
        results.append({k: v for k, v in values.items() if "second" not in k and "time" not in k})
    assert results[0] == results[1] and results[0]["num_generated"] == NUM_DIGITS


def test_hidden_folders_do_not_disturb_loaders_of_folders(whole_sets):
    assert ImageFolder(str(whole_sets["images"])).classes == ALL_LABELS


@pytest.mark.parametrize("damage", ["cut", "removed", "manifest removed"])
def test_a_damaged_tar_is_made_again(expansion, whole_sets, damage):
    assert expansion.run(*TARS)[0] == 0
    tar = expansion.output / "img2img_2x-00001.tar"
    if damage == "cut":
        os.truncate(tar, tar.stat().st_size // 2)
    elif damage == "removed":
        tar.unlink()
    else:
        (expansion.output / "manifest.img2img_2x-00001.jsonl").unlink()
    status, lines = expansion.run(*TARS)
    assert status == 0, lines
    assert_complete(expansion.output, whole_sets["webdataset"])


# The first image of the second batch is never finite.
FAILING = """
import torch
from expansion.diffusion.img2img import Img2ImgSampler
succeed = Img2ImgSampler.sample
def failing(self, batch, generators):
    samples = succeed(self, batch, generators)
    if batch.targets[0] == 2:
        samples.images[0] = torch.nan
    return samples
Img2ImgSampler.sample = failing
"""


def test_a_tar_does_without_an_image_that_cannot_be_made_until_it_can(expansion, whole_sets):
    whole = whole_sets["webdataset"]
    for _ in range(2):
        status, lines = expansion.run(*TARS, code=FAILING)
        assert status == 1 and "1 failed" in lines[-2], lines
        assert len(list(expansion.output.glob("*.tar"))) == NUM_TARS
        records = read_expansion(expansion.output, sources(expansion.data_dir), "use")
        assert len(records) == NUM_DIGITS - 1
        assert all(record.load().size == (32, 32) for record in records)
    for path in whole.glob("*.tar"):
        differs = (expansion.output / path.name).read_bytes() != path.read_bytes()
        assert differs == (path.name == "img2img_2x-00000.tar")
    assert expansion.run(*TARS)[0] == 0
    assert_complete(expansion.output, whole)


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ((), "output_format: 'webdataset' there, not given now"),
        ((*TARS[:3], 8), "images_per_tar: 7 there, 8 now"),
        ((*TARS, "--num_images_per_prompt", 3), "num_images_per_prompt: 2 there, 3 now"),
        ((*TARS, "--subset_seed", 1), "images: "),
    ],
)
def test_another_layout_in_the_same_folder_is_refused_and_shown(
    expansion, whole_sets, options, shown
):
    expansion.output = whole_sets["webdataset"]
    before = content(expansion.output)
    status, lines = expansion.run(*options)
    assert status == 2 and shown in lines[-1], lines
    assert content(expansion.output) == before


def test_tar_offsets_of_a_hostile_manifest_are_refused(tmp_path):
    for changes in ({"tar": "../x.tar"}, {"tar": "/x.tar"}, {"tar": "x.tar", "offset": -1}):
        row = {
            "file_name": "c/0_expand_0.png",
            "class": "c",
            "source": "0.png",
            "variant": 0,
            "size": 1,
            **changes,
        }
        ProcessManifest(tmp_path, 0, 1).append(row)
        with pytest.raises(ValueError, match="outside|offset"):
            read_expansion(tmp_path, {"0.png": ImageRecord(Path("0.png"), "0.png", 0, "c")})
        for path in tmp_path.glob("manifest.*"):
            path.unlink()
