"""`python tests/common/stub.py` writes ld_agents/__init__.pyi, from which editors complete the settings of every agent.

The one place of a setting is its settings class; the stub repeats it for tools that do not run code.
"""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import ld_agents
from ld_agents.common.offline_algorithm import OfflineAlgorithm
from ld_agents.common.settings import kind
from ld_agents.images import ImageSettings

FILE = Path(ld_agents.__file__).with_suffix(".pyi")


def text() -> str:
    public = {name: getattr(ld_agents, name) for name in ld_agents.__all__}
    agents = {
        name: value for name, value in public.items() if inspect.isclass(value) and issubclass(value, OfflineAlgorithm)
    }
    lines = [
        "# Written by tests/common/stub.py from the settings classes; not edited by hand.",
        "from typing import Any, Literal",
        "",
        "import torch",
        "",
        *sorted(_import(name, value, name in agents) for name, value in public.items()),
        "",
        "__version__: str",
        "__all__: list[str]",
    ]
    for name, agent in agents.items():
        lines += [
            "",
            f"class {name}(_{name}):",
            "    def __init__(",
            "        self,",
            "        policy: str,",
            "        dataset: Any,",
            "        *,",
        ]
        lines += [f"        {argument}," for argument in (*_common(), *_settings(agent))]
        lines += ["    ) -> None: ..."]
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(FILE), "-"]
    return subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=True).stdout


def _import(name: str, value: Any, private: bool) -> str:
    return f"from {value.__module__} import {name} as {'_' * private}{name}"


def _common() -> list[str]:
    """The keywords that all agents have. Their annotations are strings where the module defers them."""
    parameters = inspect.signature(OfflineAlgorithm).parameters.values()
    keywords = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    return [f"{p.name}: {inspect.formatannotation(p.annotation)} = {p.default!r}" for p in keywords]


def _settings(agent: type[OfflineAlgorithm]) -> list[str]:
    fields = dataclasses.fields(agent.presets()["fast"])
    if "CnnPolicy" in agent.policy_aliases:
        fields += dataclasses.fields(ImageSettings)
    return [f"{field.name}: {kind(field.type)} = ..." for field in fields]


if __name__ == "__main__":
    FILE.write_text(text())
