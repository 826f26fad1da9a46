"""DFQ: the adversarial generator, held to images that the teacher knows.

Choi et al. 2020, "Data-free network quantization with adversarial knowledge distillation"
(arXiv:2005.04136), section 3:

    L_G = a_bn r_BN(x) + H_instance - H_batch - a_adv mean KL(T(x) || S(x))
    H_instance = mean_x H(softmax T(x))    H_batch = H(mean_x softmax T(x))

Images of one class each, of all classes together, with the statistics of the training data; the
adversarial term acts after a warm-up of the generator, unmasked. z ~ N(0, I), no label goes in.

How we differ: r_BN is the shared one where the paper takes the divergence of two Gaussians; all
weights are 1, our choice, and stay so where the paper lets the weight of the constraints fall; and
there is one generator and one student, of which the paper allows several. Without BatchNorm r_BN is
zero and the rest remains.
"""

from __future__ import annotations

from torch import Tensor, nn

from genkd.baselines.baseline import GeneratorBaseline, Losses
from genkd.losses import class_entropy, divergence

INSTANCE_ENTROPY = 1.0
BATCH_ENTROPY = 1.0


class Dfq(GeneratorBaseline):
    """One generator, no labels."""

    def _losses(self, images: Tensor, student: nn.Module, steer: bool) -> tuple[Tensor, Losses]:
        logits, statistics = self.measure(images)
        instance, batch = instance_entropy(logits), class_entropy(logits)
        objective = (
            self.recipe.statistics_weight * statistics
            + INSTANCE_ENTROPY * instance
            - BATCH_ENTROPY * batch
        )
        losses = {"statistics": statistics, "instance_entropy": instance, "batch_entropy": batch}
        if steer and self.recipe.adversarial_weight:
            adversarial = divergence(logits, self.ask(student, images), "kl").mean()
            objective = objective - self.recipe.adversarial_weight * adversarial
            losses["adversarial"] = adversarial
        return objective, losses


def instance_entropy(logits: Tensor) -> Tensor:
    """Mean entropy of the predictions, 0..ln K: low where each image is surely of one class.

    Args:
        logits: (B, K).

    Returns:
        Scalar.
    """
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean()
