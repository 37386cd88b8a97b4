"""Types of settings. A settings class is a frozen pydantic dataclass: type, bounds, default and origin stand together.

    @dataclass(frozen=True, config=STRICT)
    class MySettings:
        batch_size: BatchSize = 256  # origin of the number

It checks itself wherever it is made, `dataclasses.replace` included.
"""

import dataclasses
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError

# no conversions: neither True nor "1" nor 1.0 is the whole number 1; no NaN, no infinity
STRICT = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")

Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
GradientSteps = Annotated[int, Field(ge=0, le=1_000_000_000)]
BatchSize = Annotated[int, Field(ge=1, le=1_000_000)]
Candidates = Annotated[int, Field(ge=1, le=10_000)]
EnvironmentSteps = Annotated[int, Field(ge=1, le=1000)]
Layers = Annotated[int, Field(ge=1, le=64)]
LatentDim = Annotated[int, Field(ge=1, le=1024)]
SamplerSteps = Annotated[int, Field(ge=1, le=10_000)]
Width = Annotated[int, Field(ge=1, le=8192)]
# of 1 to 16 layers; JSON has lists
Widths = Annotated[
    tuple[Width, ...],
    Field(min_length=1, max_length=16, fail_fast=True),
    BeforeValidator(lambda widths: tuple(widths) if isinstance(widths, list) else widths),
]
Fraction = Annotated[float, Field(ge=0, le=1)]  # rates, discounts, shares
NonNegative = Annotated[float, Field(ge=0, le=1e6)]
Real = Annotated[float, Field(ge=-1e6, le=1e6)]


def layered(agent: str, preset: Any, of_family: dict[str, Any], of_user: dict[str, Any]) -> tuple[Any, dict[str, str]]:
    """A preset's settings with those of a family and of the user on top, and where each comes from.

    Raises:
        TypeError: for an unknown setting.
        ValueError: for one out of range.
    """
    known = [field.name for field in dataclasses.fields(preset)]
    if unknown := sorted(set(of_user) - set(known)):
        raise TypeError(f"{agent} has no setting {', '.join(unknown)}. It has: {', '.join(known)}.")
    origin = dict.fromkeys(known, "preset") | dict.fromkeys(of_family, "family") | dict.fromkeys(of_user, "user")
    try:
        return dataclasses.replace(preset, **{**of_family, **of_user}), origin
    except ValidationError as error:
        raise ValueError(explained(error)) from None


def explained(error: ValidationError) -> str:
    """What is wrong with each setting, without pydantic's links."""
    problems: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        if problem["type"] == "value_error":  # raised in __post_init__, whose message names the settings
            return str(problem["ctx"]["error"])
        setting, *_ = problem["loc"]
        where = ".".join(map(str, problem["loc"]))
        # a tuple without its bad item may be too short as well
        problems.setdefault(str(setting), f"{where}: {problem['msg']}, got {problem['input']!r:.80}.")
    return " ".join(problems.values())
