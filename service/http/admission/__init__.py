"""Admission of connections and bodies: how many, how large, how long, and where they are parsed."""
