"""Models that are trained already: teachers, ours and icefall's, and the systems that are decoded or exported."""
