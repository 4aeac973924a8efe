"""What is known of a network before it is explained: its kind, its layers as they run, what no rule sees."""
