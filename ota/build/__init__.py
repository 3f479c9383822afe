"""From a global model to gated artifacts, one per device class."""
