"""Latent-diffusion agents for offline reinforcement learning, behind the API of Stable-Baselines3."""

from importlib.metadata import PackageNotFoundError, version

from ld_agents.baselines.bc import BC
from ld_agents.baselines.cql import CQL
from ld_agents.baselines.gcbc import GCBC
from ld_agents.baselines.iql import IQL
from ld_agents.baselines.rebrac import ReBRAC
from ld_agents.baselines.td3_bc import TD3BC
from ld_agents.data.check import DatasetReport, check_dataset
from ld_agents.data.dataset import OfflineDataset
from ld_agents.data.dataset_info import DatasetInfo
from ld_agents.data.load import load_dataset
from ld_agents.evaluation.rollouts import Evaluation, evaluate
from ld_agents.hub import push_to_hub
from ld_agents.latent_diffuser import LatentDiffuser
from ld_agents.ldcq import LDCQ
from ld_agents.ldgc import LDGC
from ld_agents.loading import load, load_from_hub
from ld_agents.offline_evaluation import OfflineEstimate, evaluate_offline
from ld_agents.zoo import pretrained

__all__ = [
    "BC",
    "CQL",
    "GCBC",
    "IQL",
    "LDCQ",
    "LDGC",
    "TD3BC",
    "DatasetInfo",
    "DatasetReport",
    "Evaluation",
    "LatentDiffuser",
    "OfflineDataset",
    "OfflineEstimate",
    "ReBRAC",
    "check_dataset",
    "evaluate",
    "evaluate_offline",
    "load",
    "load_dataset",
    "load_from_hub",
    "pretrained",
    "push_to_hub",
]


def __getattr__(name: str) -> str:
    """`__version__`, looked up when it is asked for: among many installed packages that takes some 10 ms."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return version("ld_agents")
    except PackageNotFoundError:  # a source tree that is not installed
        return "0"
