"""Controlled studies: plans of cells that the project's own trainer runs and its own evaluation measures."""
