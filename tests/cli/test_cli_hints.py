"""Test that hints lead somewhere else, and to commands and options that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import hsm_kms
from hsm_kms import errors
from hsm_kms.cli import cli
from hsm_kms.cli.hints import _GROUPS, _WITHOUT_CONFIG, leading_on
from hsm_kms.ipc import ckr
from hsm_kms.ipc.messages import Failure
from hsm_kms.token.errors import TABLE, error_from
from hsm_kms.token.process import Worker
from tests.cli.every_command import COMMANDS, USE_THE_TOKEN
from tests.harness.command_line import run
from tests.harness.plugin import beside
from tests.harness.softhsm import SoftHsm, softhsm_module

PACKAGE = Path(hsm_kms.__file__).parent
NAMED = re.compile("`hsm-kms ([a-z][^`]+)`")


def texts():
    """Yield every text of the package, with X for what is filled in."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                parts = (getattr(part, "value", "X") for part in node.values)
                yield "".join(part if isinstance(part, str) else "X" for part in parts)


HINTS = sorted({text for text in texts() if NAMED.search(text) and "\n" not in text})


def named_in(text):
    """Yield each command that a text names, and the options that it gives."""
    for words in map(str.split, NAMED.findall(text)):
        name = tuple(words[:2]) if words[0] in _GROUPS else (words[0],)
        if "X" not in name and name not in {(group,) for group in _GROUPS}:
            yield name, [word for word in words if word.startswith("-")]


@pytest.fixture
def failing(directory: Path, pin_file, monkeypatch):
    """Run a command whose worker cannot start, and return all that it prints."""
    plugin = beside(SoftHsm(directory / "hsm"), pin_file, token={"shared": True})

    def fails(command, error):
        async def spawn(*_args, **_more):
            raise error

        monkeypatch.setattr(Worker, "spawn", spawn)
        config = ("--config", plugin.config_file)
        ended = run(*command, *USE_THE_TOKEN[command], *config)
        assert 1 == ended.returncode, (command, ended)
        return ended.stdout + ended.stderr

    return fails


def classes(kind=errors.HsmKmsError):
    for each in kind.__subclasses__():
        yield each
        yield from classes(each)


def test_every_command_that_uses_the_token_is_known():
    """The groups and the table above are those of the command line."""
    groups = {name for name, each in cli.commands.items() if hasattr(each, "commands")}
    without_token = {"init", "serve", "status", "probe", "nodes", "migrate"}
    without_token |= {"completion", "config", "etcd"}
    of_a_journal = {("rotation", "resume"), ("rotation", "status")}

    assert groups == _GROUPS
    assert USE_THE_TOKEN.keys() == {
        name for name in COMMANDS.keys() - of_a_journal if name[0] not in without_token
    }


def test_no_hint_leads_back(failing):
    """Whatever error ends a command, its hint does not name that command."""
    for command in USE_THE_TOKEN:
        name = " ".join(command)
        said = failing(
            command, errors.TokenError("x", hint=f"mend it; run `hsm-kms {name} --x`")
        )
        assert f"`hsm-kms {name}" not in said, said
        assert "hint: mend it\n" in said, said
    for kind in classes():
        if kind is errors.ConfigError or kind.__module__ != "hsm_kms.errors":
            continue
        said = failing(("check",), kind("x", hint="run `hsm-kms check` for more"))
        assert "`hsm-kms check`" not in said, kind


def test_hints_of_the_package(failing):
    """No hint that the package has leads back, and each names what there is."""
    assert HINTS
    for hint in HINTS:
        for name, options in named_in(hint):
            assert name in COMMANDS, hint
            known = {o for p in COMMANDS[name].params for o in p.opts} | {"--help"}
            assert {option.split("=")[0] for option in options} <= known, hint
            if name in USE_THE_TOKEN and "--help" not in hint:
                said = failing(name, errors.TokenError("x", hint=hint))
                assert f"`hsm-kms {' '.join(name)}" not in said, hint


def test_causes_have_hints_that_help(failing):
    """The hints of failures of a token name no command that `check` would repeat.

    A function or a return value that says more has a hint of its own.
    """
    for cause in TABLE:
        error = error_from(Failure(cause=str(cause), detail="it failed"))
        assert "`hsm-kms check`" not in str(error.hint), cause
    for name, hint in {
        "CKR_USER_TYPE_INVALID": "correct token.login",
        "CKR_SESSION_READ_ONLY": "set token.read_write: true",
    }.items():
        rv = ckr.BY_NAME[name]
        failure = Failure(cause=ckr.fault(rv), detail=name, function="C_X", rv=rv)
        assert hint == error_from(failure).hint
        assert f"hint: {hint}\n" in failing(("check",), error_from(failure))


