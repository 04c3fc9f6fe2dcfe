"""``python -m pinchpoint.cli``."""

from pinchpoint.cli import main

main()
