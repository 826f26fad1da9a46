"""What each baseline reads of a recipe, with the values its authors published; no torch here.

    METHOD_PRESETS["dafl"]["latent_dim"]       # 1000

Values are those of the authors' code for CIFAR-10 with a ResNet-34, as far as a comment names it;
`github:` stands for https://github.com/. What no comment names is our choice. Constants without a
key are in the methods' own files, each with its source. None of them was tuned by us for CIFAR.

A method reads the keys that are listed for it, and those of the bank and the student, which all
share. A key that only another method reads is refused with it, so that no setting is without
effect. Weights that have no key (total variation of DeepInversion, entropies of DAFL and DFQ) are
constants of the method's own file.

Where we differ, for all of them: r_BN is `genkd.batch_statistics`, which measures each layer in the
unit of its own statistics, and images are stored as uint8 and seen augmented by a student that
takes `student_steps` steps a round, whatever ratio the paper had.
"""

from __future__ import annotations

from collections.abc import Mapping

Value = bool | int | float | str

# Everything that only a synthesiser reads, switched off: what a recipe records of a key that its
# method does not know.
OFF: Mapping[str, Value] = {
    "generator_rounds": 0,
    "latent_rate": 0.0,
    "label_weight": 0.0,
    "statistics_weight": 0.0,
    "statistics_momentum": 0.0,
    "label_loss_weight": 0.0,
    "adversarial_weight": 0.0,
    "smoothness_weight": 0.0,
    "synthesis_shift": 0.0,
    "warm_up": 0.0,
    "energy": False,
    "likelihood_weight": 0.0,
    "policy_gradient": "none",
    "policy_placebo": False,
    "policy_weight": 0.0,
    "rejection_candidates": 0,
    "acceptance": 1.0,
}
# What only GenKD reads, beside those of OFF.
PRIOR_KEYS = frozenset(
    {
        *("energy_rate", "energy_steps", "langevin_steps", "langevin_step_size"),
        *("positive_temperature", "policy_segments", "effective_share"),
    }
)
GENERATOR_KEYS = frozenset(
    {"generator_channels", "generator_rate", "generator_steps", "latent_dim"}
)
SYNTHESIS_KEYS = frozenset(OFF) | PRIOR_KEYS | GENERATOR_KEYS

# How they take turns with the student: a round of most of them is a few steps of their generator on
# many images, where GenKD takes many on few, and all of them make images to the end.
PACE: Mapping[str, Value] = {"batch": 256, "student_steps": 12, "synthesis_share": 1.0}

