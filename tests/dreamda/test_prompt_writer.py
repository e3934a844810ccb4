"""python -m dreamda.prompts: word lists, messy answers of language models, the file written."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import expand
from dreamda.prompts import __main__ as writer
from dreamda.prompts import language_model, word_lists
from dreamda.prompts.answers import ask_for_prompts, parse_answer
from dreamda.prompts.config import PromptsConfig
from expansion.common.errors import InputError
from expansion.data.datasets import load_dataset
from tests.helpers.prompt_files import write

# python -m dreamda.prompts


@pytest.fixture
def dataset(make_folder):
    """Two classes, "ant" and "bee_fly"."""
    tree = {split: {"ant": ["1.png"], "bee_fly": ["1.png"]} for split in ("train", "test")}
    return load_dataset(str(make_folder("photos", tree)))


@pytest.fixture
def short() -> PromptsConfig:
    """Word lists of 2 x 3 words."""
    return PromptsConfig(
        num_prompts=6,
        pattern="{subject}, {viewpoint}, {scene}",
        scenes=("here", "there"),
        viewpoints=("near", "far", "halfway"),
        request="{num} of {class}, {min_words} words",
        min_words=3,
        max_requests=3,
    )


def changed(config: PromptsConfig, **values: object) -> PromptsConfig:
    return PromptsConfig(**{**vars(config), **values})


def test_word_lists_give_every_combination_once_without_the_period(short, dataset):
    texts = word_lists.combine_words(short, dataset)["bee_fly"]
    subject = "a photo of a bee fly"
    expected = {
        f"{subject}, {v}, {s}" for v in ("near", "far", "halfway") for s in ("here", "there")
    }
    assert len(texts) == 6 and set(texts) == expected


def test_combinations_depend_on_seed_and_class_alone(short):
    def order(class_name: str, **values: object) -> list[str]:
        return word_lists.word_list_prompts(changed(short, **values), class_name, class_name, "x.")

    assert order("ant") == order("ant")
    assert order("ant", seed=1) != order("ant") != order("bee")
    assert sorted(order("ant")) == sorted(order("ant", seed=1))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_prompts": 7}, ["num_prompts 7", "only 6", "scenes"]),
        ({"scenes": ("here", "Here")}, ["num_prompts 6", "only 3"]),
        ({"scenes": ()}, ["only 0"]),
        ({"pattern": "{scene}"}, ["pattern '{scene}'", "{subject}"]),
        ({"pattern": "{subject} {sceen}"}, ["pattern", "{sceen}", "{scene}"]),
    ],
)
def test_word_lists_that_do_not_suffice_are_named(values, words, short):
    with pytest.raises(InputError) as error:
        word_lists.word_list_prompts(changed(short, **values), "ant", "ant", "an ant")
    assert all(word in str(error.value) for word in words), error.value


def test_braces_in_a_class_name_are_no_placeholder():
    assert word_lists.fill("{a}, {b}", {"a": "{b}", "b": "x"}, "pattern") == "{b}, x"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("1. An ant on a leaf\n2. Two ants", ["An ant on a leaf", "Two ants"]),
        ("1) An ant\n\n 2)  Two   ants  ", ["An ant", "Two ants"]),
        ("- An ant\n* Two ants\n\u2022 Three ants", ["An ant", "Two ants", "Three ants"]),
        ("12: An ant\n(13) Two ants\n14.Three ants", ["An ant", "Two ants", "Three ants"]),
        (
            "1. \"An ant\"\n2. \u201cTwo ants\u201d\n3. 'Three ants'",
            ["An ant", "Two ants", "Three ants"],
        ),
        ("**1.** An ant\n2. **Two ants**\n3. `Three ants`", ["An ant", "Two ants", "Three ants"]),
        ("1. *An ant*\n2. _Two ants_", ["An ant", "Two ants"]),
        (
            '1. "An ant on a leaf" - in a garden\n2. "Hill" of an ant',
            ["An ant on a leaf", '"Hill" of an ant'],
        ),
        ("1. An ant on a leaf (15 words)\n2. An ant [1 word].", ["An ant on a leaf", "An ant"]),
        ("Sure! Here are 2 ants for you:\n\n1. An ant\nHope this helps!", ["An ant"]),
        (
            "# Ants\nAn ant on a leaf\n\nA leaf with an ant",
            ["An ant on a leaf", "A leaf with an ant"],
        ),
        ("Here are the ants you wanted:\nAn ant at 12:30 noon\nBye", ["An ant at 12:30 noon"]),
        ("<think>\n1. Ants?\n</think>\n1. An ant", ["An ant"]),
        ("3.5 metres from an ant", ["3.5 metres from an ant"]),
        ("", []),
    ],
)
def test_the_prompts_of_an_answer_are_found(answer, expected):
    assert parse_answer(answer, min_words=4) == expected


def test_a_class_is_asked_for_until_there_are_enough(short):
    requests, seeds = [], []
    answers = [
        "1. An ant on sand\n2. AN ANT on SAND\n3. A beetle on sand\n4. An ant\n5. Ants on wet sand",
        "1. Big ants on sand\n2. Small ants on sand\n3. Red ants on sand",
        "never asked for",
    ]

    def ask(request: str, seed: int) -> str:
        requests.append(request)
        seeds.append(seed)
        return answers[len(requests) - 1]

    texts, dropped = ask_for_prompts(ask, changed(short, num_prompts=4), "ant", "ant")
    assert texts == [
        "An ant on sand",
        "Ants on wet sand",
        "Big ants on sand",
        "Small ants on sand",
    ]
    assert requests == ["4 of ant, 3 words", "2 of ant, 3 words"] and len(set(seeds)) == 2
    assert dropped == {"repeated": 1, "too short": 1, "without the class name": 1}


def test_no_more_requests_than_allowed(short):
    asked = []
    texts, _ = ask_for_prompts(lambda *a: asked.append(a) or "", short, "ant", "ant")
    assert texts == [] and len(asked) == 3


def test_missing_prompts_are_topped_up_and_announced(dataset, monkeypatch, tmp_path, caplog):
    answer = "1. One bee fly on sand here\n2. One ant on sand here\n3. One ant on leaf here"
    monkeypatch.setattr(language_model, "load_model", lambda config: lambda request, seed: answer)
    line = (
        f"-d {dataset.root} --output {tmp_path}/new/p.json --model m --num_prompts 2 --min_words 4"
    )
    with caplog.at_level(logging.INFO):
        writer.main([*line.split(), "--max_requests", "2"])
    found = json.loads((tmp_path / "new" / "p.json").read_text())
    assert found["ant"] == ["One ant on sand here", "One ant on leaf here"]
    assert found["bee_fly"][0] == "One bee fly on sand here" and len(found["bee_fly"]) == 2
    assert found["bee_fly"][1].startswith("a photo of a bee fly, ")
    assert (
        "m gave too few prompts for 1 of 2 classes; added from the word lists: bee_fly 1"
        in caplog.text
    )
    # ant: 1 other in one request; bee_fly: 2 others in each of two, and its own once more
    assert (
        "dropped: 1 repeated, 5 without the class name; topped up from the word lists: 1"
        in caplog.text
    )


def test_added_words_repeat_no_prompt_of_the_model():
    prompts, added = word_lists.top_up(
        {"a": ["X", "y"], "b": ["1", "2", "3"]}, {"a": ["x", "Y", "z"], "b": []}, 3
    )
    assert prompts == {"a": ["X", "y", "z"], "b": ["1", "2", "3"]} and added == {"a": 1}


def test_a_written_file_is_what_expand_reads(tmp_path, arguments, digits_dir, capsys):
    line = f"-d digits --data_dir {digits_dir} --output {tmp_path}/p.json --num_prompts 3"
    writer.main(line.split())
    content = json.loads((tmp_path / "p.json").read_text())
    assert list(content) == [str(i) for i in range(10)]
    assert all(len({*texts}) == 3 for texts in content.values())
    expand.main(arguments(tmp_path / "out", "--prompts_file", tmp_path / "p.json", "--dry_run"))
    assert content["0"][0].split(",")[0] in capsys.readouterr().out


def test_an_existing_file_is_replaced_only_on_demand(tmp_path, dataset):
    path = write(tmp_path / "p.json", "mine")
    line = ["-d", str(dataset.root), "--output", str(path), "--num_prompts", "1"]
    with pytest.raises(InputError, match=r"p\.json exists.*--overwrite"):
        writer.main(line)
    assert path.read_text() == "mine"
    writer.main([*line, "--overwrite"])
    assert set(json.loads(path.read_text())) == {"ant", "bee_fly"}
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["p.json"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), ["--output"]),
        (("--output", "."), ["--output .", "is a folder"]),
        (("--output", "p", "--num_prompts", "0"), ["num_prompts 0"]),
        (("--output", "p", "--top_p", "0"), ["top_p 0"]),
        (
            ("--output", "p", "--scenes", "a", "--num_prompts", "20000"),
            ["num_prompts 20000", "fewer"],
        ),
        (("--output", "p", "--model", "./no"), ["./no", "does not exist"]),
        (("--output", "p", "--model", "."), ["language model .", "safetensors"]),
        (("--output", "p", "--model", ".", "--request", "{clas}"), ["request '{clas}'", "{class}"]),
        (
            ("--output", "p", "--model", ".", "--request", "{class} {n}"),
            ["request", "{n}", "{num}"],
        ),
    ],
)
def test_a_wrong_option_of_the_writer_is_named(options, words, tmp_path, dataset, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        writer.main(["-d", str(dataset.root), *options])
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message
    assert not Path("p").exists()


@pytest.fixture(scope="module")
def causal_dir(tmp_path_factory) -> Path:
    """A random GPT-2 of 12 tokens: list markers, line ends and a few words."""
    words = ["<end>", "\n", "1.", "2.", " ant", " bee", " fly", " on", " a", " leaf", " 4", " of"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n| ?[^ \n]+"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    folder = tmp_path_factory.mktemp("language_model")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    config = GPT2Config(
        vocab_size=len(words),
        n_positions=64,
        n_embd=8,
        n_layer=1,
        n_head=1,
        eos_token_id=0,
        bos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def settings(causal_dir) -> PromptsConfig:
    return PromptsConfig(
        model=str(causal_dir), request=" {num} of {class}", device="cpu", max_new_tokens=50
    )


def test_a_language_model_answers_the_same_for_the_same_seed(settings):
    ask = language_model.load_model(settings)
    before = torch.get_rng_state()
    first, again = ([ask(" 4 of ant", seed) for seed in range(6)] for _ in range(2))
    assert first == again and len(set(first)) > 3
    known = {"ant", "bee", "fly", "on", "a", "leaf", "of"}
    assert set(re.findall("[a-z]+", " ".join(first))) == known
    assert torch.equal(torch.get_rng_state(), before)


def test_an_answer_stays_in_the_window_and_loses_its_cut_off_line(settings, monkeypatch):
    ask = language_model.load_model(settings)
    limits = []

    def generate(input_ids, max_new_tokens, **_):
        limits.append(max_new_tokens)
        new = torch.tensor(
            [[2, 4, 1, 3, 5] + [6] * (max_new_tokens - 5)]
        )  # "1. ant\n2. bee fly fly ..."
        return torch.cat([input_ids, new], dim=1)

    monkeypatch.setattr(ask.model, "generate", generate)
    assert ask(" 4 of ant", 0) == "1. ant" and limits == [50]
    ask(" ant" * 40, 0)
    assert limits == [50, 24]
    with pytest.raises(InputError, match=r"has 64 tokens.*reads 64.*--request"):
        ask(" ant" * 64, 0)


def test_a_chat_template_is_used_when_there_is_one(settings, monkeypatch):
    ask = language_model.load_model(settings)
    seen = []

    def generate(input_ids, **_):
        seen.append(ask.tokenizer.decode(input_ids[0]))
        return input_ids

    monkeypatch.setattr(ask.model, "generate", generate)
    ask(" 4 of ant", 0)
    ask.tokenizer.chat_template = (
        "{% for m in messages %}\n1.{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %} a{% endif %}"
    )
    ask(" 4 of ant", 0)
    assert [text.strip("\n") for text in seen] == [" 4 of ant", "1. 4 of ant a"]


@pytest.mark.slow
def test_a_language_model_on_disk_writes_the_prompts(causal_dir, dataset, tmp_path):
    line = ["-d", dataset.root, "--model", causal_dir, "--device", "cpu", "--num_prompts", 4]
    line += ["--min_words", 3, "--max_requests", 6, "--request", " {num} of {class}"]
    for name in ("one", "two"):
        writer.main([*map(str, line), "--output", str(tmp_path / name)])
    found = json.loads((tmp_path / "one").read_text())
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert [len(set(texts)) for texts in found.values()] == [4, 4]
    own = [text for text in found["ant"] if not text.startswith("a photo of")]
    assert own and all("ant" in text.split() for text in own)


def test_damaged_weights_of_a_language_model_are_named(causal_dir, tmp_path, dataset):
    for file in causal_dir.iterdir():
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(
            content[:500] if file.suffix == ".safetensors" else content
        )
    line = ["-d", str(dataset.root), "--model", str(tmp_path), "--output", str(tmp_path / "p.json")]
    with pytest.raises(InputError, match="cannot load the language model") as error:
        writer.main(line)
    assert "\n" not in str(error.value)
