"""`python -m compress.cli`, as launchers start it."""

from compress.cli import main

main()
