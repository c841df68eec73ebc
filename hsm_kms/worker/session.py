"""Run requests on one PKCS#11 session, with the key handles found on it.

A request names the fingerprint of its key, and never runs under another key.
`worker.healing` decides what happens after a failure.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeAlias, assert_never

from pkcs11.exceptions import PKCS11Error

from hsm_kms.ipc.ckr import Cause, Fault
from hsm_kms.ipc.messages import (
    CheckKey,
    Configure,
    Decrypt,
    Decrypted,
    Destroy,
    Done,
    Encrypt,
    Encrypted,
    Failure,
    FindKeys,
    GenerateKey,
    GenerateRandom,
    GenerateSessionKey,
    KeyPage,
    Leave,
    ListTokens,
    Login,
    OpenSession,
    Probe,
    Probed,
    Random,
    Relabel,
    Reply,
    Request,
    RunCanary,
    Tokens,
)
from hsm_kms.ipc.values import Cipher
from hsm_kms.worker import (
    canary,
    healing,
    identity,
    mechanism_probe,
    mechanisms,
    objects,
)
from hsm_kms.worker.errors import WorkerError, from_pkcs11
from hsm_kms.worker.handles import Handles
from hsm_kms.worker.listing import Listing

if TYPE_CHECKING:
    from pkcs11 import Session

    from hsm_kms.worker.handles import KnownGood
    from hsm_kms.worker.mechanisms import Keyed
    from hsm_kms.worker.module import Module

_OnKey: TypeAlias = Encrypt | Decrypt | RunCanary | Probe


class TokenSession:
    """Hold a PKCS#11 session and the key handles found on it, for one thread alone.

    Args:
        module: The module of this process.
        known_good: A canary for each key; all sessions of the process share the
            dictionary, which needs no lock: an entry is replaced, never changed.
    """

    def __init__(self, module: Module, known_good: KnownGood) -> None:
        self._module = module
        self._cryptoki = module.cryptoki
        self._known_good = known_good
        self._session: Session | None = None
        self._handles = Handles(module, known_good)
        self._listing: Listing | None = None

    def answer(self, request: Request) -> Reply:
        """Return the reply to one request; never raises."""
        try:
            return healing.answer(self, request)
        except WorkerError as error:
            return error.as_message()
        except PKCS11Error as error:
            return from_pkcs11("", error).as_message()
        except Exception as error:  # noqa: BLE001 - a bug must not end the thread
            return Failure(cause=Cause.INTERNAL, detail=type(error).__name__)

    def run(self, request: Request) -> Reply:  # noqa: C901, PLR0911, PLR0912 - an arm each
        """Run a request once.

        Raises:
            WorkerError: It failed.
        """
        match request:
            case Encrypt(mechanism=how, aad=aad, plaintext=plaintext):
                on = self._key(request, how.cipher)
                iv, ciphertext = mechanisms.encrypt(on, how, aad, plaintext)
                return Encrypted(iv=iv, ciphertext=ciphertext)
            case Decrypt():
                return Decrypted(plaintext=self._decrypt(request))
            case GenerateRandom(count=count):
                return Random(data=self._cryptoki.random(self._handle, count))
            case CheckKey():
                return self._check_key(request)
            case RunCanary():
                return self._run_canary(request)
            case Probe(paired=paired, wanted=wanted):
                on = self._key(request, Cipher.CBC_HMAC if paired else Cipher.GCM)
                return Probed(mechanism=mechanism_probe.probe(on, wanted))
            case FindKeys():
                return self._list(request)
            case GenerateKey():
                made = objects.generate(self._cryptoki, self._open(), request)
                return KeyPage(keys=() if made is None else (made,))
            case GenerateSessionKey():
                return self._generate_own(request)
            case Relabel():
                key = self._handles.object(self._handle, request)
                objects.relabel(self._cryptoki, self._handle, key, request)
                return self._changed()
            case Destroy():
                key = self._handles.object(self._handle, request)
                objects.destroy(self._cryptoki, self._handle, key)
                return self._changed()
            case Login():
                self._module.login(self._open(), request)
                return Done()
            case OpenSession():
                self._open()
                return Done()
            case ListTokens():
                return Tokens(tokens=self._module.tokens())
            case Configure() | Leave():
                raise WorkerError(Cause.INTERNAL, "the request is not for a session")
        assert_never(request)

    def _open(self) -> Session:
        if self._session is None:
            self._session = self._module.open_session()
        return self._session

    @property
    def _handle(self) -> int:
        return objects.handle_of(self._open())

    def _key(self, request: _OnKey, cipher: Cipher) -> Keyed:
        name = request.ref, request.fingerprint, cipher is Cipher.CBC_HMAC
        return self._handles.key(self._handle, name, cipher)

    def _generate_own(self, request: GenerateSessionKey) -> KeyPage:
        """Generate a key for this session, and keep its handle: no search finds it."""
        on = objects.generate_own(self._cryptoki, self._open(), request)
        seen = identity.describe_own(on, request, by_cka_id=self._module.by_cka_id)
        self._handles.add({(seen.ref, seen.fingerprint or "", request.paired): on})
        return KeyPage(keys=(seen,))

    def _check_key(self, request: CheckKey) -> Done:
        self._require_login()
        paired = request.cipher is Cipher.CBC_HMAC
        name = request.ref, request.fingerprint, paired
        self._handles.check(self._handle, name, request.cipher)
        return Done()

    def _list(self, request: FindKeys) -> KeyPage:
        """Return one page of keys; only the first pages search the token.

        The session forgets the handles of these keys, and uses those that the listing
        found.
        """
        self._require_login()
        label = None if request.prefix else request.label
        if self._listing is None or request.skip is None:
            self._handles.list_anew(label)
            self._listing = Listing(
                self._cryptoki,
                self._handle,
                request,
                by_cka_id=self._module.by_cka_id,
                needs_login=self._module.needs_login,
                recalled=self._handles.recalled(),
            )
        listing = self._listing
        page = listing.page(request.skip or 0, request.limit)
        self._handles.add(listing.identified)
        if listing.spoiled:
            self.reopen()
            listing.go_on_in(self._handle)
            self._listing = listing
        elif page.next is None:
            self._handles.end_listing(label, listing.identified)
            self._listing = None
        return page

    def _changed(self) -> Done:
        self._forget_keys()
        return Done()

    def _forget_keys(self) -> None:
        self._handles.clear()
        self._listing = None

    def _decrypt(self, request: Decrypt) -> bytes:
        on = self._key(request, request.cipher)
        return mechanisms.decrypt(
            on, request.cipher, request.aad, request.iv, request.ciphertext
        )

    def _run_canary(self, request: RunCanary) -> Encrypted:
        cipher = request.mechanism.cipher
        iv, ciphertext = canary.run(self._key(request, cipher), request)
        # Kept by one assignment: other sessions read the dictionary meanwhile.
        self._known_good[request.fingerprint, cipher] = Decrypt(
            ref=request.ref,
            fingerprint=request.fingerprint,
            cipher=cipher,
            aad=request.aad,
            iv=iv,
            ciphertext=ciphertext,
        )
        return Encrypted(iv=iv, ciphertext=ciphertext)

    def known_good(self, request: Decrypt) -> Decrypt | None:
        """Return the last canary under the key of `request`, None if there is none."""
        return self._known_good.get((request.fingerprint, request.cipher))

    def reopen(self) -> None:
        """Replace the session by a new one.

        Raises:
            WorkerError: C_OpenSession failed.
        """
        # The new one first: closing the last session of a process logs it out.
        old, self._session = self._session, None
        self._forget_keys()
        try:
            self._open()
        except WorkerError as error:
            if old is None or error.cause != Fault.CAPACITY:
                raise
            # The token has no room for two: once the old session is closed, the next
            # call opens one.
        finally:
            if old is not None:
                with contextlib.suppress(PKCS11Error):
                    old.close()

    def find_again(self, error: WorkerError) -> None:
        """Drop all key handles, to find them again if the user is logged in.

        Args:
            error: The failure that may come from stale handles.

        Raises:
            WorkerError: The user is no longer logged in.
        """
        self._forget_keys()
        self._require_login(error)

    def _require_login(self, error: WorkerError | None = None) -> None:
        """Refuse to search without a login: private keys would seem to be missing."""
        if not self.logged_in():
            raise WorkerError(
                Fault.LOGIN,
                "the session is no longer logged in",
                function=error.function if error else "C_GetSessionInfo",
                rv=error.rv if error else None,
            )

    def logged_in(self) -> bool:
        """Return True if C_GetSessionInfo says so, or if no login is needed."""
        return not self._module.needs_login or self._cryptoki.logged_in(self._handle)
