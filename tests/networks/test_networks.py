"""Sizes, wiring and gradients of the networks, against the released code's numbers and against plain versions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from ld_agents.networks.critics import (
    JointLatentCritic,
    LatentCritic,
    Linear,
    TanhActor,
    clip_norm,
    descend,
    linear_of_parts,
    mlp,
    norm_gelu_mlp,
    polyak_update,
)
from ld_agents.networks.denoisers import MLPDenoiser, ResidualMLPUNet, TransformerDenoiser, sinusoids
from ld_agents.networks.trajectory_vae import (
    AutoregressivePolicyDecoder,
    Gaussian,
    GaussianMLP,
    JointPolicyDecoder,
    TrajectoryVAE,
)


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_vae(encoder: str = "mlp", decoder: str = "joint", **sizes: Any) -> TrajectoryVAE:
    torch.manual_seed(0)
    sizes = {"latent_dim": 5, "horizon": 6, "hidden": 16, **sizes}
    return TrajectoryVAE(4, 3, encoder=encoder, decoder=decoder, **sizes)  # type: ignore[arg-type]


# ---------------------------------------------------------------- sizes


def test_parameter_counts_of_the_released_code() -> None:
    """Measured on commit 7ec96f3 for 4-dimensional states and 2-dimensional actions."""
    vae = TrajectoryVAE(4, 2, latent_dim=16, horizon=30, hidden=256, encoder="gru", decoder="autoregressive")
    assert size(vae.encode) == 4_678_688
    assert size(vae.action) == 406_788
    assert size(vae.final_state) == 204_808
    assert size(vae.prior) == 206_880
    assert size(ResidualMLPUNet(4, 16)) == 715_776
    assert size(LatentCritic(4, 16)) == 141_057


@pytest.mark.parametrize("horizon", [1, 30])
def test_only_the_flat_encoder_depends_on_the_horizon(horizon: int) -> None:
    flat, gru = make_vae("mlp", horizon=horizon), make_vae("gru", horizon=horizon)
    assert size(flat.encode) - size(make_vae("mlp", horizon=2).encode) == 16 * (4 + 3) * (horizon - 2)
    assert size(gru.encode) == size(make_vae("gru", horizon=2).encode)


# ---------------------------------------------------------------- Gaussians


def test_gaussian_density_and_divergence() -> None:
    one = Gaussian(randn(7, 4), randn(7, 4, seed=1).exp())
    two = Gaussian(randn(7, 4, seed=2), randn(7, 4, seed=3).exp())
    x = randn(7, 4, seed=4)
    torch.testing.assert_close(one.negative_log_density(x), -Normal(*one).log_prob(x).sum(-1))
    torch.testing.assert_close(one.kl(two), kl_divergence(Normal(*one), Normal(*two)).sum(-1))
    torch.testing.assert_close(one.kl(one), torch.zeros(7))
    torch.testing.assert_close(one.sample(torch.full((7, 4), 2.0)), one.mean + 2 * one.std)


def test_standard_deviations_have_a_floor() -> None:
    net = GaussianMLP(3, 2, 8)
    nn.init.constant_(net.std[-1].bias, -1000.0)
    assert net(randn(5, 3)).std.tolist() == [[pytest.approx(1e-4)] * 2] * 5
    nn.init.constant_(net.std[-1].bias, 3.0)
    nn.init.zeros_(net.std[-1].weight)
    assert net(randn(5, 3)).std[0, 0].item() == pytest.approx(math.log(1 + math.exp(3)) + 1e-4, rel=1e-6)


# ---------------------------------------------------------------- the trajectory VAE


@pytest.mark.parametrize("encoder", ["gru", "mlp"])
def test_encoder_reads_every_step_of_the_window(encoder: str) -> None:
    vae = make_vae(encoder)
    states, actions = randn(2, 6, 4).requires_grad_(), randn(2, 6, 3, seed=1).requires_grad_()
    posterior = vae.encode(states, actions)
    assert posterior.mean.shape == posterior.std.shape == (2, 5)
    assert (posterior.std > 0).all()
    posterior.mean[0].sum().backward()
    assert states.grad is not None
    assert actions.grad is not None
    for gradient in (states.grad, actions.grad):
        assert (gradient[0].abs().sum(-1) > 0).all()
        assert (gradient[1] == 0).all()


@pytest.mark.parametrize("decoder", ["autoregressive", "joint"])
def test_acting_is_decoding_without_the_data(decoder: str) -> None:
    vae = make_vae(decoder=decoder)
    states, latents = randn(2, 6, 4), randn(2, 1, 5, seed=1).expand(-1, 6, -1)
    epsilon = randn(2, 6, 3, seed=2)
    for noise in (None, epsilon):
        actions = vae.action.act(states, latents, noise)
        assert actions.shape == (2, 6, 3)
        # the dimensions an action is conditioned on are its own
        gaussian = vae.action(states, latents, actions)
        assert gaussian.mean.shape == gaussian.std.shape == (2, 6, 3)
        torch.testing.assert_close(actions, gaussian.mean if noise is None else gaussian.sample(noise))


def test_autoregressive_decoder_sees_earlier_dimensions_only() -> None:
    torch.manual_seed(0)
    decoder = AutoregressivePolicyDecoder(4, 3, 5, 16)
    for i in range(3):
        actions = randn(2, 3).requires_grad_()
        gaussian = decoder(randn(2, 4), randn(2, 5, seed=1), actions)
        gradient = torch.autograd.grad((gaussian.mean[:, i] + gaussian.std[:, i]).sum(), actions, allow_unused=True)[0]
        seen = [False] * 3 if gradient is None else (gradient.abs() > 0).any(0).tolist()
        assert seen == [j < i for j in range(3)]


def test_joint_decoder_does_not_look_at_the_actions() -> None:
    torch.manual_seed(0)
    decoder = JointPolicyDecoder(4, 3, 5, 16)
    states, latents = randn(2, 4), randn(2, 5, seed=1)
    one, other = (decoder(states, latents, actions) for actions in (randn(2, 3), randn(2, 3, seed=9)))
    assert torch.equal(one.mean, other.mean)
    assert torch.equal(one.std, other.std)
    assert not torch.equal(one.mean, decoder(states, latents + 1, randn(2, 3)).mean)


def window(batch: int = 3) -> dict[str, Any]:
    return {
        "states": randn(batch, 6, 4),
        "actions": randn(batch, 6, 3, seed=1),
        "final_states": randn(batch, 4, seed=2),
        "epsilon": randn(batch, 5, seed=3),
    }


@pytest.mark.parametrize("encoder", ["gru", "mlp"])
@pytest.mark.parametrize("decoder", ["autoregressive", "joint"])
@torch.no_grad()
def test_losses_are_the_terms_of_the_bound(encoder: str, decoder: str) -> None:
    """Written out with torch's distributions, one window and one step at a time."""
    vae, data = make_vae(encoder, decoder), window()
    losses = vae.losses(**data, steps=None)
    states, actions, final_states, epsilon = data.values()
    posterior = vae.encode(states, actions)
    action, kl, final = 0.0, 0.0, 0.0
    for b in range(3):
        z = posterior.mean[b] + posterior.std[b] * epsilon[b]
        for h in range(6):
            log_density = Normal(*vae.action(states[b, h], z, actions[b, h])).log_prob(actions[b, h])
            action -= float(log_density.sum()) / 18
        prior = Normal(*vae.prior(states[b, 0]))
        kl += float(kl_divergence(Normal(posterior.mean[b], posterior.std[b]), prior).sum()) / 3 / 6
        decoded = Normal(*vae.final_state(torch.cat([states[b, 0], z])))
        final -= float(decoded.log_prob(final_states[b]).sum()) / 3 / 6
    assert set(losses) == {"action", "kl", "final_state"}
    assert float(losses["action"]) == pytest.approx(action, rel=1e-4)
    assert float(losses["kl"]) == pytest.approx(kl, rel=1e-4)
    assert float(losses["final_state"]) == pytest.approx(final, rel=1e-4)


