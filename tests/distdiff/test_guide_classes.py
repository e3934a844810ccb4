"""A guide's classes are the dataset's: put in its order, remarked upon, or refused in one line."""

from __future__ import annotations

import logging

import pytest
import torch

from distdiff.config import DistDiffConfig
from distdiff.sampler import DistDiffSampler
from expansion.classifier.backbones import load_classifier
from expansion.common.errors import InputError
from tests.classifier.test_foreign_checkpoints import CLASSES, pixels, saved, tiny, without

ORDER = ("dog", "ant", "eel", "cat", "bee")


@pytest.mark.parametrize("key", ["class_names", "classes", "class_to_idx"])
def test_logits_come_in_the_dataset_s_order_of_classes(tmp_path, caplog, key):
    """The dataset lists the file's classes in another order, however the file says its own."""
    names = {name: i for i, name in enumerate(CLASSES)} if key == "class_to_idx" else CLASSES
    content = without(tiny(), "class_names") | {key: names}
    path = saved(tmp_path, content)
    with caplog.at_level(logging.WARNING):
        plain = load_classifier(path, class_names=CLASSES)
        assert not caplog.records
        ordered = load_classifier(path, class_names=ORDER)
    assert f"{path} has the dataset's classes in another order" in caplog.text
    with torch.no_grad():
        first, second = plain(pixels(32)), ordered(pixels(32))
    torch.testing.assert_close(second, first[:, [CLASSES.index(name) for name in ORDER]])
    assert torch.equal(plain.features(pixels(32)), ordered.features(pixels(32)))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"class_names": ["Ant", *CLASSES[1:]]}, "other classes: 'Ant' instead of 'ant'"),
        ({"class_names": list(CLASSES[:4])}, "names 4 classes but tells 5 apart"),
        ({"class_names": ["ant", "ant", *CLASSES[2:]]}, "names the class 'ant' twice"),
        ({"class_names": "abcde"}, "expected a list of class names, got 'abcde'"),
        ({"class_names": [1, 2, 3, 4, 5]}, "expected a list of class names"),
        ({"class_names": None, "class_to_idx": {"ant": 0, "bee": "x"}}, "a list of class names"),
    ],
)
def test_a_guide_of_other_classes_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as error:
        load_classifier(saved(tmp_path, tiny(**changes)), class_names=CLASSES)
    assert "\n" not in str(error.value)


def test_another_number_of_classes_is_refused(tmp_path):
    with pytest.raises(InputError, match="trained on 5 classes but the dataset has 3"):
        load_classifier(saved(tmp_path, tiny()), class_names=CLASSES[:3])


def test_a_file_that_names_no_classes_is_remarked_upon(tmp_path, caplog):
    path = saved(tmp_path, without(tiny(), "class_names"))
    with caplog.at_level(logging.WARNING):
        load_classifier(path, class_names=CLASSES)
    (record,) = caplog.records
    assert f"{path} does not name the classes it was trained on" in record.getMessage()


def test_distdiff_checks_its_guide_s_classes_before_the_model_loads(tmp_path):
    def never():
        raise AssertionError("the pipeline was loaded first")

    config = DistDiffConfig(encoder_weight_path=str(saved(tmp_path, tiny())))
    with pytest.raises(InputError, match="other classes: 'ant', 'bee' instead of 'wasp', 'fly'"):
        names = ["wasp", "fly", "cat", "dog", "eel"]
        DistDiffSampler.build(config, names, names, never)
