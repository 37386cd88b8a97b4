#!/usr/bin/env bash
# DDIM and DDPM of diffusers start in the middle of the noise schedule when asked for 51 of 100 steps.
#
# Expected: 51 denoising steps run over the whole schedule, as 50 do, and are no worse.
# Seen:     with the default timestep_spacing the distance between steps is 100 // 51 = 1, so the steps are 50 to 0 and pure
#           noise is passed off as a half denoised sample. With the exact noise prediction for a mixture whose rare mode has
#           a share of 0.20, DDIM gives it 0.20 with 50 or 20 steps, 0.34 with 51 and 0.28 with 34 (which start at 66), and
#           0.20 with 100. DDPM does the same more mildly. No warning; `len(timesteps)` is what was asked for.
# Matters:  diffusion policies train with 100 steps, and a sweep over the steps at acting time is the natural experiment. It
#           makes quality look like a saw: whichever number lies just above 100 / k draws rare actions far too often.
# Versions: diffusers 0.42.1, torch 2.13.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "diffusers==0.42.1" "torch==2.13.0" "numpy==2.4.6"

"$work/venv/bin/python" -W ignore - <<'PYTHON'
import diffusers
import torch

torch.set_num_threads(1)
SHARES, MODES, WIDTH = torch.tensor([0.8, 0.2]), torch.tensor([-0.7, 0.7]), 0.05


def exact_noise(x, kept):
    """The noise that a perfect network would predict, for data from the mixture above."""
    variance = kept * WIDTH**2 + 1 - kept
    gaps = x - kept.sqrt() * MODES
    weights = torch.softmax(SHARES.log() - gaps.square() / (2 * variance), -1)
    return (1 - kept).sqrt() * (weights * gaps).sum(-1, keepdim=True) / variance


def sample(cls, steps):
    generator = torch.Generator().manual_seed(0)
    scheduler = cls(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2")
    scheduler.set_timesteps(steps)
    assert len(scheduler.timesteps) == steps
    x = torch.randn(20000, 1, generator=generator)
    for t in scheduler.timesteps:
        x = scheduler.step(exact_noise(x, scheduler.alphas_cumprod[t]), t, x, generator=generator).prev_sample
    return int(scheduler.timesteps[0]), (x > 0).float().mean().item()


print("diffusers", diffusers.__version__, "torch", torch.__version__, f"true share of the rare mode {SHARES[1]:.2f}")
for cls, bound in ((diffusers.DDIMScheduler, 0.3), (diffusers.DDPMScheduler, 0.25)):
    results = {steps: sample(cls, steps) for steps in (20, 33, 34, 50, 51, 60, 100)}
    print(cls.__name__, *(f"{steps} steps: from {first}, {share:.2f};" for steps, (first, share) in results.items()))
    assert results[50][0] == 98 and results[51][0] == 50, f"behavior changed: 51 steps start at {results[51][0]}"
    assert all(abs(results[steps][1] - 0.2) < 0.03 for steps in (20, 33, 50, 100))
    assert results[51][1] > bound, f"behavior changed: {results[51]}"
PYTHON
