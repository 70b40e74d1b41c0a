"""What the benchmark measures against, and its stopwatch."""
