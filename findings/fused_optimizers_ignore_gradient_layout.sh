#!/usr/bin/env bash
# On a CPU, torch's fused optimizers read a gradient in memory order, whatever its strides are.
#
# Expected: `p.grad = g; optimizer.step()` subtracts g's elements from those of p at the same place, fused or not, or a
#           gradient of another layout is refused.
# Seen:     for a gradient that is a transposed view, SGD(fused=True) and Adam(fused=True) update other elements than
#           the gradient says, in silence. With fused=False all is right.
# Matters:  `backward` copies gradients into the layout of their parameter, so it never shows there. Gradients taken with
#           torch.autograd.grad, or received from elsewhere, keep their own: a matrix that enters a product transposed, or
#           a convolution written as a product, gets a transposed gradient. Training then runs on, and learns nothing.
# Versions: torch 2.13.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "torch==2.13.0" "numpy==2.4.6"

"$work/venv/bin/python" -W ignore - <<'PYTHON'
import torch

print("torch", torch.__version__.partition("+")[0])
wrong = {}
for kind in (torch.optim.SGD, torch.optim.Adam):
    for fused in (False, True):
        weight = torch.nn.Parameter(torch.zeros(2, 3))
        # the loss is the sum of signs * weight, so every optimizer should step against the signs
        signs = torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]])
        loss = (signs.t().contiguous() * weight.t()).sum()
        weight.grad = torch.autograd.grad(loss, weight)[0]
        assert torch.equal(weight.grad, signs) and weight.grad.stride() == (1, 2)
        kind([weight], lr=1.0, fused=fused).step()
        step = weight.detach().round()
        wrong[kind.__name__, fused] = not torch.equal(step, -signs)
        print(f"{kind.__name__}, fused={fused}: step {step.tolist()}, wanted {(-signs).tolist()}")
assert wrong == {("SGD", False): False, ("SGD", True): True, ("Adam", False): False, ("Adam", True): True}, "behavior changed"
PYTHON
