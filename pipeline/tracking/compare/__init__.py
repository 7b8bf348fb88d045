"""Runs side by side: chosen, grouped, with differences to a baseline, as a table, JSON, CSV and one HTML page."""
