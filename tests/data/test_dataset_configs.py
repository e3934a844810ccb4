"""Names in a dataset's YAML file are the text that stands there, quoted or not."""

from __future__ import annotations

import pytest
from torchvision.models import ResNet18_Weights

from expansion.common.errors import InputError
from expansion.data.datasets import load_dataset
from expansion.data.layouts.configs import read_config
from tests.helpers.stand_ins import folders, medmnist


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """Function that writes a dataset's YAML file."""
    (tmp_path / "datasets").mkdir()
    monkeypatch.setattr("expansion.data.layouts.configs.CONFIG_DIR", tmp_path)

    def write(name: str, text: str) -> None:
        (tmp_path / "datasets" / f"{name}.yaml").write_text(text)

    return write


@pytest.mark.parametrize(
    "keys",
    [
        ("no", "yes"), ("Off", "ON"), ("0", "1"), ("001", "010"), ("1.0", "1e3"), ("null", "~"),
        ("2024-01-01", "0x1F"), ("1_000", "12:30:00"), ("true", "'false'"),
    ],
)  # fmt: skip
def test_keys_of_class_names_are_text(tmp_path, configs, keys):
    names = tuple(key.strip("'") for key in keys)
    for split in ("train", "test"):
        folders(tmp_path / "data" / "set" / split, dict.fromkeys(names, 2))
    configs("set", "class_names:\n" + "".join(f"  {key}: kind {key}\n" for key in keys))
    dataset = load_dataset("set", tmp_path / "data")
    assert set(dataset.class_names) == set(names)
    assert dataset.prompt_names == tuple(
        f"kind {key}" for key in sorted(keys, key=lambda key: key.strip("'"))
    )


@pytest.mark.parametrize(
    ("text", "field", "expected"),
    [
        ("class_names: {a: no, b: 007}", "class_names", {"a": "no", "b": "007"}),
        ("class_names: &x {no: 1}", "class_names", {"no": "1"}),
        ("folder: 2024-01-01", "folder", "2024-01-01"),
        ("folder: 010", "folder", "010"),
    ],
)
def test_values_that_are_names_are_text_too(configs, text, field, expected):
    configs("set", text)
    assert getattr(read_config("set")[0], field) == expected


@pytest.mark.parametrize(
    ("text", "field", "expected"),
    [
        ("drop_classes: [no, 1, 001]", "drop_classes", ("no", "1", "001")),
        ("train_folder: 1", "train_folder", "1"),
        ("reader: arrays\nfile: a.npz\nclasses: [no, yes]", "classes", ("no", "yes")),
    ],
)
def test_names_of_a_layout_are_text_too(configs, text, field, expected):
    configs("set", text)
    assert getattr(read_config("set")[1], field) == expected


def test_classes_called_yes_and_no_are_unpacked_under_these_names(tmp_path, configs):
    configs("scans", "reader: arrays\nfile: scans.npz\nclasses: [no, yes]\n")
    medmnist(tmp_path / "data" / "scans", 2)
    assert load_dataset("scans", tmp_path / "data").class_names == ("no", "yes")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("class_names: {no: a, 'no': b}", "class_names has 'no' twice"),
        ("class_names: {a: }", "expected text, got None"),
        ("class_names: [a]", "class_names: expected dict"),
        ("crop_bottom: yes", "crop_bottom: expected int"),
        ("folder: [1]", "folder: expected str"),
        ("class_names: {a: *b}", "YAML"),
    ],
)
def test_what_is_no_name_is_still_refused(tmp_path, configs, text, named):
    folders(tmp_path / "data" / "set" / "train", {"a": 2, "no": 2})
    configs("set", text)
    with pytest.raises(InputError, match=named):
        load_dataset("set", tmp_path / "data")


def test_imagenet_has_a_thousand_names_of_its_own_in_the_order_of_torchvisions_weights():
    names = read_config("imagenet")[0].class_names
    assert len(names) == 1000 and list(names) == sorted(names)
    assert all(key.startswith("n") and len(key) == 9 and key[1:].isdecimal() for key in names)
    assert len({name.lower() for name in names.values()}) == 1000  # CLIP reads small letters alone
    known = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    pairs = list(zip(known, names.values(), strict=True))
    assert sum(theirs == ours for theirs, ours in pairs) > 900
    imagenette = read_config("imagenette")[0].class_names
    assert {key: names[key] for key in imagenette} == imagenette
