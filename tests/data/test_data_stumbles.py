"""What a new user once stumbled over on the way to data of one's own; the numbers are those of the list of stumbles."""

from __future__ import annotations

import re
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pandas as pd
import pytest
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from test_formats import ACTIONS, STATES, TAKEN, check

from conftest import BOX, Drift
from ld_agents import BC, IQL, DatasetInfo, OfflineDataset, check_dataset, load_dataset
from ld_agents.evaluation.eval_env import EvalEnvSpec


def arrays(n: int = 200, scale: float = 1.0, **changes: Any) -> dict[str, Any]:
    """Steps of a slow walk, with a timeout every 50 rows."""
    rng = np.random.default_rng(0)
    made = {
        "observations": np.cumsum(rng.normal(size=(n, 3)), 0),
        "actions": scale * rng.uniform(-1, 1, (n, 1)),
        "rewards": rng.normal(size=n),
        "terminals": np.zeros(n, bool),
        "timeouts": np.arange(n) % 50 == 49,
    }
    return made | changes


# -- 4. The action space of plain arrays was the range of the data ---------------------------------------------------


def test_the_spaces_are_those_of_the_environment() -> None:
    pendulum = gym.make("Pendulum-v1")
    for env in ("Pendulum-v1", pendulum, gym.make_vec("Pendulum-v1", 2)):
        data = OfflineDataset(**arrays(scale=1.7), env=env)
        assert data.action_space == pendulum.action_space
        assert data.observation_space == pendulum.observation_space
        assert data.info.eval_env is not None
        assert data.make_eval_env().action_space == pendulum.action_space
    agent = BC("MlpPolicy", data, steps=2, device="cpu", seed=0).learn()
    agent.set_env(pendulum)
    assert agent.evaluate(n_episodes=1, n_envs=1).lengths == [200]
    with pytest.raises(ValueError, match=r"lies outside \[-2, 2\]"):
        OfflineDataset(**arrays(scale=3), env="Pendulum-v1")
    with pytest.raises(TypeError, match="Only continuous actions"):
        OfflineDataset(**arrays(), env="CartPole-v1", observation_space=spaces.Box(-1, 1, (3,)))
    with pytest.raises(TypeError, match="Pass an environment, or its id"):
        OfflineDataset(**arrays(), env=7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not in Gymnasium's registry"):
        OfflineDataset(**arrays(), env="Nonesuch-v0")


def test_the_environment_that_the_data_name_gives_the_spaces_too() -> None:
    data = OfflineDataset(**arrays(), info=DatasetInfo(eval_env=EvalEnvSpec("Pendulum-v1")))
    assert data.action_space == spaces.Box(-2, 2, (1,), np.float32)
    given = OfflineDataset(**arrays(), action_space=spaces.Box(-3, 3, (1,)), env="Pendulum-v1")
    assert given.action_space.high.tolist() == [3], "what is given comes first"


def test_without_an_environment_actions_beyond_1_need_their_space() -> None:
    assert OfflineDataset(**arrays(scale=0.3)).action_space == spaces.Box(-1, 1, (1,), np.float32)
    for source in (OfflineDataset, load_dataset, lambda data: BC("MlpPolicy", data)):
        with pytest.raises(
            ValueError, match=r"Pass env=, the environment or its id, to load_dataset or OfflineD.*action_space=Box"
        ):
            source(**arrays(scale=2)) if source is OfflineDataset else source(arrays(scale=2))
    assert load_dataset(arrays(scale=1.9), env="Pendulum-v1").action_space.high.tolist() == [2]


def test_actions_need_bounds() -> None:
    with pytest.raises(
        ValueError, match=r"has no bounds, .* Pass action_space=gymnasium.spaces.Box\(low, high, \(1,\)"
    ):
        OfflineDataset(**arrays(), action_space=spaces.Box(-np.inf, np.inf, (1,)))


def test_a_buffer_of_discrete_actions_is_refused() -> None:
    buffer = ReplayBuffer(40, spaces.Box(-1, 1, (3,)), spaces.Discrete(2))
    for _ in range(40):
        buffer.add(np.zeros((1, 3)), np.zeros((1, 3)), np.zeros((1, 1)), np.zeros(1), np.zeros(1), [{}])
    with pytest.raises(TypeError, match=r"The buffer's actions are in Discrete\(2\). Only continuous"):
        load_dataset(buffer, env="Pendulum-v1")


# -- 5. All-false timeouts, whole numbers as actions, NaN ------------------------------------------------------------


def test_data_without_any_end_are_told() -> None:
    with pytest.warns(UserWarning, match="Neither terminals nor timeouts mark an end, so all 200 rows are one episode"):
        OfflineDataset(**arrays(timeouts=np.zeros(200, bool)))


@pytest.mark.filterwarnings("error")
def test_data_with_ends_are_not() -> None:
    OfflineDataset(**arrays())
    OfflineDataset(**arrays(timeouts=np.arange(200) == 199))


def test_whole_numbers_as_actions_are_told() -> None:
    whole = np.random.default_rng(0).integers(0, 2, (200, 1))
    with pytest.warns(UserWarning, match=r"whole numbers.*no agent here learns from them.*pass action_space="):
        OfflineDataset(**arrays(actions=whole))
    for known in ({"actions": whole.astype(float)}, {"actions": whole, "action_space": spaces.Box(0, 1, (1,), int)}):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            OfflineDataset(**arrays(**known))


def test_nan_is_refused_with_its_place() -> None:
    rows = arrays()
    rows["observations"][70, 2] = np.nan
    with pytest.raises(ValueError, match=r"observations hold nan in episode 1, step 20 \(row 70\), column 2"):
        OfflineDataset(**rows)


# -- 6. An environment, its id or Minari's object in the place of data -----------------------------------------------


@pytest.mark.parametrize("wrong", ["Pendulum-v1", "ld_agents/Kitchen-complete-v0", Drift()])
def test_an_environment_is_refused_at_once(wrong: Any) -> None:
    started = time.process_time()
    with pytest.raises(TypeError, match=r"is an environment and no dataset\. Record data|is no dataset\. Agents learn"):
        BC("MlpPolicy", wrong)
    assert time.process_time() - started < 5


def episodes() -> list[dict[str, Any]]:
    """Those of test_formats."""
    parts = (slice(0, 4), slice(0, 3)), (slice(4, 7), slice(3, 5))
    actions = ACTIONS[TAKEN]
    return [
        {"observations": STATES[s], "actions": actions[a], "rewards": np.zeros(len(actions[a])), "terminations": False}
        for s, a in parts
    ]


@pytest.mark.parametrize("kind", ["dictionaries", "objects", "d3rlpy", "imitation", "generator-like tuple"])
def test_a_list_of_episodes_is_taken(kind: str) -> None:
    given: Any = episodes()
    if kind in ("objects", "d3rlpy"):
        given = [SimpleNamespace(**episode) for episode in given]
    if kind == "d3rlpy":  # rewards [T, 1], one flag, nothing after the last step
        for each in given:
            each.terminated, each.rewards = False, each.rewards[:, None]
            del each.terminations
        given = SimpleNamespace(episodes=given)
    if kind == "imitation":
        given = [
            SimpleNamespace(obs=e["observations"], acts=e["actions"], rews=e["rewards"], terminal=False) for e in given
        ]
    check(load_dataset(tuple(given) if kind.endswith("tuple") else given))
    assert BC("MlpPolicy", given, steps=1, device="cpu").learn().num_timesteps == 1


def test_terminals_within_an_episode_and_unknown_ends() -> None:
    one, two = episodes()
    one["terminations"] = np.array([0, 1, 0])
    two["observations"] = two["observations"][:-1]
    data = load_dataset([one, two])
    assert data.terminals.tolist() == [False, True, False, False, False]
    assert data.episode_ends.tolist() == [2, 3, 5]
    assert data.recording_ends.tolist() == [3, 5]
    assert data.observation_rows[5:7].tolist() == [[2, -2], [3, -3]]
    assert data.window_starts(1).tolist() == [0, 1, 2, 3], "what follows the last step is unknown"
    ended = load_dataset([episodes()[0] | {"terminations": True}])
    assert ended.terminals.tolist() == [False, False, True]


def joined(rows: int = 5) -> dict[str, Any]:
    """Both episodes in one dictionary of arrays, with `rows` observations."""
    observations = np.concatenate([STATES[TAKEN], STATES[-1:]])[:rows]
    flags = {"terminals": np.zeros(5, bool), "timeouts": np.array([0, 0, 1, 0, 1], bool)}
    return {"observations": observations, "actions": ACTIONS[TAKEN], "rewards": np.zeros(5), **flags}


@pytest.mark.parametrize("kind", ["in a dictionary", "one row more", "a chunk in a list"])
def test_timeouts_divide_arrays(kind: str) -> None:
    given: Any = joined(5 if kind == "in a dictionary" else 6)
    if kind == "in a dictionary":
        given["observations"] = {"x": given["observations"][:, :1], "y": given["observations"][:, 1:]}
    data = load_dataset([given] if kind == "a chunk in a list" else given)
    assert data.observations.tolist() == STATES[TAKEN].tolist()
    assert data.episode_ends.tolist() == data.recording_ends.tolist() == [3, 5]
    known = [0, 1, 3] if kind == "in a dictionary" else [0, 1, 3, 4]
    assert data.window_starts(1).tolist() == known, "the row after a timeout is the first after a reset"
    if kind != "in a dictionary":
        assert data.observation_rows[6].tolist() == [12, -12]


def test_the_row_after_a_terminal_within_arrays_is_not_its_successor() -> None:
    data = load_dataset(joined(6) | {"terminals": np.arange(5) == 2})
    assert data.terminals.tolist() == [False, False, True, False, False]
    assert data.episode_ends.tolist() == data.recording_ends.tolist() == [3, 5]
    assert data.observation_rows[5].tolist() == [2, -2], "unknown, so the last row stands for it"


def test_next_observations_of_episodes_are_taken() -> None:
    given = joined() | {"next_observations": STATES[[1, 2, 3, 5, 6]]}
    check(load_dataset([given]))
    for name in ("observations", "next_observations"):
        given[name] = {"x": given[name][:, :1], "y": given[name][:, 1:]}
    check(load_dataset(given))
    with pytest.raises(ValueError, match=r"Episode 0: next_observations have shape \(4, 2\) instead of \(5, 2\)"):
        load_dataset([joined() | {"next_observations": STATES[:4]}])


def test_bad_episodes_are_named() -> None:
    one, two = episodes()
    for changes, text in (
        ({"rewards": np.zeros(5)}, "Episode 1 has 3 observations, 2 actions, 5 rewards and 2 terminals"),
        ({"observations": np.zeros((9, 2))}, "Episode 1 has 9 observations"),
        ({"terminations": None}, r"Episode 1 has no terminals\. .*one boolean is enough"),
        ({"actions": None}, "Episode 1 has no actions"),
        ({"timeouts": np.zeros(4)}, "Episode 1 has 3 observations.* 2 terminals, 4 timeouts"),
        (
            {"actions": np.zeros((2, 3))},
            r"Episode 1: each of the actions has shape \(3,\), those of episode 0 have \(1,\)",
        ),
        ({"observations": [[1.0], [1.0, 2.0], [3.0]]}, "Episode 1: observations are rows of different shapes"),
        ({"observations": {"x": np.zeros((2, 2))}}, "Episode 1: observations hold object values"),
    ):
        with pytest.raises(ValueError, match=text):
            load_dataset([one, {**two, **changes}])
    with pytest.raises(ValueError, match="holds no episodes"):
        load_dataset([])


def test_a_rollout_of_gymnasium_is_taken() -> None:
    """What a loop over `env.step` collects: lists, one observation more than actions, flags by Gymnasium's names."""
    env = Drift(max_steps=6)
    rollouts = []
    for seed in range(3):
        rollout: dict[str, list[Any]] = {"observations": [env.reset(seed=seed)[0]]}
        done = False
        while not done:
            action = np.clip(np.full(2, 0.1 * seed), BOX.low, BOX.high)
            observation, reward, terminated, truncated, _ = env.step(action.astype(np.float32))
            step = {"actions": action, "rewards": reward, "terminations": terminated, "truncations": truncated}
            for name, value in ({"observations": observation} | step).items():
                rollout.setdefault(name, []).append(value)
            done = terminated or truncated
        rollouts.append(rollout)
    data = load_dataset(rollouts, env=env)
    assert data.episode_ends.tolist() == [6, 12, 18]
    assert data.action_space == BOX
    assert data.window_starts(6).tolist() == [0, 6, 12]
    np.testing.assert_array_equal(
        load_dataset(rollouts[0], env=env).observation_rows[6], rollouts[0]["observations"][6]
    )


def test_episodes_of_dictionaries_keep_their_keys() -> None:
    made = [
        dict(each, observations={"b": each["observations"], "a": each["observations"][:, :1]}) for each in episodes()
    ]
    data = load_dataset(made)
    assert data.observation_keys == ("b", "a")
    assert data.observations[1].tolist() == [1, -1, 1]
    assert isinstance(data.observation_space, spaces.Dict)
    assert BC("MultiInputPolicy", data, steps=1, device="cpu").learn().num_timesteps == 1


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"b": None}, r"Episode 1: observations are \('a',\) instead of a dictionary of \('a', 'b'\)"),
        ({"c": np.zeros((9, 1))}, r"Episode 1: observations are \('a', 'b', 'c'\) instead of"),
        ({"b": np.zeros(9)}, r"Episode 1: observations\['b'\] have shape \(9,\).*Reshape them to \[T, 1\]"),
        ({"b": np.zeros((9, 4, 4, 3), np.uint8)}, r"Episode 1: observations\['b'\] have shape \(9, 4, 4, 3\).*Flatten"),
        ({"b": np.zeros((10, 1))}, "Episode 1: observations have 9 of 'a', 10 of 'b'.*the same number of rows"),
        ({"b": np.zeros((9, 2))}, r"Episode 1: each of the observations has shape \(5,\)"),
        (None, "Episode 1: observations are an array instead of a dictionary"),
    ],
)
def test_bad_dictionaries_of_observations_are_named(changes: dict[str, Any] | None, text: str) -> None:
    parts = {"a": np.zeros((9, 3)), "b": np.zeros((9, 1))}
    good = {"observations": parts, "actions": np.zeros((9, 2)), "rewards": np.zeros(9), "terminals": False}
    wrong: Any = np.zeros((9, 4))
    if changes is not None:
        wrong = {key: part for key, part in (parts | changes).items() if part is not None}
    (told,) = check_dataset([good, good | {"observations": wrong}]).errors
    assert re.search(text, told), told


