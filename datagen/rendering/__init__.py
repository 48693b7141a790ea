"""What a robot sees of a map."""
