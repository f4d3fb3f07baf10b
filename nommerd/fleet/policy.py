"""How many nodes to start: pure arithmetic, the original's to the letter but for its one defect."""

from __future__ import annotations

from nommerd.errors import ConfigError


def nodes_to_start(jobs: int, nodes: int, jobs_per_node: int, overflow: int, max_nodes: int) -> int:
    """How many nodes to start for `jobs` unfinished jobs where `nodes` are running or about to.

    From nothing: a node for each `jobs_per_node` jobs, at least one. Later: the same for what is over the nodes' capacity by
    more than `overflow`. Never beyond `max_nodes`. Raises ConfigError where a node takes no job.
    """
    if jobs_per_node < 1:
        raise ConfigError("config.bad_value", f"fleet.jobs_per_node is {jobs_per_node}: a node must take a job at least.",
                          "Set it to 1 or more.", place="fleet.jobs_per_node")
    if jobs <= 0 or nodes >= max_nodes:
        return 0
    over = jobs - nodes * jobs_per_node - overflow if nodes > 0 else jobs
    if over <= 0:
        return 0
    return min(max(over // jobs_per_node, 1), max_nodes - nodes)