def test_a_pandas_frame_is_taken() -> None:
    columns = {
        "observation_0": STATES[TAKEN][:, 0],
        "observation_1": STATES[TAKEN][:, 1],
        "action": ACTIONS[TAKEN][:, 0],
        "reward": np.zeros(5),
        "terminated": [False] * 5,
    }
    ends = {"truncated": [False, False, True, False, True]}, {"episode": [7, 7, 7, 3, 3]}
    cells = {"observations": list(STATES[TAKEN]), "actions": list(ACTIONS[TAKEN])}
    for frame in (
        pd.DataFrame(columns | ends[0]),
        pd.DataFrame(columns | ends[1]),
        pd.DataFrame(columns | ends[0] | cells),
    ):
        data = load_dataset(frame)
        assert data.observations.tolist() == STATES[TAKEN].tolist()
        assert data.actions.tolist() == ACTIONS[TAKEN].tolist()
        assert data.episode_ends.tolist() == [3, 5]
    many = pd.DataFrame(columns | ends[0] | {f"observation_{i}": np.full(5, i) for i in range(12)})
    assert load_dataset(many).observations[0].tolist() == list(range(12)), "in the order of numbers, not of letters"
    with pytest.raises(ValueError, match=r"The frame has no 'timeouts'\..* A column episode, .* in place of timeouts"):
        load_dataset(pd.DataFrame(columns))


