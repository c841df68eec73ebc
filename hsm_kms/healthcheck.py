"""Answer the kubelet's probes: `hsm-kms-healthcheck livez|readyz [ADMIN_SOCKET]`.

1. A probe runs in the container and asks the admin socket, which lies in a directory
   where only hsm-kms may write. A TCP port could be taken by any process of the node.
2. `livez` fails only if a server that listens does not answer. If none listens, the
   server is starting, has ended, or could not make the socket: the kubelet notices the
   end of a process without a probe, and a restart cures nothing else. `livez` does not
   depend on the token.
3. `readyz` fails unless the server says that it can encrypt and decrypt.
4. The kubelet starts this program every few seconds, so it imports nothing that takes
   long: neither `socket` nor `argparse`, and nothing else of hsm-kms.
"""

from __future__ import annotations

import os
import sys
from _socket import AF_UNIX, SOCK_STREAM, socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, NoReturn

ADMIN_SOCKET: Final = "/run/hsm-kms/admin.sock"  # the default of http.admin_socket
SECONDS: Final = 3.0  # less than timeoutSeconds of the probes in manifests/

_PAGES: Final = ("livez", "readyz")
_USAGE: Final = "usage: hsm-kms-healthcheck livez|readyz [ADMIN_SOCKET]"
_MOST_BYTES: Final = 65536


def main() -> NoReturn:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Ask for one page, print what the server says, and return the exit code.

    Args:
        arguments: Name of the page, and the admin socket unless it is the default.

    Returns:
        0 if the probe succeeds, 1 if it fails, 2 for wrong usage.
    """
    if len(arguments) not in {1, 2} or arguments[0] not in _PAGES:
        sys.stderr.write(f"{_USAGE}\n")
        return 2
    page, path, *_ = (*arguments, ADMIN_SOCKET)
    succeeds, text = probe(page, path)
    _tell(text)
    return 0 if succeeds else 1


def _tell(text: str) -> None:
    """Print what the kubelet shows in the event of a failed probe, if anybody reads.

    The exit code is the answer: a server that is well is not restarted because nobody
    takes the text.
    """
    try:
        # sys.stdout would try once more when Python ends, which then exits with 120.
        os.write(1, f"{text}\n".encode(errors="surrogateescape"))
    except OSError:
        return


def probe(page: str, path: str) -> tuple[bool, str]:
    """Return True if the probe succeeds, and the reason or the text of the page.

    Args:
        page: Name of the page: "livez" or "readyz".
        path: The admin socket.
    """
    connection = socket(AF_UNIX, SOCK_STREAM)
    connection.settimeout(SECONDS)
    try:
        return _connected(connection, page, path)
    finally:
        connection.close()


def _connected(connection: socket, page: str, path: str) -> tuple[bool, str]:
    try:
        connection.connect(path)
    except BlockingIOError:
        return False, f"the server on {path} accepts no connection: its queue is full"
    except OSError as error:
        # The server has not hung, but it is not ready either.
        return page == "livez", f"no server listens on {path}: {_cause(error)}"
    try:
        connection.sendall(f"GET /{page} HTTP/1.0\r\n\r\n".encode())
        head, _, body = _read(connection).partition(b"\r\n\r\n")
    except OSError as error:
        cause = error.strerror or f"nothing came for {SECONDS:g} s"
        return False, f"the server on {path} does not answer: {cause}"
    if not head.startswith(b"HTTP/1."):
        return False, f"the server on {path} does not speak HTTP"
    return head.split()[1:2] == [b"200"], body.decode(errors="replace").strip()


def _cause(error: OSError) -> str:
    return error.strerror or str(error)  # a path that is too long has no errno


def _read(connection: socket) -> bytes:
    """Return what the server sends until it closes the connection."""
    received = b""
    while len(received) < _MOST_BYTES:
        piece = connection.recv(_MOST_BYTES)
        if not piece:
            break
        received += piece
    return received


if __name__ == "__main__":
    main()
