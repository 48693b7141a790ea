"""ConvGPPN's gated iteration, compiled: forward, backward, unrolled, in place."""
