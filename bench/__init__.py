"""Side-by-side benchmarks; `python -m bench` measures and writes bench/results/."""
