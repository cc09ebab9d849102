"""`python -m conformance`: the command line of a checkout that is on the path without being
installed."""

from conformance.cli import main

if __name__ == "__main__":
    main()
