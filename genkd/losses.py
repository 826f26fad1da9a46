"""The losses and health figures of data-free distillation: pure functions of tensors.

Logits are (B, K), labels int64 (B,), images (B, C, H, W) in [0, 1]. Logarithms are natural. Half
precision logits are taken to float32 first: a divergence of two similar rows is lost in bf16.
Where a function takes both networks' logits, the teacher comes first.

Synthetic images have no ground truth: `mixup` asks for none, and the teacher labels the result.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Divergence = Literal["kl", "js"]


def _log_softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.log_softmax(precise / temperature, dim=1)


# -- teacher and student ---------------------------------------------------------------------------


def distillation_loss(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(t / T) || softmax(s / T)), averaged over the batch.

    Hinton et al. 2015 (arXiv:1503.02531, section 2): the factor T^2 keeps the gradient's size as
    T changes.

    Args:
        teacher_logits: t.
        student_logits: s.
        temperature: T > 0, 4..20 is usual.

    Returns:
        Scalar, >= 0.
    """
    divergence = F.kl_div(
        _log_softmax(student_logits, temperature),
        _log_softmax(teacher_logits, temperature),
        reduction="batchmean",
        log_target=True,
    )
    return temperature**2 * divergence


def divergence(teacher_logits: Tensor, student_logits: Tensor, kind: Divergence = "kl") -> Tensor:
    """How differently teacher and student see each image.

    Args:
        teacher_logits: Of T.
        student_logits: Of S.
        kind: "kl": KL(T || S), unbounded; "js": Jensen-Shannon, 0..ln 2, so that a few images on
            which the student is confidently wrong do not outweigh the rest.

    Returns:
        (B,), >= 0, differentiable through both networks.
    """
    log_t, log_s = _log_softmax(teacher_logits), _log_softmax(student_logits)
    if kind == "kl":
        return (log_t.exp() * (log_t - log_s)).sum(1)
    log_m = torch.logaddexp(log_t, log_s) - math.log(2)
    terms = log_t.exp() * (log_t - log_m) + log_s.exp() * (log_s - log_m)
    return 0.5 * terms.sum(1)


def masked_divergence(
    teacher_logits: Tensor, student_logits: Tensor, kind: Divergence = "kl"
) -> Tensor:
    """`divergence` where T and S agree on the arg max, zero elsewhere.

    NAYER (Tran et al. 2024, arXiv:2310.00258), after the adversarial term of DFQ (Choi et al.
    2020, arXiv:2005.04136): hard images of the right class, not images of another class. The
    generator *maximises* its mean over the batch, zeros included.

    Returns:
        (B,), >= 0; the mask carries no gradient.
    """
    agree = teacher_logits.argmax(1) == student_logits.argmax(1)
    return agree * divergence(teacher_logits, student_logits, kind)


def reward(teacher_logits: Tensor, student_logits: Tensor, labels: Tensor) -> Tensor:
    """The policy gradient's reward (B,): `masked_divergence` of images of the class asked for.

    Zero for an image of another class, which would not enter the bank.
    """
    right = teacher_logits.argmax(1) == labels
    return right * masked_divergence(teacher_logits, student_logits)


# -- the teacher and the class asked for -----------------------------------------------------------


