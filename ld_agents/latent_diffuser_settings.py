"""Settings of LatentDiffuser: those of its closest ancestors, the fast preset, what differs between families."""

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from ld_agents.common.settings import (
    STRICT,
    BatchSize,
    Candidates,
    Count,
    EnvironmentSteps,
    Fraction,
    GradientSteps,
    LatentDim,
    Layers,
    NonNegative,
    Real,
    SamplerSteps,
    Width,
    Widths,
    documented,
)
from ld_agents.diffusion.guidance import Guidance, Weights
from ld_agents.diffusion.sampling import VPSolver


@documented
@dataclass(frozen=True, config=STRICT)
class LatentDiffuserSettings:
    """Settings of LatentDiffuser. Defaults: from the closest ancestor, since the paper's are not known.

    [TAP] is ZhengyaoJiang/latentplan, [CEP] ChenDRAG/CEP-energy-guided-diffusion, [DIF] jannerm/diffuser. What differs
    between families is in `FAMILY`.
    """

    # sizes
    horizon: EnvironmentSteps = 24  # T, environment steps [TAP]
    steps_per_latent: EnvironmentSteps = 3  # L [TAP]
    steps_per_token: EnvironmentSteps = 1  # of the VAE's Transformers [TAP]
    latent_dim: LatentDim = 16  # Z [LDCQ]
    latent_space: bool = True  # False: the same planner on raw actions
    width: Width = 512  # of the VAE's Transformers [TAP], as the next four
    blocks: Layers = 4  # of each of the VAE's Transformers
    heads: Layers = 4  # of attention
    dropout: Fraction = 0.1  # of the VAE
    decoder: Literal["shared", "separate"] = "shared"  # one for all parts of a step, or one each
    return_inputs: Literal["trunk", "step"] = "trunk"  # of the return module; "step": the data's own Q(s, a)
    return_targets: Literal["data", "bootstrapped", "expectile"] = "data"  # see `window_values.py`
    return_average_rate: Fraction = 0.02  # of the averaged Q or V behind the window; ours
    action_decoder: Literal["plan", "state"] = "plan"  # "state": sees the state that each action is taken in
    action_hidden: Width | None = None  # of the two layers of the action module; None: one of `width` [TAP]
    denoiser_width: Width = 64  # channels at the first level [DIF], with the multipliers of Decision Diffuser
    denoiser_multipliers: Widths = (1, 2, 4)  # of the width, by level
    denoiser_blocks: Layers = 2  # per level
    denoiser_activation: Literal["mish", "silu"] = "mish"  # of the denoiser
    energy_hidden: Width = 512  # units of the energy's layers [CEP]
    energy_layers: Layers = 4  # of the energy
    # of the time's features, in cycles per unit of tau [CEP]
    energy_frequency_scale: Annotated[float, Field(ge=0, le=1e3)] = 30.0

    # data
    discount: Fraction = 0.99  # per environment step [TAP]
    terminal_reward: Real | None = None  # in place of the reward at a terminal
    normalize_observations: bool = True  # by mean and deviation of the data [TAP]
    standardize: bool = True  # actions, rewards and returns-to-go [TAP]

    # stage 1
    state_weight: NonNegative = 1.0  # of the states' error in the VAE's loss [TAP], as the next three
    action_weight: NonNegative = 5.0  # of the actions' error
    reward_weight: NonNegative = 1.0  # of the rewards' error
    return_weight: NonNegative = 1.0  # of the returns' error
    kl_weight: NonNegative = 1e-3  # ours; the paper says weak
    vae_learning_rate: Fraction = 2e-4  # Adam's [TAP], as the rest of the stage
    vae_batch_size: BatchSize = 512  # windows
    vae_steps: GradientSteps = 97_656  # 50 epochs of a million windows
    weight_decay: Fraction = 0.1  # decoupled
    gradient_clip: NonNegative = 1.0  # largest norm
    learning_rates: Literal["constant", "cosine"] = "constant"  # of all stages

    # the stage of values, with return_inputs="step" alone
    expectile: Annotated[float, Field(gt=0, lt=1)] = 0.9  # of V; IQL's on AntMaze
    value_learning_rate: Fraction = 3e-4  # IQL's
    value_batch_size: BatchSize = 256  # steps; IQL's, as the next
    value_steps: GradientSteps = 1_000_000  # gradient steps

    # stage 2
    prior_windows: Count | None = None  # windows that are encoded for it; None is all
    prior_learning_rate: Fraction = 2e-4  # Adam's [DIF]
    prior_batch_size: BatchSize = 512  # windows
    prior_steps: GradientSteps = 500_000  # gradient steps
    average_rate: Fraction = 1e-3  # of the averaged weights; 5e-3 in [DIF], none in [CEP]

    # stage 3
    guidance: Guidance = "exact"  # how plans follow the values; see `guidance.py`
    energy_loss: Literal["contrastive", "exponential"] = "contrastive"  # both are exact; see `guidance.py`
    weights: Weights = "independent"  # of the contrastive loss; "softmax" in [CEP]
    # largest weight in either loss; the log says what share of them it cuts. None is exact
    weight_limit: Annotated[float, Field(ge=1, le=1e30)] | None = None
    inverse_temperature: NonNegative = 3.0  # beta [CEP], there in units of its own Q
    plan_return: Literal["sum", "mean", "tap"] = "sum"  # sum of returns-to-go; "tap": of rewards, with the last return
    return_scale: Literal["all", "state"] = "all"  # unit of beta: the standard deviation of R, everywhere or at a state
    return_steps: EnvironmentSteps | None = None  # steps of the plan that R looks at; None is all, 15 in [TAP]
    scale_states: Count = 50_000  # states at which R is standardized
    support_states: Count | None = 200_000  # None is all; all in [CEP]
    support_size: Candidates = 16  # M, per set [CEP]
    energy_learning_rate: Fraction = 3e-4  # Adam's [CEP]
    energy_batch_size: BatchSize = 256  # states [CEP]
    energy_steps: GradientSteps = 1_000_000  # gradient steps [CEP]

    # acting
    guidance_scale: NonNegative = 1.0  # only 1 is exact
    solver: VPSolver = "dpm++2m"  # "dpm++2s" in [CEP]
    solver_grid: Literal["log-snr", "time"] = "log-snr"  # "time" in [CEP]
    solver_steps: SamplerSteps = 15  # network evaluations [CEP]
    n_candidates: Candidates = 1  # plans, of which the best is taken
    exec_horizon: EnvironmentSteps = 1  # environment steps between plans [TAP]

    def __post_init__(self) -> None:
        levels = len(self.denoiser_multipliers)
        if self.horizon % (self.steps_per_latent * 2 ** (levels - 1)):
            raise ValueError(
                f"horizon ({self.horizon}) must be a multiple of steps_per_latent ({self.steps_per_latent}) times "
                f"{2 ** (levels - 1)}, since each of the {levels} levels of denoiser_multipliers but the last halves "
                "the number of latents."
            )
        if self.steps_per_latent % self.steps_per_token:
            raise ValueError(
                f"steps_per_latent ({self.steps_per_latent}) must be a multiple of steps_per_token "
                f"({self.steps_per_token}): no token may belong to two latents."
            )
        if self.return_targets == "bootstrapped" and self.return_inputs != "step":
            raise ValueError('return_targets="bootstrapped" needs return_inputs="step": only Q(s, a) can be looked up.')
        if self.return_targets == "expectile" and self.return_inputs != "step":
            raise ValueError('return_targets="expectile" needs return_inputs="step": V is an expectile of Q(s, a).')
        if self.action_decoder == "state" and not self.latent_space:
            raise ValueError('action_decoder="state" needs latent_space=True: raw actions are not decoded.')
        if self.action_hidden is not None and not self.latent_space:
            raise ValueError("action_hidden needs latent_space=True: raw actions are not decoded.")
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads}).")
        if self.denoiser_width % 8:
            raise ValueError(f"denoiser_width must be a multiple of 8, got {self.denoiser_width}.")
        for name in ("exec_horizon", "return_steps"):
            if (getattr(self, name) or 1) > self.horizon:
                raise ValueError(f"{name} ({getattr(self, name)}) must not exceed horizon ({self.horizon}).")


