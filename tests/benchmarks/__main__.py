"""``python -m tests.benchmarks`` is ``make bench``."""

from tests.benchmarks.run import main

if __name__ == "__main__":
    main()
