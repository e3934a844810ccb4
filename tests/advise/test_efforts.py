"""How much work a pilot puts into its answer."""

from __future__ import annotations

import pytest

from expansion.advise.config import AdviseConfig
from expansion.advise.efforts import EFFORTS, efforts_for
from expansion.common.errors import InputError
from expansion.study.config import read_command_line, settle


def test_efforts_become_smaller_in_every_respect_from_the_first_to_the_last():
    for larger, smaller in zip(EFFORTS, EFFORTS[1:], strict=False):
        assert larger.folds >= smaller.folds and larger.variants >= smaller.variants
        assert larger.steps >= smaller.steps and larger.repeats[-1] >= smaller.repeats[-1]
        assert larger != smaller
    assert all(effort.folds >= 2 for effort in EFFORTS)


def test_there_are_no_more_parts_than_images_of_the_smallest_class():
    assert [effort.folds for effort in efforts_for(2, 10)] == [2] * len(efforts_for(2, 10))
    assert max(effort.folds for effort in efforts_for(3, 10)) == 3
    assert efforts_for(5, 10) == list(EFFORTS)


def test_there_are_no_more_variants_than_the_study_is_to_have():
    assert {effort.variants for effort in efforts_for(5, 1)} == {1}
    found = efforts_for(5, 4)
    assert max(effort.variants for effort in found) == 4
    # What has become equal is tried once.
    assert len(found) == len(set(found)) == len(EFFORTS) - 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--minutes 0", "minutes 0: give a positive number"),
        ("--minutes -3", "minutes -3: give a positive number"),
        ("--shots 2 --draw_per_seed", "draw_per_seed: the adviser looks at one choice of images"),
        ("--guide my.pth.tar", "guide my.pth.tar: it may have learnt from images that the pilot"),
        ("--methods distdif", "command line: unknown method 'distdif'; did you mean 'distdiff'?"),
        ("--methods img2img_0.6", "command line: unknown method 'img2img_0.6'; did you mean 'img"),
    ],
)
def test_a_wrong_word_is_named_before_anything_is_looked_at(words, message):
    with pytest.raises(InputError) as error:
        read_command_line(["digits", *words.split()], "", AdviseConfig)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_the_adviser_tries_what_its_own_file_says_whatever_the_scale():
    for scale in ("tiny", "small", "paper"):
        settings = settle(read_command_line(["d"], "", AdviseConfig), scale, study=AdviseConfig)
        strengths = {
            name: settings.method_options[name].get("strength")
            for name, method in settings.samplers.items()
            if method == "img2img" and name in settings.config.methods
        }
        assert strengths == {"img2img_0.5": 0.5, "img2img_0.8": 0.8}
        kinds = [(arm.method, arm.options.get("augment")) for arm in settings.arms]
        assert kinds[:2] == [(None, None), (None, "randaugment")]
        for name in settings.config.methods:
            assert {(name, None), (name, "randaugment")} <= set(kinds)
