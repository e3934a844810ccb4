"""expansion.export.__main__: real and generated images in one folder that other libraries load."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

import expand
from expansion.common.errors import InputError
from expansion.data.datasets import load_dataset
from expansion.data.naming import loader_folders
from expansion.export import __main__ as export
from expansion.export import merging
from tests.conftest import TINY_MODEL
from tests.helpers.exported_sets import QUICK, make_set, rows_of

pytestmark = pytest.mark.slow  # expanded sets are made and trained on

# No alphabetical order; names that folders, and words that loaders, make trouble of.


def content(folder: Path) -> dict[str, bytes]:
    files = [p for p in folder.rglob("*") if p.is_file() and p.name not in ("export.yaml",)]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def assert_labels_of_the_manifest(folder: Path, expanded: Path, data_dir: Path) -> None:
    """In metadata.jsonl: those of the dataset, and of the set's manifest."""
    dataset = load_dataset("fgvc_aircraft", data_dir)
    rows = rows_of(folder / "train")
    real = {r["source"]: r["label"] for r in rows if not r["synthetic"]}
    assert real == {r.file_name: r.label for r in dataset.records("train")}
    made = [r for r in rows if r["synthetic"]]
    manifest = rows_of(expanded)
    key = ("source", "label", "class", "prompt", "method", "model")
    assert sorted([r[k] for k in key] for r in made) == sorted(
        [r[k] for k in key] for r in manifest
    )
    pixels = {(r["source"], (folder / "train" / r["file_name"]).read_bytes()) for r in made}
    if all("tar" not in row for row in manifest):
        assert pixels == {(r["source"], (expanded / r["file_name"]).read_bytes()) for r in manifest}


def test_image_folder_finds_the_labels_of_dataset_and_manifest(odd_set, data_dir, tmp_path, capsys):
    folder = tmp_path / "merged"
    export.main([str(odd_set), "--merge", str(folder)])
    assert "train: 16 real images, 32 generated" in capsys.readouterr().out
    assert_labels_of_the_manifest(folder, odd_set, data_dir)
    for split, count in (("train", 48), ("test", 16)):
        found = ImageFolder(folder / split)
        labels = {str(folder / split / r["file_name"]): r["label"] for r in rows_of(folder / split)}
        assert len(found) == count and dict(found.samples) == labels
        assert found.classes[:5] == [
            "0_zebra", "1_\u00c4pfel-Birnen", "2__hidden", "3_steam (train)", "4_(__odd__)",
        ]  # fmt: skip
    assert {r["synthetic"] for r in rows_of(folder / "test")} == {False}


def test_hugging_face_finds_the_labels_of_dataset_and_manifest(odd_set, data_dir, tmp_path):
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "merged"
    export.main([str(odd_set), "--merge", str(folder)])
    cache = str(tmp_path / "cache")
    for given in ({"path": str(folder)}, {"path": "imagefolder", "data_dir": str(folder)}):
        found = datasets.load_dataset(**given, cache_dir=cache)
        assert set(found) == {"train", "test"}
        for split in found:
            rows = rows_of(folder / split)
            keys = ("label", "class", "synthetic", "source")
            assert [[r[k] for k in keys] for r in rows] == [
                [r[k] for k in keys] for r in found[split].remove_columns("image").to_list()
            ]
            for row, loaded in zip(rows, found[split], strict=True):
                with Image.open(folder / split / row["file_name"]) as image:
                    assert (
                        loaded["image"].convert("RGB").tobytes() == image.convert("RGB").tobytes()
                    )
    labels = {split: sorted(r["label"] for r in rows_of(folder / split)) for split in found}
    for split in found:  # the folders alone, whose names must not move images between splits
        (folder / split / "metadata.jsonl").unlink()
    found = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=cache)
    assert {split: sorted(found[split]["label"]) for split in found} == labels
    assert found["train"].features["label"].names == ImageFolder(folder / "train").classes


def test_images_that_others_would_read_otherwise_are_written_as_this_project_reads_them(
    odd_set, data_dir, tmp_path, capsys
):
    folder = tmp_path / "merged"
    export.main([str(odd_set), "--merge", str(folder)])
    assert "32 written anew as PNG" in capsys.readouterr().out  # without the credit line
    by_name = {r.file_name: r for r in load_dataset("fgvc_aircraft", data_dir).records("train")}
    for row in rows_of(folder / "train"):
        if not row["synthetic"]:
            with Image.open(folder / "train" / row["file_name"]) as image:
                assert image.size == (32, 12)
                assert image.tobytes() == by_name[row["source"]].load().tobytes()


