"""Scenes that move: clips whose objects only their motion tells apart, and videos with labelled anomalies."""
