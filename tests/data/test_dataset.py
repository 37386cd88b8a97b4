from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from ld_agents import BC
from ld_agents.data.dataset import OfflineDataset
from ld_agents.data.dataset_info import DatasetInfo
from ld_agents.evaluation.eval_env import EvalEnvSpec

# Three episodes: rows 0-2 (timeout), 3-6 (terminal), 7-8 (the data stop).
ENDS = [3, 7, 9]


def arrays(n: int = 9) -> dict[str, np.ndarray]:
    terminals, timeouts = np.zeros(n, bool), np.zeros(n, bool)
    timeouts[2], terminals[6] = True, True
    return {
        "observations": np.arange(2 * n, dtype=np.float32).reshape(n, 2),
        "actions": (np.arange(n, dtype=np.float32)[:, None] - 4) / 8,
        "rewards": 10.0 + np.arange(n, dtype=np.float32),
        "terminals": terminals,
        "timeouts": timeouts,
    }


FINAL = np.array([[100, 101], [102, 103], [104, 105]], dtype=np.float32)
# `arrays` with rows of NaN for final observations, when those were kept
EARLIER_HASH = "0a2f5b9fd40aff784152ae15f2893c04215b68b397a94768d2bbac953f34e99a"


def test_windows_by_hand_without_final_observations() -> None:
    data = OfflineDataset(**arrays())
    assert (data.n_steps, data.n_episodes, data.observation_dim, data.action_dim) == (9, 3, 2, 1)
    assert data.episode_ends.tolist() == ENDS
    # Window 5-6 counts because it ends in a terminal; 1-2 and 7-8 do not: their next observation is unknown.
    starts = data.window_starts(2)
    assert starts.tolist() == [0, 3, 4, 5]
    assert data.next_rows(starts, 2).tolist() == [2, 5, 6, 6]
    assert data.window_terminals(starts, 2).tolist() == [False, False, False, True]
    rows, recorded = data.window_rows(starts, 2)
    assert recorded.all()
    assert rows.tolist() == [[0, 1], [3, 4], [4, 5], [5, 6]]
    assert data.observations[rows[1]].tolist() == [[6, 7], [8, 9]]
    assert data.actions[rows[3], 0].tolist() == [0.125, 0.25]
    assert data.window_rewards(starts, 2).tolist() == [[10, 11], [13, 14], [14, 15], [15, 16]]
    assert data.window_starts(4).tolist() == [3]
    with pytest.raises(ValueError, match="longest episode has 4 steps"):
        data.window_starts(5)
    with pytest.raises(ValueError, match="at least 1"):
        data.window_starts(0)


def test_windows_by_hand_with_final_observations() -> None:
    data = OfflineDataset(**arrays(), final_observations=FINAL)
    assert data.observation_rows.shape == (12, 2)
    starts = data.window_starts(2)
    assert starts.tolist() == [0, 1, 3, 4, 5, 7]
    assert data.next_rows(starts, 2).tolist() == [2, 9, 5, 6, 10, 11]
    assert data.observation_rows[data.next_rows(starts, 2)][-1].tolist() == [104, 105]
    # One-step windows are the transitions themselves.
    assert data.window_starts(1).tolist() == list(range(9))
    assert data.observations.data_ptr() == data.observation_rows.data_ptr()


def test_unknown_final_observation_is_a_nan_row() -> None:
    final = FINAL.copy()
    final[0] = np.nan
    data = OfflineDataset(**arrays(), final_observations=final)
    assert data.window_starts(2).tolist() == [0, 3, 4, 5, 7]
    assert torch.isfinite(data.observation_rows).all()