ENERGY_GUIDED = ("exact", "mse")  # kinds of guidance with a network of their own

# what an agent may change after its training
ACTING_SETTINGS = ("guidance_scale", "n_candidates", "exec_horizon")

# what `LatentDiffuser.with_energy` may change
ENERGY_SETTINGS = (
    *(
        "guidance",
        "energy_loss",
        "weights",
        "weight_limit",
        "inverse_temperature",
        "plan_return",
        "return_scale",
        "return_steps",
    ),
    *("scale_states", "support_states", "support_size", "energy_learning_rate", "energy_batch_size", "energy_steps"),
    *("energy_hidden", "energy_layers", "energy_frequency_scale"),
    *("solver", "solver_grid", "solver_steps", *ACTING_SETTINGS),
)

PAPER = LatentDiffuserSettings()

FAST = dataclasses.replace(
    PAPER,
    horizon=32,
    steps_per_latent=4,
    steps_per_token=4,
    latent_dim=8,
    width=64,
    blocks=2,
    heads=2,
    dropout=0.0,
    denoiser_width=32,
    denoiser_multipliers=(1, 2),
    denoiser_blocks=1,
    denoiser_activation="silu",
    energy_hidden=128,
    energy_layers=3,
    energy_frequency_scale=1.0,
    discount=0.998,
    return_inputs="step",
    return_targets="expectile",
    vae_learning_rate=2e-3,
    vae_batch_size=128,
    vae_steps=2_000,
    weight_decay=0.0,
    learning_rates="cosine",
    value_learning_rate=1e-3,
    value_batch_size=512,
    value_steps=6_000,
    prior_windows=131_072,
    prior_learning_rate=2e-3,
    prior_batch_size=128,
    prior_steps=6_000,
    average_rate=5e-3,
    energy_loss="exponential",
    weight_limit=16.0,
    return_scale="state",
    scale_states=4_096,
    support_states=8_192,
    support_size=8,
    energy_learning_rate=5e-3,
    energy_batch_size=128,
    energy_steps=4_000,
    n_candidates=8,
    exec_horizon=2,
)