@pytest.mark.parametrize("decoder", ["autoregressive", "joint"])
@torch.no_grad()
def test_likelihood_at_some_steps_is_unbiased(decoder: str) -> None:
    vae, data = make_vae(decoder=decoder), window()
    full = vae.losses(**data, steps=None)
    single = [vae.losses(**data, steps=torch.full((3, 1), h)) for h in range(6)]
    torch.testing.assert_close(torch.stack([s["action"] for s in single]).mean(), full["action"])
    assert len({round(float(s["action"]), 4) for s in single}) == 6
    for losses in single:  # the other terms are not estimated
        torch.testing.assert_close(losses["kl"], full["kl"])
        torch.testing.assert_close(losses["final_state"], full["final_state"])
    # every window has its own steps
    mixed = torch.tensor([[0, 1], [2, 2], [5, 3]])
    picked = [vae.losses(**{k: v[b : b + 1] for k, v in data.items()}, steps=mixed[b : b + 1]) for b in range(3)]
    torch.testing.assert_close(
        vae.losses(**data, steps=mixed)["action"], torch.stack([p["action"] for p in picked]).mean()
    )


def touched(vae: TrajectoryVAE, loss: Tensor) -> set[str]:
    vae.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {
        name.split(".")[0] for name, p in vae.named_parameters() if p.grad is not None and bool((p.grad != 0).any())
    }


