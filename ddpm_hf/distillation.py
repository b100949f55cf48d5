"""A student of few steps: objectives (see `objective`) that turn a trained model, its teacher, into one that samples in 1 to 4 steps.

    Consistency      f(x_t, t) is the end of the path through x_t: one x_0 for every noise level            arXiv:2303.01469, 2406.14548
    MomentMatching   the samples of a few steps have, noised again, the mean x_0 of the teacher's           arXiv:2406.04103

f is the network's x_0. Consistency makes a student from the teacher; moment matching makes it better.
"""

import copy
from typing import Any

import torch
from diffusers import LCMScheduler

from .likelihood import Denoise
from .pipeline_ddpm_image import Condition, DDPMImagePipeline
from .scheduling_ddpm_noise import DDPMNoiseScheduler


class Teacher:
    """The x_0 of a trained model under guidance; a student that learns it needs none.

    Args:
        model: the trained model; its weights are copied as they are now.
        student: what it teaches, by the same noise levels and the same classes.
        guidance: the guidance scale; 1 is none.

    Raises:
        ValueError: guidance for a model without a condition, a model that samples in few steps itself or by no process of DDPM, or a student
            with other noise levels, classes, conditions or images.
    """

    def __init__(self, model: DDPMImagePipeline, student: DDPMImagePipeline, guidance: float = 1.0):
        if guidance != 1 and not model.takes:
            raise ValueError(f"distill_guidance={guidance}: the model has no condition to be guided by.")
        name = f"teacher={model.config.get('_name_or_path')!r}"
        levels = [getattr(pipeline.scheduler, "alphas_cumprod", None) for pipeline in (model, student)]
        if model.is_student or levels[0] is None:
            kind = type(model.scheduler).__name__
            raise ValueError(f"{name} samples in few steps or not by DDPM ({kind}): the x_0 of a teacher is a mean.")
        if different := ["noise levels"] * (not torch.equal(*levels)) + _differences(model, student):
            raise ValueError(f"{name} has other {', '.join(different)} than the student.")
        self.model, self.guidance = model, guidance
        self.network = copy.deepcopy(model.unet).eval().requires_grad_(False)

    @torch.no_grad()
    def x_0(self, denoise: Denoise, x_t: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
        """x_0 (B, C, H, W) in [-1, 1], float32."""
        network = self.network.to(x_t.device)  # it was copied before the run placed its own
        guided = self.model.predict_x_0(denoise(x_t, t, condition, network=network), t, x_t)
        if self.guidance != 1:
            null = self.model.predict_x_0(denoise(x_t, t, self.model.null(condition), network=network), t, x_t)
            guided = null + self.guidance * (guided - null)
        return guided.clamp(-1, 1)


class Consistency:
    """Consistency tuning and distillation (Song et al. 2023, arXiv:2303.01469; ECT, arXiv:2406.14548): x_0 in few steps.

        f(x_t, t) = f(x_r, r),  r < t on the same path;   loss = |f(x_t, t) - stopgrad f(x_r, r)| / (kappa_t - kappa_r)

    kappa = sqrt(1 - abar) / sqrt(abar) is the noise over the signal. r comes nearer to t as the run goes on (ECT Eq. 15):
    kappa_r = kappa_t (1 - n / q), n = 1 + 8 sigmoid(-kappa_t), q = 8, 16, 32, 64. Where kappa_r is below ANCHOR the target is x_0 itself:
    without this end the constant function is a solution.

    Args:
        pipeline: the trained model, which becomes the student.
        teacher: whose x_0 the path follows (distillation); None is the straight line from x_0 to its noise (tuning).
    """

    ANCHOR, LEAST_GAP = 0.15, 0.2

    def __init__(self, pipeline: DDPMImagePipeline, teacher: Teacher | None = None):
        self.teacher, self.progress = teacher, 0.0
        abar = pipeline.scheduler.alphas_cumprod.double()
        self.kappa = ((1 - abar) / abar).sqrt()
        uniform = (torch.arange(len(abar), dtype=torch.float64) + 0.5) / len(abar)
        wanted = torch.distributions.Normal(0.5, 2.0).icdf(uniform).exp()  # kappa_t is log-normal
        self.t_of = torch.searchsorted(self.kappa, wanted).clamp(1, len(abar) - 1)

    def __call__(
        self,
        denoise: Denoise,
        scheduler: DDPMNoiseScheduler,
        x_0: torch.Tensor,
        t: torch.Tensor,
        noise: torch.Tensor,
        condition: Condition,
    ) -> torch.Tensor:
        """Losses (B,), arguments as in `objective`; t is drawn anew, log-normal in kappa, from the t that is given."""
        kappa, t_of = (table.to(t.device, non_blocking=True) for table in (self.kappa, self.t_of))
        t = t_of[t]
        q = 8 * 2 ** int(4 * self.progress)
        wanted = kappa[t] * (1 - (1 + 8 * torch.sigmoid(-kappa[t])) / q)
        r = torch.minimum((torch.searchsorted(kappa, wanted, right=True) - 1).clamp(min=0), t - 1)
        x_t = scheduler.add_noise(x_0, noise, t)
        devices = [x_0.device] if x_0.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices):  # the same dropout on both sides
            x_r = scheduler.add_noise(x_0, noise, r)
            if self.teacher is not None:
                end = self.teacher.x_0(denoise, x_t, t, condition)
                mean, variance = scheduler.q_mean_variance(end, t)
                # A DDIM step, Eq. 12 of arXiv:2010.02502.
                x_r = scheduler.add_noise(end, (x_t - mean) / variance.sqrt(), r)
            target = scheduler.predict_x_0(denoise(x_r, r, condition), r, x_r).clamp(-1, 1)
            target = torch.where((kappa[r] < self.ANCHOR).view(-1, 1, 1, 1), x_0, target)
        student = scheduler.predict_x_0(denoise(x_t, t, condition), t, x_t)
        distance = ((student - target).square().mean(dim=(1, 2, 3)) + 1e-8).sqrt()
        return distance / (kappa[t] - kappa[r]).clamp(min=self.LEAST_GAP).float()

    def student(self, pipeline: DDPMImagePipeline) -> dict[str, Any]:
        """What a saved student has in place of the trained pipeline's: LCM's rule (arXiv:2310.04378), x_s = a_s x_0 + s_s z, in four steps."""
        config = _values(pipeline.scheduler)
        del config["variance_type"]  # it has none
        return {
            "scheduler": LCMScheduler.from_config(config),
            "sampling": {"num_inference_steps": 4, "guidance_scale": 1.0},
        }


