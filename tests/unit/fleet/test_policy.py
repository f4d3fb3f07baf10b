"""How many nodes to start: the original's rows 82-91, each range of them in full."""

from __future__ import annotations

from itertools import product

import pytest

from nommerd.errors import ConfigError
from nommerd.fleet.policy import nodes_to_start

MANY = 200
Ranges = list[tuple[range, int]]


def to(first: int, last: int, new: int) -> tuple[range, int]:
    return range(first, last + 1), new


# (jobs per node, overflow, maximum), nodes, and what is started for which numbers of jobs
ROWS: list[tuple[str, tuple[int, int, int], int, Ranges]] = [
    ("82", (2, 2, 3), 0, [to(0, 0, 0), to(1, 3, 1), to(4, 5, 2), to(6, MANY, 3)]),
    ("83", (2, 2, 3), 1, [to(0, 4, 0), to(5, 7, 1), to(8, MANY, 2)]),
    ("84", (2, 2, 3), 2, [to(0, 6, 0), to(7, MANY, 1)]),
    ("85", (2, 2, 3), 3, [to(0, MANY, 0)]),
    ("85", (2, 2, 3), 4, [to(0, MANY, 0)]),
    ("85", (2, 2, 3), 9, [to(0, MANY, 0)]),
    ("86", (2, 2, 10), 0, [to(1, 1, 1), to(18, 19, 9), to(20, MANY, 10)]),
    ("87", (2, 2, 10), 1, [to(20, 21, 8), to(22, MANY, 9)]),
    ("88", (2, 2, 10), 9, [to(0, 20, 0), to(21, MANY, 1)]),
    ("89", (3, 2, 10), 0, [to(0, 0, 0), to(1, 5, 1), to(6, 8, 2), to(9, 11, 3)]),
    ("89", (3, 2, 10), 1, [to(0, 5, 0), to(6, 10, 1), to(11, 13, 2)]),
    ("89", (3, 2, 10), 2, [to(0, 8, 0), to(9, 13, 1), to(14, 16, 2)]),
    ("90", (1, 0, 3), 0, [to(0, 0, 0), to(1, 1, 1), to(2, 2, 2), to(3, MANY, 3)]),
    ("90", (1, 0, 3), 1, [to(0, 1, 0), to(2, 2, 1), to(3, MANY, 2)]),
    ("90", (1, 0, 3), 2, [to(0, 2, 0), to(3, MANY, 1)]),
]


@pytest.mark.parametrize(("row", "rules", "nodes", "ranges"), ROWS, ids=lambda value: str(value)[:30])
def test_as_many_are_started_as_by_the_original(row: str, rules: tuple[int, int, int], nodes: int, ranges: Ranges) -> None:
    for jobs, expected in ranges:
        assert {nodes_to_start(n, nodes, *rules) for n in jobs} == {expected}, (row, jobs)


@pytest.mark.parametrize("jobs_per_node", [0, -1])
@pytest.mark.parametrize("jobs", [0, 5])
def test_a_node_that_takes_no_job_is_a_fault_of_the_configuration(jobs: int, jobs_per_node: int) -> None:
    with pytest.raises(ConfigError) as caught:
        nodes_to_start(jobs, 0, jobs_per_node, 2, 3)
    assert (caught.value.code, caught.value.place) == ("config.bad_value", "fleet.jobs_per_node")


def test_never_more_than_the_maximum_never_less_than_none_and_never_fewer_for_more_jobs() -> None:
    for nodes, jobs_per_node, overflow, most in product(range(8), range(1, 5), range(4), range(7)):
        before = 0
        for jobs in range(60):
            new = nodes_to_start(jobs, nodes, jobs_per_node, overflow, most)
            assert new >= before or nodes >= most
            assert 0 <= new <= max(most - nodes, 0)
            before = new
