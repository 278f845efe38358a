"""The launch configs, as accelerate's own parser reads them."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "accelerate"


@pytest.mark.parametrize(
    ("name", "kind", "machines", "processes"),
    [
        ("one_machine_many_gpus", DistributedType.MULTI_GPU, 1, 8),
        ("many_machines", DistributedType.MULTI_GPU, 4, 32),
        ("fsdp2", DistributedType.FSDP, 1, 8),
    ],
)
def test_accelerate_reads_it(name, kind, machines, processes):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert (config.distributed_type, config.num_machines, config.num_processes) == (kind, machines, processes)
    assert config.mixed_precision == "bf16" and not config.use_cpu
    if name == "many_machines":
        assert config.main_process_port and config.main_process_ip
    if name == "fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2
        assert config.fsdp_config["fsdp_activation_checkpointing"] is True
