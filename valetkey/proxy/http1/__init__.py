"""HTTP/1.1 on the wire: one connection from the workload, one to the target, the relay between."""
