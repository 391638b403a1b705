"""The valetkey command: the only package that may import all programs."""