class MomentMatching:
    """Multistep moment matching (Salimans et al. 2024, arXiv:2406.04103): the ancestral sampler of DDPM in STEPS steps.

        x~ = f(x_t, t),  t the first level of a step;   x_s ~ q(x_s | x_t, x~),  s ~ Uniform({0..t-1})    Eq. 6 and 7 of DDPM, for any s
        auxiliary   |g(x_s, s) - x~|^2 / kappa_s,  whose minimum is g = E[x~ | x_s]
        student     x~ . stopgrad[g(x_s, s) - h(x_s, s)] / mean |x~ - h(x_s, s)|,  h the teacher's x_0

    The student's gradient vanishes where E[x~ | x_s] is the teacher's E[x_0 | x_s]. Both networks take a step on each batch, where the paper takes
    turns, and s goes down to 0, where the paper's ends at the next step: so fewer steps are trained as well, down to one. The auxiliary network
    begins as the teacher. The difference is scaled as in arXiv:2311.18828, Eq. 8.

    Args:
        pipeline: the model that becomes the student.
        teacher: whose means it matches.

    Raises:
        ValueError: the pipeline's variance is learned.
    """

    STEPS = 4
    AUXILIARY_RATE = 5.0  # times the student's learning rate, which it has to follow

    def __init__(self, pipeline: DDPMImagePipeline, teacher: Teacher):
        if "learned" in (variance_type := pipeline.scheduler.variance_type):
            raise ValueError(
                "objective='moment_matching' samples with the variance of Eq. 7: this model's variance_type is"
                f" {variance_type!r}, for which there is objective='consistency'."
            )
        self.teacher = teacher
        self.first = torch.linspace(0, len(pipeline.scheduler), self.STEPS + 1).round().long()[1:] - 1
        self.auxiliary = copy.deepcopy(teacher.network).requires_grad_(True)
        pipeline.unet.eval()  # these moments are of the network without dropout

    def __call__(
        self,
        denoise: Denoise,
        scheduler: DDPMNoiseScheduler,
        x_0: torch.Tensor,
        t: torch.Tensor,
        noise: torch.Tensor,
        condition: Condition,
    ) -> torch.Tensor:
        """Losses (B,), arguments as in `objective`; the t that is given says in which of the steps it begins."""
        t = self.first.to(t.device, non_blocking=True)[t * self.STEPS // len(scheduler)]
        s = (torch.rand(t.shape, device=t.device) * t).long()
        x_t = scheduler.add_noise(x_0, noise, t)
        student = scheduler.predict_x_0(denoise(x_t, t, condition), t, x_t)
        with torch.no_grad():
            end = student.clamp(-1, 1)
            mean, variance = scheduler.posterior(end, x_t, t, s)
            x_s = mean + variance.sqrt() * torch.randn_like(x_t)
            taught = self.teacher.x_0(denoise, x_s, s, condition)
        matched = self.teacher.model.predict_x_0(denoise(x_s, s, condition, network=self.auxiliary), s, x_s)
        abar = scheduler.alphas_cumprod.to(s.device, non_blocking=True)[s]
        weight = (abar / (1 - abar)).sqrt().clamp(0.3, 10)
        auxiliary = weight * (matched - end).square().mean(dim=(1, 2, 3))
        difference = matched.detach().clamp(-1, 1) - taught
        scale = (end - taught).abs().mean(dim=(1, 2, 3), keepdim=True) + 0.02
        return auxiliary + (student * difference / scale).mean(dim=(1, 2, 3))

    def student(self, pipeline: DDPMImagePipeline) -> dict[str, Any]:
        """What a saved student has in place of the trained pipeline's: Algorithm 2 in STEPS steps, with the variance of Eq. 7."""
        config = _values(pipeline.scheduler) | {"timestep_spacing": "trailing", "variance_type": "fixed_small"}
        return {
            "scheduler": DDPMNoiseScheduler.from_config(config),
            "sampling": {"num_inference_steps": self.STEPS, "guidance_scale": 1.0},
        }


STUDENTS = {"consistency": Consistency, "moment_matching": MomentMatching}


def _differences(model: DDPMImagePipeline, student: DDPMImagePipeline) -> list[str]:
    """In what a model's inputs differ from its student's, which get the same ones."""
    inputs = [
        {
            "classes": (pipeline.id2label, pipeline.num_labels),
            "conditions": (pipeline.takes, pipeline.image_condition),
            "channels or size of images": (pipeline.num_channels, pipeline.unet.config.get("sample_size")),
        }
        for pipeline in (model, student)
    ]
    return [word for word, value in inputs[0].items() if value != inputs[1][word]]


def _values(scheduler: DDPMNoiseScheduler) -> dict[str, Any]:
    """All of its config. `from_config` of the config itself takes another class's defaults where this scheduler has its own."""
    return {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
