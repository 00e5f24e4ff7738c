"""Parts of the store that SQLite alone needs: who owns a file, and what moves its log."""
