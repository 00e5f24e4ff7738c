"""``python -m curation.cli``."""

from curation.cli import main

if __name__ == "__main__":
    main()
