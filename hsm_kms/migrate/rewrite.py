"""List objects page by page, and send each object back unchanged.

1.  An object is sent back byte for byte, with its uid and resourceVersion. If it was
    changed, or replaced by another object of the same name, the response is a conflict,
    and the object is read again. A deleted object is not restored.
2.  The API server writes an unchanged object only if its stored form would change: it
    is stored under another key, by another provider, or unencrypted. Then the
    resourceVersion changes; otherwise the object was up to date.
3.  A refused object does not stop the migration, but many refused objects in a row do.
"""

from __future__ import annotations

import http
import time
import urllib.parse
from typing import TYPE_CHECKING, Final

import msgspec

from hsm_kms.migrate.api import ApiError, ListMeta, decoded, refused
from hsm_kms.migrate.journal import MAX_LISTED, Counts, Outcome, Refused
from hsm_kms.migrate.refusals import why_not

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from hsm_kms.migrate.api import Answer, Api
    from hsm_kms.migrate.journal import Journal
    from hsm_kms.migrate.resources import Resource

PAGE: Final = 100  # objects; a Secret has up to 1 MiB
CONFLICTS: Final = 10  # tries for an object that another client keeps changing
REFUSED_IN_A_ROW: Final = 20  # after these the cause is not in the objects

_LISTS: Final = 5  # tries for a list whose `continue` token has expired
_OUT_OF_DATE: Final = {http.HTTPStatus.GONE, http.HTTPStatus.BAD_REQUEST}


class _Meta(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class _RefusedError(Exception):
    """Raised when an object was not written; the text does not quote the object."""

    def __init__(self, why: str, code: int = 0) -> None:
        super().__init__(why)
        self.code = code


class _Object(msgspec.Struct, frozen=True):
    metadata: _Meta


class _Page(msgspec.Struct, frozen=True):
    metadata: ListMeta
    items: list[msgspec.Raw] | None = None


class Pace:
    """Limit the rate of writes.

    Args:
        rate: Most objects per second.
    """

    def __init__(self, rate: float) -> None:
        self._each = 1 / rate
        self._next = time.monotonic()

    def wait(self) -> None:
        """Wait until the next object may be written."""
        pause = self._next - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        self._next = max(self._next, time.monotonic()) + self._each


class Watcher:
    """Receive the progress of a migration; this base class ignores it."""

    def page(self, resource: Resource, objects: int, left: int) -> None:
        """Note that a page was listed.

        Args:
            resource: Resource of the objects.
            objects: Number of objects in the page.
            left: Number of objects after the page; 0 if the API server does not say.
        """

    def done(self) -> None:
        """Note that one object is done."""


class Migration:
    """Send objects back, so that the API server re-encrypts them.

    Args:
        api: The API server.
        journal: The progress; updated during the run.
        save: Function that saves the journal; called before each page.
        pace: Limit of the rate.
        dry_run: Send dry-run requests, so that the API server writes nothing.
    """

    def __init__(
        self,
        api: Api,
        journal: Journal,
        *,
        save: Callable[[], None],
        pace: Pace,
        dry_run: bool = False,
    ) -> None:
        self._api = api
        self._journal = journal
        self._save = save
        self._pace = pace
        self._query = {"dryRun": "All"} if dry_run else {}
        self._in_a_row = 0

    def run(self, resources: Sequence[Resource], watcher: Watcher) -> None:
        """Migrate the resources, from where the journal stands.

        Args:
            resources: The resources, in the same order in each run.
            watcher: Receives the progress.

        Raises:
            HsmKmsError: The migration cannot go on; the journal has the progress.
        """
        names = [str(resource) for resource in resources]
        start = names.index(self._journal.at) if self._journal.at in names else 0
        for resource in resources[start:]:
            self._rewrite_all(resource, watcher)
            self._journal.token = ""

    def _rewrite_all(self, resource: Resource, watcher: Watcher) -> None:
        journal = self._journal
        journal.at = str(resource)
        for page in self._pages(resource):
            counts = journal.counts.setdefault(journal.at, Counts())
            items = page.items or []
            watcher.page(resource, len(items), page.metadata.remaining_item_count or 0)
            for item in items:
                self._rewrite_one(resource, bytes(item), counts)
                watcher.done()

    def _pages(self, resource: Resource) -> Iterator[_Page]:
        journal = self._journal
        while True:
            self._save()
            page = self._page(resource)
            yield page
            journal.token = page.metadata.token
            if not journal.token:
                return

    def _page(self, resource: Resource) -> _Page:
        """Return the page at which the journal stands.

        If listing takes longer than etcd keeps old revisions, the list continues at a
        later revision. Objects created in between are encrypted with the new key
        already.
        """
        path = resource.path(self._journal.scope.namespace)
        answer = self._listed(path)
        for _ in range(_LISTS):
            token = self._journal.token
            if not token or answer.code not in _OUT_OF_DATE:
                break
            status = answer.status
            later = status.metadata.token if status and status.metadata else ""
            self._journal.token = later if later != token else ""
            answer = self._listed(path)
        if answer.code != http.HTTPStatus.OK:
            raise refused(f"list {resource}", answer)
        return decoded(answer.body, _Page)

    def _listed(self, path: str) -> Answer:
        token = self._journal.token
        query = {"limit": str(PAGE)} | ({"continue": token} if token else {})
        return self._api.get(path, **query)

    def _rewrite_one(self, resource: Resource, item: bytes, counts: Counts) -> None:
        meta = decoded(item, _Object).metadata
        self._pace.wait()
        try:
            counts.add(self._send_back(resource, meta, item))
        except _RefusedError as error:
            counts.add(Outcome.REFUSED)
            if self._journal.listed < MAX_LISTED:
                counts.refusals.append(Refused(object=str(meta), reason=str(error)))
            self._in_a_row += 1
            self._stop_if_hopeless(resource, error)
        else:
            self._in_a_row = 0

    def _send_back(self, resource: Resource, meta: _Meta, body: bytes) -> Outcome:
        name = urllib.parse.quote(meta.name, safe="")
        path = f"{resource.path(meta.namespace)}/{name}"
        for _ in range(CONFLICTS):
            if not meta.uid or not meta.resource_version:
                raise _RefusedError("it has no uid or no resourceVersion")
            answer = self._api.put(path, body, **self._query)
            if answer.code == http.HTTPStatus.OK:
                return self._outcome(meta, answer)
            if answer.code == http.HTTPStatus.CONFLICT:
                answer = self._api.get(path)
            if answer.code == http.HTTPStatus.NOT_FOUND:
                return Outcome.GONE
            if answer.code != http.HTTPStatus.OK:
                raise _RefusedError(why_not(answer), answer.code)
            body, meta = answer.body, decoded(answer.body, _Object).metadata
        raise _RefusedError("another client keeps changing it")

    def _outcome(self, meta: _Meta, answer: Answer) -> Outcome:
        if self._query:
            return Outcome.ACCEPTED
        after = decoded(answer.body, _Object).metadata.resource_version
        same = after == meta.resource_version
        return Outcome.UP_TO_DATE if same else Outcome.REWRITTEN

    def _stop_if_hopeless(self, resource: Resource, error: _RefusedError) -> None:
        taken = self._journal.objects > self._journal.of(Outcome.REFUSED)
        broken = error.code >= http.HTTPStatus.INTERNAL_SERVER_ERROR
        if self._in_a_row >= REFUSED_IN_A_ROW and (broken or not taken):
            raise ApiError(
                f"{self._in_a_row} {resource} in a row were refused, the last: {error}",
                hint="read the log of the API server",
            ) from None