def test_next_observations_of_a_pandas_frame_are_taken() -> None:
    after = STATES[[1, 2, 3, 5, 6]]
    cells = pd.DataFrame({name: list(array) for name, array in joined().items()})
    check(load_dataset(cells.assign(next_observations=list(after))))
    check(load_dataset(cells.assign(next_observation_0=after[:, 0], next_observation_1=after[:, 1])))
    with pytest.raises(ValueError, match="The cells of column 'observations' are rows of different shapes"):
        load_dataset(cells.assign(observations=[np.zeros(i) for i in range(5)]))


@pytest.mark.parametrize("full", [False, True])
def test_a_replay_buffer_is_taken(full: bool) -> None:
    box = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    buffer = ReplayBuffer(6 * 2, box, spaces.Box(-1, 1, (1,)), n_envs=2, handle_timeout_termination=True)
    for t in range(
        9 if full else 5
    ):  # environments 0 and 1 count by 1 from 0 and 100; done at 2 by time, at 4 for good
        rows = np.array([[t], [100 + t]], np.float32)
        done, late = np.full(2, t in (2, 4)), [{"TimeLimit.truncated": t == 2}] * 2
        buffer.add(rows, rows + 1, np.zeros((2, 1)), np.full(2, t), done, late)
    data = load_dataset(buffer)
    first = [3, 4, 5, 6, 7, 8] if full else [0, 1, 2, 3, 4]
    assert data.observations[:, 0].tolist() == [*first, *(100 + t for t in first)]
    assert data.terminals.nonzero().ravel().tolist() == ([1, 7] if full else [4, 9])
    assert data.episode_ends.tolist() == ([2, 6, 8, 12] if full else [3, 5, 8, 10])
    last = data.observation_rows[data.n_steps :, 0].tolist()
    assert last == ([5, 9, 105, 109] if full else [3, 5, 103, 105])
    with pytest.raises(ValueError, match="empty, holds dictionaries"):
        load_dataset(ReplayBuffer(4, box, box))


