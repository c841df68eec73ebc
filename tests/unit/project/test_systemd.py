"""Test manifests/systemd/ with systemd's own tools, and against the other manifests."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hsm_kms.token.pin_file import CREDENTIALS

ROOT = Path(__file__).parents[3]
SYSTEMD = ROOT / "manifests" / "systemd"
UNIT = SYSTEMD / "hsm-kms.service"
MOST_EXPOSED = 20  # tenths, of 100; 15 to systemd 252: network, devices, users


@pytest.fixture(scope="module")
def analyze():
    """Run systemd-analyze, and return its exit code and all that it prints."""
    tool = shutil.which("systemd-analyze") or pytest.skip(
        "no systemd-analyze: run tests/packages.sh"
    )

    def run(*arguments):
        ended = subprocess.run(
            [tool, "--no-pager", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return ended.returncode, ended.stdout

    return run


def directives(path):
    """Return the settings of a unit with all their values, in order."""
    found = {}
    for line in path.read_text().splitlines():
        name, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def unit():
    return directives(UNIT)


def test_systemd_takes_the_unit(analyze, tmp_path):
    """`systemd-analyze verify` finds nothing in the unit, nor with its drop-in."""
    text = UNIT.read_text().replace("/opt/hsm-kms/bin/hsm-kms", "/bin/true")
    copy = tmp_path / UNIT.name
    copy.write_text(text)

    assert (0, "") == analyze("verify", copy)

    dropped = tmp_path / "hsm-kms.service.d"
    dropped.mkdir()
    shutil.copy(SYSTEMD / "pin-credential.conf", dropped)
    assert (0, "") == analyze("verify", copy)
    (dropped / "odd.conf").write_text("[Service]\nLoadCredentials=pin\n")
    assert "LoadCredentials" in analyze("verify", copy)[1]


def test_exposure(analyze):
    """`systemd-analyze security` rates the unit as little exposed as it ever was."""
    code, shown = analyze(
        "security", "--offline=true", f"--threshold={MOST_EXPOSED}", UNIT
    )

    assert 0 == code, shown[-400:]


def test_users_and_directories(analyze, tmp_path):
    """The user and the directories are those that the manifests describe."""
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    sysusers = SYSTEMD / "sysusers.d" / "hsm-kms.conf"
    made = subprocess.run(
        ["systemd-sysusers", f"--root={root}", str(sysusers)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == made.returncode, made.stderr
    passwd = (root / "etc" / "passwd").read_text()
    tmpfiles = (ROOT / "manifests" / "tmpfiles.d" / "hsm-kms.conf").read_text()
    owned = dict(re.findall(r"^d (\S+) +(\d+ 10001 +10001) ", tmpfiles, re.MULTILINE))

    assert re.search(r"^hsm-kms:x:10001:10001:", passwd, re.MULTILINE)
    modes = {path: int(row.split()[0], 8) for path, row in owned.items()}
    assert modes["/run/hsm-kms"] == int(unit()["RuntimeDirectoryMode"][0], 8)
    assert modes["/var/lib/hsm-kms"] == int(unit()["StateDirectoryMode"][0], 8)
    assert ["hsm-kms"] == unit()["User"] == unit()["Group"] == unit()["StateDirectory"]
    assert ["hsm-kms"] == unit()["RuntimeDirectory"]
    assert "/var/lib/hsm-kms-token" in owned
    assert ["-/var/lib/hsm-kms-token"] == unit()["ReadWritePaths"]


def test_the_socket_directory_outlives_a_stop():
    """A kube-apiserver that has the directory mounted sees the next socket in it."""
    assert ["yes"] == unit()["RuntimeDirectoryPreserve"]


def test_kubernetes_starts_after_it():
    """Whatever starts the API server is ordered after the socket; nothing before."""
    assert [
        "kubelet.service kube-apiserver.service k3s.service rke2-server.service"
    ] == unit()["Before"]
    assert {"After", "Requires", "Wants"}.isdisjoint(unit())


def test_only_the_server_is_told_to_stop():
    """Workers get no SIGTERM of their own, which would interrupt a login."""
    assert ["mixed"] == unit()["KillMode"]


def test_the_credential_is_known_as_one():
    """The path that the drop-in names is where hsm-kms expects credentials."""
    text = (SYSTEMD / "pin-credential.conf").read_text()
    path = Path(re.search(r"pin_file: (\S+)", text)[1])

    assert path.is_relative_to(CREDENTIALS)
    assert UNIT.name == path.parent.name
    assert [f"{path.name}:/etc/hsm-kms/pin.cred"] == directives(
        SYSTEMD / "pin-credential.conf"
    )["LoadCredentialEncrypted"]
