"""DA-Fusion: against diffusers' img2img with the same words, the law of strengths, refusals."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline
from safetensors.torch import load_file, save_file

import expand
from baselines.da_fusion import DAFusionSampler
from baselines.da_fusion_config import DAFusionConfig
from baselines.embeddings.sets import EmbeddingSet
from baselines.embeddings.words import add_words
from expansion.common.errors import InputError
from expansion.data.datasets import few_shot, load_dataset
from expansion.diffusion.model_files import model_fingerprint
from expansion.diffusion.samples import Batch
from expansion.diffusion.stable_diffusion import load_pipeline
from expansion.generation import plan
from expansion.images.content import readable_records
from tests.conftest import TINY_MODEL
from tests.helpers.embeddings import stand_in_embeddings

FEW = {"num_inference_steps": 8, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def words(digits_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("embeddings") / "words"
    return stand_in_embeddings(folder, "textual_inversion", digits_dir, "--shots", 1)


def make_batch(count: int = 4) -> Batch:
    coarse = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    images = torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear")
    prompts = ["a photo of a <1>", "a photo of a <2>"] * (count // 2)
    index = torch.arange(count) % 2
    return Batch(images, ("a", "b"), index, prompts, index + 1, (7, 8))


def generators(count: int = 4, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(1000 + first + i) for i in range(count)]


def sampled(words, **options):
    config = DAFusionConfig(embeddings=str(words), **{**FEW, **options})
    return DAFusionSampler(load_pipeline(str(TINY_MODEL)), config)


def theirs(words, strength: float, batch: Batch, drawn: list) -> torch.Tensor:
    """diffusers' img2img after its own loading of the words."""
    pipeline = load_pipeline(str(TINY_MODEL))
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    parts = {**pipeline.components, "scheduler": scheduler}
    img2img = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    img2img.set_progress_bar_config(disable=True)
    for label in range(10):
        img2img.load_textual_inversion(str(words), weight_name=f"{label}.safetensors")
    return img2img(
        prompt=list(batch.prompts),
        image=batch.images[batch.source_index],
        strength=strength,
        num_inference_steps=8,
        guidance_scale=3.0,
        generator=drawn,
        output_type="pt",
    ).images


@pytest.mark.slow
def test_one_strength_equals_img2img_of_diffusers_with_the_same_words(words):
    ours = sampled(words, strength=0.5).sample(make_batch(), generators())
    expected = theirs(words, 0.5, make_batch(), generators())
    torch.testing.assert_close(ours.images, expected, atol=1e-4, rtol=0)
    assert ours.details["strength"].tolist() == [0.5] * 4
    other = make_batch()
    plain = Batch(other.images, other.sources, other.source_index, ["a photo of a the"] * 4,
                  other.targets, other.source_seeds)  # fmt: skip
    moved = sampled(words, strength=0.5).sample(plain, generators()).images - ours.images
    assert moved.abs().max() > 0.01  # so the words mattered


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["ddim", "euler"])
def test_reuse_of_features_spans_all_steps_of_a_variant(words, solver):
    def images(interval: int) -> torch.Tensor:
        sampler = sampled(words, strengths=(0.5, 1.0), solver=solver, cache_interval=interval)
        return sampler.sample(make_batch(), generators()).images

    moved = (images(2) - images(1)).abs().amax(dim=(1, 2, 3))
    assert moved.min() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "cache_interval"), [("ddim", 1), ("dpmsolver++", 1), ("ddim", 2)]
)
def test_each_variant_of_a_mixed_batch_is_that_of_its_strength_alone(words, solver, cache_interval):
    stack, options = (0.25, 0.5, 1.0), {"solver": solver, "cache_interval": cache_interval}
    mixed = sampled(words, strengths=stack, **options).sample(make_batch(8), generators(8))
    drawn = mixed.details["strength"]
    assert len(set(drawn.tolist())) > 1
    for strength in set(drawn.tolist()):
        alone = sampled(words, strength=strength, **options)
        images = alone.sample(make_batch(8), generators(8)).images
        rows = drawn == strength
        torch.testing.assert_close(mixed.images[rows], images[rows], atol=1e-4, rtol=0)


def test_the_strengths_are_equally_likely_and_the_rows_counted(words, monkeypatch):
    stack = (0.25, 0.5, 0.75, 1.0)
    sampler = sampled(words, strengths=stack)
    rows: list[int] = []
    sampler.pipeline.unet.register_forward_hook(
        lambda _, inputs, output: rows.append(len(inputs[0]))
    )
    samples = sampler.sample(make_batch(64), generators(64))
    counts = torch.tensor([(samples.details["strength"] == s).sum() for s in stack])
    assert counts.sum() == 64 and counts.min() >= 8  # 16 are expected, with deviation 3.5
    assert sum(rows) == sum(2 * int(8 * s) for s in samples.details["strength"].tolist())
    assert len(rows) == 8  # a call a step, whatever the strengths
    assert sampler.config.unet_rows_per_image(1) == 2 * (2 + 4 + 6 + 8) / 4


