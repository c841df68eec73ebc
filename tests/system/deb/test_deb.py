"""The Debian package: built, and installed and run in a bare Debian."""

from __future__ import annotations

import json
import re
import subprocess

from hsm_kms import __version__
from tests.harness.softhsm import PIN, SO_PIN
from tests.system.deb.conftest import build

AS_USER = "setpriv --reuid=hsm-kms --regid=hsm-kms --init-groups"
MODULE = "/usr/lib/softhsm/libsofthsm2.so"
UNIT = "/usr/lib/systemd/system/hsm-kms.service"

CONFIGURE = f"""
hsm-kms init /root/node --cluster none --module {MODULE} --yes
install -m 0644 /root/node/config.yaml /root/node/softhsm2.conf /etc/hsm-kms
echo {PIN} | install -m 0400 -o hsm-kms -g hsm-kms /dev/stdin /etc/hsm-kms/pin
"""
SERVE = f"""
export SOFTHSM2_CONF=/etc/hsm-kms/softhsm2.conf
{AS_USER} softhsm2-util --init-token --free --label k8s --pin {PIN} --so-pin {SO_PIN}
{AS_USER} hsm-kms serve >/root/log 2>&1 &
server=$!
{AS_USER} hsm-kms keys generate
until hsm-kms-healthcheck readyz; do kill -0 $server; sleep 1; done
{AS_USER} hsm-kms check
{AS_USER} hsm-kms probe --socket /run/hsm-kms/kms.sock
{AS_USER} hsm-kms status
kill $server
wait $server
"""
# What each shell does when somebody types Tab. In zsh, what would show the words, with
# their descriptions, prints them.
COMPLETIONS = {
    "bash": """
. /usr/share/bash-completion/completions/hsm-kms
COMP_WORDS=(hsm-kms keys re) COMP_CWORD=2
_hsm_kms_completion hsm-kms
printf '%s\\n' "${COMPREPLY[@]}"
""",
    "fish": "complete --do-complete 'hsm-kms keys re' | cut -f1",
    "zsh": """
autoload -U compinit && compinit -D
_describe() { print -l -- ${(P)3} }
words=(hsm-kms keys re) CURRENT=3
_hsm-kms
""",
}
STARTED = {"bash": "bash --norc", "fish": "fish", "zsh": "zsh -f"}


