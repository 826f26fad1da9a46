"""What each baseline reads of a recipe, near the values of its paper; no torch here.

    METHOD_PRESETS["dafl"]["latent_dim"]       # 1000

The values are from memory of the papers, not yet checked against their texts, as are the constants
of the methods' own files, also where a header calls them the paper's.

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
    "label_weight": 0.0,
    "statistics_weight": 0.0,
    "statistics_momentum": 0.0,
    "label_loss_weight": 0.0,
    "adversarial_weight": 0.0,
    "smoothness_weight": 0.0,
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

# 12 generator steps beside 12 steps of the student: one each in turn, as in the papers of DAFL and
# DFQ; DFAD takes five, ZSKT ten student steps for one of the generator.
METHOD_PRESETS: Mapping[str, Mapping[str, Value]] = {
    "noise": {"generator_rate": 1e-2, "generator_steps": 2, "statistics_weight": 1.0},
    "deepinversion": {
        "generator_rate": 0.1,
        "generator_steps": 2000,
        "statistics_weight": 10.0,
        "label_loss_weight": 1.0,
        "adversarial_weight": 0.0,  # 10: adaptive DeepInversion
        "warm_up": 0.15,
    },
    "dafl": {
        "generator_channels": 64,
        "generator_rate": 1e-3,
        "generator_steps": 12,
        "latent_dim": 1000,
        "label_loss_weight": 1.0,
    },
    "dfad": {
        "generator_channels": 64,
        "generator_rate": 1e-3,
        "generator_steps": 2,
        "latent_dim": 256,
        "adversarial_weight": 1.0,
    },
    "zskt": {
        "generator_channels": 64,
        "generator_rate": 1e-3,
        "generator_steps": 1,
        "latent_dim": 100,
        "adversarial_weight": 1.0,
    },
    "dfq": {
        "generator_channels": 64,
        "generator_rate": 1e-3,
        "generator_steps": 12,
        "latent_dim": 512,
        "statistics_weight": 1.0,
        "adversarial_weight": 1.0,
        "warm_up": 0.15,
    },
    "fastdfkd": {
        "generator_channels": 64,
        "generator_rate": 5e-3,
        "generator_steps": 10,
        "latent_dim": 256,
        "statistics_weight": 10.0,
        "statistics_momentum": 0.9,
        "label_loss_weight": 0.5,
        "adversarial_weight": 1.33,
        "warm_up": 0.1,
    },
    "nayer": {
        "generator_channels": 64,
        "generator_rate": 4e-3,
        "generator_steps": 30,
        "latent_dim": 1000,
        "statistics_weight": 10.0,
        "statistics_momentum": 0.9,
        "label_loss_weight": 0.5,
        "adversarial_weight": 1.33,
        "warm_up": 0.1,
    },
}


def preset_of(method: str) -> dict[str, Value]:
    """The keys of a baseline with its values, all others of a synthesiser off.

    Args:
        method: A key of `METHOD_PRESETS`.
    """
    return {**OFF, **METHOD_PRESETS[method]}


def unread_keys(method: str) -> frozenset[str]:
    """The recipe keys that have no effect with this method; none with GenKD itself."""
    if method not in METHOD_PRESETS:
        return frozenset()
    return SYNTHESIS_KEYS - METHOD_PRESETS[method].keys()