def arguments(digits_dir, folder, words, *options: object) -> list[str]:
    line = f"-d digits --data_dir {digits_dir} --method da_fusion --embeddings {words} --shots 1"
    line += f" --num_images_per_prompt 2 --num_inference_steps 4 --device cpu --output_dir {folder}"
    return [*line.split(), *map(str, options)]


def rows_of(folder) -> dict[str, dict]:
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    return {row["file_name"]: row for row in rows}


@pytest.mark.slow
def test_a_set_of_digits_is_the_same_in_shards_and_names_words_and_training(
    digits_dir, words, tmp_path, capsys
):
    stack = ("--strengths", 0.5, 1.0, "--batch_size", 4)
    once, parts = tmp_path / "once", tmp_path / "parts"
    assert not expand.main(arguments(digits_dir, once, words, *stack))
    for split in (1, 0):
        shard = ("--total_split", 2, "--split", split)
        assert not expand.main(arguments(digits_dir, parts, words, *stack, *shard))
    rows = rows_of(once)
    assert len(rows) == 20 and rows_of(parts).keys() == rows.keys()
    for name, row in rows.items():
        assert (once / name).read_bytes() == (parts / name).read_bytes()
        assert row["prompt"] == f"a photo of a <{row['class']}>"
        assert row["details"]["strength"] in (0.5, 1.0)
    expand.main([*arguments(digits_dir, once, words, *stack), "--dry_run"])
    # 10 classes x 1000 steps x 4 images x 2 rows, for 20 images.
    assert "training: 80000 U-Net rows, 4e+03 per image" in capsys.readouterr().out


def refusal(digits_dir, folder, words, *options) -> str:
    with pytest.raises(InputError) as caught:
        expand.main([*arguments(digits_dir, folder, words, *options), "--dry_run"])
    return str(caught.value)


def test_embeddings_that_do_not_fit_are_refused_in_one_line(digits_dir, words, tmp_path):
    copy = tmp_path / "words"
    message = refusal(digits_dir, tmp_path / "out", copy)
    assert "has no embeddings.yaml; train them: python -m baselines.textual_inversion" in message
    shutil.copytree(words, copy)
    (copy / "3.safetensors").rename(copy / "aside")
    message = refusal(digits_dir, tmp_path / "out", copy)
    assert "no embedding of 1 of 10 classes (3); finish the training" in message
    save_file({"<8>": torch.zeros(1, 64)}, copy / "3.safetensors")
    message = refusal(digits_dir, tmp_path / "out", copy)
    assert "the files of 3 do not hold the one word of their class" in message
    (copy / "3.safetensors").write_bytes(b"0123456789")
    assert "3.safetensors is damaged" in refusal(digits_dir, tmp_path / "out", copy)
    (copy / "aside").rename(copy / "3.safetensors")
    identity = (copy / "embeddings.yaml").read_text()
    for old, new, words_of_message in (
        ("sha256:", "sha256:0", "was trained with another checkpoint"),
        ("- '9'", "- nine", "was trained on another dataset: it has nine"),
        ("kind: textual", "kind: diffusion", "holds embeddings of diffusion_inversion; this"),
    ):
        (copy / "embeddings.yaml").write_text(identity.replace(old, new))
        if new == "- nine":
            (copy / "nine.safetensors").write_bytes((copy / "9.safetensors").read_bytes())
        assert words_of_message in refusal(digits_dir, tmp_path / "out", copy)


def test_words_that_were_trained_on_other_images_are_refused(digits_dir, words, tmp_path):
    out, subset = tmp_path / "out", tmp_path / "subset.json"
    message = refusal(digits_dir, out, words, "--shots", 2)
    assert "its words were trained on other images (10 images" in message
    assert "(20 images" in message and "give both commands the same --shots, " in message
    assert "--subset_file" in refusal(digits_dir, out, words, "--subset_seed", 1)
    names = [r.file_name for r in few_shot(load_dataset("digits", digits_dir).records("train"), 1)]
    subset.write_text(json.dumps(names))
    expand.main([*arguments(digits_dir, out, words, "--subset_file", subset), "--dry_run"])


