"""python -m dreamda.prompts --preset: the methods' own lists, and sentences by a keyword model."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

import expand
from dreamda.prompts import __main__ as writer
from dreamda.prompts import language_model, word_lists
from dreamda.prompts.config import PromptsConfig
from dreamda.prompts.sentences import class_sentences
from expansion.common.errors import InputError
from expansion.data.datasets import load_dataset

WORDS = ("<pad>", "</s>", "ant", "bee", "fly", "on", "a", "leaf", "in", "grass")


@pytest.fixture
def dataset(make_folder):
    """Two classes, "ant" and "bee_fly"."""
    tree = {split: {"ant": ["1.png"], "bee_fly": ["1.png"]} for split in ("train", "test")}
    return load_dataset(str(make_folder("photos", tree)))


@pytest.fixture(scope="module")
def keyword_dir(tmp_path_factory) -> Path:
    """A random T5 of ten tokens, whose sentences end soon."""
    tokenizer = Tokenizer(models.WordLevel(dict(zip(WORDS, range(10), strict=True)), "a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 1)])
    folder = tmp_path_factory.mktemp("keywords")
    special = {"pad_token": "<pad>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    size = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    ids = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = T5ForConditionalGeneration(T5Config(vocab_size=len(WORDS), **size, **ids))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def causal_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("causal")
    GPT2LMHeadModel(
        GPT2Config(vocab_size=8, n_positions=8, n_embd=4, n_layer=1, n_head=1)
    ).save_pretrained(folder)
    return folder


def lecf(model: Path, **values: object) -> PromptsConfig:
    plain = {"preset": "lecf", "model": str(model), "device": "cpu", "max_new_tokens": 20}
    return PromptsConfig(**{**plain, "num_prompts": 12, **values})


def written(dataset, path: Path, *options: object) -> dict[str, list[str]]:
    writer.main(["-d", str(dataset.root), "--output", str(path), *map(str, options)])
    return json.loads(path.read_text())


def refusal(dataset, path: Path, *options: object) -> str:
    with pytest.raises(InputError) as error:
        written(dataset, path, *options)
    assert "\n" not in str(error.value) and not path.exists()
    return str(error.value)


@pytest.mark.parametrize(
    ("preset", "number", "text"),
    [
        ("bot", 30, "a stick figure of a bee fly"),
        ("gif", 50, "an oil painting of dark bee fly"),
        ("lecf", 40, "a photo of a bee fly behind a fence."),
    ],
)
def test_a_preset_gives_each_class_the_whole_list(preset, number, text, dataset, tmp_path):
    found = written(dataset, tmp_path / "p.json", "--preset", preset)
    assert list(found) == ["ant", "bee_fly"] and text in found["bee_fly"]
    assert [len(texts) for texts in found.values()] == [number, number]
    assert all("bee fly" in text for text in found["bee_fly"])


@pytest.mark.parametrize("preset", ["bot", "lecf"])
def test_the_file_of_a_preset_is_what_its_method_uses_by_itself(preset, digits_dir, tmp_path):
    line = f"-d digits --data_dir {digits_dir} --output {tmp_path}/p.json --preset {preset}"
    writer.main(line.split())
    method = f"-d digits --data_dir {digits_dir} --method {preset} --shots 1 --device cpu"
    of_file = f"{method} --prompts_file {tmp_path}/p.json --prompt_per variant"
    own, given = (
        expand.make_plan(*expand.parse(words.split())[:2]).prompts for words in (method, of_file)
    )
    assert [list(each) for each in own.by_label] == [list(each) for each in given.by_label]
    assert own.fingerprint() == given.fingerprint()


def test_the_sentences_of_the_lecf_preset_are_photos_and_all_different(dataset, tmp_path):
    texts = written(dataset, tmp_path / "p.json", "--preset", "lecf")["ant"]
    assert len(set(texts)) == len(texts) and 30 <= len(texts) <= 50
    assert all(text.startswith("a photo of ") for text in texts)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--preset boot", ["unknown preset 'boot'", "known: bot, gif", "lecf"]),
        ("--preset bot --pattern {subject}", ["--preset bot", "leave out --pattern"]),
        ("--preset bot --scenes a b --lights c", ["leave out --scenes, --lights"]),
        ("--preset lecf --model m --request {class}", ["leave out --request"]),
        ("--preset bot --num_prompts 3", ["--num_prompts", "preset bot", "leave it out"]),
        ("--preset gif --model m", ["--preset gif takes no --model; lecf alone does"]),
        ("--preset lecf --model ./no", ["./no", "does not exist"]),
        ("--preset lecf --model .", ["language model .", "encoder-decoder", "safetensors"]),
    ],
)
def test_what_does_not_go_with_a_preset_is_named_in_one_line(
    options, words, dataset, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    message = refusal(dataset, tmp_path / "p.json", *options.split())
    assert all(word in message for word in words), message


def test_the_two_kinds_of_models_are_told_apart_by_their_config(
    keyword_dir, causal_dir, dataset, tmp_path
):
    path = tmp_path / "p.json"
    message = refusal(dataset, path, "--model", keyword_dir)
    assert "is an encoder-decoder" in message and message.endswith("give --preset lecf with it")
    message = refusal(dataset, path, "--model", causal_dir, "--preset", "lecf")
    assert "no encoder-decoder" in message and "leave out --preset lecf" in message


def test_a_pattern_may_name_the_class_itself():
    config = PromptsConfig(num_prompts=2, pattern="a {medium} of {class}", media=("sketch", "film"))
    texts = word_lists.word_list_prompts(config, "bee_fly", "bee {fly}", "a photo of a bee fly.")
    assert sorted(texts) == ["a film of bee {fly}", "a sketch of bee {fly}"]


def test_sentences_are_kept_once_with_the_prefix_until_there_are_enough():
    asked = []
    rounds = [["An  ant sits.", "an ant SITS.", "", "A leaf."], ["A leaf.", "Ants.", "Two.", "x"]]

    def sample(keyword: str, number: int, seed: int) -> list[str]:
        asked.append((keyword, number, seed))
        return rounds[len(asked) - 1]

    config = PromptsConfig(preset="lecf", model="m", num_prompts=4)
    texts, dropped = class_sentences(sample, config, "ant_1", "ant")
    assert texts == [f"a photo of {text}" for text in ("An ant sits.", "A leaf.", "Ants.", "Two.")]
    assert dropped == {"repeated": 2, "empty or cut off": 1}
    assert [each[:2] for each in asked] == [("ant", 5), ("ant", 5)] and asked[0] != asked[1]


def test_a_class_without_a_sentence_is_refused():
    config = PromptsConfig(preset="lecf", model="m", max_requests=3)
    with pytest.raises(InputError, match="m gave no whole sentence for class ant; give another"):
        class_sentences(lambda *_: [""], config, "ant", "ant")


def test_equal_seeds_give_equal_sentences_and_leave_the_generators_alone(keyword_dir):
    sample = language_model.load_keyword_model(lecf(keyword_dir))
    before = torch.get_rng_state()
    first, again, other = (sample("ant", 60, seed) for seed in (0, 0, 1))
    assert first == again != other and len(first) == 60
    assert torch.equal(torch.get_rng_state(), before)
    assert set(" ".join(first).split()) <= set(WORDS[2:])


def test_the_keyword_reaches_the_model_and_a_sentence_without_an_end_is_dropped(
    keyword_dir, monkeypatch
):
    sample = language_model.load_keyword_model(lecf(keyword_dir))
    seen = []

    def generate(input_ids, num_return_sequences, **options):
        seen.append((sample.tokenizer.decode(input_ids[0]), options["max_new_tokens"]))
        return torch.tensor([[0, 6, 2, 1], [0, 6, 3, 5]])[:num_return_sequences]

    monkeypatch.setattr(sample.model, "generate", generate)
    assert sample("bee fly", 2, 0) == ["a ant", ""] and seen == [("bee fly </s>", 20)]


def test_a_keyword_model_writes_the_file_and_the_log_counts_sentences_without_the_class(
    keyword_dir, dataset, tmp_path, caplog
):
    options = ("--preset", "lecf", "--model", keyword_dir, "--device", "cpu", "--num_prompts", 6)
    with caplog.at_level(logging.INFO):
        found = written(dataset, tmp_path / "one.json", *options)
    assert found == written(dataset, tmp_path / "two.json", *options)
    texts = [text for own in found.values() for text in own]
    assert [len(set(own)) for own in found.values()] == [6, 6]
    assert all(text.startswith("a photo of ") for text in texts)
    named = sum("ant" in text for text in found["ant"])
    named += sum("bee fly" in text for text in found["bee_fly"])
    assert named < 12 and f"kept without the class name: {12 - named} of 12" in caplog.text
    assert "6 prompts for each of 2 classes" in caplog.text


def test_too_few_different_sentences_are_announced(keyword_dir, dataset, tmp_path, caplog):
    options = ("--preset", "lecf", "--model", keyword_dir, "--device", "cpu")
    found = written(
        dataset, tmp_path / "p.json", *options, "--num_prompts", 40, "--max_new_tokens", 2
    )
    assert 0 < len(found["ant"]) < 40
    assert (
        f"gave fewer than 40 different sentences for 2 of 2 classes: ant {len(found['ant'])}"
        in (caplog.text)
    )


def test_with_a_keyword_model_the_numbers_are_lecfs():
    line = "--preset lecf --model m --output p.json".split()
    config = writer.parse(line)
    assert (config.num_prompts, config.top_p, config.pattern) == (200, 1.0, "")
    assert writer.parse([*line, "--num_prompts", "7"]).num_prompts == 7
    assert writer.parse(["--output", "p.json"]).num_prompts == 100
