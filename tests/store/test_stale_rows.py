"""When the dataset changes, what was made before counts only where it fits."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from torchvision.datasets import ImageFolder

import expand
import train_expand
import train_original
from expansion.common.errors import InputError
from tests.conftest import ROOT

pytestmark = pytest.mark.slow  # whole expansions and trainings

MODEL = str(ROOT / "assets" / "tiny-sd-digits")
TRAINING = [
    *"-a resnet10_tiny --image_size 32 --resize_size 36 --workers 0 --seeds 1".split(),
    *"--budget steps --max_train_steps 2 --batch_size 8 --lr 0.01".split(),
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(cells).resize((32, 32)).save(path)


def listed_set(root: Path, labels: dict[str, str]) -> None:
    """A set with a metadata.csv: file -> label; files with numbers above 3 are for testing."""
    rows = ["file_name,label,split"]
    for name, label in labels.items():
        if not (root / name).exists():
            picture(root / name, int(Path(name).stem))
        rows.append(f"{name},{label},{'test' if int(Path(name).stem) > 3 else 'train'}")
    (root / "metadata.csv").write_text("\n".join(rows) + "\n")


LABELS = {f"{i}.png": "cat" if i % 2 else "dog" for i in range(6)}  # 0-3 for training


def make(root: Path, *more: object, n: int = 2) -> int | None:
    options = ["--method", "img2img", "--pretrained_model_name_or_path", MODEL]
    options += ["--num_inference_steps", "2", "--num_images_per_prompt", n, "--exp", "set"]
    return expand.main([str(x) for x in ("-d", root, *options, *more)])


def train(root: Path, *more: object) -> dict:
    """Results of a short training on real + generated images."""
    shutil.rmtree("checkpoint", ignore_errors=True)
    train_expand.main([str(x) for x in ("-d", root, "--exp", "set", *TRAINING, *more)])
    (found,) = Path("checkpoint").rglob("results.yaml")
    return yaml.safe_load(found.read_text())


def rows_of(root: Path) -> list[dict]:
    path = Path("data", f"{root.name}_expansion", "set", "metadata.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("moved", [False, True])
def test_variants_under_an_old_label_are_neither_kept_nor_learnt_from(here, caplog, moved):
    root, caplog.level = here / "pets", 20
    if moved:  # in class folders, correcting a label means moving the file
        for i, name in enumerate(LABELS):
            picture(root / ("test" if i > 3 else "train") / LABELS[name] / name, i)
    else:
        listed_set(root, LABELS)
    caplog.set_level("INFO")
    assert not make(root)
    if moved:
        (root / "train/dog/0.png").rename(root / "train/cat/0.png")
    else:
        listed_set(root, {**LABELS, "0.png": "cat"})
    with (
        pytest.raises(InputError, match="2 of [68] images are missing") if not moved else nothing()
    ):
        train(root)
    assert not make(root)
    assert "2 images" in caplog.text and "moved to" in caplog.text
    classes = Counter((Path(row["source"]).name, row["class"]) for row in rows_of(root))
    assert len(rows_of(root)) == 8 and classes["0.png", "cat"] == 2 and not classes["0.png", "dog"]
    assert train(root)["num_generated"] == 8
    loaded = ImageFolder(str(Path("data/pets_expansion/set")))  # no file under the old label
    assert Counter(loaded.targets) == {0: 6, 1: 2}


class nothing:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


@pytest.mark.parametrize("method", ["img2img", "dreamda"])
def test_other_pictures_of_the_same_names_are_refused_by_every_command(here, method):
    root = here / "site"
    listed_set(root, LABELS)
    options = ["--method", method, "--strength", "0.5"]
    assert not make(root, *options)
    train(root)
    before = {p: p.read_bytes() for p in Path("data").rglob("*") if p.is_file()}
    picture(root / "0.png", 99)
    for command in (lambda: make(root, *options), lambda: train(root)):
        with pytest.raises(InputError, match=r"other images of the same names: 1 .*0\.png.*--name"):
            command()
    assert before == {p: p.read_bytes() for p in Path("data").rglob("*") if p.is_file()}


def test_two_datasets_of_one_name_are_told_apart_by_name(here):
    for site in ("a", "b"):
        listed_set(here / site / "images", LABELS)
    picture(here / "b/images/0.png", 50)
    picture(here / "b/images/4.png", 51)
    for command in (make, train):
        command(here / "a/images")
        with pytest.raises(InputError, match="--name"):
            command(here / "b/images")
    make(here / "b/images", "--name", "site-b")
    assert train(here / "b/images", "--name", "site-b")["dataset"] == "site-b"
    assert Path("data/site-b_expansion/set/metadata.jsonl").is_file()


def test_another_dataset_with_other_file_names_is_refused(here):
    listed_set(here / "a/images", LABELS)
    listed_set(here / "b/images", {f"x/{name}": label for name, label in LABELS.items()})
    make(here / "a/images")
    with pytest.raises(InputError, match="made from another dataset"):
        make(here / "b/images")


@pytest.mark.parametrize("what", ["training picture", "test picture", "label"])
def test_a_finished_run_belongs_to_pictures_and_labels(here, what):
    listed_set(here / "set", LABELS)
    arguments = ["-d", str(here / "set"), *TRAINING]
    train_original.main(arguments)
    train_original.main(arguments)  # done before
    if what == "label":
        listed_set(here / "set", {**LABELS, "2.png": "cat"})
    else:
        picture(here / "set" / ("0.png" if what == "training picture" else "5.png"), 77)
    with pytest.raises(InputError, match="test_images" if what[1] == "e" else "training_images"):
        train_original.main(arguments)


def test_fewer_variants_are_learnt_from_where_fewer_were_asked_for_last(here, caplog):
    caplog.set_level("INFO")
    listed_set(here / "set", LABELS)
    make(here / "set", n=3)
    assert train(here / "set")["num_generated"] == 12
    make(here / "set", n=1)
    assert len(rows_of(here / "set")) == 4
    assert train(here / "set")["num_generated"] == 4
    assert "8 images are left out, beyond the number of variants asked for" in caplog.text


def test_fewer_real_images_are_learnt_from_where_fewer_were_asked_for_last(here, caplog):
    caplog.set_level("INFO")
    listed_set(here / "set", LABELS)
    make(here / "set", n=1)
    assert train(here / "set")["num_generated"] == 4
    make(here / "set", "--expand_fraction", "0.5", n=2)
    assert len(rows_of(here / "set")) == 4  # two of one cat, two of one dog
    assert train(here / "set")["num_generated"] == 4
    assert "2 images are left out, of real images that were not asked for" in caplog.text
    assert "has no variants of 2 of 4 training images" in caplog.text
    make(here / "set", n=2)
    assert train(here / "set")["num_generated"] == 8


def test_training_images_that_came_later_and_have_no_variants_are_told(here, caplog):
    listed_set(here / "set", LABELS)
    make(here / "set")
    listed_set(here / "set", {**LABELS, "new/1.png": "cat"})
    assert train(here / "set")["num_generated"] == 8
    assert "has no variants of 1 of 5 training images (new/1.png)" in caplog.text


def test_a_set_that_depends_on_images_of_the_present_test_split_is_refused(here):
    listed_set(here / "set", LABELS)
    make(here / "set", "--expand_fraction", "0.5")  # the method knows all four
    path = Path("data/set_expansion/set/expansion.yaml")
    identity = yaml.safe_load(path.read_text())
    train(here / "set")
    path.write_text(yaml.safe_dump({**identity, "images": "as a guided method notes them"}))
    train(here / "set")
    swapped = [
        f"{n},{label},{'test' if n in ('0.png', '1.png') else 'train'}"
        for n, label in LABELS.items()
    ]
    (here / "set/metadata.csv").write_text("\n".join(["file_name,label,split", *swapped]) + "\n")
    with pytest.raises(InputError, match="knowledge of 2 images that are tested on now .0.png, 1"):
        train(here / "set")


def test_a_set_with_missing_images_is_learnt_from_only_where_that_is_asked_for(here, caplog):
    listed_set(here / "set", LABELS)
    make(here / "set", "--split", 0, "--total_split", 2, "--batch_size", 2)
    with pytest.raises(InputError, match="4 of 8 images are missing.*--on_incomplete use"):
        train(here / "set")
    assert train(here / "set", "--on_incomplete", "use")["num_generated"] == 4
    assert "4 of 8 images are missing" in caplog.text


def test_a_slurm_array_says_that_it_cuts_the_set(here, caplog, monkeypatch):
    caplog.set_level("INFO")
    listed_set(here / "set", LABELS)
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "4")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    make(here / "set")
    assert "shard 1 of 4 (from the SLURM array" in caplog.text


def test_an_image_that_was_written_over_is_not_taken_for_the_one_before(here):
    """0.jpg's variant gets the file name of 0.png's, which has gone; then 0.png comes back."""
    root = here / "twins"
    for i, name in enumerate(("ant", "bee")):
        for split in ("train", "test"):
            picture(root / split / name / "0.png", 10 * i + len(split))
    make(root, n=1)
    first = Path("data/twins_expansion/set/ant/0_expand_0.png").read_bytes()
    (root / "train/ant/0.png").rename(here / "away.png")
    picture(root / "train/ant/0.jpg", 500)
    make(root, n=1)
    (here / "away.png").rename(root / "train/ant/0.png")
    (root / "train/ant/0.jpg").unlink()
    make(root, n=1)
    (row,) = (row for row in rows_of(root) if row["source"] == "train/ant/0.png")
    assert Path("data/twins_expansion/set", row["file_name"]).read_bytes() == first
    assert train(root)["num_generated"] == 2


@pytest.mark.parametrize("place", ["set", "set/train", "set/train/cat", "set/new", "model/new"])
def test_output_never_goes_into_what_is_read(here, place):
    for i in range(8):
        split, name = ("train", "test")[i % 2], ("cat", "dog")[i // 4]
        picture(here / "set" / split / name / f"{i}.png", i)
    shutil.copytree(MODEL, here / "model")
    model = ["--pretrained_model_name_or_path", str(here / "model")]
    with pytest.raises(InputError, match="where it would be read as input"):
        make(here / "set", "--output_dir", here / place, *model)
    if place.startswith("set"):
        with pytest.raises(InputError, match="where it would be read as input"):
            train_original.main(
                ["-d", str(here / "set"), "--checkpoint_dir", str(here / place), *TRAINING]
            )


def test_runs_do_not_go_into_the_unlabelled_images_or_the_expanded_set(here):
    listed_set(here / "set", LABELS)
    make(here / "set")
    picture(here / "more/0.png", 5)
    for arguments in (
        ["--unlabeled_dir", str(here / "more"), "--checkpoint_dir", str(here / "more/runs")],
        ["--checkpoint_dir", "data/set_expansion/set"],
    ):
        with pytest.raises(InputError, match="where it would be read as input"):
            train_expand.main(["-d", str(here / "set"), "--exp", "set", *TRAINING, *arguments])


@pytest.mark.parametrize(
    "option",
    [
        ("--source_batch_size", "2"),
        ("--resolution", "32"),
        ("--batch_size", "3"),
        ("--dtype", "float32"),
    ],
)
def test_no_option_that_decides_no_image_makes_a_begun_folder_refuse(here, option):
    listed_set(here / "set", LABELS)
    method = ("--method", "dreamda")
    assert not make(here / "set", *method)
    assert not make(here / "set", *method, *option)


def test_options_of_guidance_that_decide_no_image_let_a_begun_folder_go_on(
    here, digits_dir, guide_path
):
    arguments = ["-d", "digits", "--data_dir", str(digits_dir), "--method", "distdiff"]
    arguments += ["--encoder_weight_path", str(guide_path), "--shots", "1", "--output_dir", "out"]
    arguments += ["--num_images_per_prompt", "1", "--pretrained_model_name_or_path", MODEL]
    arguments += ["--num_inference_steps", "10", "--guidance_step", "2", "--K", "1"]
    assert not expand.main(arguments)
    further = ["--gradient_checkpointing", "--log_energy", "--loss_scale", "7"]
    assert not expand.main([*arguments, *further, "--arch", "resnet10_tiny"])
    with pytest.raises(InputError, match="rho: 10.0 there, 9.0 now"):
        expand.main([*arguments, "--rho", "9"])


@pytest.mark.parametrize("first", [["--batch_size", "8"], ["--batch_size", "auto"]])
def test_batch_size_auto_on_a_finished_folder_has_nothing_to_do(here, first, caplog):
    caplog.set_level("INFO")
    listed_set(here / "set", LABELS)
    assert not make(here / "set", *first)
    assert not make(here / "set", "--batch_size", "auto")
    assert "0 images written, 8 already there" in caplog.text


def test_a_folder_that_an_older_version_began_goes_on_and_says_what_is_not_known(here, caplog):
    caplog.set_level("INFO")
    listed_set(here / "set", LABELS)
    make(here / "set")
    folder = Path("data/set_expansion/set")
    settings = yaml.safe_load((folder / "expansion.yaml").read_text())
    for key in ("format", "crop_bottom"):
        del settings[key]
    (folder / "expansion.yaml").write_text(yaml.safe_dump(settings))
    for path in folder.glob("manifest.*"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row.pop("source_sha256", None), row.pop("png_crc32", None)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "plan.json").unlink()
    assert not make(here / "set")
    assert "begun by an older version" in caplog.text and "8 already there" in caplog.text
    assert train(here / "set")["num_generated"] == 8
    with pytest.raises(InputError, match="strength"):
        make(here / "set", "--strength", "1")


def test_a_leading_tilde_is_the_home_folder_wherever_a_path_is_given(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here / "home"))
    listed_set(here / "home/photos", LABELS)
    Path("my.yaml").write_text("checkpoint_dir: ~/runs\n")
    assert not make(Path("~/photos"), "--output_dir=~/made")
    train_original.main(["-d", "~/photos", "--config", "my.yaml", *TRAINING])
    assert {p.name for p in (here / "home").iterdir()} == {"photos", "made", "runs"}
    assert not Path("~").exists()
