"""`nommerd aws`: make what an AWS account needs, watch buckets, and take it all down again."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nommerd.cli.options import Group, complete_presets, config_option, examples, json_option, pairs
from nommerd.cli.output import ProgressLine, print_json, table

if TYPE_CHECKING:
    from nommerd.aws.account import Account, Outcome
    from nommerd.aws.plan import Plan
    from nommerd.aws.watch import Watch
    from nommerd.catalog import Catalog
    from nommerd.config import Settings

DIFFERS_EXIT = 2  # something is there that is not as it should be, and was left alone


@click.group(cls=Group)
def aws() -> None:
    """Make what an AWS account needs, watch buckets, and take it all down again."""


# --- setup and teardown ------------------------------------------------------------------------------------------------


@aws.command(short_help="Make what the configuration needs.", epilog=examples(
    "nommerd aws setup --dry-run", "nommerd aws setup -c nommerd.yaml --buckets",
    "nommerd aws setup --cloudformation > nommerd.json"))
@config_option
@click.option("--dry-run", is_flag=True, help="Print everything that would be made, and call nothing.")
@click.option("--cloudformation", is_flag=True, help="Print the same as one CloudFormation template (JSON), and call nothing.")
@click.option("--buckets", is_flag=True, help="Also add the rule for abandoned uploads to the buckets of storage.s3_write.")
@json_option
def setup(*, config_file: Path | None, dry_run: bool, cloudformation: bool, buckets: bool, as_json: bool) -> int:
    """Make the queues, the table, the configuration's bucket, roles and policies, a security group and a launch template,
    as the configuration says. What is there already stays; run it again at any time."""
    settings = _load(config_file)
    if cloudformation:
        return _template(settings)
    if dry_run:
        return _dry_run(settings, as_json)
    from nommerd.aws.apply import set_up

    account = _account(settings)
    done = _carry_out(set_up(account, settings, buckets=buckets), as_json, account)
    return DIFFERS_EXIT if any(one.status == "differs" for one in done) else 0


@aws.command(short_help="Remove what setup made.", epilog=examples(
    "nommerd aws teardown", "nommerd aws teardown -c nommerd.yaml --yes --json"))
@config_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def teardown(*, config_file: Path | None, yes: bool, as_json: bool) -> int:
    """Remove what setup made: end the nodes, remove watches, queues, the table WITH ITS RECORDS, the configuration's bucket.
    Only what carries this cluster's tag. Buckets with media are never deleted. Stop the feeders first."""
    from nommerd.aws.apply import standing, tear_down

    settings = _load(config_file)
    account = _account(settings)
    if not yes:
        lines = standing(account, settings)
        click.echo("\n".join(["This removes, as far as it is there:", *(f"  {line}" for line in lines)]), err=True)
        if not sys.stdin.isatty():
            raise click.UsageError("Nobody can be asked here: give --yes.")
        click.confirm(f"Remove it from account {account.place.account}, {account.place.region}?", abort=True, err=True)
    _carry_out(tear_down(account, settings), as_json, account)
    return 0


def _load(config_file: Path | None) -> Settings:
    from nommerd.config import load

    settings = load(config_file, os.environ)
    if settings.store.startswith("sqlite:") and settings.bus.startswith("sqlite:"):
        click.echo("nommerd: note: store and bus are on this machine; set store: dynamodb://TABLE and bus: sqs://PREFIX to "
                   "have them on AWS.", err=True)
    return settings


def _account(settings: Settings) -> Account:
    from nommerd.aws.account import Account, identity
    from nommerd.aws.clients import Clients

    clients = Clients(settings.aws)
    return Account(clients, identity(clients), settings.cluster, say=ProgressLine().say)


def _carry_out(outcomes: Iterable[Outcome], as_json: bool, account: Account) -> list[Outcome]:
    """Each outcome as it comes on stderr, all of them as a table or JSON; also of what was done before an error."""
    done: list[Outcome] = []
    try:
        for one in outcomes:
            done.append(one)
            if sys.stderr.isatty() and not as_json:
                account.say(f"{one.status:<8} {one.type} {one.name}")
    finally:
        if not as_json and done:
            _show(done)
    if as_json:
        print_json({"cluster": account.cluster, "account": account.place.account, "region": account.place.region,
                    "resources": [one.json() for one in done]})
    else:
        _tell_details(done)
    return done


TOLD_BELOW = frozenset({"differs", "left", "skipped"})  # what somebody may have to act on


def _show(done: Iterable[Outcome]) -> None:
    table(["STATUS", "TYPE", "NAME", "DETAIL"], [
        [str(one.status), one.type, one.name, "see below" if one.detail and one.status in TOLD_BELOW else one.detail]
        for one in done], shrink=["DETAIL"])


