"""The trajectory VAE of LatentDiffuser: T steps become N = T / L latents, a latent sequence becomes T steps again.

The bodies of both networks are causal Transformers, whose sizes follow TAP's code (Jiang et al. 2023,
ZhengyaoJiang/latentplan, commit c096a5c). There a token is one environment step; here it may be several.

| here                    | paper                                                   | shape             |
| ----------------------- | ------------------------------------------------------- | ----------------- |
| `tokens`                | x_1..x_T = (s, a, r, G, e)                              | [B, T, S + A + 3] |
| `tokens[..., :S]`       | s, states; the first of a window is s_1                 | [B, T, S]         |
| `tokens[..., -2]`       | G, return-to-go, the reward of its own step included    | [B, T]            |
| `tokens[..., -1]`       | e, 1 where the episode is over and the rest is padding  | [B, T]            |
| `encode`                | q_phi(z given x)                                        | [B, N, Z]         |
| `decode`                | h_psi(z, s_1)                                           |                   |

All but e are standardized outside this file.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ld_agents.networks.critics import mlp

_LOG_VARIANCES = (-10.0, 4.0)


class Decoded(NamedTuple):
    """Steps that a latent sequence stands for, standardized like the tokens."""

    states: Tensor  # [B, T, S]
    actions: Tensor  # [B, T, A]
    rewards: Tensor  # [B, T]
    returns: Tensor | None  # [B, T]; None without a return module
    end_logits: Tensor  # [B, T]; the sigmoid is the probability that the episode is over


class CausalBlock(nn.Module):
    """Causal self-attention and an MLP of four times the width, each after a LayerNorm and added to its input."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes [B, T, width] -> [B, T, width]."""
        b, t, width = x.shape
        dropout = self.dropout if self.training else 0.0
        q, k, v = self.attend(self.attention_norm(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        x = x + F.dropout(self.attended(h.transpose(1, 2).reshape(b, t, width)), dropout)
        return x + F.dropout(self.mlp(self.mlp_norm(x)), dropout)


class CausalTransformer(nn.Module):
    """Learned position embeddings and causal blocks."""

    def __init__(self, horizon: int, width: int, blocks: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(horizon, width) * 0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(CausalBlock(width, heads, dropout) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes [B, t, width] -> [B, t, width], for the first t positions."""
        return self.blocks(self.dropout(x + self.positions[: x.shape[1]]))


class TrajectoryTransformer(nn.Module):
    """VAE with a causal Transformer on both sides and one latent per L steps.

    The encoder attends causally and takes the maximum over the tokens of each L steps, so z_m depends on the steps up
    to mL alone. The decoder mixes each z_m with s_1, repeats it for each of its tokens, attends causally, and has one
    module per element of a step. States are decoded as differences from s_1.

    Args:
        horizon: T, environment steps; a multiple of `steps_per_latent`.
        steps_per_latent: L; a multiple of `steps_per_token`.
        steps_per_token: 1 in TAP. With more, the steps of a token enter side by side, and a linear layer after the
            decoder's trunk makes the features of each.
        latent_dim: Z, the size of one latent. Ignored without latent space.
        width, blocks, heads, dropout: of each Transformer.
        decoder: "shared": one trunk for all modules, as in TAP; "separate": a trunk for each.
        returns: whether there is a return module, which sees the plan so far, with the step's state and action.
        action_decoder: what the action module sees. "plan": the plan so far; "state": the step's state as well, the
            data's in training, the decoded one in a plan, and the one observed when the action is taken.
        action_hidden: units of the two hidden layers of the action module; None is one of `width`.
        latent_space: False: the "latent" of L steps is their L A actions themselves. There is no encoder, and the
            decoder predicts what is left: states, rewards, returns and the end of the episode.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        *,
        horizon: int,
        steps_per_latent: int,
        steps_per_token: int = 1,
        latent_dim: int,
        width: int,
        blocks: int,
        heads: int,
        dropout: float,
        decoder: Literal["shared", "separate"],
        returns: bool,
        action_decoder: Literal["plan", "state"] = "plan",
        action_hidden: int | None = None,
        latent_space: bool,
    ) -> None:
        super().__init__()
        self.state_dim, self.action_dim, self.width, self.action_decoder = state_dim, action_dim, width, action_decoder
        self.steps_per_latent, self.latent_space = steps_per_latent, latent_space
        self.latent_dim = latent_dim if latent_space else steps_per_latent * action_dim
        self.steps_per_token, self.tokens_per_latent = steps_per_token, steps_per_latent // steps_per_token
        body = (horizon // steps_per_token, width, blocks, heads, dropout)
        if latent_space:
            self.embed = nn.Linear(steps_per_token * (state_dim + action_dim + 3), width)
            self.encoder = CausalTransformer(*body)
            self.posterior = nn.Linear(width, 2 * self.latent_dim)
        sizes = {"states": state_dim, "actions": action_dim, "rewards": 1, "returns": 1, "ends": 1}
        if not latent_space:
            del sizes["actions"]
        if not returns:
            del sizes["returns"]
        self.mix = nn.Linear(self.latent_dim + state_dim, width)
        n_trunks = len(sizes) if decoder == "separate" else 1
        self.trunks = nn.ModuleList(CausalTransformer(*body) for _ in range(n_trunks))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(n_trunks))
        if steps_per_token > 1:
            self.steps = nn.ModuleList(nn.Linear(width, steps_per_token * width) for _ in range(n_trunks))
        seen = dict.fromkeys(sizes, width)
        if "returns" in sizes:
            seen["returns"] += state_dim + action_dim
        if action_decoder == "state":
            seen["actions"] += state_dim
        self.modules_of = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.LayerNorm(seen[name]), nn.Linear(seen[name], width), nn.GELU(), nn.Linear(width, size)
                )
                for name, size in sizes.items()
            }
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        if action_hidden is not None:  # as a policy's layers begin, not with TAP's small weights
            self.modules_of["actions"] = mlp(seen["actions"], action_hidden, action_hidden, action_dim)

    def encode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents. Shapes [B, T, S + A + 3] -> two of [B, N, Z]."""
        if not self.latent_space:
            actions = tokens[..., self.state_dim : self.state_dim + self.action_dim]
            latents = actions.reshape(len(tokens), -1, self.latent_dim)
            return latents, torch.full_like(latents, -math.inf)
        h = self.encoder(self.embed(tokens.unflatten(1, (-1, self.steps_per_token)).flatten(2)))
        pooled = h.unflatten(1, (-1, self.tokens_per_latent)).amax(2)  # [B, N, width]
        mean, log_variance = self.posterior(pooled).chunk(2, dim=-1)
        return mean, log_variance.clamp(*_LOG_VARIANCES)

    def decode(self, latents: Tensor, states: Tensor, seen_states: Tensor | None = None) -> Decoded:
        """The steps of latents z_1..z_m, for any m up to N: no step depends on later latents.

        Shapes [B, m, Z], [B, S] -> `Decoded` of m L steps. `seen_states` [B, m L, S] are those that actions are decoded
        from with `action_decoder="state"`; None is the decoded ones.
        """
        features = self._features(latents, states)
        module = self.modules_of
        decoded_states = states[:, None] + module["states"](features["states"])
        if self.latent_space:
            actions = self.actions(features["actions"], decoded_states if seen_states is None else seen_states)
        else:
            actions = latents.reshape(len(latents), -1, self.action_dim)
        returns = None
        if "returns" in module:
            of_step = torch.cat([features["returns"], decoded_states, actions], dim=-1)
            returns = module["returns"](of_step)[..., 0]
        return Decoded(
            decoded_states,
            actions,
            module["rewards"](features["rewards"])[..., 0],
            returns,
            module["ends"](features["ends"])[..., 0],
        )

    def _features(self, latents: Tensor, states: Tensor) -> dict[str, Tensor]:
        """What each module sees of a plan. Shapes [B, m, Z], [B, S] -> of [B, m L, width]."""
        mixed = self.mix(torch.cat([latents, states[:, None].expand(-1, latents.shape[1], -1)], dim=-1))
        mixed = mixed.repeat_interleave(self.tokens_per_latent, dim=1)
        bodies = [norm(trunk(mixed)) for trunk, norm in zip(self.trunks, self.norms, strict=True)]
        if self.steps_per_token > 1:
            bodies = [
                steps(body).unflatten(2, (-1, self.width)).flatten(1, 2)
                for steps, body in zip(self.steps, bodies, strict=True)
            ]
        return dict(zip(self.modules_of, bodies * (len(self.modules_of) // len(bodies)), strict=True))

    def action_features(self, latents: Tensor, states: Tensor) -> Tensor:
        """What the action module sees of a plan. Shapes [B, m, Z], [B, S] -> [B, m L, width]."""
        return self._features(latents, states)["actions"]

    def actions(self, features: Tensor, states: Tensor) -> Tensor:
        """Actions of steps in the states that they are taken in. Shapes [..., width], [..., S] -> [..., A]."""
        seen = torch.cat([features, states], dim=-1) if self.action_decoder == "state" else features
        return self.modules_of["actions"](seen)

    def losses(self, tokens: Tensor, inside: Tensor, epsilon: Tensor) -> dict[str, Tensor]:
        """The terms of the loss, unweighted.

        Args:
            tokens: windows, zero past the end of the episode but for the flag. Shape [B, T, S + A + 3].
            inside: which steps lie in the episode. Shape [B, T] bool.
            epsilon: noise of the reparameterized sample. Shape [B, N, Z].

        Returns:
            scalars: squared errors "state", "action", "reward" and "return", means over elements of the steps inside;
            "end", binary cross-entropy, mean over all steps; "kl" to N(0, I), mean over the coordinates of the latents.
            What has no module has no loss.
        """
        mean, log_variance = self.encode(tokens)
        states, actions, rewards, returns, ends = tokens.split([self.state_dim, self.action_dim, 1, 1, 1], dim=-1)
        decoded = self.decode(mean + (0.5 * log_variance).exp() * epsilon, states[:, 0], states)
        share = inside[..., None] / inside.sum().clamp(min=1)

        def error(prediction: Tensor, truth: Tensor) -> Tensor:
            return (share * (prediction - truth) ** 2).sum() / truth.shape[-1]

        losses = {
            "state": error(decoded.states, states),
            "action": error(decoded.actions, actions),
            "reward": error(decoded.rewards[..., None], rewards),
            "end": F.binary_cross_entropy_with_logits(decoded.end_logits, ends[..., 0]),
            "kl": 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean(),
        }
        if decoded.returns is not None:
            losses["return"] = error(decoded.returns[..., None], returns)
        if not self.latent_space:
            del losses["action"], losses["kl"]
        return losses
