"""Fixtures: one token of each brand with a KEK, and a server on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from tests.system.conformance.inside import PATIENT
from tests.system.tokens.base import MissingTokenError, Token, TokenPlugin
from tests.system.tokens.brands import Kryoptic, Nss, P11Kit, SoftHsm
from tests.system.tokens.opencryptoki import OpenCryptoki

if TYPE_CHECKING:
    from pathlib import Path

BRANDS = (SoftHsm, P11Kit, Kryoptic, Nss, OpenCryptoki)
INCLUDED_BY = "`make test-tokens` installs what is missing and includes these tests"

MakeToken = Callable[[type[Token]], Token]
Serve = Callable[..., TokenPlugin]


@pytest.fixture(scope="session")
def make_token(session_directory: Path) -> Iterator[MakeToken]:
    """Make tokens, each in a directory of its own."""
    made: list[Token] = []

    def make(brand: type[Token]) -> Token:
        directory = session_directory / f"{brand.brand}-{len(made)}"
        try:
            token = brand(directory)
        except MissingTokenError as error:
            pytest.skip(f"{error}; {INCLUDED_BY}")
        made.append(token)
        return token

    yield make
    for token in made:
        token.close()


@pytest.fixture(
    scope="session",
    params=[
        # With --dist loadgroup a brand is made by one process only.
        pytest.param(kind, marks=pytest.mark.xdist_group(kind.brand), id=kind.brand)
        for kind in BRANDS
    ],
)
def brand(request: pytest.FixtureRequest) -> type[Token]:
    """Each brand in turn."""
    kind: type[Token] = request.param
    return kind


@pytest.fixture(scope="session")
def keyed(brand: type[Token], make_token: MakeToken) -> Token:
    """A token with one KEK, made by the command line."""
    token = make_token(brand)
    TokenPlugin(token.directory / "generate", token).generate()
    return token


@pytest.fixture(scope="session")
def served(keyed: Token) -> Iterator[TokenPlugin]:
    """A healthy server on that token, for tests that leave it healthy."""
    plugin = TokenPlugin(keyed.directory / "served", keyed, token=PATIENT).start()
    try:
        plugin.wait_healthz("ok")
        yield plugin
    finally:
        plugin.close()


@pytest.fixture
def serve(directory: Path) -> Iterator[Serve]:
    """Make servers on any token, not started yet; all are stopped at the end."""
    made: list[TokenPlugin] = []

    def make(token: Token, /, **sections: object) -> TokenPlugin:
        sections = {"token": PATIENT} | sections
        plugin = TokenPlugin(directory / str(len(made)), token, **sections)
        made.append(plugin)
        return plugin

    yield make
    for plugin in made:
        plugin.close()
