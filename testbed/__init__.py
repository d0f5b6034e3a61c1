"""A small cluster of network namespaces with real traffic: for the demo, tests and benchmarks."""
