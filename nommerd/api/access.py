"""Whose request it is, and what that token may do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from nommerd.job import DEFAULT_PROJECT


class Scope(StrEnum):
    """What a token may do, within its project."""

    SUBMIT = "submit"  # hand in jobs, cancel and retry them
    READ = "read"  # see jobs, presets, pipelines, events and figures
    OPERATE = "operate"  # logs of attempts, webhooks; in the project `default` also workers, pause and resume
    ADMIN = "admin"  # everything: presets and pipelines, tokens, the webhook secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who asks: a token's name, the one project that it is bound to, and its scopes."""

    project: str = DEFAULT_PROJECT
    scopes: frozenset[Scope] = frozenset()
    name: str = ""

    def allows(self, scope: Scope) -> bool:
        """`admin` includes the others; they do not include each other."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    @property
    def installation(self) -> bool:
        """Whether it may see and do what concerns all projects: the project `default` is the operator's own."""
        return self.project == DEFAULT_PROJECT


NOBODY = Access()
OPERATOR = Access(scopes=frozenset(Scope), name="token file")
