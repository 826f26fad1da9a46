"""DFAD and ZSKT: a generator that seeks what the student gets wrong, and nothing else.

    max over G of D(T(G(z)), S(G(z))),    z ~ N(0, I),    against a student that minimises it

dfad  Fang et al. 2019, "Data-free adversarial distillation" (arXiv:1912.11006), equation 6: D is
      the mean absolute difference of logits.
zskt  Micaelli and Storkey 2019, "Zero-shot knowledge transfer via adversarial belief matching"
      (arXiv:1905.09768), equation 1: D is KL(T || S). Their attention transfer is left out: the
      student's loop is the same for all methods.

Neither needs BatchNorm, or anything of the teacher but its logits and gradients. How we differ: the
student learns by the shared loss on the shared bank, where the papers have it learn by D from fresh
images only; and both authors' generators end in a BatchNorm without scale and shift, ours in a
sigmoid (docs/tried.md says what that is worth).
"""

from __future__ import annotations

from torch import Tensor, nn

from genkd.baselines.baseline import GeneratorBaseline, Losses
from genkd.losses import divergence


class Dfad(GeneratorBaseline):
    """The generator maximises the absolute difference of logits."""

    def _losses(self, images: Tensor, student: nn.Module, steer: bool) -> tuple[Tensor, Losses]:
        logits = self.ask(self.teacher, images)
        self.teacher_passes += len(images)
        student_logits = self.ask(student, images)
        if len(self.known) < self.num_classes:  # unknown classes have logits of no meaning
            logits, student_logits = logits[:, self.known], student_logits[:, self.known]
        adversarial = self._discrepancy(logits, student_logits)
        return -self.recipe.adversarial_weight * adversarial, {"adversarial": adversarial}

    def _discrepancy(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        return logit_distance(teacher_logits, student_logits)


class Zskt(Dfad):
    """The generator maximises KL(T || S)."""

    def _discrepancy(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        return divergence(teacher_logits, student_logits, "kl").mean()


def logit_distance(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """The mean |t - s| over batch and classes.

    Returns:
        Scalar, >= 0.
    """
    return (teacher_logits - student_logits).abs().mean()
