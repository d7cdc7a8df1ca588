"""Generated code of the wire contracts: `make protos` regenerates it."""
