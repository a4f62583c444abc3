"""Differential privacy as arithmetic and files: no Ray, no ML framework."""
