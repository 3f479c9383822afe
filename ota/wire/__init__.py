"""Messages of the device channel; `device_pb2` is generated from `device.proto`."""
