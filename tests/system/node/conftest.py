"""Fixtures of the tests of the image, which run with HSM_KMS_NODE=1 only."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.harness.required import leave_out
from tests.system.node import containers, images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HINT = "`make test-node` includes these tests"


def _reason() -> str | None:
    """Say why these tests cannot or should not run, None if they do."""
    if os.environ.get("HSM_KMS_NODE") != "1":
        return f"HSM_KMS_NODE is not 1; {HINT}"
    if lacking := images.missing() or containers.missing():
        return f"{lacking}; with it, {HINT}"
    return None


@pytest.fixture(scope="session", autouse=True)
def included() -> None:
    """Leave the tests out, or refuse to, with a reason."""
    if reason := _reason():
        leave_out("node", reason)


@pytest.fixture(scope="session")
def image(included: None) -> images.Image:
    """The image that nodes run."""
    return images.image()


@pytest.fixture(scope="session")
def dev_image(included: None) -> images.Image:
    """The image with SoftHSM2."""
    return images.image("dev")


@pytest.fixture(scope="session")
def unpacked(image: images.Image, session_directory: Path) -> containers.Unpacked:
    """The image's files and configuration."""
    return containers.unpack(image, session_directory / "runtime")


@pytest.fixture(scope="session")
def unpacked_dev(
    dev_image: images.Image, session_directory: Path
) -> containers.Unpacked:
    """Those of the image with SoftHSM2."""
    return containers.unpack(dev_image, session_directory / "dev")


@pytest.fixture
def run(directory: Path) -> Iterator[Callable[..., containers.Container]]:
    """Start containers; all are killed at the end."""
    started: list[containers.Container] = []

    def start(
        unpacked: containers.Unpacked, *arguments: str, state: Path | None = None
    ) -> containers.Container:
        folder = directory / f"container{len(started)}"
        started.append(containers.Container(folder, unpacked, arguments, state))
        return started[-1]

    yield start
    for container in started:
        container.remove()
