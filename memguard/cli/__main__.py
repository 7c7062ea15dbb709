"""``python -m memguard.cli``: the command where it is not on the path."""

from memguard.cli import entry

if __name__ == "__main__":
    entry()