def _tell_details(done: Iterable[Outcome]) -> None:
    for one in done:
        if one.detail and one.status in TOLD_BELOW:
            click.echo(f"{one.type} {one.name}: {one.detail}", err=True)


def _template(settings: Settings) -> int:
    from nommerd.aws.cloudformation import template

    made, notes = template(settings)
    for note in notes:
        click.echo(f"nommerd: note: {note}", err=True)
    print_json(made)
    return 0


def _dry_run(settings: Settings, as_json: bool) -> int:
    from nommerd.aws.plan import make_plan

    subnets = settings.fleet.subnets
    plan = make_plan(settings, _imagined(settings), f"VPC of {subnets[0]}" if subnets else None)
    if as_json:
        print_json({"cluster": plan.cluster, "resources": [
            {"id": r.id, "type": r.type, "name": r.name, "properties": r.properties} for r in plan.resources],
            "policies": plan.policies, "bucket_rules": [{"bucket": rule.bucket, "rule": rule.rule} for rule in plan.rules]})
    else:
        print("\n".join(_described(plan)))
    return 0


def _imagined(settings: Settings) -> Any:
    """The place without asking AWS: its account is not known."""
    from dataclasses import replace

    from nommerd.aws.clients import Clients
    from nommerd.aws.plan import UNKNOWN
    from nommerd.errors import ConfigError

    try:
        region = Clients(settings.aws).region
    except ConfigError:
        return UNKNOWN
    partition = "aws-cn" if region.startswith("cn-") else "aws-us-gov" if region.startswith("us-gov-") else "aws"
    return replace(UNKNOWN, region=region, partition=partition)


