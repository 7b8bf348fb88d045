"""Checks of every host before training: reachable, alike, equipped, in time, with room, data and a network."""
