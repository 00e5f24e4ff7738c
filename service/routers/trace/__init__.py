"""Flight recorder over HTTP: its routes, and the models of what they answer."""
