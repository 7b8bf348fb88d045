"""Every launcher's variables give the same answer."""

import pytest

from pipeline.base.ranks import RankError, RankInfo, read_rank_info

SIXTH_OF_SIXTEEN = RankInfo(rank=13, world_size=16, local_rank=5, local_world_size=8)


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "13", "WORLD_SIZE": "16", "LOCAL_RANK": "5", "LOCAL_WORLD_SIZE": "8"},  # torchrun
        {"RANK": "13", "WORLD_SIZE": "16", "LOCAL_RANK": "5", "LOCAL_SIZE": "8"},  # deepspeed
        {
            "SLURM_PROCID": "13",
            "SLURM_STEP_NUM_TASKS": "16",
            "SLURM_LOCALID": "5",
            "SLURM_NODEID": "1",
            "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
        },
        {
            "OMPI_COMM_WORLD_RANK": "13",
            "OMPI_COMM_WORLD_SIZE": "16",
            "OMPI_COMM_WORLD_LOCAL_RANK": "5",
            "OMPI_COMM_WORLD_LOCAL_SIZE": "8",
        },
    ],
    ids=["torchrun", "deepspeed", "slurm", "open-mpi"],
)
def test_every_launcher_is_understood(environment):
    assert read_rank_info(environment) == SIXTH_OF_SIXTEEN


def test_nodes_of_slurm_may_differ():
    slurm = {"SLURM_STEP_NUM_TASKS": "20", "SLURM_STEP_TASKS_PER_NODE": "8(x2),4", "SLURM_PROCID": "17"}
    slurm |= {"SLURM_NODEID": "2", "SLURM_LOCALID": "1"}
    assert read_rank_info(slurm) == RankInfo(17, 20, 1, 4)


def test_a_process_started_by_hand_is_alone_also_inside_a_slurm_batch_script():
    assert read_rank_info({}) == RankInfo()
    assert read_rank_info({"SLURM_PROCID": "0", "SLURM_NTASKS": "16"}) == RankInfo()


@pytest.mark.parametrize(
    "environment", [{"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x", "WORLD_SIZE": "2"}, {"WORLD_SIZE": "-1"}]
)
def test_contradictions_are_named(environment):
    with pytest.raises(RankError, match=r"rank 2 of 2|RANK is 'x'|WORLD_SIZE is '-1'"):
        read_rank_info(environment)
