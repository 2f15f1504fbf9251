"""Side-by-side benchmarks: Overcoat, stock mitmdump and other proxies, on one machine, doing the same job."""