PRESETS = {"fast": FAST, "paper": PAPER}

# What differs between families of datasets. TAP also takes AntMaze as it is (normalize_observations, standardize),
# QGPO 32 support latents there, TAP a fifth of the VAE's steps on Adroit: for the paper preset, hand them over as well.
FAMILY: dict[str, dict[str, Any]] = {
    "locomotion": {"terminal_reward": -100.0, "discount": 0.99},  # [TAP]
    "adroit": {"discount": 0.99},  # [TAP]
    "antmaze": {"discount": 0.998},  # [TAP]
}

_CLOSED_LOOP: dict[str, Any] = {"action_decoder": "state", "action_hidden": 256, "kl_weight": 0.1}

# By preset. In the fast one, for robots that fall: they do when actions are decoded badly, or from a plan that does not
# see the state. There latents are kept from holding the noise of single actions (`kl_weight`), which no prior predicts.
# Of trials on seeds 101 (point mazes, locomotion, AntMaze) and 103 (AntMaze): results/tuning/README.md.
FAMILIES: dict[str, dict[str, dict[str, Any]]] = {
    "paper": FAMILY,
    "fast": {
        **FAMILY,
        "maze2d": {"exec_horizon": 1, "n_candidates": 4},
        "locomotion": {**FAMILY["locomotion"], **_CLOSED_LOOP},
        "antmaze": {
            **FAMILY["antmaze"],
            **_CLOSED_LOOP,
            "width": 128,
            "heads": 4,
            "vae_steps": 5_000,
            "value_steps": 10_000,
            "denoiser_width": 48,
            "prior_steps": 8_000,
        },
    },
}
