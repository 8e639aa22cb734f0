"""`python -m metricli`, and the console script."""

from metricli.stopping import leave_until_ready

leave_until_ready()  # the imports take a moment

from metricli.cli.launch import main  # noqa: E402

if __name__ == "__main__":
    main()
