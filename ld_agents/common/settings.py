"""Types of settings. A settings class is a frozen pydantic dataclass: type, bounds, default and origin stand together.

    @documented
    @dataclass(frozen=True, config=STRICT)
    class MySettings:
        batch_size: BatchSize = 256  # what it is, origin of the number

It checks itself wherever it is made, `dataclasses.replace` included. `help(MySettings)` has a line for each setting.
Editors complete the settings of an agent from `ld_agents/__init__.pyi`, which tests/common/stub.py writes.
"""

import dataclasses
import functools
import inspect
import itertools
import linecache
import re
import sys
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

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


S = TypeVar("S")


def documented(settings: type[S]) -> type[S]:
    """Adds a line for each setting to the docstring: its name, type and default, and the comment beside it."""
    about: dict[str, str] = {}
    for cls in reversed(settings.__mro__[:-1]):
        about |= _comments(cls)
    lines = [
        f"    {field.name}: {kind(field.type)} = {field.default!r}"
        + (f"  # {text}" if (text := about.get(field.name)) else "")
        for field in dataclasses.fields(settings)  # type: ignore[arg-type]
    ]
    settings.__doc__ = "\n".join([inspect.cleandoc(settings.__doc__ or ""), "", "Settings:", *lines])
    settings.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter("settings", inspect.Parameter.VAR_KEYWORD)]  # all of them would be one line of the help
    )
    return settings


@functools.cache
def _comments(settings: type) -> dict[str, str]:
    """The comments beside the fields of a class, or in the line above them; none where no source is installed.

    `inspect.getsource` would parse the whole module for each class, which half of the package's start-up went into.
    """
    file = getattr(sys.modules[settings.__module__], "__file__", None)
    source = linecache.getlines(file) if file else []
    begin = next((i for i, line in enumerate(source) if re.match(rf"class {settings.__name__}\b", line)), len(source))
    lines = [line.rstrip() for line in itertools.takewhile(lambda line: line[:1].isspace(), source[begin + 1 :])]
    found: dict[str, str] = {}
    above = ""
    for previous, line in zip(["", *lines], lines, strict=False):
        if field := re.match(r"    (\w+): [^#]*(?:# (.*))?$", line):
            found[field[1]] = field[2] or above
        above = line.strip()[2:] if line.startswith("    # ") and previous.strip() else ""  # else it heads a group
    return found


def kind(annotation: Any) -> str:
    """The type of a setting without its bounds, as one writes it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind(arguments[0])
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, arguments))}]"
    if origin in (Union, UnionType):
        return " | ".join(kind(argument) for argument in arguments)
    if origin is tuple:
        return f"tuple[{kind(arguments[0])}, ...]"
    return "None" if annotation is NoneType else str(annotation.__name__)


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
