"""Run the steps of a rotation in their order, and write the journal."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from hsm_kms.cli.columns import aligned
from hsm_kms.cli.rotation.etcd_steps import ReEncrypt, Scan, Verify
from hsm_kms.cli.rotation.methods import method_for
from hsm_kms.cli.rotation.node_steps import Drop, Settle, Switch
from hsm_kms.cli.rotation.steps import RESUME
from hsm_kms.cli.rotation.token_steps import Generate, Retire
from hsm_kms.cli.streams import tell
from hsm_kms.clock import now, when
from hsm_kms.errors import CommandInterruptedError, ConfigError, HsmKmsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hsm_kms.cli.rotation.journal import JournalFile
    from hsm_kms.cli.rotation.steps import Step
    from hsm_kms.cli.rotation.world import World


class Run:
    """Run a rotation from wherever it stands.

    Args:
        file: Where the journal is kept.
        world: The rotation, and what the command was given.
        again: What to do to go on after the run has stopped.
    """

    def __init__(self, file: JournalFile, world: World, again: str = RESUME) -> None:
        self._file = file
        self._again = again
        self._world = world
        self._rotation = world.rotation
        self._method = method_for(world, file.progress)
        self._switch = Switch(world)
        self._steps: tuple[Step, ...] = (
            Generate(world),
            self._switch,
            Settle(world),
            ReEncrypt(world, self._method),
            Scan(world),
            Verify(world),
            Retire(world),
            Drop(world),
        )

    def plan(self) -> None:
        """Print what is seen now, and what each step would do; change nothing.

        Raises:
            HsmKmsError: The rotation could not begin now.
        """
        self._switch.require_readable()
        rows, done = [], True
        for step in self._steps:
            seen = step.look()
            done &= seen.done
            rows.append(("done" if done else "to do", step.name, seen.text))
        if not done:
            self._method.plan()  # which may not have been asked yet
        for line in aligned(rows):
            click.echo(line)

    def run(self) -> None:
        """Run every step that is not done.

        Raises:
            HsmKmsError: A step cannot be done now.
        """
        rotation = self._rotation
        rotation.stopped = None
        self._file.save(rotation)
        with self._recording():
            if rotation.done_step(ReEncrypt.name) is None:
                self._method.plan()
            for number, step in enumerate(self._steps):
                self._do(step, [each.name for each in self._steps[number + 1 :]])
        rotation.finished = when(now())
        rotation.tell("finished")
        self._file.save(rotation)
        click.echo(f"{rotation.new_key} has replaced {rotation.old_key}")
        tell(
            f"hint: from {when(now() + 86400)} on `hsm-kms keys destroy "
            f"{rotation.old_key}` can delete the old key, which is not necessary"
        )

    def _do(self, step: Step, later: list[str]) -> None:
        rotation = self._rotation
        self._world.forget()
        seen = step.look()
        if not seen.done:
            rotation.begin(step.name, later)
            self._file.save(rotation)
            seen = step.do()
            if not seen.done:
                raise HsmKmsError(f"{step.name}: {seen.text}")
        if rotation.done(step.name, seen.text):
            self._file.save(rotation)
        click.echo(f"✓ {step.name}: {seen.text}")

    @contextlib.contextmanager
    def _recording(self) -> Iterator[None]:
        """Record why the run stops, and say how to go on."""
        try:
            yield
        except KeyboardInterrupt as interrupt:
            self._stopped("interrupted")
            raise CommandInterruptedError(
                "interrupted", hint=self._again
            ) from interrupt
        except CommandInterruptedError as error:
            self._stopped(str(error))
            error.hint = self._again
            raise
        except ConfigError as error:
            self._stopped(str(error))
            raise
        except HsmKmsError as error:
            self._stopped(str(error))
            before = f"{error.hint}; then " if error.hint else ""
            error.hint = before + self._again
            raise

    def _stopped(self, why: str) -> None:
        self._rotation.stopped = why
        self._rotation.tell(f"stopped: {why}")
        with contextlib.suppress(HsmKmsError):  # the first error is the one to show
            self._file.save(self._rotation)