@pytest.mark.parametrize("encoder", ["gru", "mlp"])
def test_state_decoder_never_shapes_the_latents(encoder: str) -> None:
    vae = make_vae(encoder)
    assert touched(vae, vae.losses(**window(), steps=None)["final_state"]) == {"final_state"}
    assert touched(vae, vae.losses(**window(), steps=None)["action"]) == {"encode", "action"}
    assert touched(vae, vae.losses(**window(), steps=None)["kl"]) == {"encode", "prior"}


# ---------------------------------------------------------------- the denoiser


def test_sinusoids() -> None:
    features = sinusoids(torch.tensor([0, 7, 500]), 128)
    assert features.shape == (3, 128)
    for row, j in enumerate((0, 7, 500)):
        for k in (0, 1, 30, 63):
            angle = j * 10_000 ** (-k / 63)
            assert float(features[row, k]) == pytest.approx(math.sin(angle), abs=1e-4)
            assert float(features[row, 64 + k]) == pytest.approx(math.cos(angle), abs=1e-4)


def plain_unet(net: ResidualMLPUNet, x: Tensor, j: Tensor, states: Tensor) -> Tensor:
    """The network as its authors describe it: nothing hoisted, every block given the state and the time."""
    time, state = net.time(sinusoids(j, net.time_features)), net.state(states)

    def block(module: Any, h: Tensor) -> Tensor:
        u = module.norm(module.state(state))
        y = module.norm(module.first(torch.cat([h, u], dim=-1)))
        scale, shift = module.time(time).chunk(2, dim=-1)
        y = F.gelu(y * (1 + scale) + shift)
        return h + F.gelu(module.norm(module.second(y)))

    (n128, n32, n16, n8), (d32, d16, d8), (u16, u32, u128) = net.norms, net.down, net.up
    inlet = net.inlet(x)
    h128 = block(net.down_blocks[0], inlet)
    h32 = block(net.down_blocks[1], F.gelu(n32(d32(h128))))
    h16 = block(net.down_blocks[2], F.gelu(n16(d16(h32))))
    h = block(net.down_blocks[3], F.gelu(n8(d8(h16))))
    h = block(net.up_blocks[0], F.gelu(n16(u16(h))) + h16)
    h = block(net.up_blocks[1], F.gelu(n32(u32(h))) + h32)
    h = block(net.up_blocks[2], F.gelu(n128(u128(h))) + h128)
    return net.outlet(block(net.last_block, h + inlet))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def unet() -> ResidualMLPUNet:
    torch.manual_seed(0)
    net = ResidualMLPUNet(3, 6, hidden=32, widths=(16, 12, 10, 8), time_features=16)
    with torch.no_grad():  # fresh layer norms are all alike: make a mix-up visible
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return net


def test_unet_is_wired_as_described(unet: ResidualMLPUNet) -> None:
    x, j, states = randn(9, 6), torch.arange(1, 10) * 11, randn(9, 3, seed=1)
    torch.testing.assert_close(unet(x, j, states), plain_unet(unet, x, j, states), rtol=1e-4, atol=1e-5)


def test_hoisting_is_exact(unet: ResidualMLPUNet) -> None:
    """Terms of 4 states and of one time step, broadcast over 5 candidates each."""
    x, states = randn(4, 5, 6), randn(4, 3, seed=1)
    steps = torch.tensor([90, 40, 1])
    state_terms = unet.state_terms(states[:, None])
    assert [term.shape for term in state_terms] == [(4, 1, w) for w in (16, 12, 10, 8, 10, 12, 16, 16)]
    all_terms = unet.time_terms(steps)
    for k, j in enumerate(steps.tolist()):
        terms = [(factor[k], offset[k]) for factor, offset in all_terms]
        hoisted = unet.denoise(x, state_terms, terms)
        repeated = unet(x.reshape(20, 6), torch.full((20,), j), states.repeat_interleave(5, 0))
        torch.testing.assert_close(hoisted.reshape(20, 6), repeated, rtol=1e-4, atol=1e-5)
        entered = unet.denoise(x, state_terms, terms, unet.weights(entry=True))
        torch.testing.assert_close(entered, hoisted, rtol=1e-4, atol=1e-5)


