"""Run the command line as ``python -m runlog``."""

from runlog.cli import main

if __name__ == "__main__":
    main()
