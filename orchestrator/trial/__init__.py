"""One trial, from its spec to its result: training, tests, failure, and looking inside afterwards."""
