"""Functions of tensors as ONNX graphs, and through ONNX Runtime. Needs the extra `onnx`."""

import importlib
import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Function(nn.Module):
    """A function of observation and noise as a module, for the exporter; `owner` has its weights."""

    def __init__(self, owner: nn.Module, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.owner, self.function = owner, function

    def forward(self, observation: Tensor, noise: Tensor) -> Tensor:
        return self.function(observation, noise)


def session(
    owner: nn.Module, function: Callable[[Tensor, Tensor], Tensor], example: tuple[Tensor, Tensor]
) -> Callable[[Tensor, Tensor], Tensor]:
    """The function with the owner's present weights through ONNX Runtime, on as many threads as torch uses now."""
    onnxruntime, names = required("onnxruntime"), ("observation", "noise")
    model = traced(Function(owner, function), dict(zip(names, example, strict=True)), ["result"], names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    made = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def program(observation: Tensor, noise: Tensor) -> Tensor:
        return torch.from_numpy(made.run(None, {"observation": observation.numpy(), "noise": noise.numpy()})[0])

    return program


def traced(module: nn.Module, example: dict[str, Tensor], outputs: list[str], inputs: Sequence[str]) -> Any:
    """The ONNX model of a module, for any number of environments. `inputs` are its arguments, named as in `example`."""
    required("onnx")
    required("onnxscript")
    n = torch.export.Dim("n")
    last = logging.root.manager.disable
    logging.disable(logging.WARNING)  # of packages that the exporter knows and nobody here needs
    try:
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's, of its own code and of how it names axes
            program = torch.onnx.export(
                module.eval(),
                kwargs={name: example[name] for name in inputs},
                dynamo=True,
                input_names=list(inputs),
                output_names=outputs,
                dynamic_shapes={name: {0: n} for name in inputs},
                verbose=False,
            )
    finally:
        logging.disable(last)
    assert program is not None
    model = program.model_proto
    for value in (*model.graph.input, *model.graph.output):  # an input without use would keep its example's size
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    return model


def required(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"ONNX graphs need {module}: pip install 'ld-agents[onnx]'.") from error
