"""Names fit what AWS takes, and tell clusters apart."""

from __future__ import annotations

from nommerd.aws import names


def test_a_name_says_cluster_and_role() -> None:
    assert (names.node_profile("demo"), names.feeder_profile("demo")) == ("nommerd-demo-node", "nommerd-demo-feeder")


def test_long_clusters_get_names_that_iam_takes_and_that_differ() -> None:
    one, other = "c" * 62 + "1", "c" * 62 + "2"
    made = {name(cluster) for cluster in (one, other) for name in (names.node_profile, names.feeder_profile)}
    assert len(made) == 4
    assert all(len(name) <= names.IAM_NAME_MAX for name in made)