def test_a_revision_must_be_that_of_the_training(words, digits_dir, monkeypatch):
    trained = EmbeddingSet(words, "textual_inversion")
    hub = {**trained.identity, "model": model_fingerprint("owner/model", "v2")}
    config = DAFusionConfig(embeddings=str(words))
    config.__dict__["trained"] = EmbeddingSet(words, "textual_inversion", hub)
    records = few_shot(load_dataset("digits", digits_dir).records("train"), 1, 0)
    records, _ = readable_records(records, "fail")
    config.check_images(records, trained.class_names, "owner/model", "v2")
    for revision in (None, "v1"):
        with pytest.raises(InputError, match="another checkpoint .owner/model@v2. than owner/mod"):
            config.check_images(records, trained.class_names, "owner/model", revision)
    seen = []
    monkeypatch.setattr(plan, "check_revision", lambda *_: None)  # here the model is a folder
    monkeypatch.setattr(DAFusionConfig, "check_images", lambda self, *given: seen.append(given))
    expand.main([*arguments(digits_dir, "o", words, "--revision", "v2"), "--dry_run"])
    assert seen[0][3] == "v2"


def test_prompts_of_a_file_must_have_the_words(digits_dir, words, tmp_path):
    path, out = tmp_path / "prompts.json", tmp_path / "out"
    prompts = {str(i): [f"a <{i}>", f"a sketch of {i}"] for i in range(10)}
    path.write_text(json.dumps(prompts))
    message = refusal(digits_dir, out, words, "--prompts_file", path)
    assert "10 of 20 prompts lack the word of their class, such as 'a sketch of 0'" in message
    assert "write the words into them: <0>, <1>, " in message
    path.write_text(json.dumps({name: texts[:1] for name, texts in prompts.items()}))
    expand.main([*arguments(digits_dir, out, words, "--prompts_file", path), "--dry_run"])


def test_two_samplers_may_share_a_pipeline(words, tmp_path):
    copy = tmp_path / "words"
    shutil.copytree(words, copy)
    save_file({"<7>": torch.ones(1, 64)}, copy / "7.safetensors")
    pipeline = load_pipeline(str(TINY_MODEL))
    for folder in (words, copy, words):
        DAFusionSampler(pipeline, DAFusionConfig(embeddings=str(folder)))
        number = pipeline.tokenizer.convert_tokens_to_ids("<7>")
        row = pipeline.text_encoder.get_input_embeddings().weight[number]
        assert torch.equal(row, load_file(folder / "7.safetensors")["<7>"][0])
    for word in (pipeline.tokenizer.eos_token, "a"):
        with pytest.raises(InputError, match="has the word .* already; rename the class"):
            add_words(pipeline, {word: torch.ones(64)})


@pytest.mark.slow
def test_a_killed_expansion_goes_on_to_the_same_bytes(digits_dir, words, tmp_path, warm_processes):
    options = ("--strengths", 0.5, 1.0, "--batch_size", 4)
    once, killed = tmp_path / "once", tmp_path / "killed"
    assert not expand.main(arguments(digits_dir, once, words, *options))
    line = arguments(digits_dir, killed, words, *options)
    assert warm_processes.start(line, tmp_path / "log", die=(killed, 40, 0)).wait() == -9
    before = sorted(killed.glob("*/*.png"))
    assert 0 < len(before) < 20
    assert not expand.main(line)
    names = sorted(path.relative_to(once) for path in once.glob("*/*.png"))
    assert len(names) == 20
    assert all((once / n).read_bytes() == (killed / n).read_bytes() for n in names)
    assert rows_of(killed) == rows_of(once)


def test_strengths_are_checked_and_embeddings_asked_for(digits_dir, words, tmp_path):
    out = tmp_path / "out"
    assert "strengths: 1.5 is not" in refusal(digits_dir, out, words, "--strengths", 1.5)
    message = refusal(digits_dir, out, words, "--strength", 0.7, "--strengths", 0.5)
    assert "give only one of them" in message
    message = refusal(digits_dir, out, words, "--strengths", 0.1, 0.5)
    assert "0.1 of 4 steps leaves none to run" in message
    with pytest.raises(InputError, match="this method needs --embeddings, .* -m baselines.textual"):
        expand.main(["-d", "digits", "--data_dir", str(digits_dir), "--method", "da_fusion"])


def test_a_template_calls_the_classes_by_their_words(digits_dir, words, tmp_path, capsys):
    line = arguments(digits_dir, tmp_path / "out", words, "--prompt_template", "a sketch of {}")
    expand.main([*line, "--dry_run"])
    assert ": a sketch of <0>\n" in capsys.readouterr().out


def test_the_words_of_the_files_are_those_of_the_text_encoder(words):
    sampler = sampled(words)
    matrix = sampler.pipeline.text_encoder.get_input_embeddings().weight
    before = load_pipeline(str(TINY_MODEL)).text_encoder.get_input_embeddings().weight
    assert torch.equal(matrix[: len(before)], before)
    number = sampler.pipeline.tokenizer.convert_tokens_to_ids("<7>")
    assert torch.equal(matrix[number], load_file(words / "7.safetensors")["<7>"][0])