KINDS: dict[str, Any] = {
    "unet": (ResidualMLPUNet, (16, 12, 10, 8)),
    "mlp": (MLPDenoiser, (16, 12, 10)),
    "transformer": (TransformerDenoiser, (16, 16)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_denoisers_depend_on_all_their_inputs(kind: str) -> None:
    torch.manual_seed(0)
    cls, widths = KINDS[kind]
    net = cls(3, 6, hidden=32, widths=widths, time_features=16)
    x, j, states = randn(2, 6), torch.tensor([3, 3]), randn(2, 3, seed=1)
    base = net(x, j, states)
    assert not torch.allclose(base, net(x + 0.1, j, states), atol=1e-4)
    assert not torch.allclose(base, net(x, j + 1, states), atol=1e-4)
    assert not torch.allclose(base, net(x, j, states + 0.1), atol=1e-4)
    loss = net(x, j, states).sum()
    loss.backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in net.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_denoisers_at_the_steps_of_a_solver(kind: str) -> None:
    torch.manual_seed(0)
    cls, widths = KINDS[kind]
    net = cls(3, 6, hidden=32, widths=widths, time_features=16)
    x, states, steps = randn(4, 5, 6), randn(4, 3, seed=1), torch.tensor([90, 40, 1])
    denoise = net.at(states, steps)
    for k, j in enumerate(steps.tolist()):
        repeated = net(x.reshape(20, 6), torch.full((20,), j), states.repeat_interleave(5, 0))
        torch.testing.assert_close(denoise(x, k).reshape(20, 6), repeated, rtol=1e-4, atol=1e-5)


def test_the_mlp_and_the_transformer_are_plain() -> None:
    """Both by hand, from embeddings side by side and from three tokens."""
    torch.manual_seed(0)
    mlp, transformer = (cls(3, 6, hidden=32, widths=widths, time_features=16) for cls, widths in [*KINDS.values()][1:])
    x, state, time = randn(2, 6), randn(2, 32, seed=1), randn(2, 32, seed=2)
    h = torch.cat([x, state, time], -1)
    for layer in (mlp.first, *mlp.rest, mlp.outlet):
        h = layer(h)
    torch.testing.assert_close(mlp.denoise_embedded(x, state, time), h)
    tokens = torch.stack([transformer.time_token(time), transformer.state_token(state), transformer.latent_token(x)], 1)
    last = transformer.body.blocks(tokens + transformer.body.positions)[:, 2]
    expected = transformer.outlet(transformer.norm(last))
    torch.testing.assert_close(transformer.denoise_embedded(x, state, time), expected)


# ---------------------------------------------------------------- critics and actors


def test_critic_broadcasts_states_over_candidates() -> None:
    torch.manual_seed(0)
    critic = LatentCritic(3, 6, 16, 8, 4)
    states, latents = randn(4, 3), randn(4, 5, 6, seed=1)
    scores = critic(states[:, None], latents)
    assert scores.shape == (4, 5)
    repeated = critic(states.repeat_interleave(5, 0), latents.reshape(20, 6))
    assert repeated.shape == (20,)
    torch.testing.assert_close(scores.reshape(20), repeated, rtol=1e-4, atol=1e-5)
    # the split of the joining layer is a layer on the concatenation
    joined = F.gelu(critic.join_norm(critic.join(torch.cat([critic.state(states), critic.latent(latents[:, 0])], -1))))
    torch.testing.assert_close(critic.head(joined)[:, 0], scores[:, 0], rtol=1e-4, atol=1e-5)


def test_joint_critic_sees_states_and_candidates_side_by_side() -> None:
    torch.manual_seed(0)
    critic = JointLatentCritic(3, 6, 16)
    assert size(critic) == (9 + 1) * 16 + (16 + 1) * 16 + (16 + 1) + 2 * 2 * 16
    states, latents = randn(4, 3), randn(4, 5, 6, seed=1)
    scores = critic(states[:, None], latents)
    assert scores.shape == (4, 5)
    joined = torch.cat([states[:, None].expand(4, 5, 3), latents], -1)
    wanted = critic.head(F.gelu(critic.join_norm(critic.join(joined)))).squeeze(-1)
    torch.testing.assert_close(scores, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_parts_of_a_linear_layer_broadcast(order: tuple[int, int]) -> None:
    """States [4, 1, 3] and latents [4, 5, 6], in either order, are as the concatenation, gradients too."""
    torch.manual_seed(0)
    parts = [(randn(4, 1, 3), randn(4, 5, 6, seed=1))[i].requires_grad_() for i in order]
    layer = nn.Linear(9, 7)
    joined = layer(torch.cat([part.expand(4, 5, -1) for part in parts], -1))
    found = linear_of_parts(layer, *parts)
    torch.testing.assert_close(found, joined)
    weights = randn(4, 5, 7, seed=2)
    wanted = torch.autograd.grad((weights * joined).sum(), [*parts, *layer.parameters()])
    torch.testing.assert_close(torch.autograd.grad((weights * found).sum(), [*parts, *layer.parameters()]), wanted)


@pytest.mark.parametrize("inputs", [1, 11, 15, 16])
def test_linear_layer_of_few_inputs(inputs: int) -> None:
    torch.manual_seed(0)
    layer, x, gradient = Linear(inputs, 32), randn(64, inputs).requires_grad_(), randn(64, 32, seed=1)
    found, wanted = layer(x), F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    both = (torch.autograd.grad(y, (layer.weight, layer.bias, x), gradient) for y in (found, wanted))
    torch.testing.assert_close(*both, rtol=1e-5, atol=1e-5)


def test_descend_is_a_step_of_adam_bit_for_bit() -> None:
    """Against optimizer.step: a rate that changes, a parameter that the loss reaches from step 2 on, a turned one."""
    states = []
    for ours in (True, False):
        torch.manual_seed(0)
        net, other, turned = mlp(3, 4, 2), nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, 3))
        parameters = [*net.parameters(), other, turned]
        optimizer = torch.optim.Adam(parameters, 1e-2, fused=True)
        for step in range(5):
            optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)
            output = net(randn(6, 3, seed=step))
            loss = ((output * other if step >= 2 else output) - 1).square().mean()
            loss = loss + (torch.arange(6.0).view(3, 2) - 2.5).mul(turned.t()).sum()  # its gradient is transposed
            if ours:
                descend(optimizer, loss)
            else:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        states.append([*parameters, *(optimizer.state[p][k] for p in parameters for k in sorted(optimizer.state[p]))])
    assert len(states[0]) == 6 + 18
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_clip_norm() -> None:
    gradients = (torch.tensor([3.0, 0.0]), torch.tensor([[4.0]]))
    clip_norm(gradients, 10.0)
    assert [gradient.tolist() for gradient in gradients] == [[3.0, 0.0], [[4.0]]]
    clip_norm(gradients, 1.0)
    torch.testing.assert_close(torch.cat([gradient.flatten() for gradient in gradients]), torch.tensor([0.6, 0.0, 0.8]))


def test_layers_of_the_perceptrons() -> None:
    assert [type(layer) for layer in mlp(3, 4, 5, 2)] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert [type(layer) for layer in norm_gelu_mlp(3, 4, 5)] == [nn.Linear, nn.LayerNorm, nn.GELU] * 2


def test_tanh_actor() -> None:
    torch.manual_seed(0)
    actor = TanhActor(3, 2, (8,))
    x = randn(5, 3) * 1000
    assert actor(x).shape == (5, 2)
    assert float(actor(x).abs().max()) <= 1
    torch.testing.assert_close(actor(x), torch.tanh(actor.net(x)))


def test_polyak_update() -> None:
    online, target = nn.Linear(2, 1), nn.Linear(2, 1)
    for parameter, value in ((online.weight, 10.0), (online.bias, 20.0), (target.weight, 0.0), (target.bias, 4.0)):
        nn.init.constant_(parameter, value)
    polyak_update(tuple(online.parameters()), tuple(target.parameters()), 0.25)
    assert target.weight.tolist() == [[2.5, 2.5]]
    assert target.bias.tolist() == [8.0]
    assert online.weight.tolist() == [[10.0, 10.0]]
