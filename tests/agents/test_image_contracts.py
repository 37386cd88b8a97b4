"""Contracts of every agent, as the tests in `tests/common` say them, with frames for observations.

Pytest runs the tests that are imported here with the fixtures of this file.
"""

# ruff: noqa: F401

from __future__ import annotations

import pytest
from frame_drift import record_frames
from test_agents import (
    test_global_random_state_does_not_matter,
    test_resumed_with_a_further_budget,
    test_seeds_differ_in_training_and_not_only_in_the_first_weights,
    test_training_can_be_stopped_again_and_again,
)
from test_inference_file import test_acts_as_before_and_no_longer_learns
from test_learn import (
    test_a_second_learn_starts_the_count_again,
    test_bfloat16_is_for_training_alone,
    test_callback_stops_training,
    test_callbacks_are_called_after_every_gradient_step,
    test_checkpoint_callback,
    test_logger_writes_the_losses_of_every_stage,
    test_total_timesteps_are_shared_out,
)
from test_predict import (
    test_device_of_the_policy_follows_its_weights,
    test_environments_do_not_depend_on_each_other,
    test_policy_forward_pass_is_predict,
)
from test_save_load import (
    test_attached_dataset_may_be_any_source,
    test_equal_agents_give_equal_weights_on_disk,
    test_file_holds_json_and_safetensors_and_no_pickle,
    test_loading_never_unpickles,
    test_untrained_agent,
    test_weights_can_be_taken_from_another_agent,
)
from test_stumbles import test_logs_hold_step_speed_stage_and_time_left, test_the_same_seed_twice_gives_equal_actions

from conftest import Trained, trained_on
from ld_agents import OfflineDataset


@pytest.fixture(params=["LDCQ", "BC"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def dataset() -> OfflineDataset:
    return record_frames()


@pytest.fixture(scope="session")
def trained(dataset: OfflineDataset) -> Trained:
    return trained_on(dataset)
