"""The story of one run on one page: data, curves with what happened, scores, pictures, health, speed, cost."""
