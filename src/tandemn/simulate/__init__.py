"""The product's own decisions in simulated time, on recorded spot traces."""
