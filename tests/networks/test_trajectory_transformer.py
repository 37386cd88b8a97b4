"""The trajectory VAE of LatentDiffuser: who sees what, the loss against numbers worked out by hand, and the sizes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ld_agents.latent_diffuser_settings import PAPER
from ld_agents.networks.trajectory_transformer import CausalBlock, TrajectoryTransformer

S, A, T, L, Z = 3, 2, 8, 2, 5


def make(**changes: Any) -> TrajectoryTransformer:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "horizon": T,
        "steps_per_latent": L,
        "latent_dim": Z,
        "width": 16,
        "blocks": 2,
        "heads": 2,
        "dropout": 0.0,
        "decoder": "shared",
        "returns": True,
        "latent_space": True,
    }
    vae = TrajectoryTransformer(S, A, **{**sizes, **changes})
    with torch.no_grad():
        for parameter in vae.parameters():  # the small first weights would hide what depends on what
            parameter += 0.3 * torch.randn_like(parameter)
    return vae


def some_tokens(n: int = 4) -> Tensor:
    tokens = torch.randn(n, T, S + A + 3, generator=torch.Generator().manual_seed(1))
    tokens[..., -1] = 0
    return tokens


# ---------------------------------------------------------------- encoder


def test_a_latent_depends_on_the_steps_up_to_its_own_stretch_alone() -> None:
    vae, tokens = make(), some_tokens()
    before = torch.cat(vae.encode(tokens), -1)
    for step in range(T):
        changed = tokens.clone()
        changed[:, step] += 1
        moved = (torch.cat(vae.encode(changed), -1) - before).abs().amax((0, 2)) > 1e-4  # [N]
        assert moved.tolist() == [m >= step // L for m in range(T // L)], step


def test_tokens_of_several_steps() -> None:
    """A token holds its steps side by side; a latent still sees no later one, and no step of a plan a later latent."""
    vae, tokens = make(steps_per_token=2, steps_per_latent=4), some_tokens()
    embedded = vae.embed(torch.cat([tokens[:, 2], tokens[:, 3]], -1))
    seen: list[Tensor] = []
    vae.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    before = torch.cat(vae.encode(tokens), -1)
    assert seen[0].shape == (4, 4, 16)
    torch.testing.assert_close(seen[0][:, 1], embedded)
    for step in range(T):
        changed = tokens.clone()
        changed[:, step] += 1
        moved = (torch.cat(vae.encode(changed), -1) - before).abs().amax((0, 2)) > 1e-4
        assert moved.tolist() == [m >= step // 4 for m in range(2)], step
    latents = torch.randn(4, 2, Z)
    whole, part = vae.decode(latents, tokens[:, 0, :S]), vae.decode(latents[:, :1], tokens[:, 0, :S])
    assert whole.states.shape == (4, T, S)
    torch.testing.assert_close(whole.actions[:, :4], part.actions)
    steps = whole.actions.diff(dim=1).abs().amax((0, 2))
    assert (steps > 1e-4).all()  # each step of a token has features of its own


def test_pooling_takes_the_maximum_over_each_stretch() -> None:
    vae, tokens = make(), some_tokens()
    h = vae.encoder(vae.embed(tokens))
    for m in range(T // L):
        highest = torch.stack([h[:, m * L + i] for i in range(L)]).max(0).values
        expected = vae.posterior(highest)
        torch.testing.assert_close(vae.encode(tokens)[0][:, m], expected[:, :Z])
        torch.testing.assert_close(vae.encode(tokens)[1][:, m], expected[:, Z:].clamp(-10, 4))


def test_log_variances_are_clamped() -> None:
    vae = make()
    with torch.no_grad():
        vae.posterior.bias[Z] = 1e3
        vae.posterior.bias[Z + 1] = -1e3
    log_variance = vae.encode(some_tokens())[1]
    assert (log_variance[..., 0] == 4).all()
    assert (log_variance[..., 1] == -10).all()


def test_block_is_what_torch_has() -> None:
    """Against torch's own Transformer layer with the same weights and a causal mask."""
    block = CausalBlock(16, 2, dropout=0.3).eval()
    layer = torch.nn.TransformerEncoderLayer(16, 2, 64, 0.3, F.gelu, batch_first=True, norm_first=True).eval()
    pairs = {
        "self_attn.in_proj": block.attend,
        "self_attn.out_proj": block.attended,
        "linear1": block.mlp[0],
        "linear2": block.mlp[2],
        "norm1": block.attention_norm,
        "norm2": block.mlp_norm,
    }
    weights = {}
    for name, module in pairs.items():
        joint = "_" if name.endswith("in_proj") else "."
        weights |= {f"{name}{joint}weight": module.weight, f"{name}{joint}bias": module.bias}
    layer.load_state_dict(weights)
    x = torch.randn(4, T, 16)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(T)
    torch.testing.assert_close(block(x), layer(x, src_mask=mask, is_causal=True), atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- decoder


@pytest.mark.parametrize("decoder", ["shared", "separate"])
def test_steps_depend_on_the_latents_up_to_their_own_alone(decoder: str) -> None:
    vae, latents, states = make(decoder=decoder), torch.randn(4, T // L, Z), torch.randn(4, S)
    before = vae.decode(latents, states)
    for m in range(T // L):
        changed = latents.clone()
        changed[:, m] += 1
        for old, new in zip(before, vae.decode(changed, states), strict=True):
            moved = (new - old).reshape(4, T, -1).abs().amax((0, 2)) > 1e-4
            assert moved.tolist() == [step // L >= m for step in range(T)]
        for whole, first in zip(before, vae.decode(latents[:, : m + 1], states), strict=True):
            torch.testing.assert_close(first, whole[:, : (m + 1) * L], atol=1e-5, rtol=1e-5)


def test_every_element_depends_on_the_first_state() -> None:
    vae, latents, states = make(), torch.randn(4, T // L, Z), torch.randn(4, S)
    for old, new in zip(vae.decode(latents, states), vae.decode(latents, states + 1), strict=True):
        assert (old - new).abs().amin() > 1e-6


def test_states_are_decoded_as_differences() -> None:
    vae, states = make(), torch.randn(4, S)
    with torch.no_grad():
        vae.modules_of["states"][-1].weight.zero_()
        vae.modules_of["states"][-1].bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    decoded = vae.decode(torch.randn(4, T // L, Z), states).states
    torch.testing.assert_close(decoded, (states + torch.tensor([1.0, 2.0, 3.0]))[:, None].expand(-1, T, -1))


def test_returns_are_those_of_the_decoded_state_and_action() -> None:
    """Moving what is decoded moves the returns, and nothing else."""
    vae, latents, states = make(), torch.randn(4, T // L, Z), torch.randn(4, S)
    before = vae.decode(latents, states)
    for name in ("states", "actions"):
        with torch.no_grad():
            vae.modules_of[name][-1].bias += 1
        after = vae.decode(latents, states)
        moved = [field for field, a, b in zip(before._fields, before, after, strict=True) if not torch.equal(a, b)]
        assert moved == [name, "returns"]
        before = after


def test_modules_share_a_trunk_or_have_one_each() -> None:
    for decoder, n_trunks in (("shared", 1), ("separate", 5)):
        vae = make(decoder=decoder)
        vae.decode(torch.randn(4, T // L, Z), torch.randn(4, S)).rewards.sum().backward()
        used = [trunk.positions.grad is not None for trunk in vae.trunks]
        assert len(used) == n_trunks
        assert sum(used) == 1


# ---------------------------------------------------------------- loss


@torch.no_grad()
def test_losses_by_hand() -> None:
    """Every term with plain loops over the elements, one window half padded."""
    vae, tokens, epsilon = make(), some_tokens(2), torch.randn(2, T // L, Z)
    inside = torch.ones(2, T, dtype=torch.bool)
    inside[1, 3:] = False
    tokens[1, 3:] = 0
    tokens[1, 3:, -1] = 1
    mean, log_variance = vae.encode(tokens)
    decoded = vae.decode(mean + (log_variance / 2).exp() * epsilon, tokens[:, 0, :S])
    sums, steps = dict.fromkeys(("state", "action", "reward", "return"), 0.0), 0
    end = 0.0
    for b in range(2):
        for t in range(T):
            probability = torch.sigmoid(decoded.end_logits[b, t])
            end -= float(torch.log(probability if tokens[b, t, -1] else 1 - probability))
            if not inside[b, t]:
                continue
            steps += 1
            sums["state"] += float(((decoded.states[b, t] - tokens[b, t, :S]) ** 2).sum()) / S
            sums["action"] += float(((decoded.actions[b, t] - tokens[b, t, S : S + A]) ** 2).sum()) / A
            sums["reward"] += float((decoded.rewards[b, t] - tokens[b, t, S + A]) ** 2)
            sums["return"] += float((decoded.returns[b, t] - tokens[b, t, S + A + 1]) ** 2)
    assert steps == 11
    posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
    kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).mean()
    expected = {**{name: value / steps for name, value in sums.items()}, "end": end / (2 * T), "kl": float(kl)}
    losses = {name: float(value) for name, value in vae.losses(tokens, inside, epsilon).items()}
    assert losses == pytest.approx(expected, rel=1e-4)


def test_padding_counts_in_the_flag_alone() -> None:
    vae = make(latent_space=False)  # its "encoder" looks at the actions alone
    tokens, inside = some_tokens(), torch.arange(T).expand(4, T) < 5
    other = tokens.clone()
    other[:, 5:, :S] += 1
    other[:, 5:, S + A : S + A + 2] += 1
    one, two = (vae.losses(t, inside, torch.zeros(4, T // L, L * A)) for t in (tokens, other))
    assert {name: float(value) for name, value in one.items()} == {name: float(value) for name, value in two.items()}
    other[:, 5:, -1] = 1
    ended = vae.losses(other, inside, torch.zeros(4, T // L, L * A))
    assert [name for name in one if one[name] != ended[name]] == ["end"]


def test_no_step_inside_is_no_division_by_zero() -> None:
    losses = make().losses(some_tokens(), torch.zeros(4, T, dtype=torch.bool), torch.zeros(4, T // L, Z))
    assert all(math.isfinite(value) for value in losses.values())
    assert losses["state"] == 0


# ---------------------------------------------------------------- raw actions


def test_without_latent_space_the_latents_are_the_actions() -> None:
    vae, tokens = make(latent_space=False), some_tokens()
    latents, log_variance = vae.encode(tokens)
    assert latents.shape == (4, T // L, L * A)
    torch.testing.assert_close(latents[:, 1], tokens[:, 2:4, S : S + A].flatten(1))
    assert ((log_variance / 2).exp() == 0).all()
    decoded = vae.decode(latents, tokens[:, 0, :S])
    assert torch.equal(decoded.actions, tokens[..., S : S + A])
    losses = vae.losses(tokens, torch.ones(4, T, dtype=torch.bool), torch.randn(4, T // L, L * A))
    assert set(losses) == {"state", "reward", "return", "end"}
    assert not hasattr(vae, "encoder")


# ---------------------------------------------------------------- sizes


def test_paper_sizes() -> None:
    """Four blocks of width 512 are 12.6 million parameters on either side (hopper: S = 11, A = 3)."""
    vae = TrajectoryTransformer(
        11,
        3,
        horizon=PAPER.horizon,
        steps_per_latent=PAPER.steps_per_latent,
        latent_dim=PAPER.latent_dim,
        width=PAPER.width,
        blocks=PAPER.blocks,
        heads=PAPER.heads,
        dropout=PAPER.dropout,
        decoder=PAPER.decoder,
        returns=PAPER.return_inputs == "trunk",
        latent_space=True,
    )
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in vae.named_children()}
    block = 12 * 512**2 + 13 * 512
    assert sizes["encoder"] == 4 * block + 24 * 512 == 12_621_824
    assert sizes["trunks"] == sizes["encoder"]
    assert sizes["encoder"] + sizes["embed"] + sizes["posterior"] == pytest.approx(12.6e6, rel=0.01)
    assert sizes["trunks"] + sizes["mix"] == pytest.approx(12.6e6, rel=0.01)
    assert sizes["modules_of"] == pytest.approx(5 * 512**2, rel=0.02)