@pytest.mark.parametrize(
    ("running", "hint", "shown"),
    [
        ("check", "run `hsm-kms check`", None),
        ("keys list", "restore it: see `hsm-kms keys list`", "restore it"),
        ("keys list", "run `hsm-kms keys rotate`", "run `hsm-kms keys rotate`"),
        ("keys retire X", "run `hsm-kms keys retire Y`, then wait", "wait"),
        ("check --x", "see `hsm-kms check --help`", "see `hsm-kms check --help`"),
        ("check", None, None),
        ("", "run `hsm-kms check`", "run `hsm-kms check`"),
    ],
)  # fmt: skip
def test_leading_on(monkeypatch, running, hint, shown):
    """Only the part of a hint that names the running command is left out."""
    monkeypatch.setattr("sys.argv", ["hsm-kms", *running.split()])

    assert shown == leading_on(hint)


@pytest.mark.parametrize(
    ("running", "hint", "shown"),
    [
        ("check --config x y", "run `hsm-kms token list`", "--config x`"),
        ("check --config=x", "run `hsm-kms keys list -o json`", "-o json --config x`"),
        ("check --config=x", "run `hsm-kms keys list` or wait", "--config x` or wait"),
        ("check --config=x$y", "run `hsm-kms keys list`", "--config 'x$y'`"),
        ("check --config=x", "run `hsm-kms migrate`", "run `hsm-kms migrate`"),
        ("rotation start --journal=j", "`hsm-kms rotation resume`", "me --journal j`"),
        (
            "rotation status --config x --journal j",
            "run `hsm-kms rotation resume`",
            "run `hsm-kms rotation resume --config x --journal j`",
        ),
        ("rotation start --journal j", "run `hsm-kms keys list`", "hsm-kms keys list`"),
        ("check --config=x", "see `hsm-kms keys --help`", "see `hsm-kms keys --help`"),
    ],
)  # fmt: skip
def test_the_same_configuration(monkeypatch, running, hint, shown):
    """The command of a hint gets the --config that was given, if it takes one."""
    monkeypatch.setattr("sys.argv", ["hsm-kms", *running.split()])

    assert (leading_on(hint) or "").endswith(shown)


def test_commands_without_a_configuration():
    """Every other command takes --config."""
    assert _WITHOUT_CONFIG == {
        name
        for name, each in COMMANDS.items()
        if "--config" not in {option for param in each.params for option in param.opts}
    }


def test_module_that_cannot_start(directory, pin_file):
    """If the module has no configuration, or shows no token, the cause is named."""
    hsm = SoftHsm(directory / "hsm")
    plugin = beside(hsm, pin_file)
    empty = [plugin.cli("check"), run("token", "list", "--config", plugin.config_file)]
    (directory / "broken.conf").write_text("directories.tokendir = /nowhere\n")
    broken, absent = (
        run(
            *("token", "list", "--module", softhsm_module()),
            *("--env", f"SOFTHSM2_CONF={directory}/{name}"),
        )
        for name in ("broken.conf", "none")
    )

    for ended in empty:
        said = ended.stdout + ended.stderr
        assert "the module shows no initialised token" in said
        assert "the files of its tokens are intact and readable" in said
    assert "no token matches token_label 'test'; to user " in empty[0].stdout
    assert "C_Initialize returned CKR_GENERAL_ERROR" in broken.stderr
    assert "hint: see whether its configuration (token.env)" in broken.stderr
    assert f"SOFTHSM2_CONF names {directory}/none: No such file" in absent.stderr


def test_module_that_is_missing(directory, pin_file):
    """Every command that uses the token says where a missing module is."""
    missing = {"module": "/nowhere/libsofthsm2.so", "shared": True}
    plugin = beside(SoftHsm(directory / "hsm"), pin_file, token=missing)
    config = ("--config", plugin.config_file)
    for command, arguments in USE_THE_TOKEN.items():
        ended = run(*command, *arguments, *config)
        said = ended.stdout + ended.stderr
        assert "/nowhere/libsofthsm2.so: No such file or directory\n" in said, command
        assert f"hint: set token.module to {softhsm_module()}\n" in said, command
