"""`python -m ilp` is the command line."""

from ilp.cli import main

if __name__ == "__main__":
    main()
