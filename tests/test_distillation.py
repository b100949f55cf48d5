"""Students of few steps: what the losses are for networks whose answers are known."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from ddpm_hf import DDPMNoiseScheduler
from ddpm_hf.distillation import Consistency, MomentMatching
from ddpm_hf.objective import make_objective

SHAPE = torch.Size((1, 4, 4))
X_0 = torch.linspace(-0.9, 0.4, 64 * 16).view(64, *SHAPE)
T = torch.linspace(0, 999, 64).long()
NOISE = torch.randn(X_0.shape, generator=torch.Generator().manual_seed(0))


def model(**parts) -> SimpleNamespace:
    """What the objectives ask of a pipeline: its network predicts x_0, with a null that is the condition itself."""
    scheduler = DDPMNoiseScheduler(prediction_type="sample")
    parts = {"unet": torch.nn.Linear(1, 1), "scheduler": scheduler, "takes": ("class_labels",), "id2label": {}} | parts
    parts = {"num_labels": 3, "image_condition": None, "num_channels": 1, "is_student": False} | parts
    parts["unet"].config = {"sample_size": 4}
    parts |= {"null": lambda condition: condition, "predict_x_0": lambda output, t, x_t: output}
    return SimpleNamespace(config={"_name_or_path": "m"}, **parts)


def consistency(guidance: float | None = None, offset: float = 0.0) -> tuple[Consistency, torch.Tensor]:
    """The objective and its losses at 64 t, for a network whose x_0 is the true one plus `offset`, as is its teacher's."""
    pipeline = model()
    objective = make_objective("consistency", pipeline, guidance=guidance)

    def denoise(x_t, t, condition, network=None):
        return X_0 + (offset if network is None else 0)

    return objective, objective(denoise, pipeline.scheduler, X_0, T, NOISE, {})


def test_consistency_is_none_between_the_states_of_one_path():
    """A constant error is consistent as well, but for the steps whose target is x_0 itself: the boundary condition."""
    assert (consistency()[1] < 1e-3).all()
    losses = consistency(offset=0.5)[1]
    is_anchored = losses > 1e-3
    assert 0 < is_anchored.sum() < 64 and is_anchored.diff().sum() == 1  # small t, and none above
    assert (losses[is_anchored] <= 0.5 / Consistency.LEAST_GAP + 1e-3).all()


def test_a_teacher_that_knows_x_0_follows_the_straight_line():
    assert torch.allclose(consistency(guidance=1.3, offset=0.5)[1], consistency(offset=0.5)[1], atol=1e-4)


def test_the_teacher_goes_to_the_device_of_the_images():
    objective, _ = consistency(guidance=1.3)
    x_0, t = X_0.to("meta"), T.to("meta")
    objective(lambda *_, network=None: x_0, model().scheduler, x_0, t, x_0, {})
    assert objective.teacher.network.weight.device.type == "meta"


def matching(student, matched, taught, pipeline=None) -> tuple[torch.Tensor, dict]:
    """The losses of moment matching for three networks of known answers, and the t at which each is asked."""
    pipeline, asked = pipeline or model(), {}
    objective = make_objective("moment_matching", pipeline)
    answers = {None: student, objective.auxiliary: matched, objective.teacher.network: taught}

    def denoise(x_t, t, condition, network=None):
        asked[network] = t
        return answers[network]

    t = torch.linspace(0, len(pipeline.scheduler) - 1, 64).long()
    losses = objective(denoise, pipeline.scheduler, X_0, t, NOISE, {})
    return losses, dict(zip(("student", "auxiliary", "teacher"), (asked[network] for network in answers)))


def test_a_student_whose_means_are_the_teachers_stays():
    """And the auxiliary network learns the student's x_0, which takes no gradient from that."""
    student, matched = X_0.clone().requires_grad_(), (X_0 + 0.1).requires_grad_()
    losses, _ = matching(student, matched, X_0 + 0.1)
    losses.sum().backward()
    assert student.grad.abs().max() == 0 and (losses > 0).all()
    assert (matched.grad > 0).all()  # down, to the student's


def test_a_student_goes_from_its_own_mean_to_the_teachers():
    """By as much as the two differ, over the distance of the student's x_0 from the teacher's."""
    student = (X_0 / 2).requires_grad_()
    losses, _ = matching(student, X_0 / 2 + 0.3, X_0 / 2 - 0.2)
    losses.sum().backward()
    assert torch.allclose(student.grad * 16, torch.full_like(X_0, 0.5 / 0.22), atol=1e-4)


@pytest.mark.parametrize("num_train_timesteps", [1000, 10])
def test_a_student_is_asked_at_the_timesteps_of_its_sampler(num_train_timesteps):
    """And its means are compared at any level below."""
    pipeline = model(scheduler=DDPMNoiseScheduler(num_train_timesteps=num_train_timesteps, prediction_type="sample"))
    _, asked = matching(X_0, X_0, X_0, pipeline)
    scheduler = make_objective("moment_matching", pipeline).student(pipeline)["scheduler"]
    scheduler.set_timesteps(MomentMatching.STEPS)
    assert set(asked["student"].tolist()) == set(scheduler.timesteps.tolist())
    assert torch.equal(asked["auxiliary"], asked["teacher"])
    assert (asked["teacher"] < asked["student"]).all() and asked["teacher"].unique().numel() > min(
        num_train_timesteps, 64
    ) / 2


@pytest.mark.parametrize("name", ["consistency", "moment_matching"])
def test_a_student_has_the_noise_levels_of_its_training(name):
    """The defaults, too, which are others in diffusers' LCMScheduler."""
    student = make_objective(name, model()).student(model())
    assert torch.equal(student["scheduler"].alphas_cumprod, model().scheduler.alphas_cumprod)


def test_distillation_needs_a_condition():
    with pytest.raises(ValueError, match=r"distill_guidance=1.3: the model has no condition"):
        make_objective("consistency", model(takes=()), guidance=1.3)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"id2label": {0: "a"}}, "has other classes than the student"),
        ({"num_labels": 2}, "has other classes"),  # without the null label
        ({"scheduler": DDPMNoiseScheduler(500)}, "has other noise levels"),
        ({"takes": ("prompt_embeds",)}, "has other conditions"),
        ({"num_channels": 3, "image_condition": "grey"}, "has other conditions, channels or size of images"),
        ({"is_student": True}, r"samples in few steps or not by DDPM \(DDPMNoiseScheduler\)"),
        ({"scheduler": FlowMatchEulerDiscreteScheduler()}, "samples in few steps or not by DDPM"),
    ],
)
def test_a_teacher_of_another_kind_is_refused(parts, message):
    with pytest.raises(ValueError, match=f"teacher='m' {message}"):
        make_objective("moment_matching", model(), teacher=model(**parts))


def test_moment_matching_knows_no_learned_variance():
    pipeline = model(scheduler=DDPMNoiseScheduler(prediction_type="sample", variance_type="learned_range"))
    with pytest.raises(ValueError, match=r"this model's variance_type is 'learned_range'"):
        make_objective("moment_matching", pipeline)
