"""The toy layout of CONTRIBUTING.md: the class stands in the file name, as in bee_fly_07.png."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

import expand
from expansion.common.config import option
from expansion.common.errors import InputError, require
from expansion.data.__main__ import main as check
from expansion.data.datasets import load_dataset
from expansion.data.layouts import configs, known
from expansion.data.readers.folders import require_root
from expansion.data.readers.rows import Listing, Row, RowsReader
from expansion.data.splits import SplitOptions
from expansion.images.file_trees import image_files

# expansion/data/readers/named.py: the fields of the YAML file, and what reads the folder.


@dataclass(frozen=True, kw_only=True)
class NamedLayout(SplitOptions):
    """YAML fields of `reader: named`."""

    pattern: str = option(r"(.+)_\d+", "regular expression of a file name; its group is the class")


def read_named(layout: NamedLayout, root: Path, name: str) -> RowsReader:
    """Reader of a folder of images that are called by their class."""
    require_root(root)
    rows = []
    for path in image_files(root):
        found = re.fullmatch(layout.pattern, path.stem)
        require(found is not None, f"dataset {name}: {path.name} does not fit {layout.pattern!r}")
        rows.append(Row(path.relative_to(root).as_posix(), found[1]))
    # "all": the split is made by seed; the fields of SplitOptions say how.
    return RowsReader(root, name, Listing(rows={"all": rows}), layout)


# expansion/data/layouts/configs.py: a line in READERS, "named": (NamedLayout, read_named).
# configs/datasets/insects.yaml:

YAML = """
reader: named
prompt_template: a macro photo of a {}.
test_fraction: 0.5
"""


@pytest.fixture(autouse=True)
def insects(tmp_path, monkeypatch) -> Path:
    """The folder of the dataset, which holds six images."""
    monkeypatch.setitem(configs.READERS, "named", (NamedLayout, read_named))
    for module in (configs, known):  # where the files of datasets are looked for
        monkeypatch.setattr(module, "CONFIG_DIR", tmp_path)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "insects.yaml").write_text(YAML)
    folder = tmp_path / "data" / "insects"
    folder.mkdir(parents=True)
    for i, name in enumerate(("ant_1", "ant_2", "ant_10", "bee_fly_1", "bee_fly_2", "bee_fly_3")):
        Image.effect_noise((32, 32), 40 + i).convert("RGB").save(folder / f"{name}.png")
    return folder


def test_the_dataset_is_read_by_its_layout(insects, capsys):
    dataset = load_dataset("insects", insects.parent)
    assert dataset.class_names == ("ant", "bee_fly") and dataset.prompt_names[1] == "bee fly"
    splits = [[r.class_name for r in dataset.records(split)] for split in ("train", "test")]
    assert sorted(map(len, splits)) == [2, 4] and all(set(s) == {"ant", "bee_fly"} for s in splits)
    assert check(["check", "insects", "--data_dir", str(insects.parent)]) == 0
    assert not expand.main(
        ["-d", "insects", "--data_dir", str(insects.parent), "--method", "img2img", "--dry_run"]
    )
    assert "a macro photo of a ant." in capsys.readouterr().out


def test_a_file_that_does_not_fit_is_named(insects):
    (insects / "bee_fly_3.png").rename(insects / "bee.png")
    with pytest.raises(InputError, match="dataset insects: bee.png does not fit"):
        load_dataset("insects", insects.parent)


def test_folders_of_other_layouts_are_read_as_before(make_folder):
    images = {"ant": ["1.png"], "bee": ["1.png"]}
    photos = make_folder("photos", {"train": images, "test": images})
    assert load_dataset(str(photos)).config.reader == "folder"