def label_log_probability(teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """The teacher's log p_T(y | x), (B,), <= 0."""
    return _log_softmax(teacher_logits).gather(1, labels.unsqueeze(1)).squeeze(1)


def class_cross_entropy(teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """-mean log p_T(y | x): the one-hot loss of DAFL (Chen et al. 2019, arXiv:1904.01186, eq. 1).

    There y is the arg max itself; here it is the class the image was asked to be of.
    """
    return -label_log_probability(teacher_logits, labels).mean()


def class_entropy(teacher_logits: Tensor) -> Tensor:
    """Entropy of the batch's mean prediction, 0..ln K: near ln K if the classes are balanced.

    The information entropy of DAFL (arXiv:1904.01186, eq. 5), without its sign and 1 / K.

    Returns:
        Scalar.
    """
    log_mean = _log_softmax(teacher_logits).logsumexp(0) - math.log(len(teacher_logits))
    return -(log_mean.exp() * log_mean).sum()


# -- images ----------------------------------------------------------------------------------------


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of vertical plus that of horizontal neighbours.

    The anisotropic total variation of Rudin, Osher and Fatemi 1992, as a mean, so that its weight
    does not depend on the image's size.

    Returns:
        Scalar, 0..2 for images in [0, 1].
    """
    vertical = (images[:, :, 1:] - images[:, :, :-1]).abs().mean()
    horizontal = (images[:, :, :, 1:] - images[:, :, :, :-1]).abs().mean()
    return vertical + horizontal


def within_class_deviation(values: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """How much the images of one class differ: the figure that tells a generator that ignores z.

    Args:
        values: (B, ...): images, or the teacher's features.
        labels: int64 (B,).
        num_classes: K.

    Returns:
        (K,): standard deviation (divided by n) over the class at each coordinate, averaged over
        coordinates, in the unit of `values`; NaN for a class with fewer than two samples, so take
        `nanmean`. Differentiable; without gradient where all samples are equal.
    """
    flat = values.flatten(1)
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))  # (B, n)
    member = F.one_hot(labels, num_classes).to(flat.dtype)  # (B, K)
    count = member.sum(0)
    mean = (member.T @ flat) / count.clamp_min(1).unsqueeze(1)  # (K, n)
    # Centred first: mean of squares less square of mean loses small deviations in float32.
    variance = (member.T @ (flat - mean[labels]).square()) / count.clamp_min(1).unsqueeze(1)
    tiny = torch.finfo(flat.dtype).tiny
    deviation = variance.clamp_min(tiny).sqrt().mean(1)
    return torch.where(count >= 2, deviation, torch.nan)


def mixup(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image blended with another: lambda x + (1 - lambda) x', lambda uniform in [0, 1].

    Zhang et al. 2018 (arXiv:1710.09412, eq. 1) with alpha = 1, where their Beta is uniform.

    Args:
        images: (B, C, H, W).
        generator: Source of lambda and of the permutation.

    Returns:
        (B, C, H, W).
    """
    on = generator.device
    partner = torch.randperm(len(images), generator=generator, device=on).to(images.device)
    share = torch.rand(len(images), generator=generator, device=on).to(images.device, images.dtype)
    return torch.lerp(images[partner], images, share.view(-1, 1, 1, 1))


# -- the latent EBM --------------------------------------------------------------------------------


def self_normalised_weights(
    values: Tensor, beta: float, labels: Tensor | None = None, num_classes: int = 0
) -> Tensor:
    """w_i proportional to exp(v_i / beta), sum 1: self-normalised importance weights.

    Args:
        values: v (N,), finite.
        beta: Temperature > 0: small takes the best only, large weighs all alike.
        labels: int64 (N,). If given, weights are normalised within each class, and each class
            present has the same sum: otherwise a class that the teacher finds easy takes all.
        num_classes: K, if `labels` are given.

    Returns:
        (N,), detached.
    """
    scaled = values.detach() / beta
    scaled = scaled.to(torch.promote_types(scaled.dtype, torch.float32))
    if labels is None:
        return scaled.softmax(0)
    member = F.one_hot(labels, num_classes).bool()  # (N, K)
    within = scaled.unsqueeze(1).masked_fill(~member, -torch.inf).softmax(0)  # NaN: class absent
    present = member.any(0).sum()
    return within.gather(1, labels.unsqueeze(1)).squeeze(1) / present


def effective_sample_size(weights: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 (Kish 1965): 1 if one sample has all the weight, N if all are alike.

    Returns:
        Scalar.
    """
    return weights.sum().square() / weights.square().sum()


def maximum_likelihood_loss(
    f_positive: Tensor, f_negative: Tensor, weights: Tensor | None = None, *, penalty: float = 0.1
) -> Tensor:
    """L_MLE = -sum_i w_i f(z_i+) + mean f(z-) + penalty (mean f+^2 + mean f-^2).

    Its first two terms have the gradient of the negative log-likelihood of the weighted positives
    under p proportional to exp(f) N(0, I), if z- are drawn from p (contrastive form, Hinton 2002;
    in latent space Pang et al. 2020, arXiv:2006.08205, eq. 8). The penalty keeps f from drifting
    off, after Du and Mordatch 2019 (arXiv:1903.08689, section 3.3).

    Args:
        f_positive: f at latents that the teacher verified (N,).
        f_negative: f at latents drawn from the EBM (M,), the latents detached.
        weights: w (N,), sum 1 (`self_normalised_weights`); 1 / N each if absent.
        penalty: Weight of the squares.

    Returns:
        Scalar.
    """
    positive = f_positive.mean() if weights is None else (weights.detach() * f_positive).sum()
    squares = f_positive.square().mean() + f_negative.square().mean()
    return f_negative.mean() - positive + penalty * squares
