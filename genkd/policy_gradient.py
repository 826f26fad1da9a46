"""Policy gradient of the latent EBM: make the prior propose what the reward asks for.

A reward R(z) (here: what the student still has to learn at G(z)) is **maximised**; both losses
below are to be minimised, and their gradient is minus an estimate of grad_theta E[R].

1. Stationary. For z ~ p(z | y), proportional to exp f(z, y) N(z; 0, I):

       grad E_p[R] = Cov_p(R, grad f)            L = -mean[A f(z, y)]

2. Chain (the GenKD paper's). For K Langevin steps from a start that does not depend on f, each
   step is a Gaussian policy, z_k ~ N(z_{k-1} + (s^2/2) grad_z [f - |z|^2/2], s^2 I), and REINFORCE
   (Williams 1992) with a state-dependent baseline gives

       grad E[R(z_K)] = E sum_k A_k (s/2) grad_theta <eps_k, grad_z f(z_{k-1}, y)>
       A_k = R(z_K) - R(z_{k-1})                 the reward-to-go

   Exact for a fresh short-run chain; for persistent chains it ignores how the start came about.

z, eps and A are constants in both: only f carries a gradient. (Writing the mean of a step as
z_k - noise, as published code does, makes the likelihood independent of the parameters, and the
gradient exactly zero.)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from genkd.energy import Tilt, tilt_gradient
from genkd.langevin import Chain

# A class whose rewards vary by less than this share of their mean varies by rounding only.
RELATIVE_FLOOR = 1e-4


def stationary_loss(f_values: Tensor, advantages: Tensor) -> Tensor:
    """-mean[A f(z, y)], with grad = -Cov(R, grad f) if A = R - mean R.

    Args:
        f_values: f(z, y) (B,), with its graph, z drawn from p(z | y) and detached.
        advantages: A (B,), centred (`standardise_within_class`).

    Returns:
        Scalar.
    """
    return -(advantages.detach() * f_values).mean()


def chain_loss(f: Tilt, chain: Chain, condition: Tensor, advantages: Tensor) -> Tensor:
    """-mean_b sum_k A_k (s/2) <eps_k, grad_z f(z_{k-1}, y)>.

    One second-order backward pass over all K B states at once; no image is generated here.

    Args:
        f: The tilt that drew the chain, higher = more likely.
        chain: K steps of `LangevinSampler.chain` from a fresh start.
        condition: Labels int64 (B,) or embeddings (B, e) of the chain.
        advantages: A_k (K, B) (`reward_to_go`), or (B,) for one advantage for all steps of a
            chain (the terminal reward less a baseline: also exact, noisier, K times cheaper).

    Returns:
        Scalar, differentiable with respect to the parameters of f.
    """
    steps, batch, dim = chain.noises.shape
    states = chain.states[:-1].reshape(steps * batch, dim)
    conditions = condition.repeat(steps, *(1,) * (condition.dim() - 1))  # (K B,) or (K B, e)
    gradient = tilt_gradient(f, states, conditions, create_graph=True).view(steps, batch, dim)
    projection = (chain.noises.detach() * gradient).sum(2)  # <eps_k, grad f>, (K, B)
    return -0.5 * chain.step_size * (advantages.detach() * projection).sum(0).mean()


def pathwise_loss(f: Tilt, chain: Chain, condition: Tensor, reward_gradient: Tensor) -> Tensor:
    """-mean_b <grad_z R(z_K), z_K(theta)>: the ablation that differentiates the reward itself.

    The chain is walked once more with the noises it had, so that z_K depends on the parameters of
    f: grad E[R(z_K)] = E[(d z_K / d theta)^T grad_z R(z_K)] (reparameterisation, Kingma and Welling
    2014, arXiv:1312.6114, section 2.4). Unlike policy gradient it needs a reward, and so a
    generator, a teacher and a student, that can be differentiated.

    Args:
        f: The tilt that drew the chain, unchanged since, higher = more likely.
        chain: K steps of `LangevinSampler.chain` from a fresh start.
        condition: Labels int64 (B,) or embeddings (B, e) of the chain.
        reward_gradient: grad_z R at z_K (B, d).

    Returns:
        Scalar, differentiable with respect to the parameters of f. Its value means nothing.
    """
    size = chain.step_size
    with torch.enable_grad(), parametrize.cached():
        z = chain.states[0].detach().requires_grad_()
        for noise in chain.noises:
            (tilt,) = torch.autograd.grad(f(z, condition).sum(), z, create_graph=True)
            z = z + 0.5 * size**2 * (tilt - z) + size * noise
    return -(reward_gradient.detach() * z).sum(1).mean()


def reward_to_go(rewards: Tensor, stride: int = 1) -> Tensor:
    """A_k = R(z_K) - R(z_{k-1}), k = 1..K: what the rest of the chain still gains.

    Args:
        rewards: R at z_0, z_m, z_2m, .., z_K, (K / m + 1, B). With m > 1 a step takes the latest
            known state before it as its baseline: still exact, and m times fewer images to score.
        stride: m.

    Returns:
        (K, B).
    """
    return (rewards[-1] - rewards[:-1]).repeat_interleave(stride, dim=0)


def immediate_reward(rewards: Tensor, stride: int = 1) -> Tensor:
    """A_k = R(z_k) - R(z_{k-1}): the greedy ablation, **biased**.

    Each step is credited with its own gain in full, although later steps forget a part of it
    (the prior pulls back by 1 - s^2/2 a step), so long chains overstate the gradient. Arguments
    as `reward_to_go`.
    """
    return (rewards[1:] - rewards[:-1]).repeat_interleave(stride, dim=0)


def standardise_within_class(rewards: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """(R - mean_y R) / std_y R, per class y.

    Args:
        rewards: (B,), or (K, B) advantages of a chain: then the mean is taken per step (any
            baseline is allowed there), the deviation over all steps of the class (one scale, or
            the steps' shares in the gradient would change).
        labels: int64 (B,).
        num_classes: Number of classes.

    Returns:
        The shape of `rewards`, in float32 or better, detached. Zero for a class with fewer than
        two samples (nothing to compare with) and for one whose rewards are all the same.
    """
    centred, scale = _centred_and_scale(rewards, labels, num_classes)
    return (centred * scale).view(rewards.shape)


def scale_within_class(rewards: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """1 / std_y R for each sample (B,): what `standardise_within_class` divides by.

    For the gradient of a reward, which has no baseline to subtract. Arguments as there; zero where
    the result there is zero.
    """
    return _centred_and_scale(rewards, labels, num_classes)[1]


def _centred_and_scale(rewards: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """R - mean_y R (K, B) or (1, B), and 1 / std_y R (B,)."""
    rewards = rewards.detach()
    rewards = rewards.to(torch.promote_types(rewards.dtype, torch.float32))
    table = rewards.unsqueeze(0) if rewards.dim() == 1 else rewards  # (K, B)
    member = torch.nn.functional.one_hot(labels, num_classes).to(table.dtype)  # (B, classes)
    count = member.sum(0)
    mean = (table @ member) / count.clamp_min(1)  # (K, classes)
    centred = table - mean[:, labels]
    variance = (centred.square().mean(0) @ member) / count.clamp_min(1)  # (classes,)
    magnitude = (table.square().mean(0) @ member / count.clamp_min(1)).sqrt()
    deviation = variance.sqrt()
    usable = deviation > RELATIVE_FLOOR * magnitude  # no sample, or one, deviates by nothing
    scale = torch.where(usable, 1 / torch.where(usable, deviation, 1), 0)
    return centred, scale[labels]


def permute_within_class(rewards: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Rewards handed to random others of the same class: the placebo of the ablation.

    Of standardised rewards the expected gradient is exactly zero, whatever f.

    Args:
        rewards: (B,), or (K, B): whole columns are exchanged.
        labels: int64 (B,).
        generator: Source of the permutation.

    Returns:
        The shape of `rewards`.
    """
    shuffle = torch.randperm(len(labels), generator=generator, device=generator.device)
    shuffle = shuffle.to(labels.device)
    # Both orders list the classes one after the other, the second in random order within each.
    ordered = labels.argsort(stable=True)
    shuffled = shuffle[labels[shuffle].argsort(stable=True)]
    source = torch.empty_like(ordered)
    source[ordered] = shuffled
    return rewards[..., source]
