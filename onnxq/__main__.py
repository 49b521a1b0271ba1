"""``python -m onnxq``, and what the command ``onnxq`` runs."""

import sys


def main() -> int:
    """The exit code of the command line. Nothing is imported from the current folder, which ``-m`` puts on the path."""
    from onnxq.runtime.search_path import without_current

    sys.path[:] = without_current(sys.path)
    from onnxq.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
