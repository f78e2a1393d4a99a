"""``python -m fastrnn.bench``."""

from fastrnn.bench.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
