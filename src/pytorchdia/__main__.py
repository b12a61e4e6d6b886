"""``python -m pytorchdia``: the command line, where its script is not on the path."""

from .cli.main import script

if __name__ == "__main__":
    script()
