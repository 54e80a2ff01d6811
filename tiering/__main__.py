"""`python -m tiering` is `kvtide`."""

from tiering.cli import main

if __name__ == "__main__":
    main()
