"""Cost of bottlenecks and kernel quantities: the benchmark, its reference forms and its stopwatch."""
