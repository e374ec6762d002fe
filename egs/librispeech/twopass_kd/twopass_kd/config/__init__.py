"""Settings of an experiment: read, checked, recognised by."""
