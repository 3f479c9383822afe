"""How a release reaches devices in stages: policy, machine, admission, document."""
