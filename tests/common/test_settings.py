"""Settings check themselves: what kinds of bad values are refused, for every agent, and how that is said."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import pydoc
from typing import Any, get_args

import numpy as np
import pytest
import stub
from pydantic import ValidationError

from conftest import AGENTS, make_agent, saved
from ld_agents import LDCQ, LatentDiffuser, OfflineDataset

BAD = {
    int: [True, 2.0, 2.5, "3", None, -1, 2 * 10**9, math.nan, math.inf, np.int64(3)],
    float: [True, "0.5", None, math.nan, math.inf, -math.inf, -2e6, 1e31],
    bool: [1, 0, "yes", None],
    str: ["nonsense", 1, None, True],
    tuple: [(), 8, "ab", (8.5, 8), (True,), ("8",), (0,), (10**6,), [8] * 17, {8, 16}, None],
}


def test_every_setting_refuses_what_it_is_not(name: str) -> None:
    for preset in AGENTS[name][0].presets().values():
        fields = {field.name: getattr(preset, field.name) for field in dataclasses.fields(preset)}
        kinds = {setting: type(value) for setting, value in fields.items() if value is not None}
        optional = {field.name for field in dataclasses.fields(preset) if type(None) in get_args(field.type)}
        assert set(kinds.values()) <= set(BAD)
        assert len(optional) < 8
        for setting, kind in kinds.items():
            for value in BAD[kind]:
                if value is not None or setting not in optional:
                    with pytest.raises(ValidationError, match=setting):
                        dataclasses.replace(preset, **{setting: value})


def test_unknown_names_are_refused(name: str) -> None:
    settings = type(AGENTS[name][0].presets()["fast"])
    with pytest.raises(ValidationError, match="batchsize"):
        settings(batchsize=3)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("latent_dim", 0, "latent_dim: Input should be greater than or equal to 1, got 0."),
        ("latent_dim", 5000, "latent_dim: Input should be less than or equal to 1024, got 5000."),
        ("latent_dim", True, "latent_dim: Input should be a valid integer, got True."),
        ("discount", math.nan, "discount: Input should be a finite number, got nan."),
        ("encoder", "lstm", "encoder: Input should be 'gru' or 'mlp', got 'lstm'."),
        ("denoiser_widths", (8, 2.5), "denoiser_widths.1: Input should be a valid integer, got 2.5."),
        ("denoiser_widths", (True,), "denoiser_widths.0: Input should be a valid integer, got True."),
        ("exec_horizon", 6, "exec_horizon (6) must not exceed horizon (5)."),
    ],
)
def test_messages_name_setting_value_and_what_is_allowed(
    dataset: OfflineDataset, setting: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=setting) as caught:
        make_agent("LDCQ", dataset, **{setting: value})
    assert str(caught.value) == message


def test_two_problems_are_named_together(dataset: OfflineDataset) -> None:
    with pytest.raises(ValueError, match=r"horizon: .*, got 0\. kl_weight: .*, got -1\."):
        make_agent("LDCQ", dataset, horizon=0, kl_weight=-1)


def test_settings_pass_through_json_and_hash() -> None:
    for cls in (LDCQ, LatentDiffuser):
        for preset in cls.presets().values():
            again = type(preset)(**json.loads(json.dumps(dataclasses.asdict(preset))))
            assert again == preset
            assert hash(again) == hash(preset)


def test_whole_numbers_pass_for_real_ones(dataset: OfflineDataset) -> None:
    settings = make_agent("LDCQ", dataset, kl_weight=1, discount=np.float64(0.5)).settings
    assert (settings.kl_weight, settings.discount) == (1.0, 0.5)


def test_agents_saved_with_whole_numbers_load(dataset: OfflineDataset) -> None:
    """Files of before settings checked themselves hold a real setting as it was given: 1, where it is 1.0 now."""
    agent = make_agent("LDCQ", dataset)
    object.__setattr__(agent.settings, "kl_weight", 1)
    blob = saved(agent)
    assert b'"kl_weight": 1,' in blob
    assert LDCQ.load(io.BytesIO(blob)).settings.kl_weight == 1.0


# -- help and completion ---------------------------------------------------------------------------------------------


def test_help_has_a_line_for_every_setting(name: str) -> None:
    settings = AGENTS[name][0].presets()["paper"]
    text = pydoc.render_doc(type(settings), renderer=pydoc.plaintext)
    lines = text.partition("Settings:\n")[2].partition("Methods defined here")[0].splitlines()
    fields = dataclasses.fields(settings)
    assert [line.split(":")[0].strip(" |") for line in lines[: len(fields)]] == [field.name for field in fields]
    for field, line in zip(fields, lines, strict=False):
        assert f" = {field.default!r}  # " in line, "with what it is"
    assert max(map(len, text.splitlines())) < 200, "no line is a signature of all settings"


def test_help_tells_what_stands_beside_a_setting() -> None:
    text = str(type(LDCQ.presets()["fast"]).__doc__)
    assert "    horizon: int = 30  # H, environment steps per latent [C]\n" in text
    assert "noise_scale: float = 1.0  # standard deviation of the noise that draws start from; above" in text
    assert "bootstrap_exponent: int | None = None  # of the discount; None is H\n" in text
    assert "Literal['diffusion', 'gaussian'] = 'diffusion'" in text
    assert "# actor_penalty" not in text


def test_editors_complete_every_setting() -> None:
    text = stub.FILE.read_text()
    for agent in {cls for cls, _ in AGENTS.values()}:
        own = text.partition(f"class {agent.__name__}(")[2].partition("\nclass ")[0]
        for field in dataclasses.fields(agent.presets()["fast"]):
            assert f" {field.name}: " in own
        assert (" image_code: " in own) == ("CnnPolicy" in agent.policy_aliases)
        assert " seed: int | None = None," in own
    assert text == stub.text(), "the settings changed: run python tests/common/stub.py"
