"""Both trainings of embeddings: what changes, what is learnt, interruption, shards, cost."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from safetensors.torch import load_file

from baselines.diffusion_inversion import __main__ as diffusion_inversion
from baselines.diffusion_inversion.config import InversionTrainingConfig
from baselines.diffusion_inversion.trainer import InversionTrainer, cut_groups
from baselines.embeddings import training as embedding_training
from baselines.embeddings.command import make_work
from baselines.embeddings.sets import images_from_text
from baselines.embeddings.training import EmbeddingTrainer, Task, visits_of
from baselines.textual_inversion import __main__ as textual_inversion
from baselines.textual_inversion.config import TextualInversionConfig
from baselines.textual_inversion.trainer import WordTrainer, embedding_of
from expansion.common.errors import InputError
from expansion.data.datasets import few_shot, load_dataset
from expansion.data.prompts import preset_names
from expansion.diffusion.stable_diffusion import load_pipeline
from expansion.images.content import readable_records
from tests.conftest import ROOT, TINY_MODEL
from tests.rigs.warm_processes import environment

COMMANDS = {"textual_inversion": textual_inversion, "diffusion_inversion": diffusion_inversion}
SHORT = {
    "textual_inversion": "--max_train_steps 4 --train_batch_size 2",
    "diffusion_inversion": "--visits_per_image 4 --train_batch_size 1 --group_size 1",
}


@pytest.fixture(scope="module")
def records(digits_dir):
    chosen = few_shot(load_dataset("digits", digits_dir).records("train"), 2, 0)
    return readable_records(chosen, "fail")[0]


@pytest.fixture
def own_pipeline():
    return load_pipeline(str(TINY_MODEL))


def words_of(kind: str, digits_dir, folder, *options: object) -> list[str]:
    line = f"-d digits --data_dir {digits_dir} --shots 2 --output_dir {folder} --device cpu"
    line += f" --checkpointing_steps 3 {SHORT[kind]}"
    return [*line.split(), *map(str, options)]


def train(kind: str, digits_dir, folder, *options: object):
    COMMANDS[kind].main(words_of(kind, digits_dir, folder, *options))
    return folder


def files_of(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def interrupt(monkeypatch, at: int) -> None:
    """Ctrl-C in place of the `at`-th step of the process, counted from 0."""
    step, calls = EmbeddingTrainer._step, []

    def interrupted(self, *given):
        calls.append(1)
        if len(calls) > at:
            raise KeyboardInterrupt
        return step(self, *given)

    monkeypatch.setattr(EmbeddingTrainer, "_step", interrupted)


@pytest.mark.slow
@pytest.mark.parametrize("kind", COMMANDS)
def test_an_interrupted_training_and_one_in_shards_equal_an_undisturbed_one(
    kind, digits_dir, tmp_path, monkeypatch
):
    once = train(kind, digits_dir, tmp_path / "once")
    half = tmp_path / "half"
    steps = 4 if kind == "textual_inversion" else 8  # of a class
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, at=2 * steps + 3)
        train(kind, digits_dir, half)
    assert len(files_of(half)) == 2 and list(half.glob("unfinished/2/0.safetensors"))
    kept = {path.name: path.stat().st_mtime_ns for path in half.glob("*.safetensors")}
    done = []
    with monkeypatch.context() as patch:
        step = EmbeddingTrainer._step
        patch.setattr(EmbeddingTrainer, "_step", lambda *a: done.append(1) or step(*a))
        train(kind, digits_dir, half)
    assert len(done) == 8 * steps - 3  # the state after three steps counts
    assert all((half / name).stat().st_mtime_ns == time for name, time in kept.items())
    assert files_of(half) == files_of(once) and not (half / "unfinished").exists()
    parts = tmp_path / "parts"
    for split in (2, 0, 1):
        train(kind, digits_dir, parts, "--total_split", 3, "--split", split)
    assert files_of(parts) == files_of(once) and len(files_of(once)) == 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", COMMANDS)
def test_a_killed_process_is_continued_by_the_same_command(
    kind, digits_dir, tmp_path, warm_processes
):
    once = train(kind, digits_dir, tmp_path / "once")
    killed = tmp_path / "killed"
    words = words_of(kind, digits_dir, killed)
    code = f"from baselines.{kind}.__main__ import main; main()"
    process = warm_processes.start(words, tmp_path / "log", code, die=(killed, 60, 0))
    assert process.wait() == -9 and 0 < len(files_of(killed)) < 10
    done = subprocess.run(
        [sys.executable, "-m", f"baselines.{kind}", *words],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "10 of 10 classes" in done.stderr
    assert files_of(killed) == files_of(once)


def test_only_the_row_of_the_new_word_changes(own_pipeline, records, tmp_path):
    before = {k: v.clone() for k, v in own_pipeline.text_encoder.state_dict().items()}
    frozen = [*own_pipeline.unet.parameters(), *own_pipeline.vae.parameters()]
    copies = [parameter.clone() for parameter in frozen]
    config = TextualInversionConfig(output_dir="o", max_train_steps=3, random_flip=False)
    trainer = WordTrainer(own_pipeline, config, {"0": "0", "1": "1"})
    start = embedding_of(own_pipeline, "the")
    tensors, _, _ = trainer.train("1", records[2:4], tmp_path, lambda *_: None)
    assert list(tensors) == ["<1>"] and tensors["<1>"].shape == (1, 64)
    moved = (tensors["<1>"][0] - start).abs()
    assert 0.5 * 2e-3 < moved.max() < 4 * 2e-3  # three steps of AdamW at 5e-4 x 4
    after = own_pipeline.text_encoder.state_dict()
    for name, tensor in before.items():
        rows = after[name][: len(tensor)] if "token_embedding" in name else after[name]
        assert torch.equal(rows, tensor), name
    assert all(torch.equal(a, b) for a, b in zip(frozen, copies, strict=True))
    assert all(parameter.grad is None for parameter in frozen)


def test_the_row_in_training_acts_like_a_row_of_the_matrix(own_pipeline):
    config = TextualInversionConfig(output_dir="o")
    trainer = WordTrainer(own_pipeline, config, {"cat": "cat"})
    row = torch.randn(64, generator=torch.Generator().manual_seed(0)) / 50
    captions = trainer._tokens("<cat>")
    assert len(captions) == len(set(config.captions)) == 27
    ours = trainer._encode(captions, trainer.ids["cat"], row)
    plain = trainer._encode(captions, -1, row)
    with torch.no_grad():
        own_pipeline.text_encoder.get_input_embeddings().weight[trainer.ids["cat"]] = row
        theirs = own_pipeline.text_encoder(captions)[0]
    assert torch.equal(ours, theirs) and not torch.equal(ours, plain)


def mean_loss(trainer: EmbeddingTrainer, task: Task, embed, values: torch.Tensor) -> float:
    """Over 200 visits that the training has not seen."""
    other = Task("unseen", task.records, task.start, 200, 200, task.shuffled)
    with torch.no_grad():
        return trainer._errors(other, visits_of(other, 0, 9), embed, values).mean().item()


@pytest.mark.slow
def test_training_on_one_image_lowers_its_loss(own_pipeline, records, tmp_path):
    config = InversionTrainingConfig(output_dir="o", visits_per_image=150)
    inversion = InversionTrainer(own_pipeline, config)
    task = inversion._task("one", records[:1])
    tensors, facts, _ = inversion.train("0", records[:1], tmp_path, lambda *_: None)
    (values,) = tensors.values()
    losses = [
        mean_loss(inversion.trainer, task, lambda v, visits: v[[0] * len(visits)], embedding[None])
        for embedding in (task.start[0], values)
    ]
    assert losses[1] < 0.9 * losses[0]
    assert images_from_text(facts) == {records[0].file_name: (0, records[0].content)}


def test_a_visit_draws_the_same_in_any_batch_and_each_image_has_its_number_of_visits(records):
    tasks = [
        Task("t", records[:3], torch.zeros(1), 3 * 7, size, shuffled)
        for size in (1, 2, 21)
        for shuffled in (False, True)
    ]
    for task in tasks:
        visits = [v for step in range(task.steps) for v in visits_of(task, step, 0)]
        assert [v.seed for v in visits] == [visits_of(tasks[0], i, 0)[0].seed for i in range(21)]
        assert sorted(v.index for v in visits) == sorted([0, 1, 2] * 7)
    assert [v.index for v in visits_of(tasks[4], 0, 0)] == [0, 1, 2] * 7


def test_groups_are_of_nearly_equal_size_and_keep_the_order(records):
    groups = cut_groups(records[:7], 3)
    assert [len(group) for group in groups] == [2, 2, 3]
    assert [record for group in groups for record in group] == records[:7]


def test_parts_of_a_step_add_up_to_the_step(own_pipeline, records, tmp_path):
    made = []
    for parts in (1, 2):
        config = InversionTrainingConfig(
            output_dir="o", visits_per_image=2, gradient_accumulation_steps=parts
        )
        trainer = InversionTrainer(own_pipeline, config)
        tensors, _, _ = trainer.train("0", records[:2], tmp_path / str(parts), lambda *_: None)
        made.append(torch.stack(list(tensors.values())))
    torch.testing.assert_close(*made, atol=1e-4, rtol=0)


def short_of_memory(monkeypatch, largest: int) -> list[tuple[int, bool]]:
    """The U-Net takes `largest` rows, one more if it recomputes; returns what was tried."""
    tried: list[tuple[int, bool]] = []
    errors = embedding_training.squared_errors

    def limited(unet, scheduler, latents, *given):
        tried.append((len(latents), unet.is_gradient_checkpointing))
        if len(latents) > largest + unet.is_gradient_checkpointing:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return errors(unet, scheduler, latents, *given)

    monkeypatch.setattr(embedding_training, "squared_errors", limited)
    return tried


@pytest.mark.parametrize(
    ("largest", "first"),
    [(2, [(4, False), (2, False)]), (0, [(4, False), (2, False), (1, False), (1, True)])],
)
def test_a_shortage_of_memory_changes_a_training_by_rounding_only(
    largest, first, own_pipeline, records, tmp_path, monkeypatch, caplog
):
    config = InversionTrainingConfig(output_dir="o", visits_per_image=3)
    made = []
    for short in (False, True):
        tried = short_of_memory(monkeypatch, largest) if short else []
        trainer = InversionTrainer(own_pipeline, config)
        tensors, _, _ = trainer.train("0", records[:4], tmp_path / str(short), lambda *_: None)
        made.append(torch.stack(list(tensors.values())))
    torch.testing.assert_close(*made, atol=1e-4, rtol=0)
    assert tried[: len(first)] == first and set(tried[len(first) :]) == {first[-1]}
    assert "as if with --gradient_accumulation_steps" in caplog.text
    assert not own_pipeline.unet.is_gradient_checkpointing


def test_an_image_that_exceeds_the_memory_ends_in_one_line(
    own_pipeline, records, tmp_path, monkeypatch
):
    short_of_memory(monkeypatch, -1)
    trainer = InversionTrainer(own_pipeline, InversionTrainingConfig(output_dir="o"))
    with pytest.raises(InputError, match="gradient_accumulation_steps .* smaller --resolution"):
        trainer.train("0", records[:4], tmp_path, lambda *_: None)


def test_the_posteriors_that_are_kept_take_less_than_half_a_gigabyte():
    posterior = DiagonalGaussianDistribution(torch.zeros(1, 8, 64, 64))  # of 512 pixels
    tensors = [value for value in vars(posterior).values() if isinstance(value, torch.Tensor)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    size = sum(storages.values())
    assert 320e3 < size < 330e3  # as the comment says
    assert embedding_training.POSTERIORS_KEPT * size < 0.5e9


@pytest.mark.slow
@pytest.mark.parametrize("kind, rows", [("textual_inversion", 16), ("diffusion_inversion", 16)])
def test_the_cost_is_counted_and_told(kind, rows, digits_dir, tmp_path, monkeypatch, caplog):
    seen = []
    errors = embedding_training.squared_errors
    monkeypatch.setattr(
        embedding_training, "squared_errors", lambda *a: seen.append(len(a[2])) or errors(*a)
    )
    caplog.set_level("INFO")
    out = train(kind, digits_dir, tmp_path / "out", "--total_split", 5, "--split", 0)
    assert 2 * sum(seen) == 2 * rows  # two classes; a visit is a row forward and one backward
    cost = json.loads((out / "0.json").read_text())
    assert (cost["unet_rows"], cost["visits"], cost["images"]) == (rows, rows // 2, 2)
    assert cost["seconds"] > 0
    assert f"{2 * rows} U-Net rows for 2 classes, of which {2 * rows} for 2" in caplog.text
    assert f"{2 * rows} U-Net rows in" in caplog.text and "2 of 10 classes" in caplog.text


def test_wrong_input_ends_in_one_line_before_weights_load(digits_dir, tmp_path, monkeypatch):
    def refused(kind: str, *options: object) -> str:
        with pytest.raises(InputError) as caught:
            train(kind, digits_dir, tmp_path / "out", *options)
        return str(caught.value)

    monkeypatch.setattr("expansion.diffusion.stable_diffusion.load_pipeline", None)
    for kind in COMMANDS:
        assert "give a multiple of 4" in refused(kind, "--resolution", 30)
        assert "gradient_accumulation_steps 64" in refused(
            kind, "--gradient_accumulation_steps", 64
        )
    assert "write {} once" in refused("textual_inversion", "--templates", "a photo")
    assert "visits_per_image 0" in refused("diffusion_inversion", "--visits_per_image", 0)
    assert not (tmp_path / "out").exists()


def test_other_settings_do_not_go_on_in_a_folder_and_odd_words_are_refused(
    digits_dir, tmp_path, own_pipeline
):
    from tests.helpers.embeddings import stand_in_embeddings

    out = stand_in_embeddings(tmp_path / "out", "textual_inversion", digits_dir, "--shots", 2)
    with pytest.raises(InputError, match="max_train_steps: 1000 there, 4 now"):
        train("textual_inversion", digits_dir, out)
    with pytest.raises(InputError, match="initializer_token 'xyzzy' is .* tokens"):
        embedding_of(own_pipeline, "xyzzy")


def test_a_loss_that_is_no_number_stops_the_training(own_pipeline, records, tmp_path):
    config = InversionTrainingConfig(output_dir="o", visits_per_image=9, learning_rate=1e30)
    with pytest.raises(InputError, match="training has stopped: .* smaller --learning_rate"):
        InversionTrainer(own_pipeline, config).train("0", records[:1], tmp_path, lambda *_: None)


def test_a_hub_id_of_another_revision_is_another_training(digits_dir, tmp_path):
    def model_of(*options: str) -> str:
        line = ["--pretrained_model_name_or_path", "owner/model", "--resolution", "32", *options]
        words = words_of("textual_inversion", digits_dir, tmp_path / "out", *line)
        return make_work(textual_inversion.parse(words)[0]).identity["model"]

    assert model_of() == "owner/model@main" and model_of("--revision", "v2") == "owner/model@v2"


def test_the_captions_are_a_file_that_is_part_of_the_identity_and_no_preset(digits_dir, tmp_path):
    (config,) = textual_inversion.parse(["--output_dir", "o"])
    assert config.captions[0] == "a photo of a {}" and len(config.captions) == 27
    assert config.settings()["templates"] == list(config.captions)
    (config,) = textual_inversion.parse(["--output_dir", "o", "--templates", "the {}"])
    assert config.settings()["templates"] == ["the {}"]
    assert "textual_inversion" not in preset_names() and "bot" in preset_names()


def test_the_dataset_file_says_the_checkpoint_and_whether_images_may_be_mirrored():
    (config,) = textual_inversion.parse(["--output_dir", "o"])
    assert (config.random_flip, config.step_size) == (False, 4 * 5e-4)
    assert config.pretrained_model_name_or_path == "assets/tiny-sd-digit-styles"
    (config,) = textual_inversion.parse(["--output_dir", "o", "--random_flip", "--no-scale_lr"])
    assert (config.random_flip, config.step_size) == (True, 5e-4)


@pytest.mark.slow
def test_the_files_hold_what_the_classes_need(digits_dir, tmp_path, records):
    out = train("diffusion_inversion", digits_dir, tmp_path / "out")
    for record in records:
        tensors = load_file(out / f"{record.class_name}.safetensors")
        assert tensors[record.file_name].shape == (5, 64)