@pytest.mark.parametrize("kind", ["turned.jpg", "deep.png", "clear.png", "wrong.gif", "plain.jpg"])
def test_a_real_image_is_linked_only_where_plain_loaders_see_the_same(tmp_path, kind):
    from expansion.images.records import given_records

    path, colours = tmp_path / kind, Image.effect_noise((24, 16), 60).convert("RGB")
    if kind == "turned.jpg":
        exif = Image.Exif()
        exif[0x0112] = 6
        colours.save(path, exif=exif)
    elif kind == "deep.png":
        colours.convert("I").point(lambda v: v * 256).convert("I;16").save(path)
    elif kind == "clear.png":
        colours.putalpha(colours.convert("L"))
        colours.save(path)
    else:
        colours.save(path, format="JPEG" if kind == "plain.jpg" else "PNG")
    assert merging.reads_plainly(given_records([path])[0]) is (kind == "plain.jpg")


def test_images_are_linked_or_copied_and_never_change_their_sources(plain, tmp_path, capsys):
    before = {name: content(tmp_path / name) for name in ("photos", "set")}
    export.main([str(plain), "--merge", str(tmp_path / "links")])
    assert "8 hard links" in capsys.readouterr().out
    real = tmp_path / "links" / "train" / "cat" / "1.png"
    assert os.path.samefile(real, tmp_path / "photos" / "train" / "cat" / "1.png")
    export.main([str(plain), "--merge", str(tmp_path / "copies"), "--copy"])
    assert "8 copies" in capsys.readouterr().out
    assert (tmp_path / "copies" / "train" / "cat" / "1.png").stat().st_nlink == 1
    links, copies = content(tmp_path / "links"), content(tmp_path / "copies")
    links.pop("README.md"), copies.pop("README.md")
    assert links == copies
    assert before == {name: content(tmp_path / name) for name in ("photos", "set")}


def test_without_hard_links_there_are_symbolic_ones_and_without_those_copies(
    plain, tmp_path, capsys, monkeypatch
):
    def refuse(*given, **options):
        raise PermissionError(1, "not here")

    monkeypatch.setattr(merging.os, "link", refuse)
    export.main([str(plain), "--merge", str(tmp_path / "pointers")])
    assert "8 symbolic links" in capsys.readouterr().out
    assert len(ImageFolder(tmp_path / "pointers" / "train")) == 6
    monkeypatch.setattr(merging.os, "symlink", refuse)
    export.main([str(plain), "--merge", str(tmp_path / "copies")])
    assert "8 copies" in capsys.readouterr().out


def test_tars_are_unpacked(data_dir, odd_set, tmp_path, capsys):
    tars = make_set(
        data_dir, tmp_path / "tars", "--output_format", "webdataset", "--images_per_tar", 10
    )
    export.main([str(tars), "--merge", str(tmp_path / "merged")])
    assert "32 copies" in capsys.readouterr().out
    assert_labels_of_the_manifest(tmp_path / "merged", tars, data_dir)
    export.main([str(odd_set), "--merge", str(tmp_path / "other")])
    for folder in (tmp_path / "merged", tmp_path / "other"):
        (folder / "README.md").unlink()
    assert content(tmp_path / "merged") == content(tmp_path / "other")


def test_the_same_command_goes_on_where_it_was_stopped(plain, tmp_path, monkeypatch, capsys):
    target = tmp_path / "merged"
    export.main([str(plain), "--merge", str(tmp_path / "whole")])
    link, calls = merging._link, []

    def stop_soon(source, path):
        calls.append(path)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return link(source, path)

    monkeypatch.setattr(merging, "_link", stop_soon)
    with pytest.raises(KeyboardInterrupt):
        export.main([str(plain), "--merge", str(target)])
    assert not (target / "README.md").exists()
    monkeypatch.undo()
    export.main([str(plain), "--merge", str(target)])
    whole, found = content(tmp_path / "whole"), content(target)
    whole.pop("README.md"), found.pop("README.md")
    assert found == whole
    changed = target / "train" / "cat" / "1_expand_0.png"
    changed.unlink()
    changed.write_bytes(b"another")
    export.main([str(plain), "--merge", str(target)])
    found = content(target)
    found.pop("README.md")
    assert found == whole