def filled(actions: Any, observation: spaces.Box = BOX, action: spaces.Box = BOX) -> ReplayBuffer:
    buffer = ReplayBuffer(10, observation, action, device="cpu")
    rows = np.zeros((1, *observation.shape), observation.dtype)
    for row in actions:
        buffer.add(rows, rows + 1, np.array([row]), np.zeros(1), np.zeros(1), [{}])
    return buffer


def test_actions_of_a_replay_buffer_are_in_units_of_the_environment() -> None:
    env = gym.make("Pendulum-v1")
    agent = SAC("MlpPolicy", env, learning_starts=50, seed=0, device="cpu").learn(20)
    data, pendulum = load_dataset(agent.replay_buffer, env="Pendulum-v1"), gym.make("Pendulum-v1").unwrapped
    assert load_dataset(agent.replay_buffer).action_space == env.action_space, "that of the buffer"
    assert load_dataset(agent.replay_buffer).observation_space == env.observation_space
    pendulum.reset(seed=0)
    for (x, y, speed), action, reward in zip(
        data.observations.numpy(), data.actions.numpy(), data.rewards, strict=True
    ):
        pendulum.state = np.array([np.arctan2(y, x), speed])  # type: ignore[attr-defined]
        assert pendulum.step(action)[1] == pytest.approx(float(reward), abs=1e-4)


