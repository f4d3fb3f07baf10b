"""What things are called in the account, and how they are marked as ours. `aws setup` makes them under these names; the
feeder and nodes find them by the same."""

from __future__ import annotations

from hashlib import sha256

CLUSTER_TAG = "nommerd:cluster"  # on everything that is made for a cluster; its value is the cluster's name
IAM_NAME_MAX = 64


def node_profile(cluster: str) -> str:
    """The role of encoder nodes, its policy, and the instance profile that brings it to them."""
    return _fit(cluster, "node")


def feeder_profile(cluster: str) -> str:
    """The role of the feeder, its policy, and the instance profile for a feeder that runs on EC2."""
    return _fit(cluster, "feeder")


def security_group(cluster: str) -> str:
    """The security group of encoder nodes: nothing comes in."""
    return _fit(cluster, "node")


def launch_template(cluster: str) -> str:
    """The launch template of encoder nodes."""
    return _fit(cluster, "node")


def watch_prefix(bus_prefix: str) -> str:
    """What the names of the queues that watch buckets begin with."""
    return f"{bus_prefix}-watch-"


def _fit(cluster: str, role: str) -> str:
    """`nommerd-CLUSTER-ROLE`, a long cluster's name cut and told apart by a digest: IAM allows 64 characters."""
    name = f"nommerd-{cluster}-{role}"
    if len(name) <= IAM_NAME_MAX:
        return name
    digest = sha256(cluster.encode()).hexdigest()[:8]
    return f"nommerd-{cluster[:IAM_NAME_MAX - len(role) - 18]}-{digest}-{role}"
