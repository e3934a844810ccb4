"""CLIP's labels, with transformers as oracle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPModel,
    CLIPProcessor,
)

import train_expand
from baselines.labels import clip_labels
from expansion.classifier.clip import ClipClassifier
from expansion.common.config import load_yaml
from expansion.common.errors import InputError
from expansion.images.records import ImageRecord
from expansion.images.tensors import to_unit_tensor
from expansion.training.trainer import Trainer
from tests.helpers.noise_runs import CLASSES, checkpoint, interrupt, noise_image, records, train

TEMPLATES = ("a photo of a {}.",)


def reference(clip_dir: Path, images: list[Image.Image], texts: list[str]) -> torch.Tensor:
    """Probabilities by transformers alone."""
    model, processor = CLIPModel.from_pretrained(clip_dir), CLIPProcessor.from_pretrained(clip_dir)
    inputs = processor(text=texts, images=images, return_tensors="pt", padding=True)
    with torch.no_grad():
        return model(**inputs).logits_per_image.softmax(dim=1)


def test_probabilities_are_those_of_transformers(clip_dir, dataset, tmp_path):
    clip = ClipClassifier.load(str(clip_dir), ("ant", "bee", "sea cat"), TEMPLATES)
    texts = ["a photo of a ant.", "a photo of a bee.", "a photo of a sea cat."]
    for number, size in enumerate([(36, 36), (20, 60), (16, 16)]):  # also cropped, also as it is
        noise_image(tmp_path / f"{number}.png", number, size)
    found = [ImageRecord(tmp_path / f"{i}.png", f"{i}.png", 0, "ant") for i in range(3)]
    expected = reference(clip_dir, [record.load() for record in found], texts)
    assert expected.std(dim=0).max() > 0.01 and expected.max() < 0.99  # no two rows alike
    assert torch.allclose(clip.predict(found), expected, atol=1e-6)
    assert torch.allclose(clip.predict(found, batch_size=2, workers=1), expected, atol=1e-6)
    exact = to_unit_tensor(found[2].load())[None]
    assert torch.allclose(clip.probabilities(exact), expected[2:], atol=1e-6)
    resized = to_unit_tensor(found[0].load())[None]  # only not rounded to 8 bits between
    assert torch.allclose(clip.probabilities(resized), expected[:1], atol=0.01)


def test_image_features_have_unit_length_and_a_gradient(clip_dir):
    clip = ClipClassifier.load(str(clip_dir), CLASSES, TEMPLATES)
    images = torch.rand(2, 3, 20, 20, requires_grad=True)
    features = clip.image_features(images)
    assert features.shape == (2, 8) and torch.allclose(features.norm(dim=1), torch.ones(2))
    clip.probabilities(images)[:, 0].sum().backward()
    assert images.grad.abs().amax(dim=(1, 2, 3)).min() > 0
    assert not any(parameter.requires_grad for parameter in clip.model.parameters())
    assert not clip.model.training


def test_several_templates_are_averaged_as_unit_vectors(clip_dir):
    names, templates = ("ant", "bee"), ("a photo of a {}.", "{}")
    clip = ClipClassifier.load(str(clip_dir), names, templates)
    for i, name in enumerate(names):
        parts = [ClipClassifier.load(str(clip_dir), [name], [t]).text_features for t in templates]
        total = sum(parts)[0]
        assert torch.allclose(clip.text_features[i], total / total.norm(), atol=1e-6)
    assert not torch.allclose(*parts, atol=0.01)


def test_a_clip_that_cannot_be_loaded_is_one_line_with_a_remedy(clip_dir, tmp_path):
    def message(name: str) -> str:
        with pytest.raises(InputError) as error:
            ClipClassifier.load(name, CLASSES, TEMPLATES)
        assert "\n" not in str(error.value)
        assert str(error.value).endswith("or give a local folder by --clip_model")
        return str(error.value)

    assert "hf download openai/clip-vit-base-patch32" in message("nobody/no-such-clip")
    copy = tmp_path / "copy"
    for broken in ("model.safetensors", "tokenizer.json", "preprocessor_config.json"):
        copy.mkdir()
        for file in clip_dir.iterdir():
            if file.name != broken:
                (copy / file.name).write_bytes(file.read_bytes())
        assert str(copy) in message(str(copy)), broken
        copy.rename(tmp_path / broken)
    (tmp_path / "tokenizer.json" / "model.safetensors").write_bytes(b"damaged")
    message(str(tmp_path / "tokenizer.json"))


def test_weights_are_taken_from_safetensors_only(clip_dir, tmp_path):
    for file in clip_dir.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    state = CLIPModel.from_pretrained(clip_dir).state_dict()
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert CLIPModel.from_pretrained(tmp_path, use_safetensors=False)  # a whole checkpoint else
    with pytest.raises(InputError, match="cannot load the CLIP model"):
        ClipClassifier.load(str(tmp_path), CLASSES, TEMPLATES)


def test_a_clip_with_parts_missing_is_refused(clip_dir, tmp_path):
    model = CLIPModel.from_pretrained(clip_dir)
    state = {k: v for k, v in model.state_dict().items() if k != "visual_projection.weight"}
    for file in clip_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(InputError, match="it lacks visual_projection.weight"):
        ClipClassifier.load(str(tmp_path), CLASSES, TEMPLATES)


CLIP = ("--labels", "clip", "--clip_model")


@pytest.mark.slow
def test_generated_images_are_learnt_under_clips_labels(dataset, clip_dir, tmp_path, monkeypatch):
    seen, build = {}, Trainer.__init__

    def note(self, run, objective):
        seen["records"] = objective.records
        build(self, run, objective)

    monkeypatch.setattr(Trainer, "__init__", note)
    run_dir = train(dataset, tmp_path, *CLIP, clip_dir, "--label_noise", 0.5)
    generated = records(dataset).generated
    texts = ["a photo of a ant.", "a photo of a bee.", "a photo of a sea cat."]
    expected = reference(clip_dir, [record.load() for record in generated], texts)
    labels = expected.argmax(dim=1).tolist()
    assert len(set(labels)) > 1 and labels != [r.label for r in generated]
    rows = [json.loads(line) for line in (run_dir / "clip_labels.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == [r.file_name for r in generated]
    assert [row["clip_label"] for row in rows] == labels
    assert [row["true_label"] for row in rows] == [0, 0, 0, 1, 1, 1]
    seeds = [row["seed_label"] for row in rows]
    assert sum(map(int.__ne__, seeds, [0, 0, 0, 1, 1, 1])) == 3
    probabilities = [row["probability"] for row in rows]
    assert probabilities == pytest.approx(expected.amax(dim=1).tolist(), abs=2e-6)
    trained = [(r.label, r.class_name) for r in seen["records"]]
    assert trained[9:] == [(label, CLASSES[label]) for label in labels]
    assert [label for label, _ in trained[:9]] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    values = load_yaml(run_dir / "results.yaml").values
    hits = {"label_agreement": seeds, "label_accuracy": [0, 0, 0, 1, 1, 1]}
    for key, truth in hits.items():
        share = 100 * np.mean(np.array(labels) == np.array(truth))
        assert values[key] == pytest.approx(share, abs=0.01)
    assert values["steps"] == 8 and values["learning"]["clip_model"] == str(clip_dir)


@pytest.mark.slow
def test_a_stopped_run_keeps_clips_labels(dataset, clip_dir, tmp_path, monkeypatch):
    whole = checkpoint(train(dataset, tmp_path / "whole", *CLIP, clip_dir))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, 3)
        train(dataset, tmp_path / "stopped", *CLIP, clip_dir)
    monkeypatch.setattr(clip_labels, "ClipClassifier", None)  # cannot be asked again
    ours = checkpoint(train(dataset, tmp_path / "stopped", *CLIP, clip_dir))
    assert ours["history"] == whole["history"]


def test_without_a_model_clip_labels_end_in_a_message_before_training(
    dataset, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(Trainer, "__init__", None)
    with pytest.raises(InputError, match="cannot load the CLIP model .*--clip_model"):
        train(dataset, tmp_path, *CLIP, tmp_path / "absent")
    assert not list(tmp_path.rglob("clip_labels.jsonl"))
    monkeypatch.setattr(ClipClassifier, "load", None)
    train_expand.main(
        [*f"-d {dataset} --expanded_dir {dataset.parent / 'set'}".split(), "--labels", "clip"]
        + ["--dry_run", "--checkpoint_dir", str(tmp_path / "none")]
    )
    assert "clip_model: openai/clip-vit-base-patch32" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("template", ["a photo", "{} and {}"])
def test_a_template_without_a_place_for_the_class_is_refused(dataset, tmp_path, template):
    with pytest.raises(InputError, match="write {} once"):
        train(dataset, tmp_path, "--labels", "clip", "--clip_templates", "{}", template)
