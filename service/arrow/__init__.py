"""Arrow IPC streams: read from strangers, and written."""

from curation.service.arrow.streams import BatchStream, read_batches, read_table, write_buffer, write_table

__all__ = ["BatchStream", "read_batches", "read_table", "write_buffer", "write_table"]
