"""Evaluation of edits: images by prompt and seed, intervals, picture grids and the HTML report."""
