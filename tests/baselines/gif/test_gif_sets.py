"""Sets of GIF-SD by the command: shards, kills, more variants, and a CLIP that is not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPModel

import expand
from baselines.gif.config import GIFConfig
from baselines.gif.sampler import GIFSampler
from expansion.classifier.clip import ClipClassifier
from expansion.common.errors import InputError
from expansion.data.prompts import preset_prompts
from expansion.diffusion import stable_diffusion
from expansion.generation.plan import make_plan

pytestmark = pytest.mark.slow  # whole expansions


@pytest.fixture
def arguments(digits_dir, clip_dir):
    """Function from an output folder and options to a command line: 30 images in 10 units."""

    def line(output: Path, *options: object) -> list[str]:
        fixed = f"-d digits --data_dir {digits_dir} --method gif --shots 1 --batch_size 4"
        fixed += f" --num_images_per_prompt 3 --num_inference_steps 3 --clip_model {clip_dir}"
        return [*fixed.split(), "--device", "cpu", "--output_dir", str(output), *map(str, options)]

    return line


@pytest.fixture(scope="module")
def undisturbed(digits_dir, clip_dir, tmp_path_factory) -> Path:
    """The set that one process makes in one go; read only."""
    output = tmp_path_factory.mktemp("undisturbed")
    line = f"-d digits --data_dir {digits_dir} --method gif --shots 1 --batch_size 4 --device cpu"
    line += f" --num_images_per_prompt 3 --num_inference_steps 3 --clip_model {clip_dir}"
    assert expand.main([*line.split(), "--output_dir", str(output)]) == 0
    return output


def content(folder: Path) -> dict[str, bytes]:
    names = [p.relative_to(folder).as_posix() for p in folder.glob("*/*.png")]
    return {name: (folder / name).read_bytes() for name in (*names, "metadata.jsonl")}


def test_every_image_has_its_prompt_and_the_parts_of_its_score(undisturbed):
    rows = [json.loads(line) for line in (undisturbed / "metadata.jsonl").read_text().splitlines()]
    assert len(rows) == 30 and len({row["file_name"] for row in rows}) == 30
    # The variants of an image take the prompts of the preset one after the other.
    own = preset_prompts("gif", "zero")
    first = own.index(rows[0]["prompt"])
    assert [row["prompt"] for row in rows[:3]] == [own[(first + k) % 50] for k in range(3)]
    for row in rows:
        found = row["details"]
        assert {*found} == {"score", "entropy", "probability", "kl", "update_skipped"}
        assert 0 < found["probability"] < 1 and 0 < found["entropy"] < 2.303
        assert (found["kl"] > 0) == (row["variant"] != 2)  # the third is alone in its group


@pytest.mark.parametrize("total", [2, 3])
def test_any_number_of_shards_gives_the_same_bytes(tmp_path, arguments, undisturbed, total):
    for split in reversed(range(total)):
        assert expand.main(arguments(tmp_path, "--split", split, "--total_split", total)) == 0
    assert content(tmp_path) == content(undisturbed)


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, warm_processes, arguments, undisturbed):
    output, log = tmp_path / "out", tmp_path / "log.txt"
    killed = 0
    for change in (25, 60):
        process = warm_processes.start(arguments(output), log, die=(output, change, 0))
        killed += process.wait() == -9
    assert killed and 0 < len(list(output.glob("*/*.png"))) < 30
    assert warm_processes.start(arguments(output), log).wait() == 0, log.read_text()
    assert content(output) == content(undisturbed)


def test_batches_of_other_sizes_change_an_image_by_rounding_at_most(
    tmp_path, arguments, undisturbed
):
    expand.main(arguments(tmp_path, "--batch_size", 2))
    for row in (undisturbed / "metadata.jsonl").read_text().splitlines():
        name = json.loads(row)["file_name"]
        one, other = (pixels(folder / name) for folder in (tmp_path, undisturbed))
        assert np.abs(one - other).max() <= 1


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_a_set_of_whole_groups_can_be_extended_and_keeps_its_images(tmp_path, arguments):
    expand.main(arguments(tmp_path, "--num_images_per_prompt", 2))
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.glob("*/*.png")}
    assert expand.main(arguments(tmp_path, "--num_images_per_prompt", 4)) == 0
    assert len(before) == 20 and len([*tmp_path.glob("*/*.png")]) == 40
    assert all((p.read_bytes(), p.stat().st_mtime_ns) == was for p, was in before.items())
    # An odd number would make the last of each image alone.
    with pytest.raises(InputError, match="'a multiple of 2' there, 5 now") as error:
        expand.main(arguments(tmp_path, "--num_images_per_prompt", 5))
    assert "\n" not in str(error.value)


def test_a_set_with_smaller_groups_is_not_extended(undisturbed, arguments):
    before = content(undisturbed)
    for number, shown in ((4, "3 there, 'a multiple of 2' now"), (5, "3 there, 5 now")):
        with pytest.raises(InputError, match=f"num_images_per_prompt: {shown}") as error:
            expand.main(arguments(undisturbed, "--num_images_per_prompt", number))
        assert "\n" not in str(error.value)
    assert content(undisturbed) == before
    with pytest.raises(InputError, match="num_images_per_prompt 3: .*groups of 2; give a multiple"):
        expand.main(arguments(undisturbed, "--until_kept", 5, "--judge", "nowhere"))


@pytest.mark.parametrize("dry", [("--dry_run",), ()])
def test_units_smaller_than_a_group_are_refused_in_one_line(tmp_path, arguments, monkeypatch, dry):
    monkeypatch.setattr(stable_diffusion, "load_pipeline", None)
    with pytest.raises(InputError, match="--batch_size 1: 2 variants .* give 2 or more"):
        expand.main(arguments(tmp_path / "out", "--batch_size", 1, *dry))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shard", [(), ("--total_split", 3, "--split", 1)])
def test_units_of_a_plan_hold_whole_groups(tmp_path, arguments, shard):
    """Three variants of an image are groups of 2 and 1, so batches of 4 hold 3, 3, 3, ..."""
    options = ("--batch_size", 4, "--group_size", 2, *shard)
    config, method_config, _ = expand.parse(arguments(tmp_path, *options))
    plan = make_plan(config, method_config)
    numbers = [[variant.number for variant in unit] for unit in plan.shard_units]
    assert numbers == [[0, 1, 2]] * (3 if shard else 10)
    assert plan.shard_variants == [variant for unit in plan.shard_units for variant in unit]
    larger = plan.with_batch_size(5).shard_units
    assert {tuple(v.number for v in unit) for unit in larger} <= {
        *((0, 1, 2, 0, 1), (2, 0, 1, 2), (0, 1, 2)),
    }


def test_the_library_makes_the_images_of_the_command(pipeline, clip_dir, arguments, tmp_path):
    config, method_config, _ = expand.parse(arguments(tmp_path))
    plan = make_plan(config, method_config)
    names = plan.dataset.prompt_names
    clip = ClipClassifier.load(str(clip_dir), names, [method_config.clip_template])
    sampler, record = GIFSampler(pipeline, method_config, clip), plan.records[3]
    output = tmp_path / "out"
    template = ("--prompt_template", "a sketch of {}", "--num_images_per_prompt", 2)
    assert expand.main(arguments(output, *template)) == 0
    rows = [json.loads(line) for line in (output / "metadata.jsonl").read_text().splitlines()]
    own = [row for row in rows if row["source"] == record.file_name]
    given = {"prompts": own[0]["prompt"], "names": [record.file_name], "number": 2}
    (images,) = sampler.variants([record.path], **given)
    for row, image in zip(own, images, strict=True):
        assert np.abs(pixels(output / row["file_name"]) - np.asarray(image)).max() <= 1


def test_the_rows_are_told_before_anything_is_made(tmp_path, arguments, capsys):
    expand.main(arguments(tmp_path, "--dry_run", "--num_inference_steps", 10))
    assert "U-Net rows: 18 per image" in capsys.readouterr().out


@pytest.mark.parametrize("dry", [("--dry_run",), ()])
@pytest.mark.parametrize(
    "lost", ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"]
)
def test_an_incomplete_clip_is_one_line_before_weights_load(
    tmp_path, arguments, clip_dir, monkeypatch, lost, dry
):
    monkeypatch.setattr(stable_diffusion, "load_pipeline", None)
    monkeypatch.setattr(ClipClassifier, "load", None)
    copy = shutil.copytree(clip_dir, tmp_path / "clip")
    (copy / lost).unlink()
    with pytest.raises(InputError, match=f"clip: it lacks {lost}; download .* --clip_model") as e:
        expand.main(arguments(tmp_path / "out", "--clip_model", copy, *dry))
    assert "\n" not in str(e.value) and not (tmp_path / "out").exists()


def test_a_revision_of_a_clip_on_this_disk_is_refused(tmp_path, arguments, clip_dir):
    with pytest.raises(InputError, match="--clip_revision v2: .* lies on this disk"):
        options = ("--clip_model", clip_dir, "--clip_revision", "v2", "--dry_run")
        expand.main(arguments(tmp_path / "out", *options))


def test_a_clip_that_is_nowhere_or_damaged_is_one_line(tmp_path, arguments, clip_dir, monkeypatch):
    monkeypatch.setattr(stable_diffusion, "load_pipeline", None)
    with pytest.raises(InputError, match="there is no such folder; download"):
        expand.main(arguments(tmp_path / "out", "--clip_model", tmp_path / "no", "--dry_run"))
    with pytest.raises(InputError, match="not downloaded before, .*hf download.*--clip_model"):
        expand.main(arguments(tmp_path / "out", "--clip_model", "owner/no-such-clip"))
    copy = shutil.copytree(clip_dir, tmp_path / "clip")
    (copy / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="cannot load the CLIP model") as error:
        expand.main(arguments(tmp_path / "out", "--clip_model", copy))
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
    state = CLIPModel.from_pretrained(clip_dir).state_dict()
    state["text_projection.weight"] += float("nan")
    CLIPModel.from_pretrained(clip_dir).save_pretrained(copy, state_dict=state)
    with pytest.raises(InputError, match="features that are NaN; .*another --clip_model"):
        expand.main(arguments(tmp_path / "out", "--clip_model", copy))


def test_a_set_belongs_to_the_weights_of_its_clip_and_not_to_their_place(
    tmp_path, undisturbed, arguments, clip_dir, monkeypatch
):
    monkeypatch.setattr(stable_diffusion, "load_pipeline", None)
    moved = shutil.copytree(clip_dir, tmp_path / "moved")
    assert expand.main(arguments(undisturbed, "--clip_model", moved)) == 0
    model = CLIPModel.from_pretrained(clip_dir)
    model.logit_scale.data += 1
    model.save_pretrained(moved)
    with pytest.raises(InputError, match="other settings .*clip_model: .sha256"):
        expand.main(arguments(undisturbed, "--clip_model", moved))


def test_weights_in_several_files_all_belong_to_the_set(tmp_path, arguments, clip_dir):
    parts = shutil.copytree(clip_dir, tmp_path / "parts")
    (parts / "model.safetensors").unlink()
    CLIPModel.from_pretrained(clip_dir).save_pretrained(parts, max_shard_size="20KB")
    config = GIFConfig(clip_model=str(parts))
    names = [Path(path).name for path in config.input_files().values()]
    assert len(names) > 2 and names[0] == "model.safetensors.index.json"
    (parts / names[1]).unlink()
    with pytest.raises(InputError, match=f"it lacks {names[1]}"):
        config.check_run()
    assert not GIFConfig().input_files()  # a hub id says what it is
