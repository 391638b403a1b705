"""The sidecar (policy enforcement point) beside one workload."""
