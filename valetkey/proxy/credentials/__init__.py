"""Exchange client, cache, and one file per way to inject a credential."""