@pytest.mark.parametrize("horizon", [1, 2, 5, 12])
@pytest.mark.parametrize("with_final", [False, True])
def test_windows_equal_a_plain_loop(horizon: int, with_final: bool) -> None:
    rng = np.random.default_rng(horizon)
    n = 400
    terminals, timeouts = rng.random(n) < 0.04, rng.random(n) < 0.04
    ends = terminals | timeouts
    ends[-1] = True
    e = int(ends.sum())
    observations = rng.normal(size=(n, 3)).astype(np.float32)
    final = rng.normal(size=(e, 3)).astype(np.float32)
    final[rng.random(e) < 0.3] = np.nan
    data = OfflineDataset(
        observations,
        rng.uniform(-1, 1, (n, 2)),
        rng.normal(size=n),
        terminals,
        timeouts,
        final_observations=final if with_final else None,
    )
    expected, begin = [], 0
    for k, end in enumerate(np.flatnonzero(ends) + 1):
        known = with_final and not np.isnan(final[k]).any()
        for t in range(begin, end - horizon + 1):
            if t + horizon < end:
                expected.append((t, observations[t + horizon]))
            elif known:
                expected.append((t, final[k]))
            elif terminals[end - 1]:
                expected.append((t, observations[end - 1]))
        begin = end
    starts = data.window_starts(horizon)
    assert starts.tolist() == [t for t, _ in expected]
    found = data.observation_rows[data.next_rows(starts, horizon)].numpy()
    np.testing.assert_array_equal(found, np.array([row for _, row in expected]))
    wanted = [bool(terminals[t : t + horizon].any()) for t, _ in expected]
    assert data.window_terminals(starts, horizon).tolist() == wanted


def test_a_timeout_is_not_a_terminal() -> None:
    data = OfflineDataset(**arrays(), final_observations=FINAL)
    assert data.terminals.tolist() == [False] * 6 + [True] + [False] * 2
    assert not data.window_terminals(torch.tensor([1]), 2).item()


def test_float32_is_not_copied_and_float64_is_converted() -> None:
    raw = arrays()
    data = OfflineDataset(**raw)
    assert data.observation_rows.data_ptr() == raw["observations"].ctypes.data
    assert data.actions.data_ptr() == raw["actions"].ctypes.data
    assert data.rewards.data_ptr() == raw["rewards"].ctypes.data
    read_only = raw["observations"]
    read_only.flags.writeable = False
    assert OfflineDataset(**raw).observation_rows.data_ptr() == read_only.ctypes.data
    doubled = OfflineDataset(**{k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in raw.items()})
    assert doubled.observation_rows.dtype == torch.float32
    assert doubled.content_hash == data.content_hash


def test_the_callers_flags_are_not_changed() -> None:
    raw = arrays()
    OfflineDataset(**raw)
    assert raw["timeouts"].tolist() == [False, False, True] + [False] * 6
    assert raw["terminals"].sum() == 1


