"""`python -m metricli`, and the console script."""

from metricli.cli.launch import main

if __name__ == "__main__":
    main()
