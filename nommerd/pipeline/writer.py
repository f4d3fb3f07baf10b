"""Plain values as YAML that the loader reads back as the very same values."""

from __future__ import annotations

import re
from typing import Any

import yaml

from nommerd.pipeline.loader import plain_scalar

WIDTH = 120
_BREAKS = re.compile("[\r\x85\u2028\u2029\ufeff]")


class _Dumper(yaml.SafeDumper):
    """Quotes what our reader would take for something else than text: it goes by YAML 1.2, PyYAML by 1.1."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, text: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if _stays_text(text) else '"')


def _stays_text(text: str) -> bool:
    """Without quotes that escape: also line breaks of other alphabets are folded."""
    try:
        return isinstance(plain_scalar(text), str) and text != "<<" and not _BREAKS.search(text)
    except ValueError:
        return False


_Dumper.add_representer(str, _text)


def dump_yaml(value: Any) -> str:
    """Mappings in their order, one key a line; a list or mapping of scalars on one line."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=WIDTH, default_flow_style=None)
