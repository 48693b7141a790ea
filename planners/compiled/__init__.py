"""The cores' iterations as compiled code for processors; every number equals the reference's within tolerance."""
