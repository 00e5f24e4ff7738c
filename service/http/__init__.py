"""HTTP: the middleware, bodies in JSON and Arrow, problem documents, OpenAPI, and what the routes depend on."""
