"""Dashboard: the page at ``/``, its own routes, and the sessions and datasets that it draws."""
