"""``python -m exmap``."""

from exmap.cli import main

main()
