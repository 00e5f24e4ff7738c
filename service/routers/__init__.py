"""Routes under ``/v1``, a router for each noun, and the models of what they take and answer."""
