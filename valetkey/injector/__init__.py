"""The injector: puts the sidecar into pods, by webhook or from a file."""
