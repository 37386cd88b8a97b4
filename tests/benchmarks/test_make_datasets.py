"""Recipes, reference policies, the command line, and the table of what was made."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pytest
from walk import WALK, metadata, quiet, write_sac

import make_datasets
from ld_agents import load_dataset
from ld_agents.evaluation import environments
from ld_agents.evaluation.scores import TASKS, MeasuredScore
from recording import behaviors, reference_policies
from recording import recipes as recipes_module
from recording.behaviors import POLICIES, Behavior, SavedAgent
from recording.kitchen_script import KitchenScript
from recording.race_driver import RaceDriver
from recording.recipes import Clone, Copy, recipes
from recording.train_sac import ROBOTS
from reporting import datasets_table

pytest.importorskip("gymnasium_robotics")
pytestmark = pytest.mark.usefixtures("folder")  # nothing is recorded outside the test's own folder


def test_recipes_fit_environments_scores_and_labels() -> None:
    environments.register()
    known = recipes(Path("policies"))
    assert len(known) == 3 + 12 + 9 + 12 + 3 + 1
    for dataset_id, recipe in known.items():
        assert dataset_id in TASKS
        assert recipe.env_id in gym.registry
        assert (recipe.original_steps is None) == (recipe.provenance == "recorded")
        for part in recipe.parts:
            if isinstance(part, Copy | Clone):
                assert part.dataset_id in known
            elif type(part) not in (Behavior, KitchenScript, RaceDriver):
                assert part.file.parent == POLICIES or part.file.parts[0] == "policies"  # type: ignore[union-attr]
    stand_ins = {i for i, recipe in known.items() if recipe.provenance == "stand-in"}
    of_sac = {f"ld-agents/locomotion/{r}-{level}-v1" for r in ROBOTS for level in ("medium", "medium-replay")}
    assert {i for i in known if "/locomotion/" in i or "/kitchen/" in i} - of_sac < stand_ins
    assert not of_sac & stand_ins
    assert {known[i].steps for i in of_sac} == {1_000_000, 402_000, 202_000, 302_000}
    assert all(known[f"ld-agents/antmaze/{name}-v1"].steps == 1_000_000 for name in ("umaze", "large-diverse"))
    assert {i for i in stand_ins if "/adroit/" in i} == {
        f"ld-agents/adroit/{task}-{level}-v0" for task in ("pen", "hammer", "relocate") for level in ("human", "cloned")
    }
    real = [i for i, recipe in known.items() if recipe.demonstrations == "real"]
    assert real == ["ld-agents/adroit/door-human-v0"]


def test_the_policies_of_this_repository_need_no_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sac(folder / "hopper_sac.npz", [0.0, 0.1])
    for module in (behaviors, recipes_module):
        monkeypatch.setattr(module, "POLICIES", folder)
    known = recipes()
    assert known["ld-agents/locomotion/hopper-medium-v1"].parts[0].describe()["snapshot"] == -1
    assert len(known["ld-agents/locomotion/hopper-medium-replay-v1"].parts[0].stages) == 2
    with pytest.raises(
        SystemExit, match=r"no file .*walker2d_sac\.npz\. Run: .*make_datasets\.py --train-sac walker2d"
    ):
        make_datasets.main(["walker2d-medium", "--steps", "10", "--processes", "1"])
    with pytest.raises(SystemExit, match=r"no file .*hopper_trpo_actor\.npz.*--policies DIR"):
        make_datasets.main(["hopper-expert", "--steps", "10", "--processes", "1"])


def test_a_renamed_set_keeps_its_data(folder: Path) -> None:
    old = quiet("test/old-v0", steps=300)
    renamed = quiet("test/renamed-v0", dataclasses.replace(WALK, seeded_as="test/old-v0"), steps=300)
    longer = quiet("test/longer-v1", dataclasses.replace(WALK, seeded_as="test/old-v0"), steps=500)
    assert renamed.content_hash == old.content_hash
    np.testing.assert_array_equal(longer.observations[:300], old.observations)
    known = recipes()
    for dataset_id, recipe in known.items():
        assert recipe.seeded_as is None or (recipe.seeded_as in TASKS and recipe.seeded_as not in known)
        assert (recipe.seeded_as is None) == ("antmaze" not in dataset_id and "noised" not in dataset_id) or any(
            isinstance(part, Copy) for part in recipe.parts
        )


def test_reference_policies_are_measured_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        "walk": ("test/Walk-v0", "expert", Behavior(2, noise=9.0)),
        "other": ("test/Walk-v0", "expert", Behavior(2)),
    }
    monkeypatch.setattr(reference_policies, "reference_policies", lambda _: known)
    out = folder / "measured.json"
    reference_policies.measure_missing(Path("p"), ["walk"], n_episodes=40, out=out)
    found = json.loads(out.read_text())
    assert list(found) == ["walk"]
    assert set(found["walk"]) == {"random", "expert"}
    for entry in found["walk"].values():
        assert (entry["environment"], entry["episodes"]) == ("test/Walk-v0", 40)
        # One reward, at the terminal.
        assert entry["mean_return"] == entry["success_rate"]
        assert entry["std_return"] == pytest.approx(math.sqrt(entry["mean_return"] * (1 - entry["mean_return"])))
    assert found["walk"]["random"]["policy"]["noise"] == 0.0
    assert 0.05 < found["walk"]["random"]["mean_return"] < found["walk"]["expert"]["mean_return"]
    out.write_text(out.read_text().replace("0.", "7."))
    reference_policies.measure_missing(Path("p"), n_episodes=40, out=out)
    again = json.loads(out.read_text())
    assert again["walk"]["random"]["mean_return"] > 7
    assert again["other"]["random"]["mean_return"] < 1
    with pytest.raises(SystemExit, match=r"no task 'nothing'. Choose from: walk, other"):
        make_datasets.main(["--reference-scores", "nothing"])


def test_the_best_policies_are_measured_once_on_each_simulator(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {task: ("test/Walk-v0", "expert", Behavior(2, noise=9.0)) for task in ("walk", "other", "carracing")}
    monkeypatch.setattr(reference_policies, "reference_policies", lambda _: known)
    on = dict.fromkeys(("gymnasium", "gymnasium-robotics", "minari", "numpy"), "1")
    out, mujoco = folder / "simulators.json", ["3.4.0"]
    monkeypatch.setattr(reference_policies, "versions", lambda: on | {"mujoco": mujoco[0]})
    measured = {"other": {"expert": {"mean_return": 7.0, "episodes": 40, "versions": {"mujoco": "4.0.0"}}}}
    (folder / "measured.json").write_text(json.dumps(measured))
    monkeypatch.setattr(reference_policies.scores, "MEASURED_FILE", folder / "measured.json")
    with pytest.raises(ValueError, match="no task 'carracing'"):  # it needs no MuJoCo
        reference_policies.measure_simulator(Path("p"), ["carracing"], out=out)
    reference_policies.measure_simulator(Path("p"), ["walk"], n_episodes=40, out=out)
    mujoco[0] = "4.0.0"
    reference_policies.measure_simulator(Path("p"), ["walk", "maze2d-umaze"], n_episodes=40, out=out)
    found = json.loads(out.read_text())
    assert {version: set(entries) for version, entries in found.items()} == {
        "3.4.0": {"walk"},
        "4.0.0": {"walk", "maze2d-umaze", "other"},  # taken from what was measured on that version
    }
    assert found["4.0.0"]["other"]["mean_return"] == 7.0
    assert found["3.4.0"]["walk"]["mean_return"] == found["4.0.0"]["walk"]["mean_return"] > 0.1
    assert found["3.4.0"]["walk"]["versions"]["mujoco"] == "3.4.0"
    maze = found["4.0.0"]["maze2d-umaze"]
    assert maze["success_rate"] == 1.0
    assert 150 < maze["mean_return"] < 280
    out.write_text(out.read_text().replace("7.0", "8.0"))
    reference_policies.measure_simulator(Path("p"), ["other"], n_episodes=40, out=out)
    assert json.loads(out.read_text())["4.0.0"]["other"]["mean_return"] == 8.0
    with pytest.raises(SystemExit, match=r"no task 'nothing'\. Choose from: maze2d-umaze"):
        make_datasets.main(["--simulator", "nothing"])


def test_reference_policies_act_in_the_environments_of_the_data() -> None:
    known = reference_policies.reference_policies(Path("policies"))
    for dataset_id, recipe in recipes(Path("policies")).items():
        if recipe.provenance == "recorded":  # no task of D4RL
            continue
        env_id, _, behavior = known[TASKS[dataset_id]]
        assert env_id == recipe.env_id
        for part in recipe.parts:
            if isinstance(part, Behavior):
                assert behavior.action_size == part.action_size


def test_names_on_the_command_line(capsys: Any) -> None:
    select = make_datasets.select
    assert select(["pen-expert"]) == ["ld-agents/adroit/pen-expert-v0"]
    assert select(["antmaze-umaze", "ld-agents/antmaze/umaze-v1"]) == ["ld-agents/antmaze/umaze-v1"]
    assert select(["hopper-medium-expert"]) == [
        f"ld-agents/locomotion/hopper-{level}" for level in ("medium-v1", "expert-v0", "medium-expert-v1")
    ]
    assert select(["door-cloned"]) == [f"ld-agents/adroit/door-{level}-v0" for level in ("human", "cloned")]
    assert len(select(["locomotion"])) == 12
    noised = ["ld-agents/locomotion/hopper-medium-noised-v0"]
    assert select(["hopper-medium-noised"]) == select(noised) == noised
    assert sorted(select(["all"])) == sorted(i for i in recipes() if not i.endswith("-noised-v0"))
    with pytest.raises(ValueError, match=r"no recipe for 'pen-mixed'. Choose from: ld-agents/antmaze/umaze-v1"):
        select(["pen-mixed"])
    for arguments in (
        [],
        ["all"],
        ["all", "--policies", "p", "--env", "Hopper-v5"],
        ["--env", "Hopper-v5"],
        ["all", "--policies", "p", "--steps", "0"],
        ["all", "--policies", "p", "--seed", "-1"],
        ["all", "--policies", "p", "--noise", "0.1"],
        ["all", "--policies", "p", "--trust"],
        ["--train-sac", "--reference-scores"],
        ["--train-sac", "--env", "Hopper-v5"],
        ["--train-sac", "humanoid"],
    ):
        with pytest.raises(SystemExit):
            make_datasets.main(arguments)
    told = capsys.readouterr().err
    for message in ("belong together", "--seed and --noise must be at least 0", "belong to an agent of your own"):
        assert message in told


def saved_agent(folder: Path, algorithm: str) -> Path:
    import sb3_contrib
    import stable_baselines3

    cls = getattr(stable_baselines3 if algorithm == "SAC" else sb3_contrib, algorithm)
    agent = cls("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [16]}, learning_starts=80, seed=0, device="cpu")
    agent.learn(100)
    agent.save(folder / f"{algorithm}.zip")
    return folder / f"{algorithm}.zip"


@pytest.mark.parametrize("algorithm", ["SAC", "TQC"])
def test_recording_from_a_saved_agent(folder: Path, algorithm: str) -> None:
    file = saved_agent(folder, algorithm)
    command = ["--env", "Pendulum-v1", "--agent", str(file), "--algo", algorithm, "--steps", "450", "--processes", "1"]
    with pytest.raises(SystemExit, match=r"holds pickled objects.*run any code.*--trust"):
        make_datasets.main([*command, "--id", "me/pendulum/plain-v0"])
    assert minari.list_local_datasets() == {}
    make_datasets.main([*command, "--id", "me/pendulum/plain-v0", "--trust"])
    make_datasets.main([*command, "--id", "me/pendulum/noisy-v0", "--trust", "--noise", "0.25"])
    plain, noisy = load_dataset("me/pendulum/plain-v0"), load_dataset("me/pendulum/noisy-v0")
    assert plain.n_steps == noisy.n_steps == 450
    agent = SavedAgent(1, file=file, algorithm=algorithm, trusted=True).agent
    for data, deviation in ((plain, 0.0), (noisy, 0.5)):  # a quarter of half the range, which is 2
        expected, _ = agent.predict(data.observations.numpy(), deterministic=True)
        offset = data.actions.numpy() - expected
        inside = (np.abs(data.actions.numpy()) < 2) & (np.abs(expected) < 1)
        assert inside.mean() > 0.1
        if deviation:
            assert offset[inside].std() == pytest.approx(deviation, rel=0.25)
        assert np.abs(offset).max() <= (1e-5 if not deviation else 4)
    about = metadata(folder, "me/pendulum/noisy-v0")
    assert about["ld_agents"]["replay_check"]["passed"]
    assert about["ref_min_score"] is None
    assert list(about["ld_agents"]["policy_sha256"]) == [file.name]
    assert "standard deviation 0.25" in about["description"]
    assert plain.make_eval_env().reset(seed=0)[0].shape == (3,)


def test_agents_that_do_not_fit(folder: Path) -> None:
    file = saved_agent(folder, "SAC")
    for env, agent, message in (
        ("Hopper-v5", file, "was trained with .*Hopper-v5 has"),
        ("Nowhere-v0", file, "'Nowhere-v0' is not in Gymnasium's registry"),
        ("CartPole-v1", file, "Only flat observations and continuous actions"),
        ("Pendulum-v1", folder / "none.zip", "There is no file"),
        ("no_such_module:X-v0", file, "The module 'no_such_module' of the environment 'X-v0' cannot be imported"),
    ):
        with pytest.raises(SystemExit, match=message):
            make_datasets.main(["--env", env, "--agent", str(agent), "--algo", "SAC", "--id", "me/x-v0", "--trust"])
    command = ["--env", "Pendulum-v1", "--agent", str(file), "--algo", "PPO", "--id", "me/x-v0", "--trust"]
    with pytest.raises(SystemExit, match=r"SAC.zip cannot be read as a zip of PPO \(TypeError"):
        make_datasets.main(command)
    for wrong in ("../me/x-v0", "me/x"):
        with pytest.raises(SystemExit, match="is not a Minari id"):
            make_datasets.main(
                ["--env", "Pendulum-v1", "--agent", str(file), "--algo", "SAC", "--id", wrong, "--trust"]
            )
    assert minari.list_local_datasets() == {}


def test_an_environment_of_ones_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "own_pendulum.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('OwnPendulum-v0', 'gymnasium.envs.classic_control:PendulumEnv', max_episode_steps=30)\n"
    )
    monkeypatch.chdir(folder)
    file = saved_agent(folder, "SAC")
    command = ["--env", "own_pendulum:OwnPendulum-v0", "--agent", str(file), "--algo", "SAC", "--trust"]
    make_datasets.main([*command, "--id", "me/own-v0", "--steps", "90", "--processes", "1"])
    data = load_dataset("me/own-v0")
    assert data.episode_ends.tolist() == [30, 60, 90]
    assert data.make_eval_env().spec.id == "OwnPendulum-v0"  # type: ignore[union-attr]


# -- the table -----------------------------------------------------------------------------------------------------


@pytest.fixture
def records(folder: Path) -> Path:
    name = "ld-agents/adroit/{}-v0"
    quiet(name.format("door-human"), dataclasses.replace(WALK, demonstrations="real", provenance="regenerated"),
          records=folder / "records")  # fmt: skip
    quiet(name.format("pen-human"), dataclasses.replace(WALK, env_id="test/UnseededWalk-v0"),
          records=folder / "records")  # fmt: skip
    return folder / "records"


def test_the_table(records: Path) -> None:
    text = datasets_table.page(records)
    header, door = (
        next(
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in text.splitlines()
            if line.startswith(start)
        )
        for start in ("| dataset |", "| ld-agents/adroit/door-human")
    )
    cells = dict(zip(header, door, strict=True))
    record = json.loads((records / "ld-agents-adroit-door-human-v0.json").read_text())
    mean = record["behaviour"]["mean_return"]
    assert cells["made by"] == "real"
    assert (cells["steps"], cells["of D4RL's"]) == ("1,000", "5,000")
    assert cells["return"].startswith(f"{mean:.4g} ±")
    assert float(cells["score"]) == pytest.approx(100 * (mean + 56.512833) / (2880.5693 + 56.512833), abs=0.05)
    assert cells["success"] == f"{100 * mean:.0f} %"
    assert cells["SHA-256"] == f"`{load_dataset('ld-agents/adroit/door-human-v0').content_hash[:12]}`"
    pen = next(line for line in text.splitlines() if line.startswith("| ld-agents/adroit/pen-human"))
    assert "| stand-in |" in pen
    assert "| – |" in pen
    assert "FAILED" in pen
    assert "- ld-agents/adroit/door-human-v0, ld-agents/adroit/pen-human-v0: A walk." in text


def test_the_table_of_reference_policies() -> None:
    policies = {
        "random": MeasuredScore(96.262799, 2.0, 0.0, 50, "E-v0", {}),
        "expert": MeasuredScore(1586.5479510, 9.0, 0.75, 100, "E-v0", {}),
    }
    expert, random = datasets_table.policies_table({"pen": policies}).splitlines()[-2:]
    assert expert == "| pen | E-v0 | 96.26 | 3077 | expert | 100 | 1587 ± 9 | 50.0 | 75 % |"
    assert random == "| pen | E-v0 | 96.26 | 3077 | random | 50 | 96.26 ± 2 | 0.0 | 0 % |"
    of_ours = {"carracing": {"driver": MeasuredScore(862.0, 53.0, 0.25, 8, "E-v0", {})}}
    (driver,) = datasets_table.policies_table(of_ours).splitlines()[2:]
    assert driver == "| carracing | E-v0 | – | – | driver | 8 | 862 ± 53 | – | 25 % |"


def test_no_records(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run make_datasets.py first"):
        datasets_table.page(folder)