def _described(plan: Plan) -> list[str]:
    lines = []
    for resource in plan.resources:
        lines.append(f"{resource.type} {resource.name}")
        for key, value in resource.properties.items():
            if key != "PolicyDocument" or resource.type != "AWS::IAM::ManagedPolicy":
                lines.append(f"  {key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
    for rule in plan.rules:
        lines += [f"lifecycle rule, only with --buckets: {rule.bucket}", f"  {json.dumps(rule.rule)}"]
    for name, document in plan.policies.items():
        lines += ["", f"IAM policy {name}:", json.dumps(document, indent=2)]
    return lines


# --- watch -------------------------------------------------------------------------------------------------------------


@aws.command(short_help="Make a job of what appears in a bucket.", epilog=examples(
    "nommerd aws watch s3://incoming/uploads/ -p web-720p --dest s3://media/web/ --suffix .mov",
    "nommerd aws watch --list", "nommerd aws watch --remove incoming-uploads"))
@click.argument("source", required=False)
@click.option("-p", "--preset", help="Preset, by name.", shell_complete=complete_presets)
@click.option("--dest", help="s3://BUCKET/PREFIX/ under which outputs go (default: the one entry of storage.s3_write).")
@click.option("--suffix", default="", help="Only objects whose keys end so: .mov")
@click.option("--set", "params", multiple=True, metavar="K=V", help="A param of the pipeline. May repeat.")
@click.option("--priority", type=click.Choice(["high", "normal", "low"]), default="normal", help="Which jobs go first.")
@click.option("--overwrite", is_flag=True, help="Replace what is at the destination: for sources that are written again.")
@click.option("--name", help="What it is called (default: made from bucket, prefix and suffix).")
@click.option("--list", "listing", is_flag=True, help="Tell the watches there are.")
@click.option("--remove", metavar="NAME", help="Remove a watch, and the notification of its bucket.")
@config_option
@json_option
def watch(*, source: str | None, listing: bool, remove: str | None, config_file: Path | None, as_json: bool,
          **more: Any) -> int:
    """Make a job of each object that appears under SOURCE (s3://BUCKET/PREFIX), from now on.

    The leading feeder finds the watch by itself, within a minute or two. The same SOURCE again changes the watch.
    """
    if sum((source is not None, listing, remove is not None)) != 1:
        raise click.UsageError("Give a source to watch, or --list, or --remove NAME.")
    if source is not None and not more["preset"]:
        raise click.UsageError("Name a preset (-p).")
    from nommerd.cli.configure import load_all

    settings, catalog, _ = load_all(config_file)
    prefix = _bus_prefix(settings)
    if source is not None:  # faults of what was asked for are told before anything is called
        wanted, extension = _wanted(settings, catalog, prefix, source, **more)
        account = _account(settings)
        _refuse_circle(account, catalog, prefix, wanted, extension)
        return _add(account, settings, prefix, wanted, as_json)
    account = _account(settings)
    return _remove(account, settings, prefix, str(remove), as_json) if remove else _list(account, prefix, as_json)


def _bus_prefix(settings: Settings) -> str:
    from nommerd.aws.policies import bus_prefix
    from nommerd.errors import ConfigError

    prefix = bus_prefix(settings)
    if prefix is None:
        raise ConfigError("config.bus", f"A watch needs queues on SQS, and the bus is {settings.bus}.",
                          "Set bus: sqs://PREFIX, and run nommerd aws setup.", place="bus")
    return prefix


def _wanted(settings: Settings, catalog: Catalog, prefix: str, source: str, *, preset: str, dest: str | None, suffix: str,
            params: tuple[str, ...], priority: str, overwrite: bool, name: str | None) -> tuple[Watch, str | None]:
    """The watch that was asked for, and the extension of its outputs; every fault found that needs no call."""
    from nommerd.aws import watch as watches
    from nommerd.pipeline.extension import extension_of

    texts = pairs(params, "--set")
    pipeline = catalog.pipeline_of(preset=preset)
    recipe = catalog.resolve(preset=preset, params=catalog.params_from_text(pipeline, texts))
    extension = extension_of(recipe, catalog.stages)
    bucket, below = watches.split(source, "source")
    target = dest or _only_destination(settings)
    into, key = watches.split(target, "--dest")
    found = watches.Watch(name=name or watches.default_name(bucket, below, suffix), bucket=bucket, prefix=below, suffix=suffix,
                          dest=f"s3://{into}/{key}", preset=preset, params=texts, priority=priority, overwrite=overwrite)
    watches.queue_name(prefix, found.name)
    watches.check(found, extension)
    _check_allowed(settings, found)
    return found, extension


def _only_destination(settings: Settings) -> str:
    if len(settings.storage.s3_write) != 1:
        raise click.UsageError("Say where outputs go: --dest s3://BUCKET/PREFIX/ (storage.s3_write names "
                               f"{len(settings.storage.s3_write) or 'no'} places).")
    return f"s3://{settings.storage.s3_write[0].rstrip('/')}/"


def _check_allowed(settings: Settings, found: Watch) -> None:
    """Whatever key appears must be one that jobs may read, and write; in our own bucket none is."""
    from nommerd.aws.watch import split
    from nommerd.errors import InputError
    from nommerd.storage.s3_uri import Allowed, Place

    for family, uri in (("source", found.source), ("dest", found.dest)):
        if split(uri, family)[0] == settings.aws.config_bucket:
            raise InputError(f"{family}.outside_buckets", f"The bucket {settings.aws.config_bucket} is nommerd's own.",
                             "Choose another one.")
    anything = "\uf8ff"  # a character that no entry ends with
    Allowed(settings.storage.s3_read, "storage.s3_read").check(Place(found.bucket, found.prefix + anything), "source")
    bucket, key = split(found.dest, "--dest")
    Allowed(settings.storage.s3_write, "storage.s3_write").check(Place(bucket, key + anything), "dest")


def _refuse_circle(account: Account, catalog: Catalog, prefix: str, wanted: Watch, extension: str | None) -> None:
    from nommerd.aws.watch import circle
    from nommerd.aws.watch_queues import watches
    from nommerd.errors import InputError

    known, _ = watches(account, prefix)
    others = [(one, _extension(catalog, one)) for one in known if one.name != wanted.name]
    found = circle([*others, (wanted, extension)])
    if found:
        raise InputError("dest.watched", f"These watches would feed one another in a circle: {' -> '.join(found)}.",
                         "Choose another destination.", place="--dest")


def _extension(catalog: Catalog, one: Watch) -> str | None:
    from nommerd.errors import NommerdError
    from nommerd.pipeline.extension import extension_of

    try:
        return extension_of(catalog.resolve(preset=one.preset), catalog.stages)
    except NommerdError:
        return None  # may be any


def _add(account: Account, settings: Settings, prefix: str, wanted: Watch, as_json: bool) -> int:
    from nommerd.aws.watch_queues import add_watch

    done = list(add_watch(account, prefix, wanted, endpoint_url=settings.storage.s3_endpoint_url))
    if as_json:
        print_json({"watch": wanted.json(), "resources": [one.json() for one in done]})
        return 0
    _show(done)
    click.echo(f"watching {wanted.source} as {wanted.name}; outputs go to {wanted.dest}", err=True)
    return 0


def _list(account: Account, prefix: str, as_json: bool) -> int:
    from nommerd.aws.watch_queues import watches

    known, faults = watches(account, prefix)
    for fault in faults:
        click.echo(f"nommerd: {fault}", err=True)
    if as_json:
        print_json([one.json() for one in known])
    else:
        table(["NAME", "SOURCE", "PRESET", "DEST", "PRIORITY"],
              [[one.name, one.source, one.preset, one.dest, one.priority] for one in known])
    return 0


def _remove(account: Account, settings: Settings, prefix: str, name: str, as_json: bool) -> int:
    from nommerd.aws.watch_queues import remove_watch

    _carry_out(remove_watch(account, prefix, name, endpoint_url=settings.storage.s3_endpoint_url), as_json, account)
    return 0
