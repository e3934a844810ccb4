"""Training of diffusion models: equations by hand, interruption, what runs leave on disk."""

from __future__ import annotations

import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler
from transformers import CLIPTokenizer

from dreamda.finetune import __main__ as finetune
from dreamda.finetune import report as finetune_report
from dreamda.finetune.config import FinetuneConfig, FromScratchConfig
from dreamda.finetune.from_scratch import build_pipeline, build_tokenizer, fold_latent_scale
from dreamda.finetune.report import TrainingLog, loss_chart, read_log, sample_grid
from dreamda.finetune.trainer import DiffusionTrainer, diffusion_losses, loss_weights
from expansion.common.errors import InputError
from expansion.data.datasets import few_shot, load_dataset
from expansion.diffusion.conditioning import Conditioning
from expansion.diffusion.stable_diffusion import load_pipeline
from tests.conftest import TINY_MODEL


def tuning(**options) -> FinetuneConfig:
    start = {"pretrained_model_name_or_path": "m", "output_dir": "o", "captions": ("a {}",)}
    return FinetuneConfig(**{**start, **options})


@pytest.fixture
def make_trainer(digits_dir):
    """Function that makes a trainer of the embedded checkpoint on two images per class."""
    dataset = load_dataset("digits", digits_dir)

    def make(**options) -> DiffusionTrainer:
        records = few_shot(dataset.records("train"), 2)
        pipeline = load_pipeline(str(TINY_MODEL))
        config = tuning(**{"random_flip": False, **options})
        return DiffusionTrainer(pipeline, records, dataset.prompt_names, config, Accelerator())

    return make


