"""Pictures: fonts for every script, boxes with phrases and scores, curves, writing a PNG."""