def test_only_expanded_images_are_taken_unless_all_are_wanted(
    digits_dir, whole_set, tmp_path, capsys, caplog
):
    caplog.set_level(logging.INFO)
    line = [str(whole_set), "--merge"]
    export.main([*line, str(tmp_path / "few")])
    assert "190 of 200 real images for training were not expanded" in caplog.text
    assert "few/train: 10 real images, 20 generated" in capsys.readouterr().out
    export.main([*line, str(tmp_path / "all"), "--real", "all"])
    assert "all/train: 200 real images, 20 generated" in capsys.readouterr().out


def test_the_first_variants_alone_are_taken(plain, tmp_path):
    merged = tmp_path / "merged"
    export.main([str(plain), "--merge", str(merged), "--max_variants", "1"])
    made = [row for row in rows_of(merged / "train") if row["synthetic"]]
    assert [Path(row["file_name"]).stem for row in made] == ["1_expand_0"] * 2  # a cat and a dog
    for options, message in (
        (["--max_variants", "3"], "holds 2 variants of each image, max_variants 3 asks for more"),
        (["--max_variants", "0"], "max_variants 0: give 1 or more"),
        (["--max_variants", "1", "--selection", "x.json"], "selection names the images to take"),
    ):
        with pytest.raises(InputError, match=message):
            export.main([str(plain), "--merge", str(tmp_path / "other"), *options])


def test_a_real_image_that_is_called_as_a_variant_keeps_its_own_file(tmp_path, make_folder):
    tree = {s: {"cat": ["1.png", "1_expand_0.png"], "dog": ["1.png"]} for s in ("train", "test")}
    make_folder("photos", tree)
    line = f"-d {tmp_path / 'photos'} --method img2img --output_dir {tmp_path / 'set'}"
    line += f" --pretrained_model_name_or_path {TINY_MODEL}"
    assert expand.main([*line.split(), *QUICK]) == 0
    export.main([str(tmp_path / "set"), "--merge", str(tmp_path / "merged")])
    rows = rows_of(tmp_path / "merged" / "train")
    assert len({r["file_name"].casefold() for r in rows}) == len(rows) == 9
    for row in rows:
        found = (tmp_path / "merged" / "train" / row["file_name"]).read_bytes()
        assert (b"synthetic" in found) is row["synthetic"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("photos", "lies in the dataset"),
        ("photos/new", "lies in the dataset"),
        ("set/new", "lies in the expanded set"),
        ("other", "other holds files that this command did not make"),
        ("file", "file is no folder"),
    ],
)
def test_a_target_that_holds_other_things_is_refused(plain, tmp_path, target, message):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = {name: content(tmp_path / name) for name in ("photos", "set", "other")}
    with pytest.raises(InputError, match=message):
        export.main([str(plain), "--merge", str(tmp_path / target)])
    assert before == {name: content(tmp_path / name) for name in ("photos", "set", "other")}


def test_files_of_others_in_the_folder_are_named_instead_of_loaded(plain, tmp_path):
    target = tmp_path / "merged"
    export.main([str(plain), "--merge", str(target)])
    shutil.copy(target / "train" / "cat" / "1.png", target / "train" / "dog" / "stray.png")
    with pytest.raises(InputError, match="1 files that do not belong to it: train/dog/stray.png"):
        export.main([str(plain), "--merge", str(target)])
    (target / "train" / "dog" / "stray.png").unlink()
    (target / "test" / "bird").mkdir()  # loaders would count it as a class
    with pytest.raises(InputError, match="test/bird"):
        export.main([str(plain), "--merge", str(target)])
    (target / "test" / "bird").rmdir()
    before = content(tmp_path / "photos")
    shutil.rmtree(target / "train" / "cat")
    (target / "train" / "cat").symlink_to(tmp_path / "photos" / "train" / "cat")
    with pytest.raises(InputError, match="train/cat"):
        export.main([str(plain), "--merge", str(target)])
    assert content(tmp_path / "photos") == before