def batch(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    return images.clamp(-1, 1), torch.arange(count)


def gradients(trainer: DiffusionTrainer, *images: torch.Tensor) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients of the first step, before they are clipped."""
    found: list[torch.Tensor] = []

    def note(parameters, max_norm):
        found.extend(p.grad.clone() for p in parameters)

    trainer.accelerator.clip_grad_norm_ = note
    return trainer._step(0, *images), found


@pytest.mark.parametrize(
    ("options", "weights"),
    [  # a = 0.9, 0.5, 0.1: SNR = 9, 1, 1/9
        ({"p2_gamma": 1.0}, [0.1, 0.5, 0.9]),
        ({"p2_gamma": 0.5}, [0.316228, 0.707107, 0.948683]),
        ({"p2_gamma": 1.0, "p2_k": 2.0}, [1 / 11, 1 / 3, 9 / 19]),
        ({"p2_gamma": 0.0}, [1, 1, 1]),
        ({"p2_gamma": 0.0, "snr_gamma": 5.0}, [5 / 9, 1, 1]),
    ],
)
def test_loss_weights_are_those_of_p2_and_min_snr_for_noise_and_velocity(options, weights):
    a = torch.tensor([0.9, 0.5, 0.1])
    of_noise = loss_weights(a, tuning(**options), "epsilon")
    torch.testing.assert_close(of_noise, torch.tensor(weights).float())
    of_velocity = loss_weights(a, tuning(**options), "v_prediction")  # ||e||^2 = a ||v||^2
    torch.testing.assert_close(of_velocity, torch.tensor(weights).float() * a)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_loss_is_the_weighted_error_of_noise_or_velocity(prediction_type):
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    generator = torch.Generator().manual_seed(2)
    z, noise = (torch.randn(3, 4, 8, 8, generator=generator) for _ in range(2))
    t = torch.tensor([10, 500, 900])
    a = scheduler.alphas_cumprod[t].view(3, 1, 1, 1)

    def unet(noisy, timesteps, encoder_hidden_states):
        torch.testing.assert_close(noisy, a.sqrt() * z + (1 - a).sqrt() * noise)
        assert timesteps is t
        return SimpleNamespace(sample=torch.full_like(noisy, 0.5))

    weights = torch.linspace(0, 1, 1000)
    losses = diffusion_losses(unet, scheduler, weights, z, Conditioning(torch.empty(0)), noise, t)
    target = noise if prediction_type == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * z
    expected = t / 999 * (target - 0.5).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses, expected)


def test_a_training_step_minimises_the_p2_weighted_error_unless_told_otherwise(make_trainer):
    trainer, seen = make_trainer(train_batch_size=4), {}
    add_noise = trainer.scheduler.add_noise

    def note(latents, noise, timesteps):
        seen.update(noise=noise, t=timesteps)
        return add_noise(latents, noise, timesteps)

    trainer.scheduler.add_noise = note
    trainer.unet.register_forward_hook(lambda *call: seen.update(prediction=call[2].sample))
    loss = trainer._step(0, *batch(4))
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    a_t = (1 - betas).cumprod(0)[seen["t"]]
    errors = (seen["noise"] - seen["prediction"]).square().mean(dim=(1, 2, 3))
    assert len(set(seen["t"].tolist())) == 4 and a_t.std() > 0.1
    assert loss == pytest.approx(((1 - a_t) * errors).mean().item(), rel=1e-4)  # k = gamma = 1


def test_defaults_are_full_fine_tuning_as_in_choi_et_al():
    config = tuning()
    assert (config.p2_gamma, config.p2_k, config.snr_gamma) == (1, 1, None)
    assert (config.learning_rate, config.train_batch_size, config.caption_dropout) == (1e-5, 8, 0.1)
    assert not (config.use_ema or config.lora_rank or config.train_text_encoder)
    assert config.random_flip and config.gradient_accumulation_steps == 1


def test_images_that_classifiers_do_not_mirror_are_not_mirrored_unless_told_otherwise(tmp_path):
    start = ["--pretrained_model_name_or_path", "m", "--output_dir", "o"]

    def mirrors(*options: str) -> bool:
        return finetune.parse([*start, *options])[0].random_flip

    assert not mirrors("-d", "digits") and mirrors("-d", "digits", "--random_flip")
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    photos = ["-d", str(tmp_path / "photos")]
    assert mirrors(*photos) and not mirrors(*photos, "--no-random_flip")


@pytest.mark.slow
@pytest.mark.parametrize("num_parts", [3, 5])
def test_a_step_in_parts_has_the_gradient_of_the_whole_step(make_trainer, num_parts):
    loss, whole = gradients(make_trainer(train_batch_size=5), *batch(5))
    trainer, sizes = make_trainer(train_batch_size=5, gradient_accumulation_steps=num_parts), []
    trainer.unet.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    loss_of_parts, summed = gradients(trainer, *batch(5))
    assert sizes == ([2, 2, 1] if num_parts == 3 else [1] * 5)
    assert loss_of_parts == pytest.approx(loss, rel=1e-5)
    for ours, theirs in zip(summed, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


class AsProcess:
    """An accelerator that believes to be one process of several."""

    def __init__(self, accelerator: Accelerator, process_index: int, num_processes: int):
        self.accelerator = accelerator
        self.process_index, self.num_processes = process_index, num_processes

    def __getattr__(self, name: str):
        return getattr(self.accelerator, name)


@pytest.mark.slow
def test_two_processes_have_together_the_gradient_of_one(make_trainer):
    images, labels = batch(5)
    loss, alone = gradients(make_trainer(train_batch_size=5, caption_dropout=0.5), images, labels)
    found = []
    for index in range(2):
        trainer = make_trainer(train_batch_size=5, caption_dropout=0.5)
        trainer.accelerator = AsProcess(trainer.accelerator, index, 2)
        found.append(gradients(trainer, images[index::2], labels[index::2]))
    assert sum(share for share, _ in found) / 2 == pytest.approx(loss, rel=1e-5)
    for expected, *shares in zip(alone, *(share for _, share in found), strict=True):
        torch.testing.assert_close(sum(shares) / 2, expected, rtol=1e-3, atol=1e-6)


def test_processes_exchange_gradients_once_per_step(make_trainer):
    trainer = make_trainer(train_batch_size=3, gradient_accumulation_steps=3)
    silent, networks, exchanged = [], [], []

    @contextmanager
    def no_sync(network):
        silent.append(network)
        networks.append(network)
        yield
        silent.pop()

    trainer.accelerator.no_sync = no_sync
    trainer.unet.register_forward_hook(lambda *_: exchanged.append(not silent))
    trainer._step(0, *batch(3))
    assert exchanged == [False, False, True]
    assert networks == [trainer.unet, *trainer.text_encoders] * 2


def test_sampling_uses_averaged_weights_in_eval_mode_and_leaves_no_trace(make_trainer):
    trainer = make_trainer(train_batch_size=2, use_ema=True, learning_rate=1e-2)
    for step in range(2):
        trainer._step(step, *batch(2))
    before, state = [p.clone() for p in trainer.trained], torch.get_rng_state()
    averaged = [p.clone() for p in trainer.ema.shadow_params]
    assert not all(map(torch.equal, before, averaged))
    with trainer.sampling():
        torch.rand(1)
        assert all(map(torch.equal, trainer.trained, averaged)) and not trainer.unet.training
    assert all(map(torch.equal, trainer.trained, before)) and trainer.unet.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, trainer.ema.shadow_params, averaged))


@pytest.mark.slow
def test_after_training_the_averaged_weights_remain(make_trainer, tmp_path):
    trainer = make_trainer(train_batch_size=2, use_ema=True, learning_rate=1e-2, max_train_steps=2)
    latest = []

    def note(step: int, loss: float, learning_rate: float) -> None:
        latest[:] = [p.clone() for p in trainer.trained]

    trainer.train(tmp_path / "state", 0, note)
    assert all(map(torch.equal, trainer.trained, trainer.ema.shadow_params))
    assert not all(map(torch.equal, trainer.trained, latest)) and not trainer.unet.training


@pytest.mark.slow
def test_a_grid_has_six_samples_per_class_and_is_the_same_each_time(pipeline, monkeypatch):
    monkeypatch.setattr(finetune_report, "SAMPLING_STEPS", 1)
    shapes, scheduler = [], pipeline.scheduler
    hook = pipeline.unet.register_forward_pre_hook(lambda _, x: shapes.append(x[0].shape))
    config = tuning(sample_guidance_scale=3.0)
    first, again = (sample_grid(pipeline, ["one", "two"], config, 48) for _ in range(2))
    hook.remove()
    assert first.tobytes() == again.tobytes() and pipeline.scheduler is scheduler
    side = 48 // pipeline.vae_scale_factor
    assert shapes == [(2 * 6, 4, side, side)] * 4  # without and with the caption
    cells = [first.crop((154 + 100 * j, 4, 250 + 100 * j, 100)).tobytes() for j in range(6)]
    assert len(set(cells)) == 6


def test_the_log_goes_on_after_the_resumed_step(tmp_path):
    path = tmp_path / "log.jsonl"
    log = TrainingLog(path, 0)
    for step in (1, 2, 3):
        log.add(step, step / 10, 1e-4)
    with path.open("a") as torn:
        torn.write('{"step": 4, "lo')
    log = TrainingLog(path, 2)
    log.add(3, 0.7, 1e-5)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == log.rows == read_log(path)
    found = [(row["step"], row["loss"], row["learning_rate"]) for row in rows]
    assert found == [(1, 0.1, 1e-4), (2, 0.2, 1e-4), (3, 0.7, 1e-5)]
    assert log.seconds == pytest.approx(sum(row["seconds"] for row in rows))


def test_the_chart_shows_every_step_and_means_of_25(monkeypatch):
    monkeypatch.setattr(finetune_report, "line_charts", lambda charts, _: charts["training loss"])
    curves = loss_chart([{"step": i, "loss": float(i % 2)} for i in range(1, 51)])
    assert curves["each step"] == [(i, i % 2) for i in range(1, 51)]
    assert curves["mean of 25"] == [(13, 13 / 25), (38, 12 / 25)]


@pytest.mark.slow
def test_a_state_that_a_killed_run_half_wrote_is_not_resumed_and_a_whole_one_is(
    make_trainer, tmp_path
):
    state, partial = tmp_path / "state", tmp_path / "state.partial"
    make_trainer()._save_state(state, 3)
    partial.mkdir()  # killed while it saved the next one
    assert make_trainer().resume(state) == 3
    partial.rmdir()
    state.rename(
        partial
    )  # killed after it removed the old state, before the new one took its place
    state.mkdir()
    assert make_trainer().resume(state) == 3
    assert not partial.exists()
    assert make_trainer().resume(tmp_path / "elsewhere") == 0


@pytest.fixture
def any_precision():
    """Accelerate keeps the precision of a process's first accelerator."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.mark.slow
def test_bfloat16_is_used_in_the_networks_and_not_in_the_loss(make_trainer, any_precision):
    full = make_trainer(train_batch_size=2)._step(0, *batch(2))
    AcceleratorState._reset_state(True)
    Accelerator(mixed_precision="bf16")
    trainer, seen = make_trainer(train_batch_size=2), []
    trainer.pipeline.unet.conv_in.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    half = trainer._step(0, *batch(2))
    assert seen == [torch.bfloat16] and half != full and half == pytest.approx(full, rel=0.05)
    assert {p.dtype for p in trainer.trained} == {torch.float32}


ATTENTION_MAPS = 2 * 4  # self- and cross-attention: queries, keys, values, output


def test_only_adapters_are_trained_and_at_first_they_change_nothing(make_trainer, pipeline):
    pytest.importorskip("peft")
    trainer = make_trainer(train_batch_size=2, lora_rank=2)
    unet = trainer.pipeline.unet
    maps = [m for name, m in pipeline.unet.named_modules() if name.endswith(TARGETS)]
    assert maps and len(maps) % ATTENTION_MAPS == 0
    sizes = sum(2 * (m.in_features + m.out_features) for m in maps)
    assert sum(p.numel() for p in trainer.trained) == sizes  # A: 2 x in, B: out x 2
    inputs = torch.ones(1, 4, 8, 8), 7, torch.ones(1, 77, unet.config.cross_attention_dim)
    with torch.no_grad():
        torch.testing.assert_close(unet(*inputs).sample, pipeline.unet(*inputs).sample)
    frozen = {name: p.clone() for name, p in unet.named_parameters() if not p.requires_grad}
    trainer._step(0, *batch(2))
    after = dict(unet.named_parameters())
    assert frozen and all(torch.equal(value, after[name]) for name, value in frozen.items())
    again = make_trainer(lora_rank=2).trained
    assert all(map(torch.equal, again[::2], make_trainer(lora_rank=2).trained[::2]))
    assert not torch.equal(again[0], make_trainer(lora_rank=2, seed=1).trained[0])


TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


def test_a_resolution_that_the_autoencoder_cannot_halve_is_refused(make_trainer):
    with pytest.raises(InputError, match="resolution 30: give a multiple of 4"):
        make_trainer(resolution=30)


def test_folding_standardises_latents_and_keeps_reconstructions():
    config = FromScratchConfig(unet_block_out_channels=(16, 16), vae_block_out_channels=(16, 16))
    vae = build_pipeline(config, 16, ["a cat"], seed=0).vae.eval()
    images = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        old = vae.encode(images).latent_dist
        decoded = vae.decode(old.mean).sample
        std = old.mean.std(dim=(0, 2, 3))
        fold_latent_scale(vae, old.mean.mean(dim=(0, 2, 3)), std)
        new = vae.encode(images).latent_dist
        torch.testing.assert_close(vae.decode(new.mean).sample, decoded, atol=1e-4, rtol=1e-4)
    scaled = new.mean * 0.18215
    torch.testing.assert_close(scaled.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
    expected = old.std / std.view(4, 1, 1)
    torch.testing.assert_close(new.std * 0.18215, expected, atol=1e-4, rtol=1e-4)


def test_a_built_tokenizer_gives_texts_back_also_after_saving(tmp_path):
    captions = ["a photo of the digit zero", "a picture of the digit one"] * 20
    tokenizer = build_tokenizer(captions, 560)
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    for text in (
        "a photo of the digit one",
        "digit zero, one",
        "an unseen word: \u00e9t\u00e9",
        "",
    ):
        ids = tokenizer(text).input_ids
        assert loaded(text).input_ids == ids and max(ids) < len(tokenizer)
        assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert loaded.decode(ids[1:-1]).replace(" ", "") == text.replace(" ", "")
    padded = loaded("a photo", padding="max_length", truncation=True).input_ids
    assert len(padded) == loaded.model_max_length == 77
    assert len(tokenizer("photo of the digit").input_ids) == 2 + 4  # one token per learnt word
