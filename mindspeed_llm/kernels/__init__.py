"""Kernels: a plain-torch reference first, then the vendor's call."""
