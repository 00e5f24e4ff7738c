"""Access: tokens and their owners, as people and programs manage them."""
