"""The device's processes: agent, Flower ClientApp, local training, fetcher, inference, commands."""
