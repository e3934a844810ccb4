"""The card of an exported dataset."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from expansion.export import __main__ as export
from expansion.export import dataset_card, merging
from tests.helpers.exported_sets import rows_of

pytestmark = pytest.mark.slow  # expanded sets are made


def test_the_card_says_what_is_synthetic_and_how_it_was_made(plain, tmp_path):
    export.main([str(plain), "--merge", str(tmp_path / "merged")])
    text = (tmp_path / "merged" / "README.md").read_text()
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["task_categories"] == ["image-classification"]
    assert header["size_categories"] == ["n<1K"] and "synthetic" in header["tags"]
    assert header["configs"][0]["data_files"] == [
        {"split": "train", "path": "train/**"},
        {"split": "test", "path": "test/**"},
    ]
    (made,) = {row["config"] for row in rows_of(plain)}
    assert f"`{made}`" in text and "- Method: img2img" in text
    assert "4 of them are **synthetic**" in text and "num_inference_steps: 2" in text
    assert "| train | 2 | 4 |" in text and "| 1 | dog | dog | 1 | 2 | 1 |" in text
    assert "tiny-sd-digits" in text and "MIT" in text
    assert str(tmp_path) not in text.replace(f"-d {tmp_path}", "")


@pytest.mark.parametrize(
    ("files", "stated"),
    [
        ({}, dataset_card.NOT_SAID),
        ({"README.md": "---\nlicense: openrail\n---\n# A model"}, "openrail"),
        ({"README.md": "---\nlicense: [mit, other]\n---\n"}, "mit, other"),
        ({"README.md": "---\nlicense: [\n---\n"}, dataset_card.NOT_SAID),
        ({"README.md": "# A model\n**License:** CC BY 4.0\n"}, '"CC BY 4.0"'),
        ({"model_index.json": '{"license": "mit"}', "README.md": "---\nlicense: x\n---\n"}, "mit"),
        ({"model_index.json": "[1", "README.md": "---\nlicense: x\n---\n"}, "x"),
    ],
)
def test_the_licence_of_a_model_is_what_its_own_files_say(tmp_path, files, stated):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert dataset_card.stated_licence(tmp_path) == stated


@pytest.mark.parametrize(
    ("count", "name"),
    [(999, "n<1K"), (1000, "1K<n<10K"), (999_999, "100K<n<1M"), (10**6, "1M<n<10M")],
)
def test_size_categories_are_those_of_hugging_face(count, name):
    assert dataset_card.size_category(count) == name


def test_names_in_the_card_stay_text(plain, tmp_path):
    rows = {"x": {"config": "`|<b>", "method": "<script>|"}}
    record = export.ImageRecord(Path("x"), "x", 0, "<a>|b", source="y")
    part = merging.Part([record], [record])
    merge = merging.Merge("<i>`|", ["<a>|b"], {"<a>|b": "f"}, {"train": part}, rows)
    dataset_card.write_card(merge, tmp_path, plain, {})
    body = (tmp_path / "README.md").read_text().split("---\n", 2)[2]
    assert "<a>" not in body and "<script>" not in body and "<i>" not in body
    assert "&lt;a>\\|b" in body
