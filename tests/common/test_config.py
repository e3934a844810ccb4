"""YAML and command line into config dataclasses: precedence, types, options, errors."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass

import pytest

from distdiff.config import DistDiffConfig
from dreamda.finetune.config import FinetuneConfig, FromScratchConfig
from expansion.classifier.recipe import Recipe
from expansion.common.config import (
    Layers,
    Source,
    add_options,
    compose,
    config_hash,
    load_yaml,
    option,
)
from expansion.common.errors import InputError, unknown_name
from expansion.common.option_parser import OptionParser
from expansion.diffusion.sampler_config import SamplerConfig
from expansion.generation.config import ExpandConfig
from expansion.training.options import TrainConfig
from train_expand import TrainExpandConfig

REAL_CONFIGS = (
    DistDiffConfig,
    ExpandConfig,
    FinetuneConfig,
    FromScratchConfig,
    Recipe,
    SamplerConfig,
    TrainConfig,
    TrainExpandConfig,
)


@dataclass(frozen=True, kw_only=True)
class Engine:
    steps: int = option(10, "share that runs, in %", flags=("-s",))
    rate: float = option(0.5, "rate, 100% at most")
    kind: str = option("plain", "kind", choices=("plain", "fancy"))
    turbo: bool = option(False, "more of everything")
    limit: int | None = option(None, "limit")
    label: str | None = option(None, "label")
    sizes: tuple[int, ...] = option((1, 2), "sizes")
    words: tuple[str, ...] = option((), "words")
    extra: dict = option(None, "more")


@dataclass(frozen=True, kw_only=True)
class Body:
    steps: int = option(3, "steps of the body")
    colour: str = option("red", "paint")


def engine(**values) -> Engine:
    return compose([Engine], [Source(values, "test.yaml")])[0]


def test_later_sources_win_over_earlier_ones_and_over_defaults():
    sources = [
        Source({"steps": 1, "rate": 0.1}, "method.yaml"),
        Source({"rate": 0.2, "kind": "fancy"}, "dataset.yaml"),
        Source({"kind": "plain"}, "command line"),
    ]
    (config,) = compose([Engine], sources)
    assert (config.steps, config.rate, config.kind, config.turbo) == (1, 0.2, "plain", False)
    (config,) = compose([Engine], sources[::-1])
    assert (config.steps, config.rate, config.kind) == (1, 0.1, "fancy")


def test_a_look_at_a_value_needs_no_schema_and_takes_the_one_that_counts():
    layers = Layers((Source({"steps": "7", "new": [1]}, "a.yaml"), Source({"steps": 8}, "b.yaml")))
    assert (layers.peek("steps"), layers.peek("new")) == (8, [1])
    assert (layers.peek("rate"), layers.peek("rate", 0.5)) == (None, 0.5)
    beneath = Source({"steps": 1, "rate": 0.1}, "below.yaml"), Source({"rate": 0.2}, "above.yaml")
    assert [layers.over(*beneath).peek(key) for key in ("steps", "rate")] == [8, 0.2]


def test_a_key_goes_to_every_class_that_declares_it():
    first, second = compose([Engine, Body], [Source({"steps": 7, "colour": "blue"}, "x.yaml")])
    assert (first.steps, second.steps, second.colour) == (7, 7, "blue")


def test_an_unknown_key_names_key_source_and_a_close_key():
    with pytest.raises(InputError, match=r"my\.yaml: unknown key 'step'; did you mean 'steps'\?"):
        compose([Engine, Body], [Source({"step": 1}, "my.yaml")])
    with pytest.raises(InputError, match=r"my\.yaml: unknown key '5'$"):
        compose([Engine], [Source({5: 1}, "my.yaml")])
    with pytest.raises(InputError, match="unknown key 'True'; YAML takes an unquoted yes"):
        compose([Engine], [Source({True: True}, "my.yaml")])


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("rate", "1e-4", 1e-4),  # YAML 1.1 reads 1e-4 as a string
        ("rate", 2, 2.0),
        ("limit", None, None),
        ("limit", 5, 5),
        ("label", None, None),
        ("sizes", [3, 4], (3, 4)),
        ("sizes", [], ()),
        ("words", ["a", "b c"], ("a", "b c")),
        ("turbo", True, True),
        ("extra", {"a": 1}, {"a": 1}),
    ],
)
def test_values_take_the_type_of_their_field(key, value, expected):
    found = getattr(engine(**{key: value}), key)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", True),
        ("steps", "5"),
        ("steps", 5.0),
        ("steps", None),
        ("rate", "fast"),
        ("rate", True),
        ("rate", [0.5]),
        ("kind", "plane"),
        ("kind", 3),
        ("turbo", 1),
        ("turbo", "False"),
        ("limit", "none"),
        ("label", 4),
        ("sizes", 3),
        ("sizes", "12"),
        ("sizes", [1, "2"]),
        ("sizes", [1, True]),
        ("words", "one"),
        ("extra", ["a"]),
    ],
)
def test_a_wrong_type_or_choice_is_refused_by_name(key, value):
    wrong = value[-1] if isinstance(value, list) and key == "sizes" else value
    with pytest.raises(InputError, match=rf"test\.yaml: {key}: ") as error:
        engine(**{key: value})
    assert str(wrong) in str(error.value)


def test_options_of_the_command_line_become_values_and_the_others_stay_absent():
    parser = argparse.ArgumentParser()
    add_options(parser, Engine, "engine")
    assert vars(parser.parse_args([])) == {}
    line = "-s 4 --rate 1e-3 --no-turbo --sizes 5 6 --label x --kind fancy --limit 2".split()
    given = OptionParser().read(line, {"engine": Engine})
    (config,) = given.over(Source({"turbo": True, "rate": 9.0}, "x.yaml")).compose(Engine)
    assert config == Engine(
        steps=4, rate=1e-3, turbo=False, sizes=(5, 6), label="x", kind="fancy", limit=2
    )
    text = parser.format_help()
    assert "share that runs, in % (default: 10)" in text and "(default: 1 2)" in text


@pytest.mark.parametrize(
    "line", ["--kind plane", "--steps 1.5", "--turbo yes", "--sizes", "--extra 1"]
)
def test_a_wrong_option_ends_with_status_2(line, capsys):
    parser = argparse.ArgumentParser()
    add_options(parser, Engine, "engine")
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(line.split())
    assert stopped.value.code == 2 and "error:" in capsys.readouterr().err


@pytest.mark.parametrize("config_class", REAL_CONFIGS, ids=lambda c: c.__name__)
def test_every_field_is_an_option_with_help(config_class):
    parser = argparse.ArgumentParser(add_help=False)
    add_options(parser, config_class, "all")
    actions = {action.dest: action for action in parser._actions}
    fields = {f.name: f for f in dataclasses.fields(config_class)}
    assert set(actions) == set(fields)
    for name, field in fields.items():
        action = actions[name]
        assert f"--{name}" in action.option_strings
        assert set(field.metadata["flags"]) <= set(action.option_strings)
        assert len(action.help) > 3
        is_boolean = isinstance(action, argparse.BooleanOptionalAction)
        assert is_boolean == isinstance(field.default, bool), name
        assert action.type is not bool
        if field.metadata["choices"]:
            assert list(action.choices) == list(field.metadata["choices"])
            assert field.default is None or field.default in action.choices
    assert all(f"--{name}" in parser.format_help() for name in fields)


@pytest.mark.parametrize(
    "text",
    [
        "a: [1, 2",
        "a: b: c",
        "- a\n- b",
        "just words",
        "a: !!python/object/apply:os.getcwd []",
        "a: 2024-13-45",
        b"a: \xff\xfe\x00",
    ],
)
def test_a_file_that_is_no_yaml_mapping_is_named(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=r"broken\.yaml") as error:
        load_yaml(path)
    assert "\n" not in str(error.value)


def test_a_missing_yaml_file_is_named_and_an_empty_one_has_no_values(tmp_path):
    with pytest.raises(InputError, match="nowhere.yaml"):
        load_yaml(tmp_path / "nowhere.yaml")
    (tmp_path / "empty.yaml").write_text("# only a comment\n")
    assert dict(load_yaml(tmp_path / "empty.yaml").values) == {}


def test_the_config_hash_depends_on_values_and_not_on_key_order():
    assert config_hash({"a": 1, "b": [1, 2]}) == "e6f20bdc3757"
    assert config_hash({"b": (1, 2), "a": 1}) == "e6f20bdc3757"
    assert config_hash({"x": {"p": 1, "q": 2}}) == config_hash({"x": {"q": 2, "p": 1}})
    others = [{"a": 1, "b": [2, 1]}, {"a": "1", "b": [1, 2]}, {"a": 1}, [["a", 1], ["b", [1, 2]]]]
    assert len({config_hash(v) for v in [*others, {"a": 1, "b": [1, 2]}]}) == 5


def test_an_unknown_name_comes_with_a_close_one_or_the_known_ones():
    assert "did you mean 'digits'?" in str(unknown_name("dataset", "digit", ["digits", "cars"]))
    assert "known: cars, digits" in str(unknown_name("dataset", "zebra", ["digits", "cars"]))
