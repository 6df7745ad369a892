"""`python -m semvq …` is the command `semvq …`."""

from semvq.cli import main

if __name__ == "__main__":
    main()
