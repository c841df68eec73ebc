"""List objects page by page, and send each one back as it came.

1.  An object is sent back byte by byte as the API server gave it, with its uid and
    resourceVersion: should it have changed, or be another of the same name, the
    answer is a conflict, and it is read again. Nothing is brought back to life.
2.  The API server writes an unchanged object only where what it has stored is not
    what it would store now: under another key, by another provider, in clear. Then
    its resourceVersion changes, which is how the two are told apart.
3.  One object that is refused stops nothing; all of them refused does.
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
CONFLICTS: Final = 10  # tries, of an object that somebody else keeps writing
REFUSED_IN_A_ROW: Final = 20  # then it is not the objects

_LISTS: Final = 5  # tries, of a list that is always out of date
_OUT_OF_DATE: Final = {http.HTTPStatus.GONE, http.HTTPStatus.BAD_REQUEST}


class _Meta(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class _RefusedError(Exception):
    """An object was not written; the text holds nothing of it."""

    def __init__(self, why: str, code: int = 0) -> None:
        super().__init__(why)
        self.code = code


class _Object(msgspec.Struct, frozen=True):
    metadata: _Meta


class _Page(msgspec.Struct, frozen=True):
    metadata: ListMeta
    items: list[msgspec.Raw] | None = None


class Pace:
    """At most so many a second.

    Args:
        rate: Per second.
    """

    def __init__(self, rate: float) -> None:
        self._each = 1 / rate
        self._next = time.monotonic()

    def wait(self) -> None:
        """Wait until the next one may go."""
        pause = self._next - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        self._next = max(self._next, time.monotonic()) + self._each


class Watcher:
    """What a migration tells of itself; this one keeps silent."""

    def page(self, resource: Resource, objects: int, left: int) -> None:
        """A page has come.

        Args:
            resource: Of its objects.
            objects: How many they are.
            left: How many come after them, 0 where the API server does not say.
        """

    def done(self) -> None:
        """One object is done."""


class Migration:
    """Writes objects anew.

    Args:
        api: The API server.
        journal: Where it stands; brought up to date as it goes on.
        save: Called with each page, before the first object of it.
        pace: How fast.
        dry_run: Have the API server go through the motions, and write nothing.
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
        """Go on from where the journal stands.

        Args:
            resources: In the same order each time.
            watcher: Told of each page and object.

        Raises:
            HsmKmsError: It cannot go on; the journal says where it stands.
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
        """The page where the journal stands.

        A list that takes longer than etcd keeps old revisions goes on in a later
        one: what came in between is written under the new key anyway.
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
                counts.refusals.append(Refused(object=str(meta), why=str(error)))
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
        raise _RefusedError("it is changed by somebody else all the time")

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
                f"{self._in_a_row} {resource} in a row were refused, the last one "
                f"because of: {error}",
                hint="see the log of the API server",
            ) from None
