"""`nommerd ami`: check and build the image that nommerd's machines on EC2 start from; what a feeder's is told at its birth."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import click

from nommerd.cli.options import Group, config_option, examples, json_option, pairs
from nommerd.cli.output import print_json, table

DEFAULT_BASE, DEFAULT_ARCH = "debian-12", "x86_64"

var_option = click.option("--var", "variables", multiple=True, metavar="K=V",
                          help="A variable of the template, such as region, subnet_id or ffmpeg. May repeat.")


@click.group(cls=Group)
def ami() -> None:
    """Check and build the image that machines on EC2 start from; write a feeder's user-data.

    The recipe is a Packer template: `nommerd ami build --dry-run` prints the command that it comes to.
    """


@ami.command(short_help="See whether Packer takes the template.", epilog=examples(
    "nommerd ami check", "nommerd ami check --base debian-12 --arch arm64 --json"))
@click.option("--base", help="Only the sets of variables for this base.")
@click.option("--arch", help="Only those for this architecture.")
@var_option
@json_option
def check(*, base: str | None, arch: str | None, variables: tuple[str, ...], as_json: bool) -> int:
    """See whether Packer is here and takes the template with each set of variables. Calls nothing on AWS."""
    from nommerd import imaging

    sets = _sets(base, arch)
    given = imaging.checked_values(pairs(variables, "--var"))
    packer = imaging.find_packer(os.environ)
    found = list(imaging.check(packer, sets, given, os.environ))
    faults = [one for one in found if one.fault]
    if as_json:
        print_json({"packer": packer.text, "checked": [{"what": one.what, "ok": not one.fault, "fault": one.fault}
                                                       for one in found]})
    else:
        table(["CHECKED", f"BY PACKER {packer.text}"],
              [[one.what, "fault, see below" if one.fault else "ok"] for one in found])
        for one in faults:
            click.echo(f"\n{one.what}:\n{one.fault}", err=True)
    return 1 if faults else 0


@ami.command(short_help="Build the image.", epilog=examples(
    "nommerd ami build --var region=eu-central-1", "nommerd ami build --base debian-13 --arch arm64 --dry-run",
    "nommerd ami build --var ffmpeg=wheels --var subnet_id=subnet-0abc --json"))
@click.option("--base", default=DEFAULT_BASE, show_default=True, help="The distribution it is made of.")
@click.option("--arch", default=DEFAULT_ARCH, show_default=True, help="x86_64, or arm64 for Graviton.")
@click.option("--source", type=click.Path(path_type=Path, exists=True),
              help="Wheel or checkout to install; default: this checkout, else this version, from the package index.")
@var_option
@click.option("--dry-run", is_flag=True, help="Print Packer's command lines, and call nothing.")
@json_option
def build(*, base: str, arch: str, source: Path | None, variables: tuple[str, ...], dry_run: bool, as_json: bool) -> int:
    """Build the image and print its id, which goes into fleet.image_id. Packer starts a small instance for some minutes,
    installs and tests nommerd on it, and removes everything but the image, also when it is interrupted; the account is the one
    that the AWS command line would use."""
    from nommerd import imaging

    file = _sets(base, arch)[base, arch]
    source = source or imaging.default_source()
    if source is not None:
        imaging.check_source(source)
    given = imaging.checked_values(pairs(variables, "--var"))
    values = {"region": imaging.region_of(given, os.environ), "nommerd_version": imaging.source_version(source), **given}
    packer = imaging.find_packer(os.environ)
    if dry_run:
        if source is not None:
            values["nommerd_source"] = str(source.absolute())
        return _show([one for one in (imaging.init_argv(packer), imaging.build_argv(packer, file, values)) if one], as_json)
    with imaging.interrupts() as stop, imaging.workspace() as folder:
        if source is not None:
            values["nommerd_source"] = str(imaging.copy_source(source, folder))
        if "ssh_private_key_file" not in given:
            values |= imaging.make_key(folder)
        values["manifest"] = str(folder / "manifest.json")
        images = imaging.build(packer, imaging.build_argv(packer, file, values), folder / "manifest.json", os.environ, stop)
    if as_json:
        print_json({"images": images, "base": base, "arch": arch, "version": values["nommerd_version"]})
    else:
        for region, image in images.items():
            print(image if len(images) == 1 else f"{region} {image}")
    stop.check()  # it came too late, and the image is there: that is told all the same
    return 0


@ami.command("user-data", short_help="Print a feeder's user-data.", epilog=examples(
    "nommerd ami user-data -c nommerd.yaml > feeder.yaml"))
@config_option
@json_option
def user_data(*, config_file: Path | None, as_json: bool) -> int:
    """Print what makes a feeder of a machine that starts from the image: a cloud-config with this configuration file, and the
    pipelines and presets in its paths. It holds no secret: a file with one is refused, as is one that does not hold."""
    from nommerd.cli.configure import load_all, refuse
    from nommerd.config import find_file
    from nommerd.feederdata import render_feeder

    file = find_file(config_file, os.environ)
    if file is None:
        raise click.UsageError("There is no configuration file to make it of: give one with -c.")
    refuse(load_all(file, {})[2])
    text = render_feeder(file)
    if as_json:
        print_json({"user_data": text})
    else:
        print(text, end="")
    return 0


def _show(commands: list[list[str]], as_json: bool) -> int:
    if as_json:
        print_json({"commands": commands})
    else:
        for command in commands:
            print(shlex.join(command))
    return 0


def _sets(base: str | None, arch: str | None) -> dict[tuple[str, str], Path]:
    """The sets of variables for these; a usage error where there is none."""
    from nommerd.imaging import variable_sets

    every = variable_sets()
    found = {key: path for key, path in every.items() if base in (None, key[0]) and arch in (None, key[1])}
    if not found:
        known = ", ".join(" ".join(key) for key in every)
        raise click.UsageError(f"There is no set of variables for {' '.join(filter(None, (base, arch)))}. There are: {known}.")
    return found
