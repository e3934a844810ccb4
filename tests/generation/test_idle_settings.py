"""Settings that others leave without effect are refused, so that nobody measures nothing."""

from __future__ import annotations

import pytest

import expand
from expansion.common.errors import InputError

DIRECT = "distdiff --guidance_type direct_guidance"
CLASS_ALONE = "distdiff --optimize_targets global_prototype"
GROUPS_ALONE = "distdiff --optimize_targets local_prototype"
TARS = "img2img --output_format webdataset"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (f"{DIRECT} --constraint_value 0.1", "constraint_value 0.1 is for guidance_type transform"),
        (f"{DIRECT} --transform_start inside", "transform_start inside is for guidance_type tran"),
        ("distdiff --energy entropy --gs 2", "gs 2.0 is for the energy prototypes; leave it out"),
        ("distdiff --energy chamfer --ls 2", "ls 2.0 is for the energy prototypes"),
        ("distdiff --energy entropy --K 2", "K 2 is for the energy prototypes"),
        (
            "distdiff --energy entropy --optimize_targets local_prototype",
            "optimize_targets local_prototype is for the energy prototypes",
        ),
        (f"{CLASS_ALONE} --ls 2", "ls 2.0 is for optimize_targets local_prototype"),
        (f"{CLASS_ALONE} --K 2", "K 2 is for optimize_targets local_prototype"),
        (f"{GROUPS_ALONE} --gs 2", "gs 2.0 is for optimize_targets global_prototype"),
        (
            "img2img --guidance_scale 1 --negative_prompt blur",
            "which guidance_scale 1 switches off",
        ),
        (
            "dreamda --guidance_scale 1 --source_guidance_scale 1 --negative_prompt blur",
            "negative_prompt blur is for guidance, which guidance_scale 1 switches off",
        ),
        ("img2img --judge_at_least 0.2", "judge_at_least 0.2 is for --until_kept; leave it out"),
        ("img2img --most_variants 8", "most_variants 8 is for --until_kept"),
        ("img2img --images_per_tar 9", "images_per_tar 9 is for --output_format webdataset"),
        ("distdiff --rho -1", "rho -1.0: give 0 or more"),
    ],
)
def test_a_setting_without_effect_is_refused_in_one_line(words, message):
    with pytest.raises(InputError, match=message):
        expand.parse(["--method", *words.split()])


@pytest.mark.parametrize(
    "words",
    [
        f"{DIRECT} --constraint_value 0.2 --transform_start random",
        "distdiff --energy entropy --gs 1 --ls 1 --K 3",
        "distdiff --energy prototypes+entropy --gs 2 --ls 2 --K 2",
        f"{CLASS_ALONE} --gs 2 --ls 1 --K 3",
        f"{GROUPS_ALONE} --gs 1 --ls 2 --K 2",
        "distdiff --optimize_targets none --K 2 --rho -1",
        "dreamda --guidance_scale 1 --negative_prompt blur",
        "img2img --negative_prompt blur",
        "img2img --judge_at_least 0.5 --most_variants 64 --images_per_tar 500",
        f"{TARS} --images_per_tar 9",
        "img2img --until_kept 5 --judge clip:m --judge_at_least 0.2 --most_variants 8",
    ],
)
def test_a_default_or_a_setting_with_an_effect_is_taken(words):
    expand.parse(["--method", *words.split()])
