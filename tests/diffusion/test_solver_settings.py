"""Steps are this project's own, whatever sampler a scheduler_config.json was saved with."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler

import expand
from dreamda.config import DreamDAConfig
from dreamda.finetune import __main__ as finetune
from expansion.common.errors import InputError
from expansion.diffusion.conditioning import Conditioning
from expansion.diffusion.denoising import Denoiser
from expansion.diffusion.model_configs import check_scheduler
from expansion.diffusion.model_files import check_model_folder, check_model_steps
from expansion.diffusion.sampler_config import CONSISTENCY, SOLVERS, SamplerConfig
from expansion.diffusion.solver_checks import check_steps, first_timestep
from expansion.diffusion.stable_diffusion import load_pipeline
from tests.conftest import TINY_MODEL
from tests.helpers.checkpoint_stand_ins import copy_model

pytestmark = pytest.mark.slow  # whole expansions

MULTISTEP = {"_class_name": "DPMSolverMultistepScheduler"}
OTHER_SAMPLERS = {
    "DPM++ 2M SDE": {**MULTISTEP, "algorithm_type": "sde-dpmsolver++"},
    "old DPM-Solver": {**MULTISTEP, "algorithm_type": "dpmsolver"},
    "old DPM-Solver to sigma_min": {
        **MULTISTEP,
        "algorithm_type": "dpmsolver",
        "final_sigmas_type": "sigma_min",
    },
    "Karras": {**MULTISTEP, "use_karras_sigmas": True},
    "exponential": {**MULTISTEP, "use_exponential_sigmas": True},
    "beta": {**MULTISTEP, "use_beta_sigmas": True},
    "Lu": {**MULTISTEP, "use_lu_lambdas": True},
    "third order, Heun": {**MULTISTEP, "solver_order": 3, "solver_type": "heun"},
    "last steps": {**MULTISTEP, "lower_order_final": False, "euler_at_final": True},
    "lambda clipped": {**MULTISTEP, "lambda_min_clipped": -5.1},
    "learned variance": {**MULTISTEP, "variance_type": "learned_range"},
    "UniPC": {
        "_class_name": "UniPCMultistepScheduler",
        "predict_x0": False,
        "solver_type": "bh1",
        "disable_corrector": [0, 1, 2],
        "solver_order": 3,
    },
    "clipping": {"clip_sample": True, "clip_sample_range": 0.1, "steps_offset": 0},
    "thresholds": {"dynamic_thresholding_ratio": 0.5, "sample_max_value": 0.1},
    "unknown to any": {"eta": 1.0, "s_churn": 40, "algorithm_type": "novel", "skip_prk_steps": 3},
    "SDE of another package": {"_class_name": "DPMSolverSDEScheduler", "noise_sampler_seed": 1},
}


@pytest.fixture(scope="module")
def predicted():
    """Function from a model folder and a solver to latents and x0hat after four steps of eight."""

    def run(folder, solver: str) -> list[torch.Tensor]:
        pipeline = load_pipeline(str(folder))
        config = SamplerConfig(num_inference_steps=8, solver=solver, guidance_scale=2.0)
        denoiser = Denoiser(pipeline, config)
        draw = torch.Generator().manual_seed(1)
        start = torch.randn(1, 4, 8, 8, generator=draw)
        conditioning = Conditioning(torch.randn(2, 77, 64, generator=draw))
        with torch.no_grad():
            latents, x0hats = denoiser.run(
                start, denoiser.timesteps, conditioning, generators=[draw]
            )
        return [latents, *x0hats]

    plain = {solver: run(TINY_MODEL, solver) for solver in SOLVERS}
    return run, plain


@pytest.mark.parametrize("name", OTHER_SAMPLERS)
def test_sampler_settings_of_a_checkpoint_change_nothing(name, tmp_path, predicted):
    run, plain = predicted
    folder = copy_model(tmp_path / "model", scheduler=OTHER_SAMPLERS[name])
    for solver in SOLVERS:
        found = run(folder, solver)
        assert len(found) == 5
        for ours, theirs in zip(found, plain[solver], strict=True):
            assert torch.equal(ours, theirs), solver


def test_what_describes_the_model_is_kept(tmp_path):
    model = {
        "num_train_timesteps": 500,
        "beta_schedule": "linear",
        "beta_start": 0.001,
        "beta_end": 0.03,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "set_alpha_to_one": True,
        "timestep_spacing": "trailing",
    }
    pipeline = load_pipeline(str(copy_model(tmp_path / "model", scheduler=model)))
    for solver in SOLVERS:
        settings = SamplerConfig(num_inference_steps=10, strength=1.0, solver=solver)
        denoiser = Denoiser(pipeline, settings)
        solver_config = denoiser._new_solver().config
        for key, value in model.items():
            if solver == "ddim" or key != "set_alpha_to_one":
                assert solver_config[key] == value
        assert denoiser.timesteps[0] == 499 and not solver_config["thresholding"]
    assert denoiser.scheduler.alphas_cumprod[-1] == 0


def test_every_setting_of_a_solver_is_given_and_none_left_to_its_default():
    """A new option of diffusers must be looked at before its default decides images."""
    from diffusers import DPMSolverMultistepScheduler

    from expansion.diffusion import denoising
    from expansion.diffusion.model_configs import SCHEDULE_KEYS

    # Of no effect without thresholding, flow sigmas or an own order of the final steps.
    idle = {"dynamic_thresholding_ratio", "sample_max_value", "flow_shift", "use_dynamic_shifting"}
    idle |= {"time_shift_type", "solver_p", "sigma_min", "sigma_max", "shift_terminal"}
    for solver, given in (
        (DPMSolverMultistepScheduler, denoising.DPMSOLVER),
        (UniPCMultistepScheduler, denoising.UNIPC),
    ):
        own = solver._get_init_keys(solver) - {"self"}
        assert own - idle == (set(given) | set(SCHEDULE_KEYS)) - {"set_alpha_to_one"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_flow_sigmas": True}, "has no noise variances"),
        ({"timestep_type": "continuous"}, "noise levels in place of the numbers"),
        ({"prediction_type": "flow_prediction"}, "prediction_type 'flow_prediction'"),
        ({"prediction_type": "sample"}, "prediction_type 'sample'"),
        ({"predict_epsilon": False}, "prediction_type 'sample'"),
        ({"thresholding": True}, "thresholding is for pixels"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid'"),
        ({"timestep_spacing": "karras"}, "timestep_spacing 'karras'"),
        ({"rescale_betas_zero_snr": "yes"}, "rescale_betas_zero_snr 'yes'"),
        ({"beta_end": 1.5}, "beta_end 1.5"),
        ({"beta_start": None}, "beta_start None"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas are not 1000 numbers"),
        ({"num_train_timesteps": 0}, "num_train_timesteps 0"),
        ({"beta_schedule": ["linear"]}, "beta_schedule"),
    ],
)
def test_a_schedule_that_cannot_be_honoured_is_refused_before_weights_load(tmp_path, change, words):
    folder = copy_model(tmp_path / "model", scheduler=change)
    with pytest.raises(InputError, match=f"scheduler_config.json: .*{words}"):
        check_model_folder(str(folder))


def test_a_flow_matching_scheduler_is_refused(tmp_path):
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    with pytest.raises(InputError, match="FlowMatch.* has no noise variances"):
        check_scheduler(flow, "scheduler_config.json")


ROUNDED_BELOW_0 = (13, 26, 52, 55, 61, 62)  # steps of 60; the last two are too many anyway
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@pytest.mark.parametrize("method", ["img2img", "distdiff", "dreamda"])
def test_noise_cannot_be_predicted_from_pure_noise(method, tmp_path, make_folder, guide_path):
    folder = copy_model(tmp_path / "model", scheduler=ZERO_SNR)
    classes = {"ant": ["1.png"], "bee": ["1.png"]}
    photos = make_folder("photos", {"train": classes, "test": classes})
    arguments = ["-d", str(photos), "--pretrained_model_name_or_path", str(folder), "--dry_run"]
    arguments += ["--method", method, "--num_inference_steps", "20"]
    if method == "distdiff":
        arguments += ["--encoder_weight_path", str(guide_path), "--guidance_step", "4"]
    with pytest.raises(InputError, match="zero terminal SNR.*lower --strength 1.0"):
        expand.main([*arguments, "--strength", "1.0"])
    expand.main([*arguments, "--strength", "0.9"])  # it starts where an image is left


@pytest.mark.parametrize("solver", SOLVERS)
def test_pure_noise_is_refused_for_a_pipeline_of_any_origin_too(solver, tmp_path):
    pipeline = load_pipeline(str(copy_model(tmp_path / "model", scheduler=ZERO_SNR)))
    with pytest.raises(InputError, match="zero terminal SNR"):
        Denoiser(pipeline, SamplerConfig(strength=1.0, solver=solver))
    betas = np.linspace(0.001, 1.0, 1000).tolist()
    trained = {"trained_betas": betas, "timestep_spacing": "linspace"}
    with pytest.raises(InputError, match="zero terminal SNR"):
        check_steps(trained, SamplerConfig(strength=1.0, solver=solver), "it")


def test_fine_tuning_refuses_pure_noise_before_anything_is_written(digits_dir, tmp_path):
    folder = copy_model(tmp_path / "model", scheduler=ZERO_SNR)
    arguments = ["-d", "digits", "--data_dir", str(digits_dir), "--output_dir", f"{tmp_path}/out"]
    with pytest.raises(InputError, match="zero terminal SNR"):
        finetune.main([*arguments, "--pretrained_model_name_or_path", str(folder)])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("solver", [s for s in SOLVERS if s not in CONSISTENCY])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_the_first_timestep_is_where_the_solver_places_it(spacing, solver, tmp_path):
    scheduler = {"timestep_spacing": spacing, "num_train_timesteps": 60}
    pipeline = load_pipeline(str(copy_model(tmp_path / "model", scheduler=scheduler)))
    schedule = pipeline.scheduler.config
    refused = 0
    for steps in range(1, 63):
        for strength in (0.25, 0.5, 0.9, 1.0):
            if int(steps * strength) == 0:
                continue
            config = SamplerConfig(num_inference_steps=steps, strength=strength, solver=solver)
            try:
                check_steps(schedule, config, "it")
            except InputError as error:
                if (solver, spacing) == ("euler", "linspace") and steps <= 60:
                    assert "whose steps lie between the trained ones" in str(error)
                    refused += 1
                    continue
                assert "num_inference_steps" in str(error)
                assert steps in ROUNDED_BELOW_0 if spacing == "trailing" else steps >= 59
                refused += 1
                continue
            denoiser = Denoiser(pipeline, config)
            # A half is rounded up or down by chance of the last bit.
            allowed = 1 if spacing != "leading" else 0
            assert abs(denoiser.timesteps[0] - first_timestep(schedule, config)) <= allowed
            assert len(denoiser.timesteps) == config.executed_steps
            assert max(denoiser.timesteps) < 60 and min(denoiser.timesteps) >= 0
            assert len(set(denoiser.timesteps)) == len(denoiser.timesteps), (steps, strength)
    assert refused >= 4  # 61 and 62 steps


@pytest.mark.parametrize(
    ("steps", "strength", "solver", "words"),
    [
        (1001, 0.5, "ddim", "num_inference_steps 1001: .* give at most 1000"),
        (1000, 1.0, "ddim", "num_inference_steps 1000 at strength 1.0.*timestep 1000"),
        (1000, 0.5, "dpmsolver++", "num_inference_steps 1000: .* give at most 999"),
        (1000, 0.5, "unipc", "give at most 999"),
    ],
)
def test_more_steps_than_the_model_was_trained_on_are_refused(steps, strength, solver, words):
    config = SamplerConfig(num_inference_steps=steps, strength=strength, solver=solver)
    with pytest.raises(InputError, match=words):
        check_model_steps(str(TINY_MODEL), config)
    check_model_steps(str(TINY_MODEL), DreamDAConfig(num_inference_steps=999, strength=1.0))


def test_the_scheduler_of_the_embedded_checkpoint_is_what_it_was():
    before = json.loads((TINY_MODEL / "scheduler" / "scheduler_config.json").read_text())
    config = load_pipeline(str(TINY_MODEL)).scheduler.config
    assert {key: config[key] for key in before if key[0] != "_"} == {
        key: value for key, value in before.items() if key[0] != "_"
    }
