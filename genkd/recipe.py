"""Every number that decides how a distillation goes, and the budget it may spend.

    recipe = PRESETS["standard"].with_overrides({"latent_dim": "128"})
    budget = Budget.parse("10m")

A recipe is frozen, checked, and written into the run directory and the provenance of a student.
The presets were chosen on held-out images of the *training* set of Fashion-MNIST, never on its
test set; see CONTRIBUTING.md.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self, get_args, get_type_hints

from genkd.baselines.presets import METHOD_PRESETS, preset_of, unread_keys
from genkd.errors import ConfigurationError, UsageError

Method = Literal[
    "genkd",
    "genkd-pixel",
    "frozen-prior",
    "noise",
    "deepinversion",
    "dafl",
    "dfad",
    "zskt",
    "dfq",
    "fastdfkd",
    "nayer",
]
PolicyGradient = Literal["none", "stationary", "chain", "greedy", "pathwise"]
BudgetUnit = Literal["seconds", "core-seconds", "passes", "samples"]
# Chains in pixels have no segments to credit, and nothing to follow a gradient through.
OF_PIXELS = ("none", "stationary", "chain")


@dataclass(frozen=True)
class Budget:
    """What a run may spend.

    Attributes:
        amount: How much, above 0.
        unit: "seconds" of wall time; "core-seconds", processor time of this process over all its
            threads, which other programs on the machine hardly change, and which counts nothing of
            what a GPU does; teacher "passes" (images that went through the teacher, forward); or
            "samples", images put into the bank.
    """

    amount: float
    unit: BudgetUnit

    @classmethod
    def parse(cls, text: str) -> Self:
        """The budget of `10m`, `90s`, `1.5h`, `600 core-seconds`, `2e6 passes`, `20000 samples`.

        Raises:
            UsageError: If it is none of these.
        """
        match = re.fullmatch(r"([0-9.]+(?:e[0-9]{1,2})?)\s*([a-z-]+)", text.strip().lower())
        units: dict[str, tuple[float, BudgetUnit]] = {
            "s": (1, "seconds"),
            "m": (60, "seconds"),
            "h": (3600, "seconds"),
            "core-seconds": (1, "core-seconds"),
            "passes": (1, "passes"),
            "samples": (1, "samples"),
        }
        try:
            if match is None:
                raise ValueError(text)
            factor, unit = units[match[2]]
            amount = float(match[1]) * factor
            if not 0 < amount < math.inf:
                raise ValueError(text)
        except (ValueError, KeyError) as error:
            raise UsageError(
                f"{text[:40]!r} is not a budget",
                hint="for example 10m, 90s, 1h, 600core-seconds, 2e6passes or 20000samples",
            ) from error
        return cls(amount, unit)

    def __str__(self) -> str:
        # Every digit: a run directory compares budgets by this text.
        return f"{self.amount!r} {self.unit}".replace(".0 ", " ")


@dataclass(frozen=True)
class Recipe:
    """The numbers of one distillation.

    Attributes:
        method: How images come about: "genkd"; "genkd-pixel", its EBM in pixels
            (`genkd.pixel_synthesis`); "frozen-prior", its EBM over a public generative model
            (`genkd.frozen_prior`); or one of the field's in `genkd.baselines`.
        budget: What to spend if nothing else is said, as `Budget.parse` takes it.
        batch: Images synthesised at once; halved when memory runs out.
        bank_images: Images the bank keeps; the oldest make room.
        generator_channels: Feature maps before the generator's last convolution.
        generator_rate: Learning rate of its Adam; without a generator, of the images' own; of
            genkd-pixel alpha, a chain's step along its gradient.
        generator_steps: Adam steps for each batch of latents, or of images.
        generator_rounds: Rounds after which the generator starts anew; 0: never. So do the chains
            of the EBM then, which itself stays.
        latent_dim: d of z.
        latent_rate: Learning rate of the latents, which are moved until G draws of them what is
            wanted; 0 leaves them where the prior put them.
        label_weight: Factor on the label embedding against z; small ones make G listen to z.
        statistics_weight: lambda_bn of r_BN.
        statistics_momentum: rho in [0, 1), weight of past batches in r_BN.
        label_loss_weight: lambda_oh of the cross-entropy with the wanted class; of genkd four times
            as much if the teacher has no BatchNorm.
        adversarial_weight: lambda_adv of the masked divergence of teacher and student.
        smoothness_weight: lambda_tv of the total variation.
        synthesis_shift: Largest shift of the images that teacher and student are shown while they
            are made, as a share of a side; they are mirrored, too. 0: shown as they are.
        warm_up: Share of the time in which images are made that passes without the adversarial
            term and the policy gradient.
        synthesis_share: Share of the budget during which images are made; then the student learns
            from the bank alone. Its rate rises and falls once in each of the two stages. A budget
            in samples is spent by making images: there it is 1.
        energy: Whether latents come from the latent EBM (else from N(0, I)); of genkd-pixel,
            whether its head learns (else it is zero).
        energy_rate: Learning rate of its Adam.
        energy_steps: Adam steps a round.
        langevin_steps: Steps of a chain.
        langevin_step_size: s, in prior standard deviations; of genkd-pixel the noise of a step, in
            deviations of the teacher's normalised pixels.
        positive_temperature: beta of the weights exp(v / beta) of positives, in nats of v.
        likelihood_weight: Factor on the likelihood; 0: the policy gradient learns alone.
        policy_gradient: "none", "stationary" or "chain"; of the ablation "greedy", a chain whose
            steps are credited with their immediate reward, and "pathwise", the reward's own
            gradient through generator, teacher, student and chain. Rewards are compared within a
            class of a batch: of one that comes once they say nothing.
        policy_segments: Equal parts of a chain at whose ends rewards are measured; 1: at the start
            and the end only, where "greedy" and "chain" are one and the same.
        policy_placebo: Whether rewards are permuted within each class, so that they say nothing.
        policy_weight: Factor on the policy-gradient loss against the likelihood.
        effective_share: Below this effective share of N(0, I) draws the tilt has gone far enough,
            and the policy gradient rests.
        rejection_candidates: Without the EBM: draws from N(0, I) for each latent, of which the
            first is taken that passes the test u < exp(v / positive_temperature); 0: no test.
        acceptance: Share of the verified images of each class, best first, that enter the bank.
        student_steps: SGD steps of the student a round.
        student_batch: Its batch.
        student_rate: Its peak learning rate.
        student_decay: Its weight decay.
        temperature: T of the distillation loss.
        affine: Strength of the random affine maps, 0..1.
        texture: Strength of the random textures, 0..1.
        mixed_share: Share of its images blended with another, 0..1.
        settling_affine: Strength of the maps of the images that BatchNorm settles on at the end.
    """

    method: Method = "genkd"
    budget: str = "30m"
    batch: int = 64
    bank_images: int = 40_000
    generator_channels: int = 16
    generator_rate: float = 4e-3
    generator_steps: int = 30
    generator_rounds: int = 20
    latent_dim: int = 256
    latent_rate: float = 0.04
    label_weight: float = 0.0
    statistics_weight: float = 10.0
    statistics_momentum: float = 0.9
    label_loss_weight: float = 0.5
    adversarial_weight: float = 1.33
    smoothness_weight: float = 0.0
    synthesis_shift: float = 0.125
    warm_up: float = 0.15
    synthesis_share: float = 0.4
    energy: bool = True
    energy_rate: float = 1e-3
    energy_steps: int = 2
    langevin_steps: int = 20
    langevin_step_size: float = 0.4
    positive_temperature: float = 0.2
    likelihood_weight: float = 1.0
    policy_gradient: PolicyGradient = "none"
    policy_segments: int = 1
    policy_placebo: bool = False
    policy_weight: float = 0.3
    effective_share: float = 0.2
    rejection_candidates: int = 0
    acceptance: float = 1.0
    student_steps: int = 30
    student_batch: int = 128
    student_rate: float = 0.2
    student_decay: float = 5e-4
    temperature: float = 4.0
    affine: float = 0.25
    texture: float = 1.0
    mixed_share: float = 0.25
    settling_affine: float = 0.25

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            low, high = BOUNDS.get(name, (0.0, 1e9))
            if isinstance(value, int | float) and not low <= value <= high:
                raise ConfigurationError(
                    f"recipe key {name} = {value} is outside {low:g} to {high:g}",
                    hint=f"the standard recipe has {name} = {_default(name)}",
                )
        for name, value, words in (
            ("method", self.method, get_args(Method)),
            ("policy_gradient", self.policy_gradient, get_args(PolicyGradient)),
        ):
            if value not in words:
                raise ConfigurationError(
                    f"recipe key {name} = {value[:40]!r} is unknown",
                    hint=f"use one of {', '.join(words)}",
                )
        if self.method == "genkd-pixel" and self.policy_gradient not in OF_PIXELS:
            raise ConfigurationError(
                f"the method genkd-pixel has no policy gradient {self.policy_gradient!r}",
                hint=f"use one of {', '.join(OF_PIXELS)}",
            )
        if self.langevin_steps % self.policy_segments:
            raise ConfigurationError(
                f"recipe key policy_segments = {self.policy_segments} does not divide "
                f"langevin_steps = {self.langevin_steps}",
                hint="chains are cut into equal parts: use a divisor",
            )
        if self.policy_placebo and self.policy_gradient in ("none", "pathwise"):
            raise ConfigurationError(
                "recipe key policy_placebo permutes rewards, which "
                f"policy_gradient={self.policy_gradient} has none of",
                hint="use another policy_gradient with it, for example stationary",
            )
        if self.energy and self.rejection_candidates:
            raise ConfigurationError(
                "recipe key rejection_candidates works without the EBM only",
                hint="add energy=no, or leave rejection_candidates out",
            )
        try:
            Budget.parse(self.budget)
        except UsageError as error:
            raise ConfigurationError(f"recipe key budget: {error}", hint=error.hint) from error

    def within(self, budget: Budget) -> Self:
        """What is left of it under `budget`: one in samples is spent by making images only."""
        if budget.unit != "samples":
            return self
        return dataclasses.replace(self, synthesis_share=1.0)

    def with_overrides(self, overrides: Mapping[str, str]) -> Self:
        """This recipe with some keys given as text, as `--set KEY=VALUE` does.

        Raises:
            ConfigurationError: If a key is unknown or a value does not fit.
        """
        kinds = get_type_hints(type(self))
        values: dict[str, object] = {}
        for key, text in overrides.items():
            if key not in kinds:
                near = difflib.get_close_matches(key, kinds, n=1)
                hint = f"did you mean {near[0]}?" if near else f"keys: {', '.join(sorted(kinds))}"
                raise ConfigurationError(f"there is no recipe key {key!r}", hint=hint)
            values[key] = _parse(key, text, kinds[key])
        return dataclasses.replace(self, **values)  # type: ignore[arg-type]


# What a key may be; keys that are not named are only kept from being negative.
BOUNDS: Mapping[str, tuple[float, float]] = {
    "batch": (4, 65_536),
    "bank_images": (64, 10_000_000),
    "generator_channels": (1, 1024),
    "generator_rate": (1e-7, 1),
    "generator_steps": (1, 10_000),
    "latent_dim": (1, 4096),
    "statistics_momentum": (0, 0.999),
    "synthesis_shift": (0, 1),
    "warm_up": (0, 1),
    "synthesis_share": (0.01, 1),
    "energy_rate": (1e-7, 1),
    "langevin_steps": (1, 10_000),
    "langevin_step_size": (1e-4, 1.99),
    "positive_temperature": (1e-3, 1e3),
    "policy_segments": (1, 10_000),
    "effective_share": (0, 1),
    "rejection_candidates": (0, 1000),
    "acceptance": (0.01, 1),
    "student_steps": (1, 100_000),
    "student_batch": (2, 65_536),
    "student_rate": (1e-7, 10),
    "temperature": (0.1, 100),
    "affine": (0, 1),
    "texture": (0, 1),
    "mixed_share": (0, 1),
    "settling_affine": (0, 1),
}
WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _default(name: str) -> object:
    return next(f.default for f in dataclasses.fields(Recipe) if f.name == name)


def _parse(key: str, text: str, kind: object) -> object:
    try:
        if kind is bool:
            return WORDS[text.lower()]
        if kind is int:
            return int(text)
        if kind is float:
            number = float(text)
            if not math.isfinite(number):
                raise ValueError(text)
            return number
        return text
    except (ValueError, KeyError) as error:
        wanted = {bool: "yes or no", int: "a whole number"}.get(kind, "a number")  # type: ignore[call-overload]
        raise ConfigurationError(
            f"recipe key {key} = {text[:40]!r} is not {wanted}",
            hint=f"the standard recipe has {key} = {_default(key)}",
        ) from error


STANDARD = Recipe()
# Moved and blended more, no textures, images made to the end and shown as they are: what merges and
# students that go on were measured with.
_FEW = dataclasses.replace(
    STANDARD,
    synthesis_shift=0.0,
    synthesis_share=1.0,
    affine=1.0,
    texture=0.0,
    mixed_share=0.5,
    settling_affine=0.0,
    policy_gradient="stationary",
)
PRESETS: Mapping[str, Recipe] = {
    # To see that everything works, and what it looks like.
    "quick": dataclasses.replace(STANDARD, budget="3m"),
    "standard": STANDARD,
    # Many students into one: its teachers are small, and what they know is small too.
    "merge": dataclasses.replace(_FEW, budget="10m"),
    "thorough": dataclasses.replace(STANDARD, budget="3h", bank_images=100_000),
    # From an earlier student on, at a rate at which it keeps what it knows: of one teacher, and of
    # many students.
    "continue": dataclasses.replace(_FEW, student_rate=0.02),
    "merge-continue": dataclasses.replace(_FEW, budget="10m", student_rate=0.05),
}


# What only the EBM reads, and of that what only its policy gradient does.
OF_POLICY = ("policy_weight", "policy_segments", "effective_share")
OF_ENERGY = (
    *("energy_rate", "energy_steps", "langevin_steps", "langevin_step_size"),
    *("positive_temperature", "likelihood_weight", "policy_gradient"),
    *("policy_placebo", *OF_POLICY),
)


def idle_keys(recipe: Recipe) -> Mapping[str, str]:
    """Keys of GenKD that have no effect in this recipe, each with the setting that makes it so."""
    idle: dict[str, str] = {}
    if recipe.policy_gradient == "none":
        idle |= dict.fromkeys(OF_POLICY, "policy_gradient=none")
    elif recipe.policy_gradient not in ("chain", "greedy"):
        idle["policy_segments"] = f"policy_gradient={recipe.policy_gradient}"
    if not recipe.energy:
        idle |= dict.fromkeys(OF_ENERGY, "energy=no")
        if recipe.policy_gradient == "none":
            del idle["policy_gradient"]  # it says what holds
        if recipe.rejection_candidates:
            del idle["positive_temperature"]
        if recipe.method == "genkd-pixel":  # its chains are what moves the images
            del idle["langevin_steps"], idle["langevin_step_size"]
    return idle


def resolve(name: str, overrides: Mapping[str, str]) -> Recipe:
    """The preset of that name with its overrides, whether or not all of them have an effect.

    An override of `method` sets what that method reads to the values of its paper; the other
    overrides then change those.

    Raises:
        ConfigurationError: If there is no such preset, or an override does not fit.
    """
    if name not in PRESETS:
        raise ConfigurationError(
            f"there is no recipe {name!r}", hint=f"use one of {', '.join(PRESETS)}"
        )
    preset = PRESETS[name]
    method = overrides.get("method", preset.method)
    if method in METHOD_PRESETS:
        preset = dataclasses.replace(preset, method=method, **preset_of(method))  # type: ignore[arg-type]
    return preset.with_overrides(overrides)


def find_recipe(name: str, overrides: Mapping[str, str]) -> Recipe:
    """As `resolve`, and refuses what has no effect.

    Raises:
        ConfigurationError: If there is no such preset, an override does not fit, or it sets a key
            that the method, or the recipe, does not read.
    """
    recipe = resolve(name, overrides)
    for key in sorted(overrides.keys() & unread_keys(recipe.method)):
        raise ConfigurationError(
            f"the method {recipe.method} does not read the recipe key {key}",
            hint=f"leave it out; it reads {', '.join(METHOD_PRESETS[recipe.method])}",
        )
    for key, because in sorted(idle_keys(recipe).items()):
        if key in overrides:
            raise ConfigurationError(
                f"the recipe key {key} has no effect with {because}",
                hint=f"leave it out, or change {because.split('=')[0]}",
            )
    return recipe


def find_budget(recipe: Recipe, overrides: Mapping[str, str], text: str | None) -> Budget:
    """The budget `text`, or the recipe's if that is None.

    Args:
        recipe: Of `find_recipe`.
        overrides: What was said of the recipe.
        text: As `Budget.parse` takes it.

    Raises:
        UsageError: If it is no budget, is said twice, or leaves another override without effect.
    """
    if text is not None and "budget" in overrides:
        raise UsageError(
            f"the budget is both {text[:40]} and the recipe key {overrides['budget'][:40]}",
            hint="leave one of them out; GENKD_BUDGET and genkd.toml say one, too",
        )
    budget = Budget.parse(recipe.budget if text is None else text)
    if "synthesis_share" in overrides and recipe.within(budget) != recipe:
        raise UsageError(
            "the recipe key synthesis_share has no effect with a budget in samples",
            hint="leave it out, or give a budget in time or passes",
        )
    return budget


def parse_overrides(texts: Sequence[str]) -> dict[str, str]:
    """`["batch=32"]` as `{"batch": "32"}`; what the keys mean is `find_recipe`'s business.

    Raises:
        UsageError: If one is not KEY=VALUE, or a key is given twice.
    """
    overrides: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise UsageError(
                f"--set {text[:40]} is not KEY=VALUE", hint="for example --set batch=32"
            )
        if key in overrides:
            raise UsageError(f"--set {key[:40]} is given twice", hint="give it once")
        overrides[key] = value
    return overrides
