"""The sessions of one server: kept, moved and committed."""
