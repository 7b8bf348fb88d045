"""Embeddings of many images or boxes, as Parquet files."""
