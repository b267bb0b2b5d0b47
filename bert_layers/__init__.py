"""The parts of the network. Nothing here knows about training, data or files; see README.md in this folder."""
