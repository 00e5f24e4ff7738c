"""Store of sessions, opened epochs and reports, which survive a crash, in SQLite or PostgreSQL; blocking.

A report's losses are one blob of little-endian float32, a state's arrays are blobs cut into parts; nothing is a row for
each candidate. On SQLite every commit is on disk when it returns (WAL, ``synchronous=FULL``), and one server at a
time owns the file; on PostgreSQL several replicas share the store.
"""

from curation.service.store.records.epochs import Epochs
from curation.service.store.records.report_log import ReportLog


class Store(Epochs, ReportLog):
    """One store.

    Args:
        url: ``sqlite:///file`` or ``postgresql+psycopg://user@host/database``.

    Raises:
        StoreError: the URL is not understood, or the store is an older release's and a server of that one uses it.
        StoreVersionError: a newer release wrote the store.
    """
