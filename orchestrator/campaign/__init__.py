"""A sweep from plan to end: what is left to do, what it will cost, how it goes on."""
