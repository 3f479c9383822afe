"""What a fleet tells about its models: baselines, summaries, recording."""
