"""The command line: argv in, colours and exit codes out; no torch, no maths."""
