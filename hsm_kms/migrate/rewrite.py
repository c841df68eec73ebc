"""Send each object back unchanged.

1.  An object is sent back byte for byte, with its uid and resourceVersion. If it was
    changed, or replaced by another object of the same name, the response is a conflict,
    and the object is read again. A deleted object is not restored.
2.  The API server writes an unchanged object only if its stored form would change: it
    is stored under another key, by another provider, or unencrypted. Then the
    resourceVersion changes; otherwise the object was up to date.
3.  The cluster may change more than the stored form: a mutating webhook sees each
    object that is sent back. So the response is compared with what was sent.
4.  A refused or unreadable object does not stop the migration, but many of them in a
    row end it for their resource.
"""

from __future__ import annotations

import http
import time
import urllib.parse
from typing import TYPE_CHECKING, Final

from hsm_kms.migrate.api import ResourceError
from hsm_kms.migrate.journal import Counts, Named, Outcome
from hsm_kms.migrate.listing import Listing, Page
from hsm_kms.migrate.objects import changed_fields, meta_of
from hsm_kms.migrate.refusals import why_not
from hsm_kms.migrate.unreadable import Unlisted, Unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hsm_kms.migrate.api import Answer, Api
    from hsm_kms.migrate.journal import Journal
    from hsm_kms.migrate.objects import Meta
    from hsm_kms.migrate.resources import Resource

CONFLICTS: Final = 10  # tries for an object that another client keeps changing
IN_A_ROW: Final = 20  # refused, or unreadable: the cause is not in the objects


class _RefusedError(Exception):
    """Raised when an object was not written; the text does not quote the object."""

    def __init__(self, why: str, code: int = 0) -> None:
        super().__init__(why)
        self.code = code


class Pace:
    """Limit the rate of writes.

    Args:
        rate: Most objects per second.

    Attributes:
        rate: Most objects per second.
        waited: How long `wait` has waited, in seconds.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.waited = 0.0
        self._each = 1 / rate
        self._next = time.monotonic()

    def wait(self) -> None:
        """Wait until the next object may be written."""
        began = time.monotonic()
        if self._next > began:
            time.sleep(self._next - began)
        now = time.monotonic()
        self.waited += now - began
        self._next = max(self._next, now) + self._each


class Watcher:
    """Receive the progress of a migration; this base class ignores it."""

    def page(self, resource: Resource, objects: int, left: int | None) -> None:
        """Note that a page was listed.

        Args:
            resource: Resource of the objects.
            objects: Number of objects in the page.
            left: Number of objects after the page; None if it is unknown.
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
        journal = self._journal
        names = [str(resource) for resource in resources]
        start = names.index(journal.at) if journal.at in names else 0
        for resource in resources[start:]:
            if journal.at != str(resource):
                journal.at, journal.token = str(resource), ""
            try:
                self._rewrite_all(resource, watcher)
            except ResourceError as error:
                if len(resources) == 1:
                    raise
                journal.skipped[journal.at] = str(error)

    def _rewrite_all(self, resource: Resource, watcher: Watcher) -> None:
        self._save()
        self._in_a_row = 0
        for found in Listing(self._api, self._journal, resource).pages():
            counts = self._journal.counts.setdefault(str(resource), Counts())
            if isinstance(found, Unreadable):
                self._count_unreadable(resource, found, counts)
                watcher.page(resource, 1, None)
                watcher.done()
            elif isinstance(found, Unlisted):
                name = f"{resource} of namespace {found.namespace}"
                self._journal.skipped[name] = found.reason
            else:
                self._save()
                self._rewrite_page(resource, found, counts, watcher)

    def _rewrite_page(
        self, resource: Resource, page: Page, counts: Counts, watcher: Watcher
    ) -> None:
        items = page.items or []
        last = not page.metadata.token
        left = 0 if last else page.metadata.remaining_item_count
        watcher.page(resource, len(items), left)
        for item in items:
            self._rewrite_one(resource, bytes(item), counts)
            watcher.done()

    def _count_unreadable(
        self, resource: Resource, found: Unreadable, counts: Counts
    ) -> None:
        named = Named(object=found.object, reason=found.reason)
        self._journal.note(counts, Outcome.UNREADABLE, named)
        self._in_a_row = self._in_a_row + 1 if found.passing else 0
        if self._in_a_row >= IN_A_ROW:
            raise ResourceError(
                f"{self._in_a_row} {resource} in a row cannot be decrypted, the last: "
                f"{found.reason}",
                hint="check that the KMS plugin of the API server is available",
            )

    def _rewrite_one(self, resource: Resource, item: bytes, counts: Counts) -> None:
        meta = meta_of(item)
        self._pace.wait()
        try:
            outcome, fields = self._send_back(resource, meta, item)
        except _RefusedError as error:
            named = Named(object=str(meta), reason=str(error))
            self._journal.note(counts, Outcome.REFUSED, named)
            self._in_a_row += 1
            self._stop_if_hopeless(resource, error, counts)
            return
        self._in_a_row = 0
        if fields:
            self._journal.note(counts, outcome, Named(object=str(meta), reason=fields))
        else:
            counts.add(outcome)

    def _send_back(
        self, resource: Resource, meta: Meta, body: bytes
    ) -> tuple[Outcome, str]:
        """Return the result, and the fields that the cluster changed, or "".

        Raises:
            _RefusedError: The object was not written.
        """
        name = urllib.parse.quote(meta.name, safe="")
        path = f"{resource.path(meta.namespace)}/{name}"
        for _ in range(CONFLICTS):
            if not meta.uid or not meta.resource_version:
                raise _RefusedError("it has no uid or no resourceVersion")
            answer = self._api.put(path, body, **self._query)
            if answer.code == http.HTTPStatus.OK:
                return self._outcome(meta, body, answer)
            if answer.code == http.HTTPStatus.CONFLICT:
                answer = self._api.get(path)
            if answer.code == http.HTTPStatus.NOT_FOUND:
                return Outcome.GONE, ""
            if answer.code != http.HTTPStatus.OK:
                raise _RefusedError(why_not(answer), answer.code)
            body, meta = answer.body, meta_of(answer.body)
        raise _RefusedError("another client keeps changing it")

    def _outcome(self, meta: Meta, sent: bytes, answer: Answer) -> tuple[Outcome, str]:
        after = meta_of(answer.body).resource_version
        if not self._query and after == meta.resource_version:
            return Outcome.UP_TO_DATE, ""
        fields = changed_fields(sent, answer.body)
        if fields:
            return Outcome.CHANGED, fields
        return Outcome.ACCEPTED if self._query else Outcome.REWRITTEN, ""

    def _stop_if_hopeless(
        self, resource: Resource, error: _RefusedError, counts: Counts
    ) -> None:
        taken = counts.objects > counts.failed
        broken = error.code >= http.HTTPStatus.INTERNAL_SERVER_ERROR
        if self._in_a_row >= IN_A_ROW and (broken or not taken):
            raise ResourceError(
                f"{self._in_a_row} {resource} in a row were refused, the last: {error}",
                hint="read the log of the API server",
            )
