"""Anomaly detection in images: features, local outlier scores, the combined score, and anomaly maps."""
