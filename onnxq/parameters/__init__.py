"""Scales and zero points for a plan: chosen, aligned, shared across concatenations."""
