"""What happens to a model after aggregation: build, release, roll out, install, observe."""