def test_installed(installed, package):
    """The programs run from any directory, as any user, and dpkg finds all files."""
    said = f"hsm-kms, version {__version__}\n"

    assert said == installed.run("hsm-kms --version")
    as_nobody = "setpriv --reuid=65534 --clear-groups hsm-kms --version"
    assert said == installed.run(as_nobody)
    assert "" == installed.run("dpkg --verify hsm-kms")
    assert "/opt/hsm-kms\n" == installed.run(
        "/opt/hsm-kms/bin/python -c 'import sys; print(sys.prefix)'"
    )
    depends = subprocess.run(
        ["dpkg-deb", "--field", package.deb, "Depends"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    minor = installed.run("python3 -c 'import sys; print(sys.version_info.minor)'")
    assert f"python3 (>= 3.{int(minor)}), python3 (<< 3.{int(minor) + 1})" in depends


def test_waits_for_its_configuration(installed):
    """User and directories are there; the service is neither enabled nor started."""
    assert "10001\n" == installed.run("id -u hsm-kms")
    shown = installed.run("stat -c '%a %U' /var/lib/hsm-kms /run/hsm-kms /etc/hsm-kms")
    assert ["700 hsm-kms", "700 hsm-kms", "750 root"] == shown.splitlines()
    enabled = "systemctl --root / is-enabled hsm-kms.service"
    assert "disabled\n" == installed.run(enabled, code=1)
    assert "" == installed.run("ls /etc/hsm-kms")
    assert "" == installed.run(f"systemd-analyze verify {UNIT}")


def test_compiled(installed):
    """Every module has bytecode, because the service cannot write it."""
    places = installed.run(
        "cd /opt/hsm-kms/lib/python3*/site-packages; find hsm_kms grpc -name '*.py'"
    )
    compiled = installed.run(
        "cd /opt/hsm-kms/lib/python3*/site-packages; find hsm_kms grpc -name '*.pyc'"
    )
    assert len(places.splitlines()) == len(compiled.splitlines()) > 100


def test_manual_pages(installed):
    """`man` finds a page for each command, and shows it without a warning."""
    shown = installed.run("man hsm-kms-keys-rotate | col -b")
    assert "hsm-kms keys rotate [OPTIONS]" in shown
    every = "for page in /usr/share/man/man1/hsm-kms*.1.gz; do"
    assert "" == installed.run(
        f"{every} man --warnings --local-file $page >/dev/null; done"
    )
    assert "hsm-kms-healthcheck" in installed.run("man --where hsm-kms-healthcheck")


def test_completion(installed):
    """Real bash, fish and zsh complete a command with the scripts of the package."""
    for shell, script in COMPLETIONS.items():
        (installed.path / "root" / "script").write_text(script)
        said = installed.run(f"{STARTED[shell]} /root/script")
        assert {"retire"} == {
            re.split("[:\t]", line)[0] for line in said.splitlines() if "ret" in line
        }, (shell, said)


def test_serves(own_root):
    """A configured server makes a key, is ready, and wraps what a client sends."""
    own_root.run(CONFIGURE)
    said = own_root.run(SERVE)

    assert "generated " in said
    assert "✗" not in said
    assert "healthz: ok\n" in said
    assert '"version":"' + __version__ in own_root.run("cat /root/log").replace(" ", "")

    # Installed once more, as an upgrade is, it keeps all of that; removed, too.
    deb = own_root.run("echo /root/hsm-kms_*.deb").strip()
    own_root.run(f"dpkg --install {deb}")
    own_root.run("dpkg --remove hsm-kms")
    own_root.run("test ! -e /opt/hsm-kms && test ! -e /usr/bin/hsm-kms")
    own_root.run("test -e /etc/hsm-kms/pin && test -e /etc/hsm-kms/config.yaml")
    own_root.run("ls /var/lib/hsm-kms/*")

    said = own_root.run("dpkg --purge hsm-kms")
    own_root.run("test ! -e /etc/hsm-kms && test ! -e /var/lib/hsm-kms")
    assert "kept /var/lib/hsm-kms-token" in said
    own_root.run("find /var/lib/hsm-kms-token -name token.object | grep .")


def test_purged(own_root):
    """Without tokens that are files, nothing is left after a purge."""
    own_root.run("dpkg --purge hsm-kms")

    # What other tests have shown with man is in a cache of man-db.
    places = "-not -path '/root/*' -not -path '/var/cache/man/*'"
    find = f"find / -xdev -name '*hsm-kms*' {places}"
    assert "" == own_root.run(find)


def test_sbom(installed, package):
    """The SBOM beside the package is the one in it, and has every Python package."""
    text = package.sbom.read_text()
    found = {each["name"] for each in json.loads(text)["components"]}

    assert text == installed.run("cat /usr/share/doc/hsm-kms/hsm-kms.cdx.json")
    assert {"click", "cryptography", "grpcio", "python-pkcs11"} <= found
    metadata = installed.run(
        "ls -d /opt/hsm-kms/lib/python3*/site-packages/*.dist-info"
    )
    assert len(metadata.splitlines()) == len(found) + 1


def test_lintian(package):
    """Lintian finds nothing besides what the package's overrides explain."""
    ended = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error,warning", package.deb],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    assert (0, "") == (ended.returncode, ended.stdout)


def test_reproducible(package, scratch):
    """Another directory and another umask make the same package."""
    (scratch / "other").mkdir()
    other = build(scratch / "other", 0o077)

    assert package.deb.read_bytes() == other.deb.read_bytes()
