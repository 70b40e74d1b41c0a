"""Changes models: puts bottlenecks in, takes them out, makes keys forget."""
