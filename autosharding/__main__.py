"""`python -m autosharding` is the command line."""

from autosharding.cli import main

main()