def test_a_folder_of_another_set_is_not_mixed_with_this_one(plain, odd_set, tmp_path):
    export.main([str(plain), "--merge", str(tmp_path / "merged")])
    with pytest.raises(InputError, match="merged was begun with other settings"):
        export.main([str(odd_set), "--merge", str(tmp_path / "merged")])


def test_a_set_that_lacks_images_is_refused_unless_that_is_accepted(plain, tmp_path, capsys):
    (plain / "cat" / "1_expand_0.png").unlink()
    with pytest.raises(InputError, match="1 of 4 images are missing"):
        export.main([str(plain), "--merge", str(tmp_path / "merged")])
    assert not (tmp_path / "merged").exists()
    export.main([str(plain), "--merge", str(tmp_path / "merged"), "--on_incomplete", "use"])
    assert "2 real images, 3 generated" in capsys.readouterr().out


def test_other_pictures_under_the_same_names_are_refused(plain, tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "photos" / "train" / "cat" / "1.png")
    with pytest.raises(InputError, match="have another content now"):
        export.main([str(plain), "--merge", str(tmp_path / "merged")])


def test_a_set_and_its_dataset_may_move_together_and_else_the_dataset_is_given(
    plain, tmp_path, capsys
):
    (tmp_path / "away").mkdir()
    for name in ("photos", "set"):
        shutil.move(tmp_path / name, tmp_path / "away" / name)
    export.main([str(tmp_path / "away" / "set"), "--merge", str(tmp_path / "one")])
    shutil.move(tmp_path / "away" / "photos", tmp_path / "elsewhere")
    with pytest.raises(InputError, match="if they are elsewhere now give -d"):
        export.main([str(tmp_path / "away" / "set"), "--merge", str(tmp_path / "two")])
    given = ["-d", str(tmp_path / "elsewhere")]
    export.main([str(tmp_path / "away" / "set"), "--merge", str(tmp_path / "two"), *given])
    plan = tmp_path / "away" / "set" / "plan.json"
    facts = json.loads(plan.read_text())
    del facts["root"]
    plan.write_text(json.dumps(facts))
    with pytest.raises(InputError, match="does not say which dataset it was made from"):
        export.main([str(tmp_path / "away" / "set"), "--merge", str(tmp_path / "three")])


def test_a_class_without_test_images_has_its_folder_all_the_same(plain, tmp_path, capsys):
    shutil.rmtree(tmp_path / "photos" / "test" / "cat")
    export.main([str(plain), "--merge", str(tmp_path / "merged")])
    assert "no image in test of cat" in capsys.readouterr().out
    found = ImageFolder(tmp_path / "merged" / "test", allow_empty=True)
    assert [label for _, label in found.samples] == [1]


def test_a_dataset_without_a_test_split_gives_a_folder_without_one(plain, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    shutil.rmtree(tmp_path / "photos" / "test")
    export.main([str(plain), "--merge", str(tmp_path / "merged")])
    assert "there will be no test split" in caplog.text
    assert not (tmp_path / "merged" / "test").exists()
    header = (tmp_path / "merged" / "README.md").read_text().split("---\n")[1]
    assert "test/**" not in header


def test_what_is_no_expanded_set_ends_in_one_line(plain, tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        export.main([str(tmp_path / "nowhere"), "--merge", str(tmp_path / "merged")])
    with pytest.raises(InputError, match="does not say which dataset"):
        export.main([str(tmp_path / "photos"), "--merge", str(tmp_path / "merged")])
    given = ["-d", str(tmp_path / "photos"), "--merge", str(tmp_path / "merged")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no expanded set"):
        export.main([str(tmp_path / "empty"), *given])
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (["ant", "bee"], ["ant", "bee"]),
        (["bee", "ant"], ["0_bee", "1_ant"]),
        (["ant", "train"], ["0_ant", "1_(train)"]),
        (["(test)", "test", "training day"], None),
        (["__init__", "latest", "steam train"], None),
    ],
)
def test_folders_of_classes_are_in_order_and_name_no_split(names, folders):
    found = list(loader_folders(names).values())
    assert folders is None or found == folders
    assert sorted(found) == found and len(set(found)) == len(names)
    for folder in found:
        words = folder.replace("_", " ").replace("-", " ").replace(".", " ").split()
        assert not {"train", "training", "test", "val"} & set(words) and folder[:2] != "__"
    assert "latest" in " ".join(found) or "latest" not in names
