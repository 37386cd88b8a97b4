#!/usr/bin/env bash
# On a CPU, autograd does not see that a fused optimizer of torch has changed the weights.
#
# Expected: when weights change between a loss and its `backward`, autograd refuses, since the gradient would be taken
#           with weights that the loss has never seen. So it is with fused=False.
# Seen:     `Adam(fused=True).step()`, and SGD's and Adagrad's, leave the version counter of a parameter where it is.
#           `backward` goes on in silence, and gives the gradient through the weights of after the step.
# Matters:  an actor's loss that is computed before the critic's step and differentiated after it is the usual slip in
#           actor-critic code. With fused=True, which is there to be faster and no different, the error that tells of it
#           is gone. Nor can anything that is cached from weights be told to be stale by their version.
# Versions: torch 2.13.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "torch==2.13.0" "numpy==2.4.6"

"$work/venv/bin/python" -W ignore - <<'PYTHON'
import torch

print("torch", torch.__version__.partition("+")[0])
seen = {}
for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.Adagrad):
    for fused in (False, True):
        torch.manual_seed(0)
        critic = torch.nn.Linear(2, 1, bias=False)
        optimizer = kind(critic.parameters(), lr=0.5, fused=fused)
        action = torch.ones(1, 2, requires_grad=True)
        actor_loss = -critic(action).sum()  # its gradient is minus the critic's weights of now
        wanted = -critic.weight.detach().clone()

        critic(torch.ones(1, 2)).sum().backward()
        before = critic.weight._version
        optimizer.step()
        counted = critic.weight._version - before
        try:
            (found,) = torch.autograd.grad(actor_loss, action)
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)
            outcome = "refused"
        else:
            assert not torch.allclose(found, wanted) and torch.equal(found, -critic.weight.detach())
            outcome = f"gradient {found[0].tolist()}, wanted {wanted[0].tolist()}"
        seen[kind.__name__, fused] = (counted > 0, outcome == "refused")
        print(f"{kind.__name__}, fused={fused}: version + {counted}, {outcome}")
assert seen == {(kind, fused): (not fused, not fused) for kind in ("SGD", "Adam", "Adagrad") for fused in (False, True)}
PYTHON
