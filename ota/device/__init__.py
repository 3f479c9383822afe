"""A release's life on a device: profile, lifecycle machine, slots, trial, reports."""
