"""Devices: npu, cuda or cpu; detection and collective backends."""
