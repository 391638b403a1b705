"""Who this workload is."""
