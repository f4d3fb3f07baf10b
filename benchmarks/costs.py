"""What an hour of output costs on EC2, from measured encodes, and on MediaConvert. `python -m benchmarks.costs` prints tables.

Prices in USD, us-east-1, Linux. They change: put in today's, and `python -m benchmarks.costs --write` makes the page anew.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.measured import Measured, load, write_tables

BUSY = 0.8  # of the time that a node is paid for: starting, fetching, waiting for more and going take the rest
VOLUME_HOURLY = 20 * 0.08 / 730  # 20 GB of gp3 at $0.08 a GB-month
ADDRESS_HOURLY = 0.005  # a public IPv4 address
SYSTEM_MB = 700  # a node's memory that is not for jobs: the system, the worker, some cache

# MediaConvert, on demand, first volume step, AVC in one pass, up to 30 frames a second: base rate a minute by tier, times the
# multiplier of the output's size. Multi-pass, which is what the web presets do, is in the professional tier only, and dearer.
BASE_A_MINUTE = {"basic": 0.0075, "professional": 0.012}
MULTIPLIER = {"web-480p": 1.0, "web-720p": 2.0, "web-1080p": 2.0}


@dataclass(frozen=True, slots=True)
class Node:
    """An EC2 type. `relative` is what one of its vCPUs encodes against one core of the machine that was measured."""

    name: str
    vcpus: int
    memory_mb: int
    on_demand: float  # an hour, 9 February 2026
    spot: float  # an hour: the median of the zones in a snapshot taken after October 2025
    relative: float


NODES = (
    Node("c8a.xlarge", 4, 8192, 0.21554, 0.0818, 1.0),  # the same generation of processor, a whole core a vCPU
    Node("c7a.xlarge", 4, 8192, 0.20528, 0.0788, 0.77),  # the one before: AWS says that c8a is up to 30 % faster
    Node("c7i.xlarge", 4, 8192, 0.1785, 0.0700, 0.5),  # assumed: a vCPU is one of two threads of a core
    Node("c7g.xlarge", 4, 8192, 0.145, 0.0797, 0.6),  # assumed: Graviton3, a whole core a vCPU
)


def node_speed(speed_per_core: float, node: Node) -> float:
    """Hours of output in an hour of a node whose processors are all busy; `speed_per_core` is the measured machine's."""
    return speed_per_core * node.relative * node.vcpus


def node_jobs(memory_mb: float, node: Node) -> int:
    """Jobs at once: one a processor, as far as memory reaches; at least one."""
    return max(1, min(node.vcpus, int((node.memory_mb - SYSTEM_MB) / memory_mb)))


def ec2_cost(speed_per_core: float, node: Node, *, spot: bool) -> float:
    """USD for an hour of output: the node with its disk and address, paid also while it is not busy."""
    hourly = (node.spot if spot else node.on_demand) + VOLUME_HOURLY + ADDRESS_HOURLY
    return hourly / (node_speed(speed_per_core, node) * BUSY)


def mediaconvert_cost(preset: str, tier: str) -> float | None:
    """USD for an hour of output in one pass; None where there is nothing comparable."""
    multiplier = MULTIPLIER.get(preset)
    return None if multiplier is None else 60 * BASE_A_MINUTE[tier] * multiplier


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, without a final newline."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def node_table(measured: Measured) -> str:
    """Per preset and type: hours of output an hour, and the jobs at once that this takes."""
    rows = []
    for preset in measured.presets:
        best, memory = measured.speed_per_core(preset), measured.memory_mb(preset)
        rows.append([f"`{preset}`", *(f"{figure(node_speed(best, node))} ({node_jobs(memory, node)})" for node in NODES)])
    return table(["", *(node.name for node in NODES)], rows)


def cost_table(measured: Measured) -> str:
    """Per preset: MediaConvert's two tiers, and on demand / spot on each type."""
    rows = []
    for preset in measured.presets:
        best = measured.speed_per_core(preset)
        ours = [[money(ec2_cost(best, node, spot=spot)) for spot in (False, True)] for node in NODES]
        theirs = [money(mediaconvert_cost(preset, tier)) for tier in BASE_A_MINUTE]
        rows.append([f"`{preset}`", *theirs, *map(" / ".join, ours)])
    return table(["", "MediaConvert, basic", "MediaConvert, professional", *(node.name for node in NODES)], rows)


def money(usd: float | None) -> str:
    """In cents from a dollar on, two figures that count below; a dash for nothing comparable."""
    if usd is None:
        return "–"
    return f"${usd:.2f}" if usd >= 1 else f"${figure(usd)}"


def figure(value: float) -> str:
    """Two figures that count, never in powers of ten: 0.0123 is 0.012, 123.4 is 123."""
    if value >= 10:
        return f"{value:.0f}"
    if value >= 1:
        return f"{value:.1f}"
    digits = 2
    while digits < 6 and value < 10 ** (1 - digits):
        digits += 1
    return f"{value:.{digits}f}"


def tables(measured: Measured) -> dict[str, str]:
    """What docs/deploy.md holds, by the name in its markers."""
    return {"speeds": speed_table(measured), "nodes": node_table(measured), "costs": cost_table(measured)}


def speed_table(measured: Measured) -> str:
    """Per preset: times real time with so many jobs at once, and of a core in processor time; a job's memory."""
    counts = measured.job_counts
    head = ["", *(f"{count} job{'s' if count > 1 else ''} at once" for count in counts), "a core", "memory a job"]
    rows = [[f"`{preset}`", *(f"{figure(measured.speed(preset, count))}×" for count in counts),
             f"{figure(measured.speed_per_core(preset))}×", f"{measured.memory_mb(preset):.0f} MB"]
            for preset in measured.presets]
    return "\n".join([table(head, rows), "", measured.where])


def main() -> None:
    measured = load()
    for name, text in tables(measured).items():
        print(f"{name}:\n\n{text}\n")
    if "--write" in sys.argv[1:]:
        write_tables(tables(measured))


if __name__ == "__main__":
    main()
