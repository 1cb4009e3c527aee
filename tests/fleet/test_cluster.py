"""Facts about cluster.yaml, checked as `ray up` checks it but without a cloud."""

import copy
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.support.running import ROOT

CLUSTER = ROOT / "cluster.yaml"

Config = dict[str, Any]


@pytest.fixture
def config() -> Config:
    loaded: Config = yaml.safe_load(CLUSTER.read_text())
    return loaded


def workers(config: Config) -> dict[str, Config]:
    types: dict[str, Config] = config["available_node_types"]
    return {name: node for name, node in types.items() if name != config["head_node_type"]}


def check(config: Config) -> None:
    validate_config(prepare_config(copy.deepcopy(config)))


def test_ray_accepts_the_cluster(config: Config) -> None:
    """The file holds what Ray's own validation asks for."""
    check(config)


@pytest.mark.parametrize(
    "place",
    [
        pytest.param((), id="cluster"),
        pytest.param(("available_node_types", "head"), id="node type"),
        pytest.param(("auth",), id="auth"),
    ],
)
def test_a_typo_in_a_key_is_caught(config: Config, place: tuple[str, ...]) -> None:
    """The check above would see a key that Ray does not know."""
    spot = config
    for key in place:
        spot = spot[key]
    spot["max_wrokers"] = 3

    with pytest.raises(ValidationError, match="max_wrokers"):
        check(config)


def test_workers_are_spot_machines_with_a_gpu(config: Config) -> None:
    """Every worker type has a GPU to offer, is billed as spot, and goes away when idle."""
    for node in workers(config).values():
        assert node["resources"]["GPU"] >= 1
        assert node["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
        assert node["min_workers"] == 0
    assert any(node["max_workers"] > 0 for node in workers(config).values())


def test_the_head_has_no_gpu_and_is_not_spot(config: Config) -> None:
    """The machine that must outlive the job is cheap and cannot be taken away."""
    head = config["available_node_types"][config["head_node_type"]]

    assert "GPU" not in head["resources"]
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["max_workers"] == 0


def test_ray_asks_for_a_token_everywhere(config: Config) -> None:
    """Every node runs in token mode with the user's own token, and the dashboard is not public."""
    starts = [command for role in ("head", "worker") for command in config[f"{role}_start_ray_commands"]]
    starts = [command for command in starts if "ray start" in command]

    assert len(starts) == 2
    assert all("export RAY_AUTH_MODE=token;" in command for command in starts)
    assert any("RAY_AUTH_MODE=token" in command for command in config["initialization_commands"])
    assert config["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    assert "--dashboard-host=127.0.0.1" in starts[0]


def test_nodes_install_the_tested_versions(config: Config) -> None:
    """The pins travel with the cluster and every installation of darkroom's needs obeys them."""
    installs = [command for command in config["setup_commands"] if "requirements.txt -c" in command]

    assert config["file_mounts"]["/home/ubuntu/darkroom/constraints.txt"] == "constraints.txt"
    assert config["file_mounts"]["/home/ubuntu/darkroom/pyproject.toml"] == "pyproject.toml"
    assert len(installs) == 1