def test_which_actions_of_a_replay_buffer_are_scaled() -> None:
    wide = spaces.Box(np.array([-1, 0], np.float32), np.array([3, 10], np.float32))
    scaled = load_dataset(filled([[-1, -1], [0, 0], [1, 1.000001]], action=wide))
    assert scaled.actions.tolist() == [[-1, 0], [1, 5], [3, 10]]
    raw = load_dataset(filled([[-1, 0], [0.5, 0.5], [1, 9]], action=wide))  # by hand
    assert raw.actions.tolist() == [[-1, 0], [0.5, 0.5], [1, 9]]
    assert scaled.action_space == raw.action_space == wide
    unbounded = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    assert load_dataset(filled([[0.5]], action=unbounded)).actions.tolist() == [[0.5]]


def test_minaris_object_is_taken(folder: Path) -> None:
    from test_minari import episode, store

    data = minari.load_dataset(store([episode(3), episode(4)]))
    assert BC("MlpPolicy", data, steps=1, device="cpu").learn().num_timesteps == 1


# -- 8. The settings of a family were applied by the suite alone -----------------------------------------------------


def test_the_settings_of_a_family_apply_by_themselves() -> None:
    info = DatasetInfo(id="D4RL/antmaze/umaze-v1")
    data = OfflineDataset(**arrays(), info=info)
    agent = IQL("MlpPolicy", data, device="cpu")
    assert agent.family == "antmaze"
    assert IQL.family_settings()["antmaze"].items() <= vars(agent.settings).items()
    plain = IQL("MlpPolicy", data, device="cpu", family=None)
    assert plain.settings != agent.settings


# -- a report of what was understood ---------------------------------------------------------------------------------


