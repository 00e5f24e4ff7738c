"""Methods of sessions, a file each; :mod:`curation.service.session.methods.registry` names them."""
