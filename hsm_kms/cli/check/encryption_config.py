"""Check an EncryptionConfiguration against this plugin, for `--encryption-config`."""

from __future__ import annotations

import errno
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from hsm_kms.cli.check import encryption_lists as lists
from hsm_kms.cli.check import encryption_rules as rules
from hsm_kms.cli.check.encryption_schema import FileError, parse
from hsm_kms.cli.report import because
from hsm_kms.errors import ConfigError, HsmKmsError
from hsm_kms.etcd.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from hsm_kms.cli.check.encryption_schema import EncryptionConfiguration
    from hsm_kms.cli.report import Report
    from hsm_kms.config.schema import Config

FILE: Final = "encryption-config"
NAME: Final = "encryption-config-name"
API: Final = "encryption-config-api"
ENDPOINT: Final = "encryption-config-endpoint"
TIMEOUT: Final = "encryption-config-timeout"
CACHESIZE: Final = "encryption-config-cachesize"
ORDER: Final = "encryption-config-order"
RESOURCES: Final = "encryption-config-resources"
STEPS: Final = (FILE, NAME, API, ENDPOINT, TIMEOUT, CACHESIZE, ORDER, RESOURCES)
_OF_PLUGINS: Final = (NAME, API, TIMEOUT, CACHESIZE)
_WHAT: Final = "EncryptionConfiguration"
_STDIN: Final = Path("-")

file_option = click.option(
    "--encryption-config",
    "encryption",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Check this EncryptionConfiguration against the configuration; - is stdin.",
)


class EncryptionFile:
    """Hold an EncryptionConfiguration, read once: stdin cannot be read again.

    Args:
        path: The file; - is stdin.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text = ""
        self._failure: HsmKmsError | None = None
        try:
            data = sys.stdin.buffer.read() if path == _STDIN else path.read_bytes()
            self._text = data.decode()
        except OSError as error:
            self._failure = _unreadable(path, error)
        except UnicodeDecodeError:
            self._failure = HsmKmsError(f"{path} is not UTF-8 text")

    def check(self, report: Report, config: Config) -> None:
        """Check it.

        Args:
            report: Takes the findings.
            config: The configuration of hsm-kms.
        """
        found = self._parse(report)
        if found is None:
            report.skip(STEPS[1:], because(FILE))
            return
        where = "on stdin" if self._path == _STDIN else str(self._path)
        report.ok(FILE, f"{_WHAT} {where}")
        plugins = rules.plugins(found, config)
        for step, judge, said in _steps(found, plugins, config):
            if step in _OF_PLUGINS and not plugins:
                report.skip([step], "there is no KMS provider")
            elif step == ORDER and not any(each.is_ours for each in plugins):
                report.skip([step], because(ENDPOINT))
            else:
                _note(report, step, judge(), said)

    def _parse(self, report: Report) -> EncryptionConfiguration | None:
        """Return the content; None if the report has what is wrong with it."""
        if self._failure is not None:
            report.fail(FILE, _WHAT, self._failure)
            return None
        try:
            found = parse(self._text)
        except (ConfigError, FileError) as error:
            for fault in error.faults:
                report.fail(FILE, _WHAT, HsmKmsError(fault))
            return None
        wrong = list(lists.providers(found))
        _note(report, FILE, wrong, "")
        return None if wrong else found


def _unreadable(path: Path, error: OSError) -> HsmKmsError:
    cause = f"{path} cannot be read: {error.strerror}"
    if error.errno != errno.EACCES:
        return HsmKmsError(cause)
    # It may contain keys of other providers, so only root can read it as a rule.
    hint = f"have root give it on stdin: --encryption-config - < {path}"
    return HsmKmsError(cause, hint=hint)


_Step = tuple[str, "Callable[[], Iterable[rules.Verdict]]", str]


def _steps(
    found: EncryptionConfiguration, plugins: list[rules.Plugin], config: Config
) -> list[_Step]:
    """Return each step after the first: its rule, and what is said if it passes."""
    names = ", ".join(printable(each.kms.name) for each in plugins)
    apis = " and ".join(sorted({each.api for each in plugins}))
    timeouts = ", ".join(each.kms.timeout or "3s" for each in plugins)
    listed = ", ".join(printable(each) for e in found.resources for each in e.resources)
    return [
        (
            NAME,
            partial(rules.names, plugins),
            f"name {names}: a part of every stored value, which must never change",
        ),
        (API, partial(rules.apis, plugins, config), f"KMS API {apis}"),
        (
            ENDPOINT,
            partial(rules.endpoints, plugins, config),
            f"endpoint unix://{config.listen.socket}",
        ),
        (TIMEOUT, partial(rules.timeouts, plugins, config), f"timeout {timeouts}"),
        (CACHESIZE, partial(rules.cachesizes, plugins), "cachesize fits the KMS API"),
        (ORDER, partial(lists.order, found, config), "hsm-kms first, without identity"),
        (RESOURCES, partial(lists.resources, found), f"resources {listed}"),
    ]


def _note(
    report: Report, step: str, verdicts: Iterable[rules.Verdict], said: str
) -> None:
    """Note what a rule found, or what is said if it found nothing."""
    passed = True
    for each in verdicts:
        passed = False
        what = f"{_WHAT}: {each.place}"
        if each.fails:
            report.fail(step, what, HsmKmsError(each.cause, hint=each.cure))
        else:
            report.warn(step, f"{what}: {each.cause}", each.cure)
    if passed and said:
        report.ok(step, f"{_WHAT}: {said}")
