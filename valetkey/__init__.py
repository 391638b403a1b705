"""Valetkey: a valet key opens one door, for one evening; every outbound call gets one."""

__version__ = "0.1.0"
