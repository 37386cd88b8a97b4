"""The command line `ld-agents`: each command is one call of the Python API."""

from __future__ import annotations

import ast
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import ld_agents
from ld_agents import zoo
from ld_agents.common import agent_file, onnx_export
from ld_agents.data.storage import check_writable, with_default_suffix

if TYPE_CHECKING:
    from ld_agents.common.offline_algorithm import OfflineAlgorithm

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Latent-diffusion agents for offline RL.")
data = typer.Typer(no_args_is_help=True, help="Datasets: what is here, what is in them, and making them.")
app.add_typer(data, name="data")
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}

Agent = Annotated[
    str, typer.Argument(help="Name of a pretrained agent, path of a file, or id on the Hugging Face Hub.")
]
Dataset = Annotated[str, typer.Argument(help="Minari id, D4RL name, or path of a file.")]
Env = Annotated[str | None, typer.Option(help="Id of a registered environment; default: the dataset's own.")]
Seed = Annotated[int, typer.Option(help="Evaluation seed; the same seed gives the same episodes.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
Episodes = Annotated[int, typer.Option(min=1, help="Number of episodes.")]


def _print(*what: Any) -> None:
    width = None if sys.stdout.isatty() else 200  # of tables that go into a file or a pipe
    Console(soft_wrap=True, width=width, markup=False).print(*what, highlight=False)


def _maker(agent: OfflineAlgorithm, env: str | None) -> Any:
    """Makes environments from a render mode."""
    from ld_agents.evaluation.eval_env import EvalEnvSpec

    return (agent.eval_env_spec() if env is None else EvalEnvSpec(env)).make


# -- agents --------------------------------------------------------------------------------------------------------


@app.command("list", epilog="Example: ld-agents list")
def list_agents() -> None:
    """Pretrained agents and their scores."""
    cards = ld_agents.pretrained()
    table = Table("name", "agent", "dataset", "score", "95 % interval", "episodes")
    for card in cards:
        low, high = card.interval
        unit = " (return)" if card.reference_scores is None else ""
        score, interval = f"{card.score:.1f}{unit}", f"[{low:.1f}, {high:.1f}]"
        table.add_row(card.name, card.agent, card.dataset, score, interval, str(len(card.returns)))
    _print(table if cards else "No agent comes with this copy of ld_agents.")
    _print("Scores are D4RL's. Load one with ld_agents.load(name), or: ld-agents eval NAME")


@app.command(epilog='Example: ld-agents train LDCQ ld-agents/pointmaze/umaze-v0 "horizon=20" --out ldcq_umaze.zip')
def train(
    agent: Annotated[str, typer.Argument(help="Class of the agent: LDCQ, LatentDiffuser, IQL, ...")],
    dataset: Dataset,
    settings: Annotated[list[str] | None, typer.Argument(help="setting=value, as many as you like")] = None,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("agent.zip"),
    steps: Annotated[int | None, typer.Option(min=1, help="Gradient steps; default: those of the preset.")] = None,
    preset: Annotated[str | None, typer.Option(help="fast, paper, or minutes (some agents).")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, training and acting.")] = 0,
    device: Device = "auto",
    verbose: Annotated[bool, typer.Option("--verbose", help="Print losses while it learns.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what Ctrl-C has left in --out.")] = False,
) -> None:
    """Train an agent on a dataset and save it, also where Ctrl-C stops it early."""
    cls, chosen = zoo.agent_class(agent), dict(_setting(text) for text in settings or [])
    if options := sorted({"preset", "seed", "device"} & chosen.keys()):
        raise ValueError(f"{', '.join(options)}: not among the settings. Write --{options[0]} VALUE.")
    out = with_default_suffix(out, agent_file.SUFFIX)
    check_writable(out)
    recorded = ld_agents.load_dataset(dataset)
    if resume:
        if chosen or steps is not None or preset is not None:
            raise ValueError("--resume goes on with the settings and steps that it was begun with. Leave out your own.")
        trained = cls.load(out, dataset=recorded, device=device)
        trained.verbose = int(verbose)
    else:
        trained = cls(
            zoo.policy_for(recorded), recorded, preset=preset, seed=seed, device=device, verbose=int(verbose), **chosen
        )
    asked = False

    def stop(signum: int, frame: Any) -> None:
        # In the middle of a gradient step the agent is in no state to be saved: the callback stops after the step.
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    previous = signal.signal(signal.SIGINT, stop)
    try:
        trained.learn(steps, lambda *_: not asked, progress_bar=sys.stderr.isatty(), reset_num_timesteps=not resume)
    finally:
        signal.signal(signal.SIGINT, previous)
    trained.save(out)
    done = f"{agent} learned for {trained.num_timesteps:,} gradient steps. Saved to {out}"
    if asked:
        _print(f"{done}, unfinished; to go on: ld-agents train {agent} {dataset} --out {out} --resume")
        raise typer.Exit(130)
    _print(f"{done}; next: ld-agents eval {out}")


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} is no setting. Write setting=value, for example horizon=20.")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        pass
    try:
        return name, ast.literal_eval(value)  # False, None and (64, 32), as in Python
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return name, value


@app.command("eval", epilog="Example: ld-agents eval ldcq-pointmaze-large --episodes 20")
def evaluate(agent: Agent, episodes: Episodes = 10, seed: Seed = 0, env: Env = None, device: Device = "auto") -> None:
    """Evaluate an agent: mean return with its interval, D4RL score, milliseconds per action."""
    loaded = ld_agents.load(agent, device=device)
    outcome = ld_agents.evaluate(loaded, _maker(loaded, env), episodes, seed=seed)
    _print(str(outcome))
    scores = zoo.scores(loaded, outcome.returns) if env is None else None
    if scores is not None:
        _print(f"D4RL score {scores.mean():.1f}")
    _print(f"{outcome.predict_ms['per_action']:.2f} ms per action, {outcome.seconds:.1f} s in all")


@app.command(epilog="Example: ld-agents play ldcq-pointmaze-large")
def play(agent: Agent, episodes: Episodes = 1, seed: Seed = 0, env: Env = None) -> None:
    """Show an agent in a window; in mazes with its plans."""
    from ld_agents import rendering

    loaded = ld_agents.load(agent)
    rendering.play(loaded, _maker(loaded, env), episodes, seed=seed)


@app.command(epilog="Example: ld-agents video ldcq-pointmaze-large plans.mp4")
def video(
    agent: Agent,
    out: Annotated[Path, typer.Argument(help="mp4 file to write.")] = Path("video.mp4"),
    episodes: Episodes = 1,
    frames: Annotated[int, typer.Option(min=1, help="The video ends after so many.")] = 2000,
    seed: Seed = 0,
    env: Env = None,
) -> None:
    """Record a video of an agent, in mazes with its plans drawn in. Needs the extra `video`, and no display."""
    from ld_agents import rendering

    loaded = ld_agents.load(agent)
    _print(str(rendering.record_video(loaded, _maker(loaded, env), out, episodes, seed=seed, max_frames=frames)))


@app.command(epilog="Example: ld-agents plans ldcq-pointmaze-large plans.png")
def plans(
    agent: Agent,
    out: Annotated[Path, typer.Argument(help="Picture to write: .png, .pdf, .svg.")] = Path("plans.png"),
    starts: Annotated[int, typer.Option(min=1, help="Number of start states.")] = 3,
    seed: Seed = 0,
    env: Env = None,
) -> None:
    """Draw what an agent chooses from at the starts of episodes of a maze."""
    from ld_agents import rendering

    loaded = ld_agents.load(agent)
    _print(str(rendering.plans_picture(loaded, _maker(loaded, env), out, starts, seed=seed)))


@app.command(epilog="Example: ld-agents export ldcq-pointmaze-large policy.onnx")
def export(agent: Agent, out: Annotated[Path, typer.Argument(help="File to write.")] = Path("policy.onnx")) -> None:
    """Export what an agent does at one decision as ONNX."""
    out = with_default_suffix(out, onnx_export.SUFFIX)
    loaded: Any = ld_agents.load(agent, device="cpu")
    loaded.export(out)
    _print(str(out))


@app.command(epilog="Example: ld-agents push agent.zip someone/ldcq-hopper --episodes 100")
def push(
    agent: Agent,
    repo_id: Annotated[str, typer.Argument(help="owner/name on the Hugging Face Hub.")],
    episodes: Annotated[int, typer.Option(min=0, help="Episodes to evaluate for the model card; 0: none.")] = 25,
    video: Annotated[Path | None, typer.Option(help="An mp4 that goes with it.")] = None,
    private: Annotated[bool, typer.Option(help="Make a private repository.")] = False,
    seed: Seed = 0,
    env: Env = None,
) -> None:
    """Upload an agent with a model card to the Hugging Face Hub; log in first: hf auth login."""
    loaded = ld_agents.load(agent)
    if env is not None and episodes and zoo.scores(loaded, [0.0]) is not None:
        raise ValueError(
            "A card holds D4RL scores of this agent, and those are of its dataset's environment. Leave out --env, or "
            "give --episodes 0."
        )
    outcome = ld_agents.evaluate(loaded, _maker(loaded, env), episodes, seed=seed) if episodes else None
    _print(ld_agents.push_to_hub(loaded, repo_id, evaluation=outcome, video=video, private=private))


@app.command(epilog="Example: ld-agents pull someone/ldcq-hopper ldcq_hopper.zip")
def pull(
    repo_id: Annotated[str, typer.Argument(help="owner/name on the Hugging Face Hub.")],
    out: Annotated[Path, typer.Argument(help="File to write.")] = Path("agent.zip"),
) -> None:
    """Fetch an agent from the Hugging Face Hub. Nothing in it is executed."""
    from ld_agents import hub
    from ld_agents.data.storage import whole

    fetched = hub.download(repo_id)
    loaded = zoo.load_file(fetched, device="cpu")  # only what is an agent gets there
    with whole(out) as unfinished:
        shutil.copyfile(fetched, unfinished)
    _print(f"{type(loaded).__name__} saved to {out}; next: ld-agents eval {out}")


# -- data ----------------------------------------------------------------------------------------------------------


@data.command("list", epilog="Example: ld-agents data list")
def list_data() -> None:
    """Datasets on this machine, and those that are made on first use."""
    from ld_agents.data.pointmaze import BUILT_IN
    from ld_agents.data.recording import read_metadata
    from ld_agents.data.storage import local_datasets

    table = Table("dataset", "episodes", "steps")
    local = local_datasets()
    for dataset_id in local:
        metadata = read_metadata(dataset_id)
        table.add_row(dataset_id, *(f"{metadata.get(f'total_{what}', 0):,}" for what in ("episodes", "steps")))
    for dataset_id in sorted(BUILT_IN.keys() - set(local)):
        table.add_row(dataset_id, "made on first use", "")
    _print(table)


@data.command(epilog="Example: ld-agents data show ld-agents/pointmaze/umaze-v0")
def show(dataset: Dataset) -> None:
    """What a dataset holds: episodes, spaces, returns, evaluation environment, origin."""
    import numpy as np

    from ld_agents.data.returns import episode_returns

    found = ld_agents.load_dataset(dataset)
    info, quartiles = found.info, np.quantile(episode_returns(found).numpy(), [0, 0.25, 0.5, 0.75, 1])
    reference = "unknown" if info.reference_scores is None else "{:.4g} and {:.4g}".format(*info.reference_scores)
    table = Table(show_header=False)
    for name, value in {
        "dataset": info.id,
        "origin": info.provenance,
        "episodes": f"{found.n_episodes:,} with {found.n_steps:,} steps, {int(found.terminals.sum()):,} terminals",
        "observations": str(found.observation_space),
        "actions": str(found.action_space),
        "returns": "minimum {:.4g}, quartiles {:.4g}, {:.4g}, {:.4g}, maximum {:.4g}".format(*quartiles),
        "evaluated in": "nothing" if info.eval_env is None else info.eval_env.id,
        "0 and 100 points": reference,
        "content hash": found.content_hash,
        "description": info.description,
    }.items():
        table.add_row(name, value)
    _print(table)


@data.command(epilog="Example: ld-agents data check my_data.hdf5")
def check(dataset: Dataset) -> None:
    """Print what was understood of a dataset, and what is suspicious in it."""
    report = ld_agents.check_dataset(dataset)
    _print(str(report))
    if report.errors:
        raise typer.Exit(1)


@data.command(epilog="Example: ld-agents data convert hopper-medium-v2.hdf5 me/hopper-medium-v2")
def convert(
    source: Annotated[str, typer.Argument(help="File of D4RL, OGBench, robomimic or d3rlpy, or any other dataset.")],
    dataset_id: Annotated[str, typer.Argument(help="Minari id of the new dataset.")],
) -> None:
    """Store a dataset in the local Minari folder, as agents learn from it: goals left out, rewards final."""
    from ld_agents.data.convert import to_minari

    found = ld_agents.load_dataset(source)
    to_minari(found, dataset_id)
    _print(f"{dataset_id}: {found.n_episodes:,} episodes, {found.n_steps:,} steps")


# -- what needs a clone --------------------------------------------------------------------------------------------


@data.command(context_settings=_PASS_ON, epilog="Example: ld-agents data record hopper-medium")
def record(context: typer.Context) -> None:
    """Record datasets, in a clone: benchmarks/make_datasets.py with the same arguments."""
    _in_clone("make_datasets.py", context.args)


@app.command(context_settings=_PASS_ON, epilog="Example: ld-agents report results/maze2d")
def report(context: typer.Context) -> None:
    """Make tables, figures and pages of runs, in a clone: benchmarks/report.py with the same arguments."""
    _in_clone("report.py", context.args)


def _in_clone(script: str, arguments: list[str]) -> None:
    roots = Path(zoo.__file__).resolve().parent.parent, Path.cwd()
    found = next((root / "benchmarks" / script for root in roots if (root / "benchmarks" / script).is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"benchmarks/{script} is not part of the installed package: run this command in a clone of the repository."
        )
    raise typer.Exit(subprocess.run([sys.executable, str(found), *arguments], check=False).returncode)


def main() -> None:
    """Entry point: errors of use are one line, not a traceback."""
    try:
        app(prog_name="ld-agents")
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        sys.exit(f"ld-agents: {error}")