def test_memory_at_two_million_steps() -> None:
    n = 2_000_000
    raw = {
        "observations": np.zeros((n, 4), np.float32),
        "actions": np.zeros((n, 2), np.float32),
        "rewards": np.zeros(n, np.float32),
        "terminals": np.zeros(n, bool),
        "timeouts": np.zeros(n, bool),
    }
    raw["timeouts"][99::100] = True
    total = sum(a.nbytes for a in raw.values())
    data = OfflineDataset(**raw)
    starts = data.window_starts(20)
    assert len(starts) == n // 100 * 80
    assert data.observation_rows.data_ptr() == raw["observations"].ctypes.data
    assert sum(tensor.nbytes for tensor in (*data._tensors().values(), starts)) <= 1.25 * total


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and calls glibc")
def test_resident_memory_at_two_million_steps() -> None:
    script = """
import ctypes
import numpy as np, torch
from ld_agents.data.dataset import OfflineDataset
torch.set_num_threads(1)
def resident():
    # Blocks that were freed but not yet given back to the system are not held by anybody.
    ctypes.CDLL(None).malloc_trim(0)
    return int(open("/proc/self/statm").read().split()[1]) * 4096
def make(n):
    timeouts = np.zeros(n, bool); timeouts[99::100] = True
    return OfflineDataset(np.ones((n, 4), np.float32), np.ones((n, 2), np.float32), np.ones(n, np.float32),
                          np.zeros(n, bool), timeouts, final_observations=np.ones((n // 100, 4), np.float32))
make(100_000).window_starts(20)
before = resident()
data = make(2_000_000)
starts = data.window_starts(20)
print((resident() - before) / (2_000_000 * 30))
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 1.25


def test_content_hash_is_stable_and_covers_everything() -> None:
    data = OfflineDataset(**arrays())
    assert data.content_hash == "3dc43768d7b7904c57a13d1fb45178f486184a8f6153bc75b0ed72826d4dc936"
    changed = [OfflineDataset(**arrays(), final_observations=FINAL)]
    for name in ("observations", "actions", "rewards"):
        raw = arrays()
        raw[name].reshape(-1)[4] += 0.5
        changed.append(OfflineDataset(**raw))
    for name in ("terminals", "timeouts"):
        raw = arrays()
        raw[name][4] = True
        changed.append(OfflineDataset(**raw))
    assert len({data.content_hash, *(c.content_hash for c in changed)}) == 7


def test_unknown_final_observations_are_the_same_data_as_none() -> None:
    data, rows = OfflineDataset(**arrays()), np.full_like(FINAL, np.nan)
    other = OfflineDataset(**arrays(), final_observations=rows)
    assert other.content_hash == data.content_hash
    rows[1] = FINAL[1]
    assert OfflineDataset(**arrays(), final_observations=rows).content_hash != data.content_hash
    assert not OfflineDataset(**arrays(), final_observations=rows).has_hash(EARLIER_HASH)
    assert not data.has_hash("")


def test_agents_of_earlier_versions_still_take_data_without_final_observations() -> None:
    data = OfflineDataset(**arrays(), final_observations=np.full_like(FINAL, np.nan))
    agent = BC("MlpPolicy", data, hidden=(8,), device="cpu", seed=0).learn(1)
    agent._dataset_identity["hash"] = EARLIER_HASH
    file = io.BytesIO()
    agent.save(file)
    loaded = BC.load(file, dataset=OfflineDataset(**arrays())).learn(1, reset_num_timesteps=False)
    assert loaded.num_timesteps == 2


def test_to_another_device_keeps_the_data() -> None:
    data = OfflineDataset(**arrays(), final_observations=FINAL)
    other = data.to("cpu")
    assert other.content_hash == data.content_hash
    assert other.window_starts(2).tolist() == data.window_starts(2).tolist()
    assert data.to("meta").observation_rows.device.type == "meta"


# -- spaces and validation -----------------------------------------------------------------------------------------


def test_inferred_spaces() -> None:
    data = OfflineDataset(**arrays())
    assert data.action_space == spaces.Box(-1, 1, (1,), np.float32)
    assert isinstance(data.observation_space, spaces.Box)
    assert data.observation_space.shape == (2,)
    assert np.isinf(data.observation_space.high).all()
    raw = arrays()
    raw["actions"] = raw["actions"] * 8
    with pytest.raises(ValueError, match=r"Actions reach from -4 to 4, .*Pass env=.*action_space=Box"):
        OfflineDataset(**raw)
    assert OfflineDataset(**raw, action_space=spaces.Box(-9, 9, (1,))).action_space.high.tolist() == [9]


def test_unequal_lengths_name_both() -> None:
    for name in ("actions", "rewards", "terminals", "timeouts"):
        raw = arrays()
        raw[name] = raw[name][:-1]
        with pytest.raises(ValueError, match=rf"observations have 9 rows but {name} have 8"):
            OfflineDataset(**raw)


@pytest.mark.parametrize(
    ("name", "place", "message"),
    [
        ("observations", (4, 1), r"observations hold nan in episode 1, step 1 \(row 4\), column 1"),
        ("actions", (8, 0), r"actions hold nan in episode 2, step 1 \(row 8\), column 0"),
        ("rewards", (2,), r"rewards hold nan in episode 0, step 2 \(row 2\)"),
    ],
)
def test_nan_names_the_episode(name: str, place: tuple[int, ...], message: str) -> None:
    raw = arrays()
    raw[name][place] = np.nan
    with pytest.raises(ValueError, match=message):
        OfflineDataset(**raw)
    raw[name][place] = np.inf
    with pytest.raises(ValueError, match=message.replace("nan", "inf")):
        OfflineDataset(**raw)


def test_float64_too_large_for_float32_is_reported() -> None:
    raw = arrays()
    raw["rewards"] = raw["rewards"].astype(np.float64)
    raw["rewards"][5] = 1e200
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="rewards hold inf in episode 1, step 2"):
        OfflineDataset(**raw)


def test_actions_outside_the_box() -> None:
    raw = arrays()
    raw["actions"][7] = 1.25
    box = spaces.Box(-1, 1, (1,), np.float32)
    with pytest.raises(ValueError, match=r"Action 1\.25 in episode 2, step 0 \(row 7\).*Clip.*or pass the wider"):
        OfflineDataset(**raw, action_space=box)
    raw["actions"][7] = 1 + 0.5e-5
    assert OfflineDataset(**raw, action_space=box).action_space is box
    raw["actions"][7] = 1.25
    assert OfflineDataset(**raw, action_space=spaces.Box(-2, 2, (1,), np.float32)).n_steps == 9


def test_wrong_shapes_and_types() -> None:
    raw = arrays()
    with pytest.raises(ValueError, match=r"rewards have shape \(9, 1\) instead of \[steps\]"):
        OfflineDataset(**{**raw, "rewards": raw["rewards"][:, None]})
    with pytest.raises(ValueError, match=r"observations have shape \(9,\) instead of \[steps, size\]"):
        OfflineDataset(**{**raw, "observations": raw["rewards"]})
    with pytest.raises(TypeError, match="actions hold object values"):
        OfflineDataset(**{**raw, "actions": np.array([[None]] * 9, dtype=object)})
    with pytest.raises(ValueError, match="terminals hold values other than 0 and 1"):
        OfflineDataset(**{**raw, "terminals": np.arange(9)})
    with pytest.raises(ValueError, match=r"empty \(0 steps\)"):
        OfflineDataset(**{name: array[:0] for name, array in raw.items()})
    with pytest.raises(ValueError, match=r"final_observations have shape \(2, 2\), but the arrays hold 3 episodes"):
        OfflineDataset(**raw, final_observations=FINAL[:2])
    with pytest.raises(ValueError, match="final observation of episode 1 is infinite"):
        OfflineDataset(**raw, final_observations=np.array([[0, 0], [np.inf, 0], [0, 0]]))
    with pytest.raises(TypeError, match="Only continuous actions"):
        OfflineDataset(**raw, action_space=spaces.Discrete(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="holds 3 numbers, but observations have 2 columns"):
        OfflineDataset(**raw, observation_space=spaces.Box(-1, 1, (3,)))
    with pytest.raises(ValueError, match="Pass observation_keys too"):
        OfflineDataset(**raw, observation_space=spaces.Dict({"observation": spaces.Box(-1, 1, (2,))}))


def test_flatten_observation() -> None:
    space = spaces.Dict({"b": spaces.Box(-1, 1, (1,)), "a": spaces.Box(-1, 1, (1,)), "other": spaces.Box(-1, 1, (5,))})
    data = OfflineDataset(**arrays(), observation_space=space, observation_keys=("b", "a"))
    flat = data.flatten_observation({"a": np.array([1.0]), "b": np.array([2.0]), "other": np.zeros(5)})
    assert flat.dtype == np.float32
    assert flat.tolist() == [2, 1]
    batch = data.flatten_observation({"a": np.ones((3, 1)), "b": np.zeros((3, 1))})
    assert batch.tolist() == [[0, 1]] * 3
    assert data.flatten_observation(np.array([[5.0, 6.0]])).tolist() == [[5, 6]]
    with pytest.raises(ValueError, match="no key 'a'"):
        data.flatten_observation({"b": np.zeros(1)})
    with pytest.raises(ValueError, match="must hold 2 numbers"):
        data.flatten_observation(np.zeros(3))
    with pytest.raises(ValueError, match="flat observations, but a dictionary"):
        OfflineDataset(**arrays()).flatten_observation({"a": np.zeros(2)})


def test_make_eval_env() -> None:
    with pytest.raises(ValueError, match="names no evaluation environment"):
        OfflineDataset(**arrays()).make_eval_env()
    spec = EvalEnvSpec("Pendulum-v1", {"g": 9.0, "render_mode": "human"}, max_episode_steps=7)
    data = OfflineDataset(**{**arrays(), "observations": np.zeros((9, 3))}, info=DatasetInfo(eval_env=spec))
    assert data.make_eval_env(render_mode="rgb_array").render_mode == "rgb_array"
    env = data.make_eval_env()
    assert env.render_mode is None  # what the data name opens no window
    env.reset(seed=0)
    assert env.unwrapped.g == 9.0  # type: ignore[attr-defined]
    steps = 1
    while not env.step(env.action_space.sample())[3]:
        steps += 1
    assert steps == 7
