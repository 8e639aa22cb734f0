"""A third-party package that adds an optimizer and a loss to metricli."""
