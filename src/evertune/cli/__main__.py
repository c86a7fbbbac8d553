"""``python -m evertune.cli``."""

from evertune.cli.app import main

main()
