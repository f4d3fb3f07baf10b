"""The calls on tokens: make, list and revoke those of one's project; ask what one's own allows."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from nommerd.api.access import Access, Scope
from nommerd.api.answers import Caller, TokenList, TokenMade
from nommerd.api.body import parse_object, shown
from nommerd.api.models import Name, Strict, validated
from nommerd.api.problems import from_error, refuse
from nommerd.api.route import Answer, Call, Route
from nommerd.api.view import timestamp
from nommerd.config import Name as ProjectName
from nommerd.errors import InputError
from nommerd.tokens import Token, Tokens

EXPIRES_DAYS_MAX = 3650.0


def _distinct(scopes: list[str]) -> list[str]:
    return list(dict.fromkeys(scopes))


class NewToken(Strict):
    """The body of POST /v1/tokens."""

    name: Name
    scopes: Annotated[list[Literal["submit", "read", "operate", "admin"]], Field(min_length=1, max_length=16),
                      AfterValidator(_distinct)]
    project: ProjectName | None = None  # the caller's own
    expires_days: Annotated[float, Field(gt=0, le=EXPIRES_DAYS_MAX)] | None = None  # never


def token_routes(tokens: Tokens) -> list[Route]:
    """Tokens of the caller's project; the project `default` has those of all."""

    def make(call: Call) -> Answer:
        wanted = validated(NewToken, parse_object(call.body()))
        scopes = [Scope(name) for name in wanted.scopes]
        project = wanted.project or call.access.project
        _check_grant(call.access, project, scopes)
        try:
            token, text = tokens.make(wanted.name, project, scopes, wanted.expires_days)
        except InputError as error:
            raise from_error(error) from None
        return Answer(value={**token_json(token), "token": text.reveal()}, status=201)

    def listing(call: Call) -> Answer:
        return Answer(value={"tokens": [token_json(token) for token in tokens.list(_reach(call.access))]})

    def revoke(call: Call) -> Answer:
        try:
            tokens.revoke(call.path["id"], _reach(call.access))
        except LookupError:
            raise refuse(404, "path.id", "request.unknown_token", f"There is no token {shown(call.path['id'])}.",
                         "`nommerd tokens ls` shows their ids.") from None
        return Answer(body=b"", status=204)

    def caller(call: Call) -> Answer:
        who = call.access
        return Answer(value={"name": who.name, "project": who.project, "scopes": sorted(who.scopes)})

    return [
        Route(method="POST", path="/v1/tokens", scope=Scope.ADMIN, handle=make, request=NewToken,
              summary="Make a token; its text is told here and never again.", answers={201: TokenMade, 409: None, 422: None}),
        Route(method="GET", path="/v1/tokens", scope=Scope.ADMIN, handle=listing, summary="List tokens, without their texts.",
              answers={200: TokenList}),
        Route(method="DELETE", path="/v1/tokens/{id}", scope=Scope.ADMIN, handle=revoke, summary="Revoke a token.",
              answers={204: None, 404: None}),
        Route(method="GET", path="/v1/token", scope=None, handle=caller, summary="Whose the asking token is, and its scopes.",
              answers={200: Caller}),
    ]


def _reach(access: Access) -> str | None:
    """Whose tokens it may see and revoke; None: everybody's."""
    return None if access.installation else access.project


def _check_grant(access: Access, project: str, scopes: list[Scope]) -> None:
    """403 where this token may not make that one: of another project, or with more than it has itself."""
    if project != access.project and not access.installation:
        raise refuse(403, "body.project", "request.forbidden_project", "A project's token makes tokens of that project alone.",
                     "Leave out project, or use a token of the project default.")
    lacking = [scope for scope in scopes if not access.allows(scope)]
    if lacking:
        raise refuse(403, "body.scopes", "request.forbidden_scope", f"This token lacks the scope {lacking[0]} itself.")


def token_json(token: Token) -> dict[str, Any]:
    """A token as answers show it: without its text, which nobody has any longer."""
    return {"id": token.id, "name": token.name, "project": token.project, "scopes": sorted(token.scopes),
            "created": timestamp(token.created), "expires": None if token.expires is None else timestamp(token.expires)}
