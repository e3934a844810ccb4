"""What the fuzzer found, each in its smallest form: refused in one line that names the place."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import parse_logs
from expansion.classifier.backbones import load_classifier
from expansion.common.config import load_yaml
from expansion.common.errors import InputError, run_command
from expansion.common.files import check_claim
from expansion.common.texts import read_json
from expansion.data.datasets import load_dataset
from expansion.data.readers.array_files import ArrayFiles, read_cifar10, read_idx, read_npz
from expansion.diffusion.model_files import check_model_folder, model_fingerprint
from expansion.diffusion.sampler_config import SamplerConfig
from expansion.diffusion.stable_diffusion import load_pipeline
from expansion.generation.config import ExpandConfig
from expansion.generation.plan import make_plan
from expansion.images.pixels import FORMATS, IMAGE_SUFFIXES
from expansion.images.records import ImageRecord
from tests.conftest import TINY_MODEL
from tests.helpers import stand_ins
from tests.rigs.fuzz_inputs import laughs

GOOD = {
    "train": {"ant": ["1.png"], "bee": ["1.png"]},
    "test": {"ant": ["1.png"], "bee": ["1.png"]},
}
DEEP = "[" * 20_000
TOO_LONG = "9" * 5000  # more digits than Python turns into text


@pytest.fixture
def model(tmp_path) -> Path:
    """A copy of the tiny checkpoint, to be spoilt."""
    return Path(shutil.copytree(TINY_MODEL, tmp_path / "model"))


def record(path: Path) -> ImageRecord:
    return ImageRecord(path, path.name, 0, "cat")


@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1), (1, 101)])
def test_an_image_that_is_a_line_is_refused_as_squaring_it_would_fill_the_memory(size, tmp_path):
    Image.new("RGB", size).save(tmp_path / "line.png")
    with pytest.raises(InputError, match=f"line.png.*{size[0]} x {size[1]} pixels"):
        record(tmp_path / "line.png").load()


def test_postscript_under_the_name_of_an_image_is_not_handed_to_its_interpreter(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "page.png", "EPS")
    with pytest.raises(InputError, match="cannot identify"):
        record(tmp_path / "page.png").load()


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_every_suffix_of_an_image_is_of_a_format_that_is_read(suffix, tmp_path):
    Image.new("RGB", (8, 8), (200, 100, 50)).save(tmp_path / f"image{suffix}")
    assert record(tmp_path / f"image{suffix}").load().size == (8, 8)
    assert Image.registered_extensions()[suffix] in (*FORMATS, "MPO")  # which JPEG's decoder opens


@pytest.mark.parametrize("split", ["train", "test"])
def test_names_of_other_bytes_than_utf8_are_listed(split, make_folder):
    folder = make_folder("photos", GOOD)
    source = folder / split / "ant" / "1.png"
    shutil.copy(source, os.fsencode(source.parent) + b"/caf\xe9.png")
    with pytest.raises(InputError, match=r"ant/caf\\udce9.png; rename"):
        load_dataset(str(folder)).records(split)


def test_a_class_folder_of_other_bytes_than_utf8_is_listed(make_folder):
    folder = make_folder("photos", GOOD)
    (folder / "train" / "bee").rename(os.fsdecode(os.fsencode(folder / "train") + b"/\xff"))
    with pytest.raises(InputError, match=r"\\udcff; rename"):
        load_dataset(str(folder))


@pytest.mark.parametrize("kind", ["link", "dangling link", "file"])
def test_a_class_folder_that_would_carry_images_out_is_named(kind, make_folder, tmp_path):
    folder, out = make_folder("photos", GOOD), tmp_path / "out"
    out.mkdir()
    (tmp_path / "elsewhere").mkdir()
    if kind == "file":
        (out / "ant").write_text("a file")
    else:
        (out / "ant").symlink_to(tmp_path / ("elsewhere" if kind == "link" else "nowhere"))
    config = ExpandConfig(
        dataset=str(folder),
        method="img2img",
        output_dir=str(out),
        pretrained_model_name_or_path=str(TINY_MODEL),
    )
    with pytest.raises(InputError, match="out/ant is"):
        make_plan(config, SamplerConfig())


def test_an_output_folder_that_is_a_link_as_a_whole_is_used(make_folder, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    config = ExpandConfig(
        dataset=str(make_folder("photos", GOOD)),
        method="img2img",
        output_dir=str(tmp_path / "out"),
        pretrained_model_name_or_path=str(TINY_MODEL),
    )
    assert make_plan(config, SamplerConfig()).output_dir == tmp_path / "out"


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [DEEP, "a: !!timestamp x", "a: !!bool x", "a: !!int ''", f"a: {TOO_LONG}", "a: 2024-13-45"],
)
def test_yaml_that_its_parser_fails_on_is_refused(text, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match="a.yaml is not valid YAML"):
        load_yaml(tmp_path / "a.yaml")


def test_aliases_that_stand_for_endless_values_are_shown_in_a_moment(tmp_path):
    (tmp_path / "run.yaml").write_text(f"{laughs()}\nseed: *a39\n")
    with pytest.raises(InputError, match=r"seed: .* there, 1 now"):
        check_claim(tmp_path, "run.yaml", {"seed": 1}, "remedy")


@pytest.mark.parametrize("text", [DEEP, f'{{"a": {TOO_LONG}}}', "\ufeff\x00"])
def test_json_that_its_parser_fails_on_is_refused(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match="a.json as JSON"):
        read_json(tmp_path / "a.json", dict)


def test_a_wide_csv_cell_is_refused(tmp_path):
    (tmp_path / "metadata.csv").write_text(f"file_name,label\n{'x' * 200_000},ant\n")
    with pytest.raises(InputError, match=r"metadata.csv as CSV"):
        load_dataset(str(tmp_path), test_fraction=0.5)


def npz_of(path: Path, claimed: int) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({claimed},), }}".encode()
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("train_images", "train_labels", "test_images", "test_labels"):
            file.writestr(f"{name}.npy", content)


def test_arrays_that_claim_more_than_any_memory_are_refused(tmp_path):
    npz_of(tmp_path / "set.npz", 10**15)
    with pytest.raises(InputError, match="set.npz"):
        read_npz(ArrayFiles(tmp_path, "set.npz"))
    sizes = b"".join(size.to_bytes(4, "big") for size in (2**31, 2**31, 28))
    with gzip.open(tmp_path / "train-images-idx3-ubyte.gz", "wb") as file:
        file.write(bytes([0, 0, 8, 3]) + sizes)
    with pytest.raises(InputError, match="too much to hold in memory"):
        read_idx(ArrayFiles(tmp_path))


def test_labels_that_are_lists_within_lists_are_refused_and_not_counted(tmp_path):
    stand_ins.cifar10(tmp_path)
    doubled: list = [0]
    for _ in range(60):
        doubled = [doubled, doubled]  # 2^60 numbers in a few bytes
    batch = {"data": np.zeros((1, 3072), np.uint8), "labels": doubled}
    stand_ins.save_pickle(tmp_path / "cifar-10-batches-py" / "data_batch_3", batch)
    with pytest.raises(InputError, match="a batch lacks"):
        read_cifar10(ArrayFiles(tmp_path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{}", "its scheduler is None"),
        ("[1]", "expected an object"),
        (DEEP, "maximum recursion"),
        ({"unet": ["os", "system"]}, "its unet is"),
        ({"unet": ["evil", "UNet2DConditionModel"]}, "its unet is"),
        ({"_class_name": ["evil", "Evil"]}, "code of its own"),
        ({"further": ["evil", "Evil"]}, r"code of its own \(further\)"),
    ],
)
def test_a_model_index_that_names_other_code_is_refused(content, words, model):
    path = model / "model_index.json"
    if isinstance(content, dict):
        content = json.dumps({**json.loads(path.read_text()), **content})
    path.write_text(content)
    with pytest.raises(InputError, match=f"model_index.json.*{words}"):
        check_model_folder(str(model))


@pytest.mark.slow
@pytest.mark.parametrize("module", ["diffusers", "transformers"])
@pytest.mark.parametrize("part", ["unet", "text_encoder", "tokenizer", "feature_extractor"])
def test_code_in_a_checkpoint_is_not_run(part, module, model, tmp_path):
    mark = tmp_path / "code-ran"
    (model / part).mkdir(exist_ok=True)
    for place in (model, model / part):
        (place / f"{module}.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    try:
        load_pipeline(str(model))
    except InputError as error:
        assert "custom code" in str(error)
    assert not mark.exists()


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_are_missing_are_named_instead_of_drawn_at_random(part, model):
    path = next((model / part).glob("*.safetensors"))
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    key = sorted(set(header) - {"__metadata__"})[0]
    header["renamed"] = header.pop(key)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    with pytest.raises(InputError, match=f"{part} lacks {key}"):
        load_pipeline(str(model))


@pytest.mark.parametrize(
    ("part", "key", "value", "words"),
    [
        ("tokenizer/tokenizer_config", "model_max_length", 10**30, "token windows"),
        ("unet/config", "sample_size", 10**6, "resolution"),
        ("unet/config", "layers_per_block", 10**9, "layers_per_block is 1000000000"),
        ("unet/config", "in_channels", 9, "cannot load the model"),
        ("scheduler/scheduler_config", "num_train_timesteps", 10**12, "num_train_timesteps"),
        ("vae/config", "block_out_channels", "many", "no resolution"),
    ],
)
def test_a_config_out_of_all_proportion_is_named(part, key, value, words, model):
    path = model / f"{part}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(InputError, match=words):
        load_pipeline(str(model))


def test_tokens_that_the_text_encoder_lacks_are_named(model):
    path = model / "tokenizer" / "tokenizer_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "additional_special_tokens": ["extra", "more"]}))
    with pytest.raises(InputError, match="its tokenizer has token"):
        load_pipeline(str(model))


def test_a_folder_within_a_component_does_not_disturb_a_checkpoints_identity(model):
    before = model_fingerprint(str(model))
    (model / "unet" / "notes").mkdir()
    check_model_folder(str(model))
    assert model_fingerprint(str(model)) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"arch": ["resnet18"]}, "name of a network"),
        ({"image_size": 10**9}, "image_size"),
        ({"head.bias": torch.zeros(1).expand(10**10)}, "head.bias"),
        ({"head.weight": 3}, "head.weight"),
        ({"body.0.weight": "text"}, "does not fit"),
    ],
)
def test_a_classifier_of_odd_values_is_refused(change, words, guide_path, tmp_path):
    content = torch.load(guide_path, weights_only=True)
    for key, value in change.items():
        place = content["state_dict"] if "." in key else content
        place[key] = value
    torch.save(content, tmp_path / "odd.pth.tar")
    with pytest.raises(InputError, match=words):
        load_classifier(tmp_path / "odd.pth.tar")


def test_links_that_lead_round_in_circles_do_not_hold_up_a_table(tmp_path, capsys):
    run = tmp_path / "digits" / "resnet50_unpretrained_lr0.1" / "seed1"
    run.mkdir(parents=True)
    (run / "results.yaml").write_text("last_accuracy: 80.0\nbest_accuracy: 81.0\n")
    for name in "abc":
        (tmp_path / name).symlink_to(tmp_path)
    parse_logs.main([str(tmp_path), "--table"])
    assert "80.00" in capsys.readouterr().out


def test_results_that_no_table_can_show_are_left_out(tmp_path, capsys):
    run = tmp_path / "digits" / "resnet50_unpretrained_lr0.1" / "seed1"
    run.mkdir(parents=True)
    odd = {"last_accuracy": 80.0, "best_accuracy": 10**400, "arm": {"a": 1}, "steps": 10**400}
    text = yaml.safe_dump({key: odd[key] for key in ("last_accuracy", "arm")})
    text += "".join(f"{key}: 0x{odd[key]:x}\n" for key in ("best_accuracy", "steps"))
    (run / "results.yaml").write_text(text)
    parse_logs.main([str(tmp_path), "--table"])
    shown = capsys.readouterr()
    assert "80.00" in shown.out and "no fact of a run" in shown.err


def test_a_report_with_a_name_that_is_no_text_reaches_a_strict_terminal(monkeypatch):
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr("sys.stdout", screen)
    with pytest.raises(SystemExit):
        run_command(lambda: screen.write("\udcff \u732b\n") and None)
    screen.flush()
    assert screen.buffer.getvalue() == b"\\udcff \\u732b\n"
