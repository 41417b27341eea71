"""Many pictures into one Parquet file of predictions."""
