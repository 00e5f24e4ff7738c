"""Workers of a server: threads and processes that owners and their sessions share fairly."""
