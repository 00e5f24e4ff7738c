"""The methods of sessions."""