def test_the_report_tells_what_was_understood() -> None:
    rows = arrays()
    rows["terminals"][120] = True
    report = check_dataset(rows)
    assert (report.errors, report.warnings) == ([], [])
    assert report.facts["steps"] == "200 in 5 episodes of 21 to 50 steps, median 50"
    assert report.facts["ends"] == "1 terminals, 4 timeouts"
    assert report.facts["last states"] == "known after 0 of 5 episodes"
    assert report.facts["environment"].startswith("none")
    rewards = rows["rewards"]
    returns = [part.sum() for part in np.split(rewards, [50, 100, 121, 150])]
    assert report.facts["returns"].startswith(f"{min(returns):.4g} to {max(returns):.4g}, mean {np.mean(returns):.4g}")
    assert report.facts["observation 2"].startswith(f"{rows['observations'][:, 2].min():.4g} to ")
    text = str(check_dataset(OfflineDataset(**rows)))
    assert text.splitlines()[-1] == "Nothing looks wrong."
    assert all(len(line) < 200 for line in text.splitlines())


N = 200
NEVER = np.zeros(N, bool)


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({"timeouts": NEVER}, ["all 200 rows are one episode"]),
        ({"timeouts": NEVER, "terminals": np.arange(N) % 20 == 0}, []),
        ({"timeouts": NEVER, "terminals": np.arange(N) == 20}, ["Only terminals end an episode, and a long piece"]),
        ({"timeouts": np.isin(np.arange(N), (20, 90, 199))}, ["No episode ends in a terminal, yet their lengths"]),
        ({"observations": arrays()["observations"] * (1, 0, 1)}, [r"observations that never change: \[1\]"]),
        ({"actions": np.zeros((N, 1))}, [r"actions that never change: \[0\]", "Actions use 0 % of the action space"]),
        ({"actions": np.arange(N)[:, None] % 2}, ["Actions are whole numbers", "whole numbers in one column"]),
        (
            {"actions": np.sign(arrays()["actions"]) * 1.0},
            ["whole numbers in one", "100 % of the actions lie at the b"],
        ),
        ({"actions": arrays()["actions"] / 50}, [r"Actions use 2 % of the action space \[-1, 1\]"]),
        ({"rewards": np.ones(N)}, ["All rewards are 1: there is nothing to prefer"]),
        (
            {"rewards": 1e6 * arrays()["rewards"]},
            [r"Rewards are of the size .*e\+0\d. LDCQ .* reward_scale="],
        ),
        ({"timeouts": np.arange(N) % 4 > 0}, ["% of the episodes are one step long", "No episode ends"]),
        ({"observations": np.random.default_rng(1).normal(size=(N, 3))}, ["differ as much as random ones"]),
    ],
)
def test_what_looks_wrong_is_told(changes: dict[str, Any], texts: list[str]) -> None:
    report = check_dataset(arrays(**changes))
    assert report.errors == []
    for text in texts:
        assert any(re.search(text, told) for told in report.warnings), report.warnings
    if not texts:
        assert report.warnings == []
    again = check_dataset(load_dataset(arrays(**changes))).warnings
    assert len(again) >= len(report.warnings) - 1, "also of a dataset that is already made"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"rewards": np.full(N, np.nan)}, "rewards hold nan in episode 0, step 0"),
        ({"actions": 2 * arrays()["actions"]}, "Actions reach from -1"),
        ({"rewards": np.zeros(3)}, "observations have 200 rows but rewards have 3"),
        ({"actions": np.array([[None]] * N)}, "actions hold object values"),
    ],
)
def test_what_nothing_can_be_learned_from_is_an_error(changes: dict[str, Any], text: str) -> None:
    report = check_dataset(arrays(**changes))
    assert text in report.errors[0]
    assert str(report).startswith("error: ")


def test_actions_outside_the_space_of_an_environment_are_an_error() -> None:
    report = check_dataset(arrays(scale=3), env="Pendulum-v1")
    assert "lies outside [-2, 2]" in report.errors[0]
    assert check_dataset(arrays(scale=1.9), env="Pendulum-v1").facts["environment"] == "Pendulum-v1"


def test_a_dataset_that_is_not_there_raises() -> None:
    with pytest.raises(FileNotFoundError):
        check_dataset("nowhere.npz")