# 12 generator steps beside 12 steps of the student: one each in turn. All generators have the shape
# of github:huawei-noah/Efficient-Computing (DAFL) with 64 feature maps, as later authors took it.
METHOD_PRESETS: Mapping[str, Mapping[str, Value]] = {
    # GenKD's own over a public generative model, which is not trained: its values are ours.
    "frozen-prior": {
        "warm_up": 0.15,
        "energy": True,
        "energy_rate": 5e-3,
        "energy_steps": 8,
        "langevin_steps": 20,
        "langevin_step_size": 0.4,
        "positive_temperature": 0.2,
        "likelihood_weight": 1.0,
        "policy_gradient": "stationary",
        "policy_segments": 1,
        "policy_placebo": False,
        "policy_weight": 0.3,
        # Low: a class that the model seldom draws is a small part of N(0, I).
        "effective_share": 0.02,
    },
    # The paper's EBM in pixels; all our choice, see genkd/pixel_synthesis.py.
    "genkd-pixel": {
        "generator_rate": 1.0,
        "statistics_weight": 20.0,
        "statistics_momentum": 0.0,
        "smoothness_weight": 30.0,
        "warm_up": 0.15,
        "energy": True,
        "energy_rate": 1e-3,
        "energy_steps": 2,
        "langevin_steps": 20,
        "langevin_step_size": 0.01,
        "positive_temperature": 0.2,
        "likelihood_weight": 1.0,
        "policy_gradient": "stationary",
        "policy_placebo": False,
        "policy_weight": 0.3,
        "effective_share": 0.2,
    },
    # All our choice: the papers leave the noise as it is.
    "noise": {"generator_rate": 1e-2, "generator_steps": 2, "statistics_weight": 1.0},
    # github:NVlabs/DeepInversion, cifar10/README.md, "parameters from the paper".
    "deepinversion": {
        "generator_rate": 0.05,
        "generator_steps": 2000,
        "statistics_weight": 10.0,
        "label_loss_weight": 1.0,
        "adversarial_weight": 0.0,  # above 0: adaptive DeepInversion
        "warm_up": 0.15,
    },
    # github:huawei-noah/Efficient-Computing, DAFL's README.md: its line for CIFAR-10.
    "dafl": {
        "generator_channels": 64,
        "generator_rate": 0.02,
        "generator_steps": 12,
        "latent_dim": 1000,
        "label_loss_weight": 1.0,
    },
    # github:VainF/Data-Free-Adversarial-Distillation, DFAD_cifar.py: five student steps for one of
    # the generator there, here six.
    "dfad": {
        "generator_channels": 64,
        "generator_rate": 1e-3,
        "generator_steps": 2,
        "latent_dim": 256,
        "adversarial_weight": 1.0,
    },
    # github:polo5/ZeroShotKnowledgeTransfer, main.py; n_G = 1 and n_S = 10 are of the paper's
    # experiments, here 12.
    "zskt": {
        "generator_channels": 64,
        "generator_rate": 1e-3,
        "generator_steps": 1,
        "latent_dim": 100,
        "adversarial_weight": 1.0,
    },
    # Its authors published no code that we know of. Rate and both weights are those that
    # github:zju-vipa/CMI, scripts/dfq, runs it with.
    "dfq": {
        "generator_channels": 64,
        "generator_rate": 1e-3,
        "generator_steps": 12,
        "latent_dim": 512,
        "statistics_weight": 1.0,
        "adversarial_weight": 1.0,
        "warm_up": 0.15,
    },
    # github:zju-vipa/Fast-Datafree, scripts/fast_cifar.sh, the line "r34-10"; warm-up: 20 epochs of
    # 220. A WRN40-2 gets the weights 0.4 and 1.1 there.
    "fastdfkd": {
        "generator_channels": 64,
        "generator_rate": 2e-3,
        "generator_steps": 10,
        "latent_dim": 256,
        "statistics_weight": 10.0,
        "statistics_momentum": 0.9,
        "label_loss_weight": 0.5,
        "adversarial_weight": 1.33,
        "synthesis_shift": 0.125,  # padding=4 of 32 pixels
        "warm_up": 0.09,
    },
    # github:tmtuan1307/NAYER, run/*.sh, datafree_kd.py and datafree/synthesis/nayer.py: a new
    # generator after 10 epochs of two batches; 30 steps (40 for CIFAR-100).
    "nayer": {
        "generator_channels": 64,
        "generator_rate": 4e-3,
        "generator_steps": 30,
        "generator_rounds": 20,
        "latent_dim": 1000,
        "statistics_weight": 10.0,
        "statistics_momentum": 0.9,
        "label_loss_weight": 0.5,
        "adversarial_weight": 1.33,
        "synthesis_shift": 0.125,  # padding=4 of 32 pixels
        "warm_up": 0.09,
    },
}


def preset_of(method: str) -> dict[str, Value]:
    """The keys of a baseline with its values, all others of a synthesiser off.

    Args:
        method: A key of `METHOD_PRESETS`.
    """
    return {**OFF, **PACE, **METHOD_PRESETS[method]}


def unread_keys(method: str) -> frozenset[str]:
    """The recipe keys that have no effect with this method; none with GenKD itself."""
    if method not in METHOD_PRESETS:
        return frozenset()
    return SYNTHESIS_KEYS - METHOD_PRESETS[method].keys()
