#!/usr/bin/env bash
# torch.onnx.export replaces functions that exist for their numerical stability by the formulas that they guard against.
#
# Expected: logaddexp, logsigmoid, binary_cross_entropy_with_logits, log1p and expm1 keep their accuracy, as logsumexp,
#           log_softmax and softplus do.
# Seen:     the graph holds Log(Exp + Exp), Log(Sigmoid), Log(1 + x) and Exp(x) - 1. ONNX Runtime gives logaddexp(100, 1) =
#           inf, logaddexp(-200, -201) = -inf, logsigmoid(-50) = -inf, log1p(1e-9) = 0, and a cross-entropy of inf at the
#           logit -50 of a positive. Export and run succeed, and no warning speaks of it.
# Matters:  a soft value of two critics overflows at values of 89, which returns of a locomotion task exceed. Candidates that
#           a discriminator or a preference model rates by logsigmoid tie at -inf, and argmax takes the first one whatever it
#           is. Checks of the export with small random inputs pass.
# Versions: torch 2.13.0 (dynamo exporter), onnx 1.23.2, onnxscript 0.7.2, onnxruntime 1.31.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "torch==2.13.0" "onnx==1.23.2" "onnxscript==0.7.2" "onnxruntime==1.31.0" "numpy==2.4.6"

cd "$work"
"$work/venv/bin/python" -W ignore - 2>"$work/log" <<'PYTHON' || { tail -n 5 "$work/log"; exit 1; }
from importlib.metadata import version

import numpy as np
import onnxruntime
import torch
from torch.nn import functional


class Module(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def both(function, *inputs):
    inputs = [torch.tensor(values) for values in inputs]
    program = torch.onnx.export(Module(function).eval(), tuple(inputs), dynamo=True, verbose=False)
    program.save("module.onnx")
    session = onnxruntime.InferenceSession("module.onnx")
    names = [entry.name for entry in session.get_inputs()]
    exported = session.run(None, {name: values.numpy() for name, values in zip(names, inputs)})[0]
    return function(*inputs).numpy(), exported, [node.op_type for node in program.model.graph]


print(*(f"{name} {version(name)}" for name in ("torch", "onnx", "onnxscript", "onnxruntime")))
cases = {
    "logaddexp": (torch.logaddexp, [1.0, 100.0, -200.0], [2.0, 1.0, -201.0]),
    "logsigmoid": (functional.logsigmoid, [-1.0, -50.0, -60.0, -100.0]),
    "cross-entropy": (lambda x: functional.binary_cross_entropy_with_logits(x, torch.ones(3), reduction="none"),
                      [-1.0, -50.0, -100.0]),
    "log1p": (torch.log1p, [0.5, 1e-9]),
    "expm1": (torch.expm1, [0.5, 1e-9]),
}
for name, (function, *inputs) in cases.items():
    kept, exported, nodes = both(function, *inputs)
    print(f"{name}: PyTorch {kept}, ONNX {exported}, nodes {nodes}")
    assert np.isclose(kept[0], exported[0], rtol=1e-5), "the ordinary value differs, too"
    assert np.isfinite(kept).all() and (kept[1:] != 0).all()
    lost = np.isinf(exported[1:]) | (exported[1:] == 0)
    assert lost.all(), f"behavior changed: {name} gives {exported}"
for name, function, inputs in (("softplus", functional.softplus, [-50.0, 100.0]),
                               ("logsumexp", lambda x: torch.logsumexp(x, 0, keepdim=True), [100.0, 1.0])):
    kept, exported, nodes = both(function, inputs)
    assert np.allclose(kept, exported), f"behavior changed: {name} is lost as well"
    print(f"{name}, for comparison: PyTorch {kept}, ONNX {exported}, nodes {nodes}")
kept, exported, _ = both(lambda x: functional.logsigmoid(x).argmax(), [-90.0, -70.0, -50.0, -60.0])
print(f"best of four logits -90, -70, -50, -60: PyTorch takes {kept}, ONNX {exported}")
assert kept == 2 and exported == 0, f"behavior changed: {exported}"
PYTHON
